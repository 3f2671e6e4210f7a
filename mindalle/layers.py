"""The parts of the transformer: attention patterns, rotary angles, attention, cache, block.

Masks are boolean, True where query i may look at key j. An attention pattern says which of the
earlier codes of its image a code sees [DALL·E app. B, fig. 11]. On a grid of 4, the code Q sees:

    full          row           column        convolutional, kernel 3
    x x x x       . . . .       . x . .       . . . .
    x x x x       . x x x       . x . .       x x x .
    x Q . .       x Q . .       . Q . .       x Q . .
    . . . .       . . . .       . . . .       . . . .
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def steps_back(length: int) -> Tensor:
    """Count how far before query i key j stands: i - j, negative for the future -> (i j) int64"""
    # explicitly on the CPU: load() builds the model on the meta device, where masks have no values
    positions = torch.arange(length, device="cpu")
    return rearrange(positions, "i -> i 1") - rearrange(positions, "j -> 1 j")


def full_mask(grid: int, kernel: int) -> Tensor:
    """Let a code look at itself and at all earlier codes -> (n n) boolean"""
    return steps_back(grid**2) >= 0


def row_mask(grid: int, kernel: int) -> Tensor:
    """Let a code look at itself and at the g codes before it -> (n n) boolean

    The window runs on over the edge of the image: every query has the same one [DALL·E fig. 11a].

    grid 2, a line per query:   x . . .
                                x x . .
                                x x x .
                                . x x x
    """
    back = steps_back(grid**2)
    return (back >= 0) & (back <= grid)


def column_mask(grid: int, kernel: int) -> Tensor:
    """Let a code look at itself and at those above it in its column [fig. 11b] -> (n n) boolean

    grid 2, a line per query:   x . . .
                                . x . .
                                x . x .
                                . x . x
    """
    back = steps_back(grid**2)
    return (back >= 0) & (back % grid == 0)


def convolutional_mask(grid: int, kernel: int) -> Tensor:
    """Let a code look at the earlier half of the kernel · kernel square around it -> (n n) boolean

    Like the window of row attention, the square runs on over the edges [DALL·E fig. 11d].

    grid 3, kernel 3, the queries 4 and 5:   x x x   . x x
                                             x Q .   x x Q
                                             . . .   . . .
    """
    back, radius = steps_back(grid**2), kernel // 2
    near = torch.zeros_like(back, dtype=torch.bool)
    for rows_up in range(radius + 1):
        near |= (back - rows_up * grid).abs() <= radius
    return near & (back >= 0)


# DALLEConfig.attention -> (grid, kernel) -> (n n) boolean over the codes in reading order. A code
# must see itself, and no later code. A new pattern is one more function here.
PATTERNS = {
    "full": full_mask, "row": row_mask, "column": column_mask, "convolutional": convolutional_mask,
}


def attention_mask(pattern: str, text_length: int, grid: int, kernel: int) -> Tensor:
    """Let text look at earlier text, and a code at all text and at the codes of its pattern.

                  text      codes
        text    [ earlier   none    ]
        codes   [ all       pattern ]   -> (t+n t+n) boolean
    """
    mask = steps_back(text_length + grid**2) >= 0
    mask[text_length:, text_length:] = PATTERNS[pattern](grid, kernel)
    return mask


def rotations(text_length: int, grid: int, head_width: int) -> Tensor:
    """Compute the angles by which `rotate` turns queries and keys -> cosines, sines (t+n c/2 2)

    Half of the angles grow with the row, half with the column, each at its own speed, from 1 a step
    down to nearly 1/20. Text stands to the left of the first row.
    """
    place = torch.arange(-text_length, grid**2, device="cpu")  # negative: text
    row = place.clamp(min=0) // grid
    column = torch.where(place < 0, place, place % grid)
    speeds = 20.0 ** -torch.linspace(0, 1, head_width // 4 + 1, device="cpu")[:-1]
    angles = torch.cat([torch.outer(row, speeds), torch.outer(column, speeds)], dim=1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of channels of x (... i c) by an angle (i c/2 2) [RoFormer eq. 34].

    A pair is a complex number, so turning it is a multiplication. The product of a turned query and
    a turned key depends only on the difference of their angles: a head that has learned to look at
    the code above does so everywhere. Learned positions would need that learned for each place.
    """
    pairs = torch.view_as_complex(rearrange(x.float(), "... (pair two) -> ... pair two", two=2))
    turned = torch.view_as_real(pairs * torch.view_as_complex(rotation.float()))
    return rearrange(turned, "... pair two -> ... (pair two)").to(x.dtype)


# `attention_weights`, `MLP` and the wiring of `Block` have twins in minclip/layers.py.
# Written out, since scaled_dot_product_attention never forms the weights, which explaining shows.
# On an Ice Lake Xeon the toy's training would be as fast with it in fp32, 2.7 times slower in bf16.
def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Say how much each query reads of each key, softmax(q·k / √c) over the keys it may see [Attention is all you need, eq. 1].

    q (b k i c), k (b k j c), mask boolean (i j) or (b 1 i j), True where query i may look at key j -> (b k i j), each row adds up to 1
    """
    scores = (q * q.shape[-1] ** -0.5) @ rearrange(k, "b k j c -> b k c j")  # (b k i j)
    if mask is not None:  # added: masked_fill would copy the scores and their gradient once more
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


class Cache:
    """Keep the keys and values of the tokens that one layer has read, for the tokens that follow.

    It has room for `length` tokens and holds `filled`. Both tensors (b k length c) are made at the
    first update, in the precision that the layer runs in.
    """

    def __init__(self, length: int):
        self.length, self.filled = length, 0
        self.keys = self.values = None

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (b k i c) -> views of all it now holds, each (b k filled c)"""
        if self.keys is None:
            b, k, _, c = keys.shape
            self.keys = keys.new_empty(b, k, self.length, c)
            self.values = values.new_empty(b, k, self.length, c)
        start, self.filled = self.filled, self.filled + keys.shape[2]
        self.keys[:, :, start : self.filled] = keys
        self.values[:, :, start : self.filled] = values
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]


class Attention(nn.Module):
    """Attend with heads of c = width / heads channels [Attention is all you need, sec. 3.2.2]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.weights = nn.Identity()  # a forward hook here sees the attention weights (b k i j)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None,
        rotation: Tensor | None = None, cache: Cache | None = None,
    ) -> Tensor:
        """Map x (b i d) -> (b i d), appending x to the cache, if there is one.

        mask      boolean (i j) or (b 1 i j), over all that the cache then holds; None hides nothing
        rotation  (i c/2 2), the angles of x
        """
        q, k, v = qkv = rearrange(
            self.qkv(x), "b i (three k c) -> three b k i c", three=3, k=self.heads)
        if rotation is not None:
            q, k = rotate(qkv[:2], rotation)
        if cache is not None:
            k, v = cache.update(k, v)                                     # (b k j c)
        x = self.weights(attention_weights(q, k, mask)).to(v.dtype) @ v   # (b k i c)
        return self.out(rearrange(x, "b k i c -> b i (k c)"))


class MLP(nn.Module):
    """Transform each token separately, through a hidden layer four times as wide."""

    def __init__(self, width: int):
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b i d) -> (b i d)."""
        return self.contract(F.gelu(self.expand(x)))


class Block(nn.Module):
    """Pre-LN block: x + attention(LN(x)), then x + MLP(LN(x)) [GPT-2 sec. 2.3]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(
        self, x: Tensor, mask: Tensor | None,
        rotation: Tensor | None = None, cache: Cache | None = None,
    ) -> Tensor:
        """Map x (b i d) -> (b i d), with the arguments of Attention."""
        x = x + self.attention(self.ln_1(x), mask, rotation, cache)
        return x + self.mlp(self.ln_2(x))
