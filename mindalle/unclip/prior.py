"""The prior: draw the CLIP embedding of an image from a caption, by diffusion [unCLIP sec. 2.2].

    token features (b t d)   z_t (b e)   time (b)   x(t) (b e)   query (d)
              |                  |          |           |            |
              +------------------+----------+-----------+------------+
                                            |
                              causal transformer (b t+4 d)
                                                                     |
                                                                 z_i (b e)

The token features are CLIP's, one for each token of the caption; z_t is its embedding of the whole
caption (t for text), z_i that of an image, and x(t) the noised z_i (t for time). The query comes
last, so it sees all the others; what it turns into is the prediction.

A caption fits many images, and each has an embedding of its own. A network that maps captions
straight to embeddings would learn their mean, which may be the embedding of no image. The prior
samples one of them.

Where we depart: the path is straight (diffusion.py), embeddings have unit length and are
standardised, and the loss, in the paper the plain squared error of z_i, is divided by (1 - t)². The
paper's schedule, "cosine", is there for the published prior.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ..errors import InputError
from ..layers import Block
from ..model import check_sizes, option
from .diffusion import SCHEDULES, Condition, even_times, guided, sample
from .layers import Standardise, TimeEmbedding


@dataclass(frozen=True)
class PriorConfig:
    """Describe a prior. The defaults fit the toy CLIP."""

    embed_dim: int = option(128, "width of CLIP's embeddings")
    token_width: int = option(64, "width of CLIP's text tokens")
    text_length: int = option(16, "tokens in a caption, padding included")
    width: int = option(128, "channels of a token")
    layers: int = option(4, "transformer blocks")
    heads: int = option(4, "attention heads per block")
    schedule: str = option(
        "straight", f"how noise and embedding mix over time: {', '.join(SCHEDULES)}")

    def __post_init__(self):
        check_sizes(self)
        if self.width % self.heads or self.width % 2:
            raise InputError(f"width is {self.width}: make it even, "
                             f"and a multiple of the {self.heads} heads")
        if self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise InputError(f"there is no schedule {self.schedule!r}: choose from {known}")

    @classmethod
    def karlo(cls) -> "PriorConfig":
        """Return Karlo's: 1.02 billion parameters, over CLIP ViT-L/14."""
        return cls(embed_dim=768, token_width=768, text_length=77,
                   width=2048, layers=20, heads=32, schedule="cosine")


class Prior(nn.Module):
    """Predict the embedding of an image from a noised one and the caption."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        self.standardise_image = Standardise(config.embed_dim)
        self.standardise_text = Standardise(config.embed_dim)
        self.tokens_in = nn.Linear(config.token_width, config.width)
        self.text_in = nn.Linear(config.embed_dim, config.width)
        self.time_in = TimeEmbedding(config.width)
        self.image_in = nn.Linear(config.embed_dim, config.width)
        self.query = nn.Parameter(0.02 * torch.randn(config.width))
        self.positions = nn.Parameter(0.02 * torch.randn(config.text_length + 4, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.embed_dim)
        nn.init.zeros_(self.out.weight)  # the first prediction is the mean embedding
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Tensor, t: Tensor, token_features: Tensor, mask: Tensor, z_t: Tensor
    ) -> Tensor:
        """Predict a standardised z_i (b e) from the noised one, x(t) (b e), and its caption.

        t (b) in [0, 1]; token_features (b t d), CLIP's last ones; mask (b t) boolean, False for
        padding, never for the first token; z_t (b e)
        """
        x, steps = SCHEDULES[self.config.schedule](x, t)
        tokens = torch.cat([
            self.tokens_in(token_features),                              # (b t d)
            torch.stack([                                                # (b 4 d)
                self.text_in(self.standardise_text(z_t)), self.time_in(steps), self.image_in(x),
                repeat(self.query, "d -> b d", b=len(x)),
            ], dim=1),
        ], dim=1) + self.positions                                       # (b t+4 d)
        mask = F.pad(mask, (0, 4), value=True)                           # (b t+4)
        n = mask.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        mask = causal & rearrange(mask, "b j -> b 1 1 j")                # (b 1 i j)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.out(self.norm(tokens[:, -1]))                        # (b e)


def draw_embeddings(
    prior: Prior, condition: Condition, empty: Condition, *, steps: int = 25, eta: float = 1.0,
    guidance: float = 1.0, candidates: int = 2, generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a z_i (b e) per caption: of some candidates, the closest to it [unCLIP sec. 2.2].

    condition   token features (b t d), mask (b t), z_t (b e), as in Prior.forward
    empty       those of the empty caption, (t d), (t), (e)
    guidance    1 is the plain prior: the paper found that guiding it does harm [sec. 5.5]
    """
    b, e = condition[2].shape
    condition = tuple(repeat(part, "b ... -> (b k) ...", k=candidates) for part in condition)
    noise = torch.randn(b * candidates, e, device=condition[2].device, generator=generator)
    denoise = guided(prior, condition, empty, guidance)
    bounded = lambda x, t: denoise(x, t).clamp(-10, 10)  # noqa: E731  in stds, as Karlo does
    z = prior.standardise_image.inverse(sample(bounded, noise, even_times(steps), eta, generator))
    closeness = F.cosine_similarity(z, condition[2], dim=-1)
    best = rearrange(closeness, "(b k) -> b k", b=b).argmax(dim=1)
    return rearrange(z, "(b k) e -> b k e", b=b)[torch.arange(b), best]
