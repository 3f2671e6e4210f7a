"""DALL·E: a GPT over the tokens of a caption and then the codes of its image [DALL·E sec. 2.2].

    text  (b t) --> embedding + position --+                      +-- t-1 --> text head  (b t-1 v)
                                           +--> blocks --> norm --+
    codes (b n) --> embedding + position --+     (b t+n-1 d)      +-- n ----> image head (b n v)

    reads       text 0   text 1   ...   text t-1   code 0   ...   code n-2
    predicts    text 1   text 2   ...   code 0     code 1   ...   code n-1

No token marks the start of the image: the last text position, which has read all of the text,
predicts code 0. Codes are in reading order everywhere.

Where we depart from the paper, as minDALL-E does: each of the two vocabularies has its own
embedding and head, so no logit needs masking; each code has its own learned position, instead of
one per row plus one per column; padding is an ordinary token, not a different one at each position;
all layers use full attention unless told otherwise. Unlike both, the toy also turns queries and
keys by row and column (`rotary`) [RoFormer], so that a shape learned at one place is known at all.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .errors import InputError
from .layers import PATTERNS, Block, Cache, attention_mask, rotations


def option(default: Any, help: str) -> Any:
    """Declare a config field; its help is also that of the command-line flag made from it."""
    return field(default=default, metadata={"help": help})


def check_sizes(config: Any) -> None:
    """Raise InputError unless each field of a config declared as int is 1 or more."""
    for size in fields(config):
        value = getattr(config, size.name)
        if size.type is int and (not isinstance(value, int) or value < 1):
            raise InputError(f"{size.name} is {value!r}: make it a whole number, 1 or more")


@dataclass(frozen=True)
class DALLEConfig:
    """Describe a DALL·E. The defaults are a toy for the shapes world, for two CPU cores."""

    text_vocab: int = option(640, "size of the tokenizer's vocabulary")
    image_vocab: int = option(512, "size of the VQGAN's codebook")
    text_length: int = option(16, "tokens in a caption, padding included")
    grid: int = option(8, "side of the grid of codes: an image is grid · grid codes")
    width: int = option(128, "channels of a token")
    layers: int = option(4, "transformer blocks")
    heads: int = option(4, "attention heads per block; on a CPU 32 or 64 channels each are fastest")
    attention: str = option(
        "full", f"{', '.join(PATTERNS)}: one for all layers, or a,b,... for the layers in turn")
    rotary: bool = option(True, "2-D RoPE: attention sees relative row and column")
    kernel: int = option(3, "side of the square that convolutional attention sees (the paper: 11)")

    def __post_init__(self):
        check_sizes(self)
        if self.text_length < 2:
            raise InputError(f"text_length is {self.text_length}: make it 2 or more")
        if self.width % self.heads:
            raise InputError(
                f"width {self.width} is not divisible by {self.heads} heads: make it a multiple")
        if self.rotary and self.width // self.heads % 4:
            raise InputError(
                f"a head is {self.width // self.heads} channels wide: rotary needs a multiple of 4")
        if self.kernel % 2 == 0:
            raise InputError(f"kernel is {self.kernel}: make it odd, so that it has a centre")
        for pattern in self.attention.split(","):
            if pattern not in PATTERNS:
                known = ", ".join(PATTERNS)
                raise InputError(f"attention has no pattern {pattern!r}: choose from {known}")

    @property
    def image_length(self) -> int:
        """Return n, how many codes an image has."""
        return self.grid**2

    @property
    def length(self) -> int:
        """Return t + n, how many tokens a caption and its image have."""
        return self.text_length + self.image_length

    @property
    def patterns(self) -> tuple[str, ...]:
        """Return each layer's pattern. In the paper: row,column,row,row; the last convolutional."""
        patterns = self.attention.split(",")
        return tuple(patterns[layer % len(patterns)] for layer in range(self.layers))

    @classmethod
    def tiny(cls) -> "DALLEConfig":
        """Return the toy for the shapes world: 32 · 32 pixels in 8 · 8 codes."""
        return cls()

    @classmethod
    def mindalle_1_3b(cls) -> "DALLEConfig":
        """Return minDALL-E: 1.3 billion parameters, 256 · 256 pixels in 16 · 16 codes."""
        return cls(
            16384, 16384, text_length=64, grid=16, width=1536, layers=42, heads=24, rotary=False)


class DALLE(nn.Module):
    """Predict each token of a caption and each code of its image from all those before it."""

    def __init__(self, config: DALLEConfig):
        super().__init__()
        self.config = config
        self.text_embedding = nn.Embedding(config.text_vocab, config.width)
        self.image_embedding = nn.Embedding(config.image_vocab, config.width)
        self.text_positions = nn.Parameter(torch.empty(config.text_length, config.width))
        self.image_positions = nn.Parameter(torch.empty(config.image_length, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.text_head = nn.Linear(config.width, config.text_vocab, bias=False)
        self.image_head = nn.Linear(config.width, config.image_vocab, bias=False)
        # Buffers follow from the config: no checkpoint holds them. Layers of one pattern share one.
        for pattern in sorted(set(config.patterns)):
            mask = attention_mask(pattern, config.text_length, config.grid, config.kernel)
            self.register_buffer(f"{pattern}_mask", mask, persistent=False)
        rotation = None
        if config.rotary:
            rotation = rotations(config.text_length, config.grid, config.width // config.heads)
        self.register_buffer("rotation", rotation, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Draw weights from N(0, 0.02²), smaller where blocks add to their input [GPT-2 sec. 2.3].

        There are 2 · layers such sums: without scaling, a deeper model's output would be larger.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out.weight", "contract.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.layers) ** 0.5)
            elif parameter.ndim > 1:  # all but the norms, which start as the identity
                nn.init.normal_(parameter, std=0.02)

    def embed_text(self, text: Tensor) -> Tensor:
        """Embed the tokens of whole captions (b t) -> (b t d)"""
        length = self.config.text_length
        if text.shape[1] != length:
            raise ValueError(f"captions have {text.shape[1]} tokens: pad or cut to {length}")
        return self.text_embedding(text) + self.text_positions

    def embed_codes(self, codes: Tensor, start: int = 0) -> Tensor:
        """Embed the codes (b i) at places start, start + 1, ... -> (b i d)"""
        positions = self.image_positions[start : start + codes.shape[1]]
        return self.image_embedding(codes) + positions

    def transform(self, x: Tensor, caches: list[Cache] | None = None) -> Tensor:
        """Run the blocks over embedded tokens (b i d), which follow those in the caches -> (b i d)

        caches, one per layer, take in these tokens too; without them, x starts with the caption.
        """
        start = caches[0].filled if caches else 0
        end = start + x.shape[1]
        rotation = None if self.rotation is None else self.rotation[start:end]
        caches = caches or [None] * len(self.blocks)
        for block, pattern, cache in zip(self.blocks, self.config.patterns, caches):
            mask = self.get_buffer(f"{pattern}_mask")[start:end, :end]  # (i j)
            if pattern == "full" and x.shape[1] == 1:
                mask = None  # it would hide nothing from a single new token, and cost time
            x = block(x, mask, rotation, cache)
        return self.norm(x)

    def forward(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict every token from those before it, all at once.

        text (b t) int64, codes (b n) or (b g g) int64
        -> text logits (b t-1 v), row i predicts text[:, i+1]
           image logits (b n v), row i predicts codes[:, i]
        """
        t = self.config.text_length
        codes = rearrange(codes, "b ... -> b (...)")                            # (b n)
        x = torch.cat([self.embed_text(text), self.embed_codes(codes[:, :-1])], dim=1)
        x = self.transform(x)                                                   # (b t+n-1 d)
        return self.text_head(x[:, : t - 1]), self.image_head(x[:, t - 1 :])
