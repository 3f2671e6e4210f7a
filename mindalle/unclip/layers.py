"""What the prior and the decoder share: the embedding of time, and embeddings of CLIP brought to one scale."""

import math

import torch
from einops import einsum
from torch import Tensor, nn


def sinusoids(steps: Tensor, width: int) -> Tensor:
    """Describe a time by waves of many lengths [Attention is all you need, sec. 3.5]: steps (b), 0 to 1000 -> (b d)

    The shortest wave is 2π steps long, so that close times can be told apart, the longest nearly ten thousand times that.
    """
    speeds = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=steps.device) / (width // 2))
    angles = einsum(steps.float(), speeds, "b, d -> b d")
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """Turn a time, counted in thousandths, into a vector that a network can use: (b) -> (b d)."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, steps: Tensor) -> Tensor:
        return super().forward(sinusoids(steps, self[0].in_features))


class Whitening(nn.Module):
    """Bring each of the e numbers of an embedding to mean 0 and deviation 1 over the training set, as Karlo does.

    An embedding of unit length has numbers near 1/√e. Diffusion mixes it with noise of deviation 1, in which it would drown.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, z: Tensor) -> None:
        """Measure mean and deviation over embeddings (images e). A number that is the same for all is not scaled."""
        std = z.std(dim=0, correction=0)
        self.mean.copy_(z.mean(dim=0))
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def forward(self, z: Tensor) -> Tensor:
        """Map embeddings (b e) -> (b e), whitened."""
        return (z - self.mean) / self.std

    def inverse(self, z: Tensor) -> Tensor:
        """Map whitened embeddings (b e) back -> (b e)."""
        return z * self.std + self.mean
