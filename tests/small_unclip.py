"""A small prior and decoder as the tests of mindalle.unclip share them, their inputs, and stand-ins for a model."""

import dataclasses

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from mindalle.unclip import Decoder, DecoderConfig, Prior, PriorConfig, even_times
from mindalle.unclip.diffusion import append_dims

PRIOR = PriorConfig(embed_dim=6, token_width=5, text_length=4, width=16, layers=2, heads=2)
DECODER = DecoderConfig(image_size=16, embed_dim=6, channels=8, heads=2, condition_width=16)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def perturbed(model: nn.Module) -> nn.Module:
    """Add to all weights what makes the output depend visibly on every input: at first it is 0."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    return model


def new_prior(**changes) -> Prior:
    torch.manual_seed(0)
    return Prior(dataclasses.replace(PRIOR, **changes))


def new_decoder(**changes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(dataclasses.replace(DECODER, **changes))


def captions(b: int, config: PriorConfig = PRIOR, seed: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Make token features (b t d), a mask (b t) with 2, 3, 4, 2, ... tokens, and z_t (b e)."""
    lengths = 2 + torch.arange(b) % (config.text_length - 1)
    features = normal(b, config.text_length, config.token_width, seed=seed)
    return features, torch.arange(config.text_length) < rearrange(lengths, "b -> b 1"), normal(b, config.embed_dim, seed=seed + 1)


def no_caption(config: PriorConfig = PRIOR) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(part[0] for part in captions(1, config, seed=9))


def gaussian(mean: Tensor | float, std: float):
    """Return the ideal denoiser of x ~ N(mean, std²): x(t) is jointly normal with x, so E[x | x(t)] is linear."""
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        t = append_dims(t, x)
        return mean + t * std**2 / (t**2 * std**2 + (1 - t) ** 2) * (x - t * mean)

    return denoise


class Recorder:
    """Stand in for a model: a function of every input, which keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x: Tensor, t: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        self.calls.append((x, t, z, mask))
        return (torch.sin(x) + append_dims(t, x)) * (1 + (z * mask).sum(dim=1, keepdim=True)) + z


STD, PROJECTION = 0.5, normal(6, 3, 4, 4, seed=30)
TIMES_64 = even_times(64)


class ClosedForm:
    """A denoiser in closed form: the images of an embedding are a Gaussian around `centre(z)`. Keeps the embeddings."""

    def __init__(self):
        self.embeddings = []

    def __call__(self, z: Tensor):
        self.embeddings.append(z)
        return gaussian(centre(z), STD)


def centre(z: Tensor) -> Tensor:
    return einsum(z, PROJECTION, "b e, e c h w -> b c h w")


def images_and_embeddings(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make embeddings (n e), unit vectors, noise (n 3 4 4), and the images (n 3 4 4) of both -> images, embeddings, noise"""
    z, noise = F.normalize(normal(count, 6, seed=31), dim=1), normal(count, 3, 4, 4, seed=32)
    return centre(z) + STD * noise, z, noise
