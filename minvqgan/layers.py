"""Define the layers that VQGAN's encoder and decoder share [VQGAN sec. 3.1, table 7].

All keep the layout (b c h w).

    ResidualBlock   (b c h w) -> (b c' h w)      sees the neighbours
    Attention       (b c h w) -> (b c h w)       sees everything: one head, every position a token
    Downsample      (b c h w) -> (b c h/2 w/2)
    Upsample        (b c h w) -> (b c 2h 2w)
    Level           residual blocks (and attention), then a change of resolution
"""

from math import gcd

import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Normalise in the weights' precision: on a CPU, bf16 takes four to six times as long."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def group_norm(channels: int) -> GroupNorm:
    """Return a GroupNorm of gcd(32, channels, channels // 4) groups.

    They are at most 32, of four channels or more, as in the published models. With one channel per
    group, every channel would lose its mean over the image, and before the last convolution this
    mean is the image's colour.
    """
    return GroupNorm(gcd(channels, 32, max(1, channels // 4)), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Return x + f(x), f two 3x3 convolutions; x passes a 1x1 one where its channels change."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        change = self.conv1(F.silu(self.norm1(x)))
        change = self.conv2(F.silu(self.norm2(change)))
        return self.shortcut(x) + change


class Attention(nn.Module):
    """Return x + attention(norm(x)), with one head, over all positions; projections are 1x1."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.weights = nn.Identity()  # a forward hook here sees the attention weights (b i j)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q = rearrange(self.query(normed), "b c h w -> b (h w) c")
        k = rearrange(self.key(normed), "b c h w -> b (h w) c")
        v = rearrange(self.value(normed), "b c h w -> b (h w) c")
        # written out, since scaled_dot_product_attention never forms the weights, which explaining
        # shows; on an Ice Lake Xeon, in fp32, it takes 1.1 of the time
        scores = einsum(q, k, "b i c, b j c -> b i j") * q.shape[-1] ** -0.5
        mixed = self.weights(scores.softmax(dim=-1)).to(v.dtype) @ v          # (b h·w c)
        return x + self.out(rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # Zeros on the right and bottom only: with padding on all sides the published weights would
        # load as well, but every kernel would sit one pixel too far to the upper left.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: repeat pixels, then convolve, which leaves no checkerboard."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Run one resolution's residual blocks, each with attention after it if asked; `resample`."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, attention: bool,
                 resample: nn.Module):
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(i, o) for i, o in zip(widths, widths[1:]))
        self.attentions = nn.ModuleList(Attention(channels_out) if attention else nn.Identity()
                                        for _ in range(blocks))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions):
            x = attention(block(x))
        return self.resample(x)


def middle(channels: int) -> nn.Sequential:
    """Return the layers at the resolution of the code grid: block, attention, block."""
    return nn.Sequential(ResidualBlock(channels, channels), Attention(channels),
                         ResidualBlock(channels, channels))
