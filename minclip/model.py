"""Embed images and captions in one space, an image close to its caption [CLIP sec. 2, figure 3].

    image (b 3 h w) -> patches (b n d) -> class token -> Transformer -> token 0 -> (b e) -+
                                                                                          +-> logits
    ids (b t) -------> tokens (b t d) -----------------> Transformer -> `end` ---> (b e) -+   (b b)

The logits are scaled cosines. The image encoder is a Vision Transformer with one more LayerNorm
before its blocks, the text encoder a GPT-2. The modules are those of the published model, so that
its weights load by renaming.

Where we depart: the toy model embeds patches by a few small convolutions, not by one large one;
images come in [-1, 1] and are normalised by the encoder; the blocks of both encoders are
initialised alike (OpenAI's code leaves the image encoder's to PyTorch); captions may be padded to
less than context_length.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from .errors import InputError
from .layers import ACTIVATIONS, Transformer, convolutional_stem
from .loss import LOSSES

MAX_LOGIT_SCALE = math.log(100)  # a larger scale made training unstable [CLIP sec. 2.5]
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the published models' training images
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def option(default: Any, help: str) -> Any:
    """Declare a config field; its help is also that of the command-line flag made from it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class CLIPConfig:
    """Choose sizes, activation and loss; the defaults train in minutes on two CPU cores."""

    image_size: int = option(32, "side of an image in pixels")
    patch_size: int = option(8, "side of a patch in pixels; half of it makes four times the tokens")
    stem_width: int = option(32, "channels of the first convolution of the stem that embeds "
                                 "patches, doubled in each next one; 0 for a single convolution as "
                                 "large as a patch, as published")
    vision_width: int = option(64, "width of an image token")
    vision_layers: int = option(1, "blocks of the image encoder")
    vision_heads: int = option(4, "attention heads of the image encoder")
    vision_mlp_ratio: float = option(4.0, "hidden width of the image encoder's MLPs, as a multiple "
                                          "of vision_width")
    text_width: int = option(64, "width of a text token")
    text_layers: int = option(2, "blocks of the text encoder; a single one does not learn which "
                                 "object is named first")
    text_heads: int = option(4, "attention heads of the text encoder")
    context_length: int = option(16, "most tokens in a caption, its start and end included")
    vocab_size: int = option(640, "ids of the tokenizer: 512 for bytes, one for each merge, start "
                                  "and end")
    embed_dim: int = option(128, "width of the embedding space of images and captions")
    activation: str = option("gelu", f"activation of the MLPs, {' or '.join(ACTIVATIONS)}: "
                                     "OpenAI's weights need quick_gelu, torch computes gelu faster")
    loss: str = option("softmax", f"contrastive loss, see loss.py: {', '.join(LOSSES)}")

    def __post_init__(self):
        for setting in fields(self):
            value, kind = getattr(self, setting.name), type(setting.default)
            least = 0 if setting.name == "stem_width" else 1
            if kind is str:
                continue
            if not (isinstance(value, (int, kind)) and least <= value < math.inf):
                raise InputError(f"{setting.name} is {value!r}: choose {least} or more "
                                 f"({kind.__name__})")
        if self.image_size % self.patch_size:
            raise InputError(f"image_size {self.image_size} does not divide into patches of "
                             f"{self.patch_size}: choose a patch_size that divides it")
        if self.stem_width and self.patch_size not in (2, 4, 8, 16, 32, 64):
            raise InputError(f"the stem cannot embed patches of {self.patch_size}: choose a "
                             "patch_size of 2, 4, 8, 16, 32 or 64, or stem_width 0")
        for encoder in ("vision", "text"):
            width, heads = getattr(self, f"{encoder}_width"), getattr(self, f"{encoder}_heads")
            if width % heads:
                raise InputError(f"{encoder}_width {width} is no multiple of {encoder}_heads "
                                 f"{heads}: choose one that is")
        for name, table in (("activation", ACTIVATIONS), ("loss", LOSSES)):
            value = getattr(self, name)
            if value not in table:
                raise InputError(f"{name} {value!r} is unknown: choose {' or '.join(table)}")

    @property
    def patches(self) -> int:
        """Count the patches of an image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def vit_b_32(cls) -> "CLIPConfig":
        """Return the published ViT-B/32, 151 M parameters."""
        return cls(
            image_size=224, patch_size=32, stem_width=0,
            vision_width=768, vision_layers=12, vision_heads=12,
            text_width=512, text_layers=12, text_heads=8,
            context_length=77, vocab_size=49408, embed_dim=512, activation="quick_gelu",
        )


class ImageEncoder(nn.Module):
    """Embed an image, read as a sequence of patches [ViT eqs. 1 to 4]."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.vision_width
        # Constants, not weights: not in the state dict, but they move to a device with the model.
        # Made on the CPU, since `load` builds the model on the meta device, where values are lost.
        for name, values in (("mean", PIXEL_MEAN), ("std", PIXEL_STD)):
            constant = rearrange(torch.tensor(values, device="cpu"), "c -> c 1 1")
            self.register_buffer(name, constant, persistent=False)

        if config.stem_width:
            self.patch_embedding = convolutional_stem(config.stem_width, width, config.patch_size)
        else:
            patch = config.patch_size
            self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positions = nn.Parameter(width**-0.5 * torch.randn(1 + config.patches, width))
        self.ln_pre = nn.LayerNorm(width)
        hidden = round(config.vision_mlp_ratio * width)
        self.transformer = Transformer(width, config.vision_layers, config.vision_heads, hidden,
                                       config.activation)
        self.ln_post = nn.LayerNorm(width)
        self.projection = nn.Parameter(width**-0.5 * torch.randn(width, config.embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b 3 h w) in [-1, 1] -> (b e)."""
        x = ((images + 1) / 2 - self.mean) / self.std
        x = rearrange(self.patch_embedding(x), "b d h w -> b (h w) d")    # (b n d)
        class_token = repeat(self.class_embedding, "d -> b 1 d", b=len(x))
        x = torch.cat((class_token, x), dim=1) + self.positions           # (b 1+n d)
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.projection                    # (b e)


class TextEncoder(nn.Module):
    """Embed a caption, read from left to right, by the output at its last token [CLIP sec. 2.4]."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(0.01 * torch.randn(config.context_length, width))
        self.transformer = Transformer(width, config.text_layers, config.text_heads, 4 * width,
                                       config.activation)
        self.ln_final = nn.LayerNorm(width)
        self.projection = nn.Parameter(width**-0.5 * torch.randn(width, config.embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def tokens(self, ids: Tensor) -> Tensor:
        """Map ids (b t) int64 -> features (b t d), each of a token and those before it."""
        t = ids.shape[1]
        # `end` sees the whole caption, and the padding after it changes nothing
        causal = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril()
        x = self.token_embedding(ids) + self.positions[:t]                # (b t d)
        return self.ln_final(self.transformer(x, causal))

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (b t) int64 -> (b e)."""
        end = ids.argmax(dim=-1)                                          # (b) the highest id
        rows = torch.arange(len(ids), device=ids.device)
        return self.tokens(ids)[rows, end] @ self.projection              # (b e)


class CLIP(nn.Module):
    """Hold two encoders, and the temperature (and bias, if any) that makes cosines logits."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        objective = LOSSES[config.loss]
        self.logit_scale = nn.Parameter(torch.tensor(objective.logit_scale))  # a logarithm
        self.logit_bias = None
        if objective.logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(objective.logit_bias))

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed images (b 3 h w), float in [-1, 1], as features (b e), not normalised."""
        side = self.config.image_size
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"images are {tuple(images.shape)}, not (b, 3, {side}, {side}): "
                             "resize them")
        return self.image_encoder(images)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Embed ids (b t) int64, t <= context_length, as features (b e), not normalised."""
        limit = self.config.context_length
        if ids.shape[1] > limit:
            raise ValueError(f"captions are {ids.shape[1]} ids long: encode them with "
                             f"context_length={limit}")
        return self.text_encoder(ids)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embed both as unit vectors (b e), (b e) in float32: their dot products are cosines."""
        image_features = F.normalize(self.encode_image(images).float(), dim=-1)
        text_features = F.normalize(self.encode_text(ids).float(), dim=-1)
        return image_features, text_features

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Compare unit vectors (i e) and (j e): scale * cosine (+ bias) -> (i j) float32."""
        # bfloat16 has 8 bits of precision: logits near 100 would be wrong by a quarter
        with torch.autocast(image_features.device.type, enabled=False):
            scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
            cosines = einsum(image_features.float(), text_features.float(), "i e, j e -> i j")
            logits = scale * cosines
            return logits if self.logit_bias is None else logits + self.logit_bias

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the scale at 100 or less; call it after every optimizer step [CLIP sec. 2.5].

        `logits` clamps too, but has no gradient beyond the limit: a scale there would never fall.
        """
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
