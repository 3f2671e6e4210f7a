"""Quantise latents: replace each vector by one of v codes, and let gradients through all the same.

The encoder computes a grid of latent vectors. The codebook holds v learned vectors of the same
width. Each latent is replaced by the nearest of them, whose row number is its code: an image
becomes g·g integers [VQ-VAE sec. 3.1; VQGAN eq. 2].

    z (b z g g) --> nearest --> codes (b g g) --> lookup --> z_q (b z g g) --> decoder
         ^                                                        |
         +------------ straight_through: the gradient's way back -+

"Nearest" is a step function: a small change of z leaves the code as it was. The true gradient is
zero almost everywhere, so the encoder would never learn, nor a code that no latent chooses. What
training needs:
  - `straight_through` copies the decoder's gradient to the encoder as if nothing was replaced;
  - the loss pulls codes towards latents (codebook term) and latents towards codes (commitment);
  - a code that no latent chooses gets no gradient: it is restarted on a latent far from all codes.

`Codebook` is the above. `GumbelCodebook` classifies instead of measuring distances; `FiniteScalar`
rounds to a fixed grid and needs only the first of the three.

To add a quantiser, write a class here that has

    forward(z (b z g g)) -> Quantised      lookup(codes (b g g)) -> z_q (b z g g)      clamp(z) -> z

with codes below codebook_size v, and one line in QUANTISERS in model.py, which help, builder and
tests read. A hyperparameter of its own is a new field of VQGANConfig. Buffers must be persistent:
`load` gives values only to what the file holds. If it has anneal(fraction completed), train.py
calls that before each step.

Departures: codes are narrow [ViT-VQGAN sec. 3.2]; unused ones are restarted, which keeps all in
use; and a rare code costs more, which makes images easier to predict code by code (`choose`). beta
is on the commitment term, as in [VQ-VAE eq. 3]; VQGAN's published code has it on the codebook term
by mistake.
"""

from math import cos, log, pi, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor, nn


class Quantised(NamedTuple):
    """Hold the result of quantising a grid of latents."""

    z_q: Tensor    # (b z g g)  the vectors of the codes; their gradient goes to z
    codes: Tensor  # (b g g)    int64 in [0, v)
    loss: Tensor   # ()         what the quantiser adds to the training loss


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Return the values of z_q with the gradient of z [VQ-VAE sec. 3.2].

    Forward, z + (z_q - z) is z_q. Backward, the bracket is a constant: z receives exactly the
    gradient that the decoder sends to z_q. This is an estimate, good as long as z_q is close to z.
    """
    return z + (z_q - z).detach()


def squared_distances(rows: Tensor, vectors: Tensor, price: Tensor | float = 0.0) -> Tensor:
    """Compare rows (n z) with vectors (v z) -> ‖row - vector‖² + price (v) of the vector, (n v).

    It is ‖row‖² - 2 row·vector + ‖vector‖², and the dot products of all pairs are a single matrix
    product. What a vector adds to all of its distances goes into that product: passes over all
    pairs take longer than the product.
    """
    with torch.autocast(rows.device.type, enabled=False):  # bf16 cannot tell close codes apart
        norms = vectors.square().sum(dim=1)                                       # (v)
        relative = torch.addmm(norms + price, rows, vectors.mT, alpha=-2)         # (n v)
        return relative + rows.square().sum(dim=1, keepdim=True)


class Codebook(nn.Module):
    """Quantise latents to the nearest of v learned vectors.

    The vectors are learned by gradient, so everything that moves them is in the loss below. Moving
    averages (EMA) would do as well, at the cost of two buffers and an update rule of their own.

    size, dim: v, the number of vectors, and z, their width
    beta: weight of the commitment term
    rate_weight: price of a code's length, -log(how often it is chosen)
    restart_after: training batches that a code may go unused before it is moved onto a latent
    """

    def __init__(self, size: int, dim: int, beta: float, rate_weight: float, restart_after: int):
        super().__init__()
        self.beta, self.rate_weight, self.restart_after = beta, rate_weight, restart_after
        self.vectors = nn.Parameter(torch.randn(size, dim))
        # Training batches since each code was last chosen. In a new codebook all codes count as
        # dead, so that the first batch initialises them with encoder outputs.
        self.register_buffer("idle", torch.full((size,), restart_after))
        self.register_buffer("share", torch.full((size,), 1 / size))  # a code's fraction of choices
        # where several processes divide a batch, joins their rows (n ...) -> (all ...)
        self.gather = lambda rows: rows

    def forward(self, z: Tensor) -> Quantised:
        """Quantise z (b z g g). Training mode restarts dead codes and counts choices."""
        z = z.float()
        rows = rearrange(z.detach(), "b z h w -> (b h w) z")
        if self.training:
            self.restart_dead_codes(self.gather(rows))
        codes = self.choose(rows)                                                 # (b·g·g)
        if self.training:
            self.count(self.gather(codes))
        codes = rearrange(codes, "(b h w) -> b h w", h=z.shape[2], w=z.shape[3])
        z_q = self.lookup(codes)
        codebook_term = F.mse_loss(z_q, z.detach())    # moves codes only
        commitment_term = F.mse_loss(z, z_q.detach())  # moves the encoder only
        loss = codebook_term + self.beta * commitment_term
        return Quantised(straight_through(z, z_q), codes, loss)

    def lookup(self, codes: Tensor) -> Tensor:
        """Fetch the vectors of codes (b g g) int64 -> z_q (b z g g)."""
        return rearrange(self.vectors[codes], "b h w z -> b z h w")

    def clamp(self, z: Tensor) -> Tensor:
        """Bring z (b z g g), moved freely, back into each channel's range of codes."""
        bounds = self.vectors.detach().aminmax(dim=0)
        return z.clamp(*(rearrange(bound, "z -> z 1 1") for bound in bounds))

    def choose(self, rows: Tensor) -> Tensor:
        """Find a code for each of rows (n z), the nearest or a common one nearly as near -> (n).

        A plain sky could be any of a hundred nearly equal codes, picked by noise, which a model of
        the codes would then have to predict. So a code also pays for its length in nats, -log of
        how often it is chosen [Chou, Lookabaugh and Gray 1989].
        """
        price = -self.rate_weight * self.share.log()                              # (v)
        return squared_distances(rows, self.vectors.detach(), price).argmin(dim=1)

    def count(self, codes: Tensor) -> None:
        """Record which codes (n) a training batch chose."""
        chosen = torch.bincount(codes, minlength=len(self.idle))
        self.idle = torch.where(chosen > 0, 0, self.idle + 1)
        self.share.lerp_(chosen / len(codes), 0.01).clamp_(min=1e-5)  # over about 100 batches

    @torch.no_grad()
    def restart_dead_codes(self, rows: Tensor) -> None:
        """Move codes unused for `restart_after` batches onto latents of this batch, rows (n z).

        The farther a latent is from its nearest live code, the likelier it is to get a new one, as
        in k-means++. If all latents were equally likely, most dead codes would land on the
        background, which has codes enough.
        """
        dead = self.idle >= self.restart_after                                    # (v)
        price = torch.where(dead, torch.inf, 0.0)                                 # (v)
        distance = squared_distances(rows, self.vectors, price).amin(dim=1)       # (n) to live ones
        odds = distance.nan_to_num(posinf=1).clamp(min=1e-9)                      # equal if all die
        sampled = rows[torch.multinomial(odds, len(dead), replacement=True)]      # (v z)
        self.vectors.copy_(torch.where(rearrange(dead, "v -> v 1"), sampled, self.vectors))
        self.idle[dead] = 0  # restart_after more batches in which to be chosen
        self.share[dead] = 1 / len(dead)


class GumbelCodebook(nn.Module):
    """Quantise by a classifier: each position has a logit for every code [DALL·E sec. 2.1].

    Evaluation takes the likeliest code. Training takes a mixture of all codes: softmax(logits +
    Gumbel noise) is close to a random choice, but has a gradient for every code [Jang et al. 2017].
    As the temperature falls, the logits outgrow the noise, until the mixture is nearly the
    likeliest code alone.

    Where we depart from DALL·E: its temperature divides the noise too, so that choices stay random
    to the end. Its loss pulls each position's probabilities towards uniform; ours pulls their mean
    over the batch, so that positions may be certain as long as all codes are in use.

    size, dim: v, z
    """

    HOTTEST, COLDEST, ANNEALED = 1.0, 1 / 16, 0.8  # temperatures; fraction completed at COLDEST
    BALANCE = 0.015  # weight of the loss

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.temperature = self.HOTTEST
        self.proj = nn.Conv2d(dim, size, 1)
        self.vectors = nn.Parameter(torch.randn(size, dim))

    def anneal(self, done: float) -> None:
        """Set the temperature for the fraction completed: it falls as half a cosine wave."""
        left = (1 + cos(pi * min(done / self.ANNEALED, 1))) / 2
        self.temperature = self.COLDEST + (self.HOTTEST - self.COLDEST) * left

    def forward(self, z: Tensor) -> Quantised:
        """Quantise z (b z g g): at random in training mode, by argmax otherwise."""
        with torch.autocast(z.device.type, enabled=False):  # bf16 cannot tell close codes apart
            logits = self.proj(z.float()) / self.temperature                           # (b v g g)
            mean = logits.softmax(dim=1).mean(dim=(0, 2, 3))                           # (v)
            # KL(mean ‖ uniform); without the 1e-9, the gradient of a code that died is not a number
            kl = log(len(mean)) + (mean * (mean + 1e-9).log()).sum()
            if self.training:
                logits = logits - torch.empty_like(logits).exponential_().log()        # Gumbel(0, 1)
            codes = logits.argmax(dim=1)                                               # (b g g)
            z_q = einsum(logits.softmax(dim=1), self.vectors, "b v h w, v z -> b z h w")
            if not self.training:
                z_q = straight_through(z_q, self.lookup(codes))
        return Quantised(z_q, codes, self.BALANCE * kl)

    def lookup(self, codes: Tensor) -> Tensor:
        """Fetch the vectors of codes (b g g) int64 -> z_q (b z g g)."""
        return rearrange(self.vectors[codes], "b h w z -> b z h w")

    def clamp(self, z: Tensor) -> Tensor:
        """Return z (b z g g) as it is: any z has a likeliest code, so none is out of range."""
        return z


class FiniteScalar(nn.Module):
    """Quantise by rounding a few scalars [FSQ, Mentzer et al. 2023, arXiv 2309.15505].

    A learned codebook can collapse: a code far from all latents is never chosen, so it never
    learns. FSQ learns no codes: they are the points of a fixed grid. z becomes s scalars, each
    bounded and rounded to one of a few levels. The levels are the digits of the code: (8, 8, 8)
    levels give 8·8·8 = 512 codes.

        z (b z g g) --> 1x1 --> bound --> round --> digits (b s g g) --> codes (b g g)
                                            |
                                            +---> / half the levels --> 1x1 --> z_q (b z g g)

    Straight-through carries the gradient past the rounding. The grid does not move, and a bounded
    scalar is never farther than half a step from its level, so there is no codebook loss. Every
    code stays within reach of the encoder, so there are no restarts. The 1x1 convolutions change
    the width, so that z means the same as for the other quantisers.

    dim: z
    levels: one number for each scalar, whose product is the number of codes
    """

    def __init__(self, dim: int, levels: tuple[int, ...]):
        super().__init__()
        self.project_in = nn.Conv2d(dim, len(levels), 1)
        self.project_out = nn.Conv2d(len(levels), dim, 1)
        places = [prod(levels[:i]) for i in range(len(levels))]  # 1, 8, 64; decimal: 1, 10, 100
        self.register_buffer("levels", rearrange(torch.tensor(levels), "s -> s 1 1"))
        self.register_buffer("places", rearrange(torch.tensor(places), "s -> s 1 1"))

    def forward(self, z: Tensor) -> Quantised:
        """Quantise z (b z g g)."""
        with torch.autocast(z.device.type, enabled=False):  # bf16 would pick the wrong level
            bounded = self.bound(self.project_in(z.float()))                      # (b s g g)
            rounded = straight_through(bounded, bounded.round())
            digits = bounded.round().long() + self.levels // 2                    # from 0 on
            z_q = self.project_out(rounded / (self.levels // 2))
        codes = reduce(digits * self.places, "b s h w -> b h w", "sum")
        return Quantised(z_q, codes, torch.zeros((), device=z.device))

    def bound(self, scalars: Tensor) -> Tensor:
        """Bound scalars (b s g g), so that rounding gives as many integers as there are levels.

        Eight levels are -4 ... 3, not symmetric: for an even number tanh's range is moved down by
        half a step, and its argument so that 0 stays near 0 [FSQ app. A.1]. The paper's shrinking
        of the range by 0.1 % is left out.
        """
        half = (self.levels - 1) / 2
        offset = half % 1  # 0.5 for an even number of levels, else 0
        return half * (scalars + (offset / half).tan()).tanh() - offset

    def lookup(self, codes: Tensor) -> Tensor:
        """Turn codes (b g g) int64 into digits, scalars in [-1, 1] and vectors -> z_q (b z g g)."""
        digits = rearrange(codes, "b h w -> b 1 h w") // self.places % self.levels  # (b s g g)
        with torch.autocast(codes.device.type, enabled=False):
            return self.project_out((digits - self.levels // 2) / (self.levels // 2))

    def clamp(self, z: Tensor) -> Tensor:
        """Return z (b z g g) as it is: tanh bounds any z."""
        return z


def usage(counts: Tensor) -> Tensor:
    """Return the fraction of codes chosen at all; counts (v), how often each was chosen."""
    return (counts > 0).float().mean()


def perplexity(counts: Tensor) -> Tensor:
    """Return how many equally used codes have the entropy of counts (v): exp(entropy) >= 1."""
    return torch.special.entr(counts / counts.sum()).sum().exp()
