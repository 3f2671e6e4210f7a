"""Compress images to a small grid of integer codes and decode them again: VQGAN, and VQGAN+CLIP."""

from .codebook import (Codebook, FiniteScalar, GumbelCodebook, Quantised, perplexity,
                       straight_through, usage)
from .discriminator import PatchGAN
from .errors import InputError
from .guide import Prompt, guide, parse_prompts, prompt_score, random_cutouts, spherical_distance
from .loss import adaptive_weight, discriminator_loss, generator_loss, psnr, reconstruction_loss
from .model import QUANTISERS, VQGAN, VQGANConfig
from .pretrained import load

__all__ = [
    "VQGAN", "VQGANConfig", "load", "InputError",
    "QUANTISERS", "Codebook", "GumbelCodebook", "FiniteScalar", "Quantised", "straight_through",
    "usage", "perplexity",
    "PatchGAN", "reconstruction_loss", "generator_loss", "discriminator_loss", "adaptive_weight",
    "psnr", "guide", "Prompt", "parse_prompts", "prompt_score", "random_cutouts",
    "spherical_distance",
]
