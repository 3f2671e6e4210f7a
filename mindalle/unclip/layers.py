"""What prior and decoder share: the embedding of time, the standardisation of CLIP's embeddings."""

import math

import torch
from einops import einsum
from torch import Tensor, nn


def sinusoids(steps: Tensor, width: int) -> Tensor:
    """Compute the sinusoidal embedding of steps (b), 0 to 1000 -> (b d)

    The highest frequency has a period of 2π steps, which tells close times apart; the lowest nearly
    ten thousand times that [Attention is all you need, sec. 3.5].
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=steps.device) / half)
    angles = einsum(steps.float(), frequencies, "b, d -> b d")
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """Turn a time, counted in thousandths, into a vector that a network can use: (b) -> (b d)."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, steps: Tensor) -> Tensor:
        return super().forward(sinusoids(steps, self[0].in_features))


class Standardise(nn.Module):
    """Standardise each of the e dimensions to mean 0, std 1 over the training set, as Karlo does.

    The numbers of a unit vector are near 1/√e, far smaller than the noise of std 1 that is added.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, z: Tensor) -> None:
        """Measure mean and std of embeddings (images e). A dimension that never changes has std 1."""
        std = z.std(dim=0, correction=0)
        self.mean.copy_(z.mean(dim=0))
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def forward(self, z: Tensor) -> Tensor:
        """Map embeddings (b e) -> (b e), standardised."""
        return (z - self.mean) / self.std

    def inverse(self, z: Tensor) -> Tensor:
        """Map standardised embeddings (b e) back -> (b e)."""
        return z * self.std + self.mean
