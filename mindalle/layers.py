"""The parts of the transformer: who may look at whom, how far apart they are, attention with a cache, the block.

Masks are boolean, True where the query i may look at the key j. They differ in how far back a code looks
along the codes of its image, in reading order [DALL·E app. B, fig. 11]. What the code Q sees on a grid of 4:

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

KINDS = ("full", "row", "column", "convolutional")


def steps_back(length: int) -> Tensor:
    """Count how far before the query i the key j stands: i - j, negative for the future.  ->  (i j) int64"""
    # on the CPU by name: a model that is built on the meta device to load weights would lose masks made there
    positions = torch.arange(length, device="cpu")
    return rearrange(positions, "i -> i 1") - rearrange(positions, "j -> 1 j")


def row_mask(grid: int) -> Tensor:
    """Let a code look back over one row's worth of codes, to the one right above it.  ->  (n n) boolean

    The window runs on over the edge of the image, so every query has the same pattern [DALL·E fig. 11a].

    grid 2, a line per query:   x . . .
                                x x . .
                                x x x .
                                . x x x
    """
    back = steps_back(grid**2)
    return (back >= 0) & (back <= grid)


def column_mask(grid: int) -> Tensor:
    """Let a code look at itself and at the codes above it in its column [DALL·E fig. 11b].  ->  (n n) boolean

    grid 2, a line per query:   x . . .
                                . x . .
                                x . x .
                                . x . x
    """
    back = steps_back(grid**2)
    return (back >= 0) & (back % grid == 0)


def convolutional_mask(grid: int, kernel: int) -> Tensor:
    """Let a code look at the earlier half of the kernel · kernel square around it.  ->  (n n) boolean

    Like the row's window, the square runs on over the edges [DALL·E fig. 11d].

    grid 3, kernel 3, the queries 4 and 5:   x x x   . x x
                                             x Q .   x x Q
                                             . . .   . . .
    """
    back, radius = steps_back(grid**2), kernel // 2
    near = torch.zeros_like(back, dtype=torch.bool)
    for rows_up in range(radius + 1):
        near |= (back - rows_up * grid).abs() <= radius
    return near & (back >= 0)


def attention_mask(kind: str, text_length: int, grid: int, kernel: int) -> Tensor:
    """Let text look at earlier text, and a code at all text and at earlier codes as `kind` says.

                  text      codes
        text    [ earlier   none  ]
        codes   [ all       kind  ]   ->  (t+n-1 t+n-1) boolean: the last code is predicted, never read
    """
    mask = steps_back(text_length + grid**2) >= 0
    image = mask[text_length:, text_length:]  # a view: what it loses, mask loses
    if kind == "row":
        image &= row_mask(grid)
    elif kind == "column":
        image &= column_mask(grid)
    elif kind == "convolutional":
        image &= convolutional_mask(grid, kernel)
    return mask[:-1, :-1]


def rotations(text_length: int, grid: int, head_width: int) -> Tensor:
    """Give each position its angles, by which `rotate` turns queries and keys  ->  their cosines and sines (t+n-1 e/2 2)

    Half of the angles grow with the row, half with the column, each at its own speed, from 1 a step down to nearly 1/20.
    Text stands to the left of the first row.
    """
    place = torch.arange(text_length + grid**2 - 1, device="cpu") - text_length  # negative: text
    row, column = place.clamp(min=0) // grid, torch.where(place < 0, place, place % grid)
    speeds = 20.0 ** -torch.linspace(0, 1, head_width // 4 + 1, device="cpu")[:-1]
    angles = torch.cat([torch.outer(row, speeds), torch.outer(column, speeds)], dim=1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of channels of x (b k i e) by an angle of its position (i e/2 2) [RoFormer eq. 34].

    A pair is a complex number, and turning it a product. Between a query and a key so turned only the difference of their
    angles is left: a head that has learned to look at the code above does so everywhere. From learned positions alone it
    must learn that anew for each place of the grid.
    """
    pairs = torch.view_as_complex(rearrange(x.float(), "b k i (c two) -> b k i c two", two=2))
    turned = torch.view_as_real(pairs * torch.view_as_complex(rotation.float()))
    return rearrange(turned, "b k i c two -> b k i (c two)").to(x.dtype)


# `attend`, `MLP` and the wiring of `Block` have twins in minclip/layers.py.
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the values, each query weighing the keys it may see by softmax(q·k / √e) [Attention is all you need, eq. 1].

    q (b k i e), k and v (b k j e), mask boolean (i j), True where i may look at j  ->  (b k i e)
    """
    scores = (q * q.shape[-1] ** -0.5) @ rearrange(k, "b k j e -> b k e j")  # (b k i j)
    if mask is not None:  # added, since filling in costs a copy of the scores, and another of their gradient
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


def places(start: int | Tensor, count: int) -> slice | Tensor:
    """Index `count` positions from start on. A start (1,) on the device stands for itself: the host need not know it."""
    return slice(start, start + count) if isinstance(start, int) else start


class Cache:
    """Keep the keys and values of one layer, so that a new token costs one query, not a sequence.

    Both tensors (b k length e) are made once, at the first write, in the precision that the layer runs in.
    """

    def __init__(self, length: int):
        self.length = length
        self.keys = self.values = None

    def update(self, start: int | Tensor, keys: Tensor, values: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """Write keys and values (b k i e) at start  ->  views of the first `seen` of each, (b k seen e)."""
        if self.keys is None:
            b, k, _, e = keys.shape
            self.keys = keys.new_zeros(b, k, self.length, e)  # not empty: even what a mask hides must be finite
            self.values = values.new_zeros(b, k, self.length, e)
        where = places(start, keys.shape[2])
        self.keys[:, :, where] = keys
        self.values[:, :, where] = values
        return self.keys[:, :, :seen], self.values[:, :, :seen]


class Attention(nn.Module):
    """Attend with several heads [Attention is all you need, sec. 3.2.2].

    x (b i d) are the tokens at start, start + 1, ...; a cache adds those read before; rotation is theirs  ->  (b i d)
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, rotation: Tensor | None = None, cache: Cache | None = None,
                start: int | Tensor = 0) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b i (three k e) -> three b k i e", three=3, k=self.heads)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.update(start, k, v, seen=mask.shape[1])    # (b k j e)
        x = attend(q, k, v, mask)                                   # (b k i e)
        return self.out(rearrange(x, "b k i e -> b i (k e)"))


class MLP(nn.Module):
    """Transform each token on its own, through four times the width."""

    def __init__(self, width: int):
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x)))


class Block(nn.Module):
    """Add to each token what attention, then the MLP, make of it normalised: "pre-LN" [GPT-2 sec. 2.3]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, mask: Tensor, rotation: Tensor | None = None, cache: Cache | None = None,
                start: int | Tensor = 0) -> Tensor:
        x = x + self.attention(self.ln_1(x), mask, rotation, cache, start)
        return x + self.mlp(self.ln_2(x))
