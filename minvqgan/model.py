"""Compress a picture to a grid of integers and draw it again [VQGAN, Esser et al. 2021, sec. 3.1].

    images (b 3 h w) ──► Encoder ──► (b · g g) ──► 1x1 ──► z (b z g g) ──► Codebook ──► codes (b g g)
    in [-1, 1]                                                                │
    images (b 3 h w) ◄── Decoder ◄── (b · g g) ◄── 1x1 ◄── z_q (b z g g) ◄────┘

Each level but the last halves the picture, so with l levels the grid's side is g = image_size / 2^(l-1). All is
convolution and attention: any picture whose sides divide by 2^(l-1) will do, the training size is only a habit.

Departures: see codebook.py for the codes. The published models' weights fit after renaming alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codebook import Codebook, Quantised
from .layers import Downsample, Level, Upsample, group_norm, middle


@dataclass(frozen=True)
class VQGANConfig:
    """Describe a VQGAN. The defaults are a toy for 32 x 32 pictures that two CPU cores train in minutes."""

    image_size: int = 32  # side of the square training pictures, in pixels
    channels: int = 32  # width of the full-resolution layers, which cost most
    multipliers: tuple[int, ...] = (1, 2, 4)  # width of each level in units of channels; all but the last halve
    residual_blocks: int = 1  # residual blocks a level in the encoder; the decoder has one more
    attention_resolutions: tuple[int, ...] = ()  # sides of the levels with attention, beside that in the middle
    z_channels: int = 64  # channels between encoder or decoder and the 1x1 convolutions around the codebook
    codebook_size: int = 512  # number of codes
    codebook_dim: int = 8  # width of a code; 4 to 8 keeps all codes in use
    l2_normalised: bool = True  # codes and latents on the unit sphere, compared by direction
    beta: float = 0.25  # weight of the commitment term, which pulls the encoder towards its codes
    restart_after: int = 50  # training batches a code may go unused before it is moved onto a latent

    def __post_init__(self):
        for name in ("image_size", "channels", "residual_blocks", "z_channels", "codebook_size", "codebook_dim",
                     "restart_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers is {self.multipliers}; give one whole number of at least 1 per level")
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} does not divide by {self.factor}: {len(self.multipliers)} "
                             f"multipliers halve it {len(self.multipliers) - 1} times; change one or the other")
        if unknown := set(self.attention_resolutions) - set(self.resolutions):
            raise ValueError(f"attention_resolutions has {sorted(unknown)}; the levels' sides are {self.resolutions}")
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta}; it must not be negative")

    @property
    def factor(self) -> int:
        """Give the pixels that one code stands for, along a side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Give g, the side of the code grid."""
        return self.image_size // self.factor

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Give the side of the picture at each level, from the pixels down."""
        return tuple(self.image_size // 2**level for level in range(len(self.multipliers)))

    @classmethod
    def tiny(cls) -> "VQGANConfig":
        """Return the toy: 32 x 32 pixels, 8 x 8 codes of 512."""
        return cls()

    @classmethod
    def f16_1024(cls) -> "VQGANConfig":
        """Return the published ImageNet model: 256 x 256 pixels, 16 x 16 codes of 1024; 72.14 M parameters."""
        return cls(image_size=256, channels=128, multipliers=(1, 1, 2, 2, 4), residual_blocks=2,
                   attention_resolutions=(16,), z_channels=256, codebook_size=1024, codebook_dim=256,
                   l2_normalised=False)

    @classmethod
    def f16_16384(cls) -> "VQGANConfig":
        """Return the published ImageNet model with 16384 codes, minDALL-E's too; 76.07 M parameters."""
        return cls(image_size=256, channels=128, multipliers=(1, 1, 2, 2, 4), residual_blocks=2,
                   attention_resolutions=(16,), z_channels=256, codebook_size=16384, codebook_dim=256,
                   l2_normalised=False)


class Encoder(nn.Module):
    """Map images (b 3 h w) to latents (b z_channels h/f w/f), f = config.factor."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.levels = nn.ModuleList()
        width = config.channels
        for i, out in enumerate(widths):
            last = i == len(widths) - 1
            self.levels.append(Level(width, out, config.residual_blocks,
                                     attend=config.resolutions[i] in config.attention_resolutions,
                                     resample=nn.Identity() if last else Downsample(out)))
            width = out
        self.middle = middle(width)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Map latents (b z_channels h/f w/f) to images (b 3 h w): the encoder from back to front, a block more a level."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        width = widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.middle = middle(width)
        self.levels = nn.ModuleList()  # in the order they run: levels[0] has the lowest resolution
        for i, out in reversed(list(enumerate(widths))):
            self.levels.append(Level(width, out, config.residual_blocks + 1,
                                     attend=config.resolutions[i] in config.attention_resolutions,
                                     resample=nn.Identity() if i == 0 else Upsample(out)))
            width = out
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQGAN(nn.Module):
    """Hold encoder, codebook and decoder. The discriminator is apart: only training needs it."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.to_codebook = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.codebook = Codebook(config.codebook_size, config.codebook_dim, config.l2_normalised, config.beta,
                                 config.restart_after)
        self.from_codebook = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(config)

    def latents(self, images: Tensor) -> Tensor:
        """Encode images (b 3 h w) in [-1, 1] without quantising  ->  z (b z g g)."""
        height, width, factor = images.shape[-2], images.shape[-1], self.config.factor
        if height % factor or width % factor:
            raise ValueError(f"a picture of {height} x {width} pixels: both sides must divide by {factor}; resize it")
        return self.to_codebook(self.encoder(images))

    def quantise(self, z: Tensor) -> Quantised:
        """Replace each vector of z (b z g g) by its nearest code. In training mode the codebook keeps count."""
        return self.codebook(z)

    def decode_latents(self, z_q: Tensor) -> Tensor:
        """Draw the images (b 3 h w) of quantised latents (b z g g); about [-1, 1], not clamped."""
        return self.decoder(self.from_codebook(z_q))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Compress images (b 3 h w) in [-1, 1]  ->  codes (b g g) int64 in [0, codebook_size)."""
        return self.quantise(self.latents(images)).codes

    def decode(self, codes: Tensor) -> Tensor:
        """Draw the images (b 3 h w) of codes (b g g) int64; about [-1, 1], not clamped."""
        return self.decode_latents(self.codebook.lookup(codes))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantised]:
        """Compress and redraw images (b 3 h w) in [-1, 1]  ->  reconstruction (b 3 h w), Quantised."""
        quantised = self.quantise(self.latents(images))
        return self.decode_latents(quantised.z_q), quantised

    @property
    def last_weight(self) -> Tensor:
        """Give the weight (3 c 3 3) of the decoder's last convolution, where the adaptive weight is measured."""
        return self.decoder.conv_out.weight
