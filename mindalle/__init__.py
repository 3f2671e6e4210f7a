"""DALL·E: one transformer that reads a caption and then writes the codes of an image."""

from .errors import InputError
from .generate import generate, generate_steps, rerank
from .loss import dalle_loss, drop_captions
from .model import DALLE, DALLEConfig
from .pretrained import load
from .pretrained_tokenizer import MinDALLETokenizer

__all__ = [
    "DALLE", "DALLEConfig", "InputError", "MinDALLETokenizer", "dalle_loss", "drop_captions",
    "generate", "generate_steps", "load", "rerank",
]
