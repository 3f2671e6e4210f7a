"""Embed images and captions in one space, where a picture lies beside its caption [CLIP sec. 2, figure 3].

    image (b 3 h w) -> patches (b g·g d) -> class token, positions -> Transformer -> token 0     -> projection \\
                                                                                                     (b e), cosine
    ids (b t)       -> tokens  (b t d)   ->              positions -> Transformer -> token `end` -> projection /

The image encoder is a Vision Transformer with one more LayerNorm, before the blocks [CLIP sec. 2.4]; the text encoder
is GPT-2's, causal. Module by module this is the published model, so that its weights load by renaming.

Where we depart: images come in [-1, 1] and are normalised inside; both encoders are initialised in the same way
(published: the text encoder's only); a text may be shorter than context_length, saving the work on the padding.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .layers import ACTIVATIONS, Transformer

MAX_LOGIT_SCALE = math.log(100)  # a larger scale made training unstable [CLIP sec. 2.5]
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the web images that the published weights were trained on
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CLIPConfig:
    """Name every size of a CLIP; the defaults train in minutes on two CPU cores."""

    image_size: int = 32             # side of an image in pixels
    patch_size: int = 4              # side of a patch in pixels; halving it makes four times the image tokens
    vision_width: int = 128          # channels of an image token
    vision_layers: int = 4           # blocks of the image encoder
    vision_heads: int = 4            # attention heads of the image encoder
    text_width: int = 128            # channels of a text token
    text_layers: int = 3             # blocks of the text encoder
    text_heads: int = 4              # attention heads of the text encoder
    context_length: int = 16         # most tokens in a caption, with its start and end
    vocab_size: int = 640            # ids of the tokenizer: 512 for bytes, the merges, start and end
    embed_dim: int = 128             # dimensions of the space that images and captions share
    activation: str = "quick_gelu"   # bend in the MLPs: quick_gelu (OpenAI's weights) or gelu (most of open_clip's)

    def __post_init__(self):
        for field in fields(self):
            if field.type is int and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}: choose 1 or more")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} does not divide into patches of {self.patch_size}: "
                f"choose a patch_size that divides it"
            )
        for tower in ("vision", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                raise ValueError(f"{tower}_width {width} does not divide among {heads} heads: choose {tower}_heads to fit")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is unknown: choose one of {', '.join(ACTIVATIONS)}")

    @property
    def patches(self) -> int:
        """Count the patches of an image, the class token aside."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def tiny(cls) -> "CLIPConfig":
        """Return the toy model, 1.5 M parameters: images of 32 pixels and short captions."""
        return cls()

    @classmethod
    def vit_b_32(cls) -> "CLIPConfig":
        """Return the published ViT-B/32, 151 M parameters."""
        return cls(224, 32, 768, 12, 12, 512, 12, 8, 77, 49408, 512)

    @classmethod
    def vit_b_16(cls) -> "CLIPConfig":
        """Return the published ViT-B/16, 150 M parameters."""
        return cls(224, 16, 768, 12, 12, 512, 12, 8, 77, 49408, 512)

    @classmethod
    def vit_l_14(cls) -> "CLIPConfig":
        """Return the published ViT-L/14, 428 M parameters."""
        return cls(224, 14, 1024, 24, 16, 768, 12, 12, 77, 49408, 768)

    @classmethod
    def vit_l_14_336(cls) -> "CLIPConfig":
        """Return the published ViT-L/14 for images of 336 pixels, 428 M parameters."""
        return cls(336, 14, 1024, 24, 16, 768, 12, 12, 77, 49408, 768)


class ImageEncoder(nn.Module):
    """Read an image as a sequence of patches [ViT, eq. 1-4]."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.vision_width
        # constants, not weights: kept out of the state dict, yet moved to a device with the rest
        self.register_buffer("mean", rearrange(torch.tensor(PIXEL_MEAN), "c -> c 1 1"), persistent=False)
        self.register_buffer("std", rearrange(torch.tensor(PIXEL_STD), "c -> c 1 1"), persistent=False)

        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positions = nn.Parameter(width**-0.5 * torch.randn(1 + config.patches, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.vision_layers, config.vision_heads, config.activation)
        self.ln_post = nn.LayerNorm(width)
        self.projection = nn.Parameter(width**-0.5 * torch.randn(width, config.embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b 3 h w) in [-1, 1] -> (b e)."""
        x = ((images + 1) / 2 - self.mean) / self.std
        x = self.patch_embedding(x)                                       # (b d g g)
        x = rearrange(x, "b d gh gw -> b (gh gw) d")
        start = repeat(self.class_embedding, "d -> b 1 d", b=len(x))
        x = torch.cat((start, x), dim=1) + self.positions                 # (b 1+n d)
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.projection                    # (b e)


class TextEncoder(nn.Module):
    """Read a caption from left to right and take what its last token knows [CLIP sec. 2.4]."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(0.01 * torch.randn(config.context_length, width))
        self.transformer = Transformer(width, config.text_layers, config.text_heads, config.activation)
        self.ln_final = nn.LayerNorm(width)
        self.projection = nn.Parameter(width**-0.5 * torch.randn(width, config.embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (b t) int64 -> (b e)."""
        b, t = ids.shape
        # No token sees a later one, so `end` knows the whole caption and the padding after it changes nothing.
        causal = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril()
        x = self.token_embedding(ids) + self.positions[:t]                # (b t d)
        x = self.ln_final(self.transformer(x, causal))
        end = ids.argmax(dim=-1)                                          # (b) `end` is the highest id of all
        return x[torch.arange(b, device=ids.device), end] @ self.projection  # (b e)


class CLIP(nn.Module):
    """Hold the two encoders and the temperature between them."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # its logarithm, as the paper learns it

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed images (b 3 h w), float in [-1, 1], as features (b e), not normalised."""
        side = self.config.image_size
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"images are {tuple(images.shape)}: this model reads (b, 3, {side}, {side}), resize them first")
        return self.image_encoder(images)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Embed captions, ids (b t) int64 with t <= context_length, as features (b e), not normalised."""
        if ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"captions are {ids.shape[1]} ids long: this model reads {self.config.context_length}, "
                f"encode them with that context_length"
            )
        return self.text_encoder(ids)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embed both as unit vectors in float32, (b e) and (b e): their dot product is the cosine of the angle."""
        image_features = F.normalize(self.encode_image(images).float(), dim=-1)
        text_features = F.normalize(self.encode_text(ids).float(), dim=-1)
        return image_features, text_features

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Hold the logit scale at 100 or less; to be called after every optimizer step [CLIP sec. 2.5].

        The loss clamps too, but above the limit it has no gradient: a scale left there would never come down again.
        """
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
