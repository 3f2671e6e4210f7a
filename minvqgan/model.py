"""Compress images to a grid of integers and decode them again [VQGAN, Esser et al. 2021, sec. 3.1].

    images (b 3 h w) --> Encoder --> 1x1 --> z (b z g g) --> Codebook --> codes (b g g)
    in [-1, 1]                                                  |
    images (b 3 h w) <-- Decoder <-- 1x1 <-- z_q (b z g g) <----+

Each level but the last halves the resolution, so with l levels the grid has g = image_size /
2^(l-1) codes a side. All is convolution and attention: any image whose sides are multiples of
2^(l-1) will do, of the training size or not.

Departures: those of codebook.py, and how weights start. Published weights load by renaming.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codebook import Codebook, FiniteScalar, GumbelCodebook, Quantised
from .errors import InputError
from .layers import Downsample, Level, Upsample, group_norm, middle


def option(default: Any, help: str) -> Any:
    """Declare a config field; its help is also that of the command-line flag made from it."""
    return field(default=default, metadata={"help": help})


# VQGANConfig.quantiser -> builds it from the config
QUANTISERS: dict[str, Callable[["VQGANConfig"], nn.Module]] = {
    "nearest": lambda c: Codebook(c.codebook_size, c.codebook_dim, c.beta, c.rate_weight,
                                  c.restart_after),
    "gumbel": lambda c: GumbelCodebook(c.codebook_size, c.codebook_dim),
    "fsq": lambda c: FiniteScalar(c.codebook_dim, c.levels),
}


@dataclass(frozen=True)
class VQGANConfig:
    """Describe a VQGAN. The defaults are a toy for 32 x 32 images, trained in minutes on a CPU."""

    image_size: int = option(32, "side of the training images, in pixels")
    channels: int = option(16, "width of the full-resolution layers, which cost the most time")
    multipliers: tuple[int, ...] = option((1, 2, 4), "width of each level as a multiple of "
                                                     "channels; every level but the last halves "
                                                     "the resolution")
    residual_blocks: int = option(1, "residual blocks per level of the encoder; the decoder has "
                                     "one more")
    attention_resolutions: tuple[int, ...] = option((), "sides of the levels that have attention, "
                                                        "in pixels; the middle always has it")
    z_channels: int = option(64, "channels that leave the encoder and enter the decoder")
    codebook_size: int = option(512, "number of codes")
    codebook_dim: int = option(8, "width of the vectors that are quantised; 4 to 8 keeps all codes "
                                  "of a nearest quantiser in use")
    quantiser: str = option("nearest", f"how a latent becomes a code: {', '.join(QUANTISERS)}")
    beta: float = option(0.25, "nearest only: weight of the commitment term, which pulls latents "
                               "to their codes")
    rate_weight: float = option(0.03, "nearest only: price of a nat of code length; 0 takes the "
                                      "nearest code, however rare")
    restart_after: int = option(50, "nearest only: training batches that a code may go unused "
                                    "before it is moved onto a latent")
    levels: tuple[int, ...] = option((8, 8, 8), "fsq only: levels to which each scalar is rounded; "
                                                "their product is codebook_size")

    def __post_init__(self):
        for name in ("image_size", "channels", "residual_blocks", "z_channels", "codebook_size",
                     "codebook_dim", "restart_after"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}: make it a whole number, 1 or more")
        if not self.multipliers or any(not isinstance(m, int) or m < 1 for m in self.multipliers):
            raise InputError(f"multipliers are {self.multipliers}: name one or more whole numbers, "
                             "1 or more")
        if self.image_size % self.factor:
            raise InputError(f"image_size {self.image_size} is not divisible by {self.factor}: "
                             f"multipliers {self.multipliers} halve it "
                             f"{len(self.multipliers) - 1} times; change either")
        if unknown := set(self.attention_resolutions) - set(self.resolutions):
            raise InputError(f"attention_resolutions has {sorted(unknown)}: the sides are "
                             f"{self.resolutions}")
        if self.quantiser not in QUANTISERS:
            raise InputError(f"quantiser is {self.quantiser!r}: it must be one of "
                             f"{', '.join(QUANTISERS)}")
        for name in ("beta", "rate_weight"):
            if not getattr(self, name) >= 0:  # nan is not
                raise InputError(f"{name} is {getattr(self, name)}: make it 0 or more")
        if self.quantiser == "fsq":
            codes = prod(self.levels)
            if not self.levels or min(self.levels) < 2:
                raise InputError(f"levels is {self.levels}: give one of at least 2 per scalar")
            if codes != self.codebook_size:
                raise InputError(f"levels {self.levels} make {codes} codes, codebook_size is "
                                 f"{self.codebook_size}: set codebook_size to {codes}, or choose "
                                 f"levels whose product is {self.codebook_size}")

    @property
    def factor(self) -> int:
        """Return how many pixels a code stands for, along a side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Return how many codes there are along a side: g."""
        return self.image_size // self.factor

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Return the side of each level, the image's first."""
        return tuple(self.image_size // 2**level for level in range(len(self.multipliers)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the channels of each level, the full resolution first."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @classmethod
    def f16_1024(cls) -> "VQGANConfig":
        """Return the published ImageNet model: 256 x 256 pixels, 16 x 16 codes out of 1024."""
        return cls(image_size=256, channels=128, multipliers=(1, 1, 2, 2, 4), residual_blocks=2,
                   attention_resolutions=(16,), z_channels=256, codebook_size=1024,
                   codebook_dim=256, rate_weight=0.0)


class Encoder(nn.Module):
    """Map images (b 3 h w) to features (b z_channels g g), from the full resolution down."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        width = config.channels
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.levels = nn.ModuleList()
        for side, wider in zip(config.resolutions, config.widths):
            resample = nn.Identity() if side == config.grid else Downsample(wider)
            attention = side in config.attention_resolutions
            self.levels.append(Level(width, wider, config.residual_blocks, attention, resample))
            width = wider
        self.middle = middle(width)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Map features (b z_channels g g) to images (b 3 h w): the encoder's levels in reverse."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        width = config.widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.middle = middle(width)
        self.levels = nn.ModuleList()  # in order of execution: levels[0] has the lowest resolution
        blocks = config.residual_blocks + 1
        for side, narrower in zip(reversed(config.resolutions), reversed(config.widths)):
            resample = nn.Identity() if side == config.image_size else Upsample(narrower)
            attention = side in config.attention_resolutions
            self.levels.append(Level(width, narrower, blocks, attention, resample))
            width = narrower
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.middle(self.conv_in(features))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def initialise(module: nn.Module) -> None:
    """Sample convolutions from N(0, 1/fan_in), biases zero: signals keep their size.

    PyTorch's default shrinks them by √3 per layer. Training then makes little progress in its
    first hundred steps, with all latents on a handful of codes.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, module.weight[0].numel() ** -0.5)
        nn.init.zeros_(module.bias)


class VQGAN(nn.Module):
    """Hold encoder, codebook and decoder. Only training needs a discriminator, a separate model."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.to_codebook = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.codebook = QUANTISERS[config.quantiser](config)
        self.from_codebook = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(config)
        self.apply(initialise)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantised]:
        """Reconstruct images (b 3 h w) in [-1, 1] -> reconstruction (b 3 h w), Quantised."""
        quantised = self.codebook(self.latents(images))
        return self.decode_latents(quantised.z_q), quantised

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Compress images (b 3 h w) in [-1, 1] -> codes (b g g) int64 in [0, codebook_size)."""
        return self.codebook(self.latents(images)).codes

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (b g g) int64 -> images (b 3 h w), about [-1, 1], not clamped."""
        return self.decode_latents(self.codebook.lookup(codes))

    def latents(self, images: Tensor) -> Tensor:
        """Encode images (b 3 h w) in [-1, 1], not quantised yet -> z (b z g g)."""
        height, width, factor = images.shape[2], images.shape[3], self.config.factor
        if height % factor or width % factor:
            raise ValueError(f"an image is {height} x {width}: make both sides multiples of "
                             f"{factor}")
        return self.to_codebook(self.encoder(images))

    def decode_latents(self, z_q: Tensor) -> Tensor:
        """Decode quantised latents (b z g g) -> images (b 3 h w), about [-1, 1], not clamped."""
        return self.decoder(self.from_codebook(z_q))

    @property
    def last_weight(self) -> Tensor:
        """Return the last convolution's weight, where adaptive_weight compares gradients."""
        return self.decoder.conv_out.weight
