"""Turn pictures into a small grid of discrete codes and back: VQGAN, and VQGAN+CLIP on top of it."""

from .codebook import Codebook, GumbelCodebook, Quantised, perplexity, straight_through, usage
from .discriminator import PatchGAN
from .guide import Prompt, guide, parse_prompts, prompt_score, random_cutouts, spherical_distance
from .loss import adaptive_weight, discriminator_loss, generator_loss, reconstruction_loss
from .model import VQGAN, VQGANConfig
from .pretrained import load

__all__ = [
    "VQGAN", "VQGANConfig", "load",
    "Codebook", "GumbelCodebook", "Quantised", "straight_through", "usage", "perplexity",
    "PatchGAN", "reconstruction_loss", "generator_loss", "discriminator_loss", "adaptive_weight",
    "guide", "Prompt", "parse_prompts", "prompt_score", "random_cutouts", "spherical_distance",
]
