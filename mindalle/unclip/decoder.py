"""The decoder: draw an image from its CLIP embedding, by diffusion [unCLIP sec. 2.1; DDPM app. B].

    x(t) (b 3 h w) --> patchify --> blocks -------- skip --------> blocks --> unpatchify --> x
                                      |                               ^
                                  downsample --> blocks skip blocks --> upsample
                                                   |           ^
                                               downsample   upsample
                                                   |           ^
                                                   +-- block, attention, block

    time (b), z_i (b e) --> condition (b d), which scales and shifts the channels in every block

Where we depart: the paper's U-Net has 3.5 billion parameters and draws 64 · 64 pixels, which two
more networks upsample to 1024. Ours patchifies first: the pixels of a patch become channels, and
convolutions over a quarter of the positions cost a quarter. It reads z_i in the condition alone,
not as tokens as well, and no caption, which the paper found to offer little help.
"""

from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError
from ..layers import MLP, Attention
from ..model import check_sizes, option
from .diffusion import append_dims
from .layers import Standardise, TimeEmbedding

SKIP_STD = 0.01  # a third of a trained network's RMSE as t -> 1: at three times as much, grain stayed


@dataclass(frozen=True)
class DecoderConfig:
    """Describe a decoder. The defaults draw 32 x 32 images from the embeddings of the toy CLIP."""

    image_size: int = option(32, "side of an image in pixels")
    embed_dim: int = option(128, "width of CLIP's embeddings")
    patch_size: int = option(2, "side of the square patch of pixels that becomes one position")
    channels: int = option(48, "channels at the finest level")
    multipliers: tuple[int, ...] = option(
        (1, 2), "channels of each level, as multiples of `channels`; each but the first halves it")
    blocks: int = option(1, "residual blocks per level, on the way down and on the way up")
    heads: int = option(4, "attention heads at the coarsest level")
    condition_width: int = option(256, "channels of the condition")

    def __post_init__(self):
        check_sizes(self)
        sizes, halvings = self.multipliers, len(self.multipliers) - 1
        if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise InputError(f"multipliers are {sizes}: name one or more whole numbers, 1 or more")
        if self.image_size % (self.patch_size * 2**halvings):
            raise InputError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size} and "
                f"{halvings} halvings: choose other multipliers or another patch_size")
        if self.channels * sizes[-1] % self.heads:
            raise InputError(
                f"the coarsest level has {self.channels * sizes[-1]} channels, "
                f"no multiple of {self.heads} heads: change one of the two")
        if self.condition_width % 2:
            raise InputError(f"condition_width is {self.condition_width}: make it even")

    @property
    def grid(self) -> int:
        """Return the side of the coarsest level."""
        return self.image_size // self.patch_size // 2 ** (len(self.multipliers) - 1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of at most 32 groups, of four channels or more, that divide channels."""
    return nn.GroupNorm(gcd(channels, 32, max(1, channels // 4)), channels)


class Modulation(nn.Linear):
    """Map the condition (b d) to `parts` scales, shifts or gates (b c), 0 at first [DiT sec. 3.2]."""

    def __init__(self, condition: int, channels: int, parts: int):
        super().__init__(condition, parts * channels)
        self.parts = parts
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return super().forward(condition).chunk(self.parts, dim=1)


class ResidualBlock(nn.Module):
    """Return x + f(x), f two 3x3 convolutions.

    Between them the condition scales and shifts the normalised channels [ADM sec. 3].
    """

    def __init__(self, channels_in: int, channels_out: int, condition: int):
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.modulation = Modulation(condition, channels_out, 2)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1)
        nn.init.zeros_(self.conv2.weight)  # the block starts as the identity
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map x (b c h w), condition (b d) -> (b c' h w)."""
        scale, shift = (rearrange(part, "b c -> b c 1 1") for part in self.modulation(condition))
        change = self.norm2(self.conv1(F.silu(self.norm1(x))))
        return self.shortcut(x) + self.conv2(F.silu(change * (1 + scale) + shift))


class AttentionBlock(nn.Module):
    """A transformer block over all positions, modulated by the condition: adaLN-zero [DiT fig. 3]."""

    def __init__(self, channels: int, heads: int, condition: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)  # the modulation does that
        self.attention, self.mlp = Attention(channels, heads), MLP(channels)
        self.modulation = Modulation(condition, channels, 6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map x (b c h w), condition (b d) -> (b c h w)."""
        h = x.shape[2]
        tokens = rearrange(x, "b c h w -> b (h w) c")
        modulation = (rearrange(part, "b c -> b 1 c") for part in self.modulation(condition))
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = modulation
        normed = self.norm(tokens) * (1 + scale_1) + shift_1
        tokens = tokens + gate_1 * self.attention(normed, mask=None)
        tokens = tokens + gate_2 * self.mlp(self.norm(tokens) * (1 + scale_2) + shift_2)
        return rearrange(tokens, "b (h w) c -> b c h w", h=h)


class Level(nn.Module):
    """The residual blocks of one resolution, down and up, and the ways to the next and back."""

    def __init__(self, channels: int, next_channels: int, blocks: int, condition: int):
        super().__init__()
        self.down = nn.ModuleList(
            ResidualBlock(channels, channels, condition) for _ in range(blocks))
        self.downsample = nn.Conv2d(channels, next_channels, 2, stride=2)
        self.upsample = nn.Conv2d(next_channels, 4 * channels, 1)
        self.up = nn.ModuleList(
            ResidualBlock(channels if i else 2 * channels, channels, condition)
            for i in range(blocks))


class Decoder(nn.Module):
    """Predict an image from a noised one and its CLIP embedding."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        d, pixels = config.condition_width, 3 * config.patch_size**2
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        self.standardise = Standardise(config.embed_dim)
        self.time_in = TimeEmbedding(d)
        self.image_in = nn.Sequential(nn.Linear(config.embed_dim, d), nn.SiLU(), nn.Linear(d, d))
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.conv_in = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            Level(finer, coarser, config.blocks, d) for finer, coarser in zip(widths, widths[1:]))
        self.positions = nn.Parameter(0.02 * torch.randn(widths[-1], config.grid, config.grid))
        self.middle = nn.ModuleList([
            ResidualBlock(widths[-1], widths[-1], d),
            AttentionBlock(widths[-1], config.heads, d),
            ResidualBlock(widths[-1], widths[-1], d),
        ])
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], pixels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # at first it predicts gray, and a little of x(t)
        nn.init.zeros_(self.conv_out.bias)

    @property
    def empty(self) -> Tensor:
        """Return the embedding (e) for none: the mean, 0 once standardised [unCLIP sec. 2.1]."""
        return self.standardise.mean

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Predict the image from x(t) (b 3 h w), t (b) in [0, 1] and its z_i (b e) -> (b 3 h w)."""
        noised, p = x, self.config.patch_size
        condition = self.condition(self.time_in(1000 * t) + self.image_in(self.standardise(z)))
        x = self.conv_in(rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=p, q=p))  # patchify
        skips = []
        for level in self.levels:
            for block in level.down:
                x = block(x, condition)
            skips.append(x)
            x = level.downsample(x)
        x = x + self.positions
        for block in self.middle:
            x = block(x, condition)                                                   # (b c g g)
        for level in reversed(self.levels):
            x = rearrange(level.upsample(x), "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)
            x = torch.cat([x, skips.pop()], dim=1)
            for block in level.up:
                x = block(x, condition)
        x = self.conv_out(F.silu(self.norm_out(x)))
        x = rearrange(x, "b (c p q) h w -> b c (h p) (w q)", p=p, q=p)                # unpatchify
        # EDM's skip connection [EDM sec. 5]: average the network's answer (error SKIP_STD) and x(t)
        # (error 1 - t), each weighted by the inverse of its variance. Without it, more steps would
        # not make it more exact to invert an image and draw it again.
        c_skip = append_dims(SKIP_STD**2 / (SKIP_STD**2 + (1 - t) ** 2), x)
        return torch.lerp(x.float(), noised.float(), c_skip)
