"""Learn one embedding space for images and captions [CLIP, Radford et al. 2021]."""

from .accumulate import accumulated_backward
from .batches import LookAlikes
from .errors import InputError
from .loss import LOSSES, same_caption, sigmoid_loss, softmax_loss
from .model import CLIP, CLIPConfig
from .preprocess import preprocess
from .pretrained import PRESETS, load
from .retrieve import TEMPLATES, class_embeddings, classify, recall_at_k, search
from .tokenizer import Tokenizer, normalise

__all__ = [
    "CLIP", "CLIPConfig", "load", "PRESETS", "preprocess",
    "Tokenizer", "normalise",
    "LOSSES", "softmax_loss", "sigmoid_loss", "same_caption", "accumulated_backward", "LookAlikes",
    "TEMPLATES", "class_embeddings", "classify", "search", "recall_at_k",
    "InputError",
]
