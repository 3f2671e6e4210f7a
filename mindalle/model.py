"""DALL·E: a GPT over the tokens of a caption and then the codes of its image [DALL·E sec. 2.2].

    text  (b t)   ─> embedding + position ─┐                              ┌─ first t-1 ─> text head  (b t-1 v)
                                           ├─> Block × layers ─> norm ────┤
    codes (b n-1) ─> embedding + position ─┘     (b t+n-1 d)              └─ other n ───> image head (b n v)

    reads       text 0   text 1   ...   text t-1   code 0   ...   code n-2
    predicts    text 1   text 2   ...   code 0     code 1   ...   code n-1

No token marks the start of the image: the last text position, having read all of the text, predicts code 0.

Where we depart from the paper, as minDALL-E does: each of the two vocabularies has its own embedding and
head, so no logit needs masking; one learned position per code, not one per row plus one per column; padding is
an ordinary token, not a different one at each position; layers attend in full unless told otherwise. Unlike both, the
toy also turns queries and keys by row and column (`rotary`) [RoFormer], so that a shape learned in one place is known in
all.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from .layers import KINDS, Block, Cache, attention_mask, places, rotations


@dataclass(frozen=True)
class DALLEConfig:
    text_vocab: int = 640  # size of the tokenizer's vocabulary
    image_vocab: int = 512  # size of the VQGAN's codebook
    text_length: int = 16  # tokens in a caption, padding included
    grid: int = 8  # side of the grid of codes: an image is grid · grid codes
    width: int = 96  # channels of a token
    layers: int = 4  # transformer blocks
    heads: int = 4  # attention heads per block
    attention: str = "full"  # full, row, column, convolutional: one for all layers or a,b,... in turn
    rotary: bool = True  # turn queries and keys by row and column, so that how far apart codes are counts, not where
    kernel: int = 3  # side of the square that convolutional attention sees, odd (the paper: 11)
    text_loss_weight: float = 1 / 8  # share of the text in the loss; the image has the rest

    def __post_init__(self):
        for name in ("text_vocab", "image_vocab", "grid", "width", "layers", "heads", "kernel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: make it 1 or more")
        if self.text_length < 2:
            raise ValueError(f"text_length is {self.text_length}: make it 2 or more")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide by {self.heads} heads: make it a multiple")
        if self.rotary and self.width // self.heads % 4:
            raise ValueError(f"a head is {self.width // self.heads} channels wide: rotary needs a multiple of 4")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}: make it odd, so that it has a centre")
        if not 0 <= self.text_loss_weight <= 1:
            raise ValueError(f"text_loss_weight is {self.text_loss_weight}: make it a share from 0 to 1")
        for kind in self.attention.split(","):
            if kind not in KINDS:
                raise ValueError(f"attention has no kind {kind!r}: choose from {', '.join(KINDS)}")

    @property
    def image_length(self) -> int:
        """n, the codes of an image."""
        return self.grid**2

    @property
    def length(self) -> int:
        """Tokens that are read: all of the text, all codes but the last."""
        return self.text_length + self.image_length - 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """The attention of each layer. The paper: row,column,row,row in turn, the 64th convolutional."""
        pattern = self.attention.split(",")
        return tuple(pattern[layer % len(pattern)] for layer in range(self.layers))

    @classmethod
    def tiny(cls) -> "DALLEConfig":
        """The toy: captions of the shapes world, images of 32 · 32 pixels in 8 · 8 codes."""
        return cls()

    @classmethod
    def mindalle_1_3b(cls) -> "DALLEConfig":
        """minDALL-E, 1.3 billion parameters, images of 256 · 256 pixels in 16 · 16 codes."""
        return cls(16384, 16384, text_length=64, grid=16, width=1536, layers=42, heads=24, rotary=False)


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
        # Layers of one kind share one mask. Masks and angles follow from the config: a checkpoint need not hold them.
        for kind in sorted(set(config.kinds)):
            mask = attention_mask(kind, config.text_length, config.grid, config.kernel)
            self.register_buffer(f"{kind}_mask", mask, persistent=False)
        angles = rotations(config.text_length, config.grid, config.width // config.heads) if config.rotary else None
        self.register_buffer("rotation", angles, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Draw weights from N(0, 0.02²), smaller ones where a block adds to its input [GPT-2 sec. 2.3].

        There are 2 · layers such sums; unscaled, the deeper the model, the larger what its head would see.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out.weight", "contract.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.layers) ** 0.5)
            elif parameter.ndim > 1:  # all but the norms, which start as the identity
                nn.init.normal_(parameter, std=0.02)

    def embed_text(self, text: Tensor) -> Tensor:
        """Turn the tokens of whole captions (b t) into (b t d)."""
        if text.shape[1] != self.config.text_length:
            raise ValueError(f"captions have {text.shape[1]} tokens: pad or cut to {self.config.text_length}")
        return self.text_embedding(text) + self.text_positions

    def embed_codes(self, codes: Tensor, start: int | Tensor = 0) -> Tensor:
        """Turn the codes (b i) that stand at start, start + 1, ... of an image into (b i d)."""
        return self.image_embedding(codes) + self.image_positions[places(start, codes.shape[1])]

    def hidden(self, x: Tensor, caches: list[Cache] | None = None, start: int | Tensor = 0) -> Tensor:
        """Run the blocks over embedded tokens (b i d), which stand at start, start + 1, ...  ->  (b i d)

        caches, one per layer, hold the tokens before `start` and take in these. If start is a tensor, all positions are
        looked at, the later ones masked: shapes are then the same for every token.
        """
        where = places(start, x.shape[1])
        end = where.stop if isinstance(where, slice) else self.config.length
        rotation = None if self.rotation is None else self.rotation[where]
        for layer, (block, kind) in enumerate(zip(self.blocks, self.config.kinds)):
            mask = self.get_buffer(f"{kind}_mask")[where, :end]                 # (i j)
            x = block(x, mask, rotation, caches[layer] if caches else None, start)
        return self.norm(x)

    def forward(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict every token from those before it, all at once.

        text (b t) int64, codes (b n) or (b g g) int64
        ->  text logits (b t-1 v), row i predicts text[:, i+1]; image logits (b n v), row i predicts code i
        """
        t = self.config.text_length
        codes = rearrange(codes, "b ... -> b (...)")
        x = torch.cat([self.embed_text(text), self.embed_codes(codes[:, :-1])], dim=1)
        x = self.hidden(x)                                                      # (b t+n-1 d)
        return self.text_head(x[:, : t - 1]), self.image_head(x[:, t - 1 :])
