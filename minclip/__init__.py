"""Learn one space for images and texts from captioned pictures [CLIP, Radford et al. 2021, arXiv 2103.00020]."""

from .loss import accumulated_backward, contrastive_loss, same_caption
from .model import CLIP, CLIPConfig
from .pretrained import load
from .retrieve import TEMPLATES, class_embeddings, classify, recall_at_k, search
from .tokenizer import Tokenizer, normalise

__all__ = [
    "CLIP", "CLIPConfig", "load",
    "Tokenizer", "normalise",
    "contrastive_loss", "same_caption", "accumulated_backward",
    "TEMPLATES", "class_embeddings", "classify", "search", "recall_at_k",
]
