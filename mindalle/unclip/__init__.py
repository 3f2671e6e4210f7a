"""DALL·E 2, unCLIP: a prior draws a CLIP embedding from a caption, a decoder an image from that."""

from .decoder import Decoder, DecoderConfig
from .diffusion import (
    denoising_loss, diffusion_step, drop_condition, even_times, expected_loss, guided, invert, mix,
    random_times, sample, sample_steps,
)
from .edit import Denoiser, edit, interpolate, slerp, variations
from .pretrained import load
from .prior import Prior, PriorConfig, draw_embeddings

__all__ = [
    "Decoder", "DecoderConfig", "Denoiser", "Prior", "PriorConfig", "denoising_loss",
    "diffusion_step", "draw_embeddings", "drop_condition", "edit", "even_times", "expected_loss",
    "guided", "interpolate", "invert", "load", "mix", "random_times", "sample", "sample_steps",
    "slerp", "variations",
]
