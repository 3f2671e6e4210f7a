"""Learn one space for images and captions from pairs of them [CLIP, Radford et al. 2021]."""

from .loss import accumulated_backward, contrastive_loss, same_caption
from .model import CLIP, CLIPConfig
from .preprocess import preprocess
from .pretrained import PRESETS, load
from .retrieve import TEMPLATES, class_embeddings, classify, recall_at_k, search
from .tokenizer import Tokenizer, normalise

__all__ = [
    "CLIP", "CLIPConfig", "load", "PRESETS", "preprocess",
    "Tokenizer", "normalise",
    "contrastive_loss", "same_caption", "accumulated_backward",
    "TEMPLATES", "class_embeddings", "classify", "search", "recall_at_k",
]
