"""The parts of both encoders of CLIP: attention, MLP, block, stack of blocks, convolutional stem.

    x (b n d) --+-- LayerNorm -- Attention --(+)--+-- LayerNorm -- MLP --(+)--> (b n d)   one Block
                |                             |   |                       |
                +-----------------------------+   +-----------------------+

[Attention: Attention is all you need, sec. 3; GPT-2 sec. 2.3 for the LayerNorms; CLIP sec. 2.4]
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


# `attention_weights`, `MLP` and the wiring of `Block` have twins in mindalle/layers.py.
# Written out, since scaled_dot_product_attention never forms the weights, which explaining shows. On
# an Ice Lake Xeon, in fp32, it takes 0.6 of the time at the toy's sizes and 1.2 at those of ViT-B/32.
def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Say how much each query reads of each key, softmax(q·k / √c) over the keys it may see [Attention is all you need, eq. 1].

    q (b k i c), k (b k j c), mask boolean (i j) or (b 1 i j), True where query i may look at key j -> (b k i j), each row adds up to 1
    """
    scores = (q * q.shape[-1] ** -0.5) @ rearrange(k, "b k j c -> b k c j")  # (b k i j)
    if mask is not None:  # added: masked_fill would copy the scores and their gradient once more
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def quick_gelu(x: Tensor) -> Tensor:
    """Approximate GELU by x·σ(1.702x) [GELU sec. 2], the activation of OpenAI's weights."""
    return F.silu(1.702 * x) / 1.702  # equal, with a cheaper backward pass than x·σ


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Attention(nn.Module):
    """Attend with several heads of c = width / heads channels each."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.weights = nn.Identity()  # a forward hook here sees the attention weights (b k i j)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map x (b n d) -> (b n d); mask boolean (i j), True where query i may see key j."""
        qkv = self.qkv(x)
        q, k, v = rearrange(qkv, "b n (three k c) -> three b k n c", three=3, k=self.heads)
        x = self.weights(attention_weights(q, k, mask)).to(v.dtype) @ v       # (b k n c)
        return self.out(rearrange(x, "b k n c -> b n (k c)"))


class MLP(nn.Module):
    """Transform each token alone, through a hidden layer that is usually four times as wide."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b n d) -> (b n d)."""
        return self.contract(self.activation(self.expand(x)))


class Block(nn.Module):
    """Pre-LN block: x + attention(LN(x)), then x + MLP(LN(x)) [GPT-2 sec. 2.3]."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, activation)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map x (b n d) -> (b n d)."""
        x = x + self.attention(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Stack blocks, initialised as in the text encoder of OpenAI's code."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int, activation: str):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, hidden, activation) for _ in range(layers))
        # each block adds two branches to x: in a deeper stack they start smaller [GPT-2 sec. 2.3]
        branch = (2 * layers * width) ** -0.5
        for block in self.blocks:
            attention, mlp = block.attention, block.mlp
            for linear, std in ((attention.qkv, width**-0.5), (attention.out, branch),
                                (mlp.expand, (2 * width) ** -0.5), (mlp.contract, branch)):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map x (b n d) -> (b n d)."""
        for block in self.blocks:
            x = block(x, mask)
        return x


def convolutional_stem(channels: int, width: int, patch_size: int) -> nn.Sequential:
    """Halve an image by 3x3 convolutions until each patch is one position [Xiao et al. 2021].

    (b 3 h w) -> (b d h/p w/p). A single convolution as large as a patch must learn a corner
    separately for each place that it can have in the patch. The channels double as the image
    halves, so that the first layers, which see the largest images, do not dominate the cost.
    """
    halvings = patch_size.bit_length() - 1  # p = 2^k: k convolutions
    widths = [3] + [channels * 2**i for i in range(halvings - 1)] + [width]
    layers = []
    for before, after in zip(widths, widths[1:]):
        conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
        layers += [conv, nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers[:-2])  # the encoder applies its own LayerNorm next
