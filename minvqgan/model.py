"""Compress a picture to a grid of integers and draw it again [VQGAN, Esser et al. 2021, sec. 3.1].

    images (b 3 h w) --> Encoder --> 1x1 --> z (b z g g) --> Codebook --> codes (b g g)
    in [-1, 1]                                                  |
    images (b 3 h w) <-- Decoder <-- 1x1 <-- z_q (b z g g) <----+

Each level but the last halves the picture, so with l levels the grid's side is g = image_size / 2^(l-1). All
is convolution and attention: any picture whose sides divide by 2^(l-1) will do, of the training size or not.

Departures: codebook.py's, and how weights start. Those of the published models fit with their keys renamed.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codebook import Codebook, GumbelCodebook, Quantised
from .layers import Downsample, Level, Upsample, group_norm, middle


@dataclass(frozen=True)
class VQGANConfig:
    """Describe a VQGAN. The defaults are a toy for 32 x 32 pictures that two CPU cores train in minutes."""

    image_size: int = 32  # side of the training pictures, in pixels
    channels: int = 16  # width of the full-resolution layers, which cost the most time
    multipliers: tuple[int, ...] = (1, 2, 4)  # width of each level in channels; all but the last halve
    residual_blocks: int = 1  # residual blocks per level of the encoder; the decoder has one more
    attention_resolutions: tuple[int, ...] = ()  # sides at which levels have attention; the middle always has
    z_channels: int = 64  # channels that leave the encoder and enter the decoder
    codebook_size: int = 512  # number of codes
    codebook_dim: int = 8  # width of a code; 4 to 8 keeps all codes in use
    quantiser: str = "nearest"  # nearest, or gumbel, for which the four below mean nothing
    l2_normalised: bool = False  # compare codes and latents by direction only
    beta: float = 0.25  # weight of the commitment term, which pulls the encoder towards its codes
    rate_weight: float = 0.03  # price of a nat of code length; 0 takes the nearest code, however rare
    restart_after: int = 50  # training batches a code may go unused before it is moved onto a latent

    def __post_init__(self):
        sizes = ("image_size", "channels", "residual_blocks", "z_channels", "codebook_size", "codebook_dim")
        for name in (*sizes, "restart_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers is {self.multipliers}: give one of at least 1 per level")
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} does not divide by {self.factor}: multipliers "
                             f"{self.multipliers} halve it {len(self.multipliers) - 1} times; change either")
        if unknown := set(self.attention_resolutions) - set(self.resolutions):
            raise ValueError(f"attention_resolutions has {sorted(unknown)}: the sides are {self.resolutions}")
        if self.quantiser not in ("nearest", "gumbel"):
            raise ValueError(f"quantiser is {self.quantiser!r}: it must be 'nearest' or 'gumbel'")
        for name in ("beta", "rate_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be negative")

    @property
    def factor(self) -> int:
        """Count the pixels that a code stands for, along a side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Count the codes along a side: g."""
        return self.image_size // self.factor

    @property
    def resolutions(self) -> tuple[int, ...]:
        """List the side of each level, the picture's first."""
        return tuple(self.image_size // 2**level for level in range(len(self.multipliers)))

    @property
    def widths(self) -> tuple[int, ...]:
        """List the channels of each level, the picture's first."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @classmethod
    def tiny(cls) -> "VQGANConfig":
        """Describe the toy: 32 x 32 pixels, 8 x 8 codes out of 512."""
        return cls()

    @classmethod
    def f16_1024(cls) -> "VQGANConfig":
        """Describe the published ImageNet model: 256 x 256 pixels, 16 x 16 codes out of 1024."""
        return cls(image_size=256, channels=128, multipliers=(1, 1, 2, 2, 4), residual_blocks=2,
                   attention_resolutions=(16,), z_channels=256, codebook_size=1024, codebook_dim=256,
                   l2_normalised=False, rate_weight=0.0)

    @classmethod
    def f16_16384(cls) -> "VQGANConfig":
        """Describe the published ImageNet model with 16384 codes, which is minDALL-E's first stage too."""
        return replace(cls.f16_1024(), codebook_size=16384)

    @classmethod
    def f8_gumbel(cls) -> "VQGANConfig":
        """Describe the published model with a Gumbel codebook: 256 x 256 pixels, 32 x 32 codes out of 8192."""
        return replace(cls.f16_1024(), multipliers=(1, 1, 2, 4), attention_resolutions=(32,), codebook_size=8192,
                       quantiser="gumbel")


class Encoder(nn.Module):
    """Map images (b 3 h w) to features (b z_channels g g), from the full resolution down."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        width = config.channels
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.levels = nn.ModuleList()
        for side, wider in zip(config.resolutions, config.widths):
            resample = nn.Identity() if side == config.grid else Downsample(wider)
            attend = side in config.attention_resolutions
            self.levels.append(Level(width, wider, config.residual_blocks, attend, resample))
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
    """Map features (b z_channels g g) to images (b 3 h w): the encoder's levels from last to first."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        width = config.widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.middle = middle(width)
        self.levels = nn.ModuleList()  # as they run: levels[0] has the lowest resolution
        for side, narrower in zip(reversed(config.resolutions), reversed(config.widths)):
            resample = nn.Identity() if side == config.image_size else Upsample(narrower)
            attend = side in config.attention_resolutions
            self.levels.append(Level(width, narrower, config.residual_blocks + 1, attend, resample))
            width = narrower
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.middle(self.conv_in(features))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def initialise(module: nn.Module) -> None:
    """Draw convolutions from N(0, 1/fan_in), biases zero: signals keep their size from layer to layer.

    PyTorch's own start shrinks them by √3 each time, and training dawdles for its first hundred steps, with
    all latents on a handful of codes.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, module.weight[0].numel() ** -0.5)
        nn.init.zeros_(module.bias)


class VQGAN(nn.Module):
    """Hold encoder, codebook and decoder. The discriminator stands apart: only training needs one."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.to_codebook = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        if config.quantiser == "gumbel":
            self.codebook = GumbelCodebook(config.codebook_size, config.codebook_dim)
        else:
            self.codebook = Codebook(config.codebook_size, config.codebook_dim, config.l2_normalised, config.beta,
                                     config.rate_weight, config.restart_after)
        self.from_codebook = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(config)
        self.apply(initialise)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantised]:
        """Compress and redraw images (b 3 h w) in [-1, 1]  ->  reconstruction (b 3 h w), Quantised."""
        quantised = self.quantise(self.latents(images))
        return self.decode_latents(quantised.z_q), quantised

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Compress images (b 3 h w) in [-1, 1]  ->  codes (b g g) int64 in [0, codebook_size)."""
        return self.quantise(self.latents(images)).codes

    def decode(self, codes: Tensor) -> Tensor:
        """Draw codes (b g g) int64  ->  images (b 3 h w), about [-1, 1], not clamped."""
        return self.decode_latents(self.codebook.lookup(codes))

    def latents(self, images: Tensor) -> Tensor:
        """Encode images (b 3 h w) in [-1, 1], not quantised yet  ->  z (b z g g)."""
        height, width, factor = images.shape[2], images.shape[3], self.config.factor
        if height % factor or width % factor:
            raise ValueError(f"a picture is {height} x {width}: make both sides divide by {factor}")
        return self.to_codebook(self.encoder(images))

    def quantise(self, z: Tensor) -> Quantised:
        """Replace each vector of z (b z g g) by its code. In training mode this counts as a batch."""
        return self.codebook(z)

    def decode_latents(self, z_q: Tensor) -> Tensor:
        """Draw quantised latents (b z g g)  ->  images (b 3 h w), about [-1, 1], not clamped."""
        return self.decoder(self.from_codebook(z_q))

    @property
    def last_weight(self) -> Tensor:
        """Give the decoder's last convolution (3 c 3 3), where loss.adaptive_weight compares gradients."""
        return self.decoder.conv_out.weight
