"""Replace every latent vector by the nearest of v learned vectors, and let gradients through all the same.

The encoder draws a grid of vectors z. The codebook owns v vectors e_0 ... e_{v-1} of the same width. Each
vector of the grid is replaced by the nearest e_k, and k is its code: a picture becomes g·g integers
[VQ-VAE sec. 3.1; VQGAN eq. 2].

    z (b z g g) --> nearest --> codes (b g g) --> lookup --> z_q (b z g g) --> decoder
         ^                                                        |
         +------------ straight_through: the gradient's way back -+

"Nearest" is a staircase: nudge z a little and the code stays as it was, so the true gradient is zero nearly
everywhere and the encoder would never learn. Three remedies, all in this file:
  - `straight_through` hands the decoder's gradient on to the encoder as if nothing had been replaced;
  - the loss pulls codes towards latents (codebook term) and latents towards codes (commitment term);
  - a code that no latent chooses gets no gradient, so it is restarted where latents are badly served.

To try another quantiser, write it here with the same `forward`, `lookup` and `clamp`, and change the two
places of model.py that say `Codebook`: its import and its call. `GumbelCodebook` is one: there a code is not
near, but likely.

Departures: codes narrow and, by choice, l2-normalised [ViT-VQGAN sec. 3.2]; restarted, which keeps all in
use; and a rare code pays for being rare, which makes pictures easy to predict code by code (`choose`). beta is
on the commitment term, as in [VQ-VAE eq. 3]; VQGAN's published code has it on the codebook term by mistake.
"""

from math import log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn


class Quantised(NamedTuple):
    """Hold what comes of quantising a grid of latents."""

    z_q: Tensor    # (b z g g)  the chosen vectors; their gradient goes to z
    codes: Tensor  # (b g g)    int64 in [0, v), the vectors' row numbers
    loss: Tensor   # ()         codebook term + beta · commitment term; or the KL to equal use


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Return the values of z_q with the gradient of z [VQ-VAE sec. 3.2].

    Forward, z + (z_q - z) is z_q. Backward, the bracket is detached, a constant, and d/dz z = 1 is left: z
    receives exactly the gradient that the decoder sends to z_q. It is an estimate, good as long as z_q is
    close to z: a change that would help the decoder at z_q is taken to help at z too.
    """
    return z + (z_q - z).detach()


def squared_distances(rows: Tensor, vectors: Tensor) -> Tensor:
    """Compare each of rows (n z) with each of vectors (v z)  ->  ‖row - e‖² (n v).

    It is ‖row‖² - 2 row·e + ‖e‖², and row·e for all rows and vectors is a single matrix product.
    """
    with torch.autocast(rows.device.type, enabled=False):  # bf16 cannot tell close codes apart
        crossed = einsum(rows, vectors, "n z, v z -> n v")
        return rows.square().sum(dim=1, keepdim=True) - 2 * crossed + vectors.square().sum(dim=1)


class Codebook(nn.Module):
    """Quantise latents by v learned vectors.

    The vectors learn by gradient, so all that moves them is in the loss below; moving averages (EMA) would do
    as well, with two more buffers and an update rule beside the optimiser's.

    codebook_size: v, the number of vectors
    codebook_dim: z, the width of each
    l2_normalised: compare directions only; codes and latents then lie on the unit sphere
    beta: weight of the commitment term
    rate_weight: price of a code's length, -log(how often it is chosen), beside its squared distance
    restart_after: training batches that a code may go unused before it is moved to where latents are
    """

    def __init__(self, codebook_size: int, codebook_dim: int, l2_normalised: bool, beta: float,
                 rate_weight: float, restart_after: int):
        super().__init__()
        self.l2_normalised, self.beta = l2_normalised, beta
        self.rate_weight, self.restart_after = rate_weight, restart_after
        self.vectors = nn.Parameter(torch.randn(codebook_size, codebook_dim))
        # Training batches since each code was last chosen. A new codebook counts as dead from end to end, so
        # that the first batch initialises it with encoder outputs. A buffer: a resumed run must know it too.
        self.register_buffer("idle", torch.full((codebook_size,), restart_after))
        self.register_buffer("share", torch.full((codebook_size,), 1 / codebook_size))  # of choices, lately

    def forward(self, z: Tensor) -> Quantised:
        """Quantise z (b z g g). Training mode restarts dead codes, much as BatchNorm updates its means."""
        z = self.normalise(z.float(), dim=1)
        rows = rearrange(z.detach(), "b z h w -> (b h w) z")
        if self.training:
            self.restart_dead_codes(rows)
        codes = self.choose(rows)                                                          # (b·g·g)
        if self.training:
            self.count(codes)
        codes = rearrange(codes, "(b h w) -> b h w", h=z.shape[2], w=z.shape[3])
        z_q = self.lookup(codes)
        codebook_term = F.mse_loss(z_q, z.detach())    # moves codes only
        commitment_term = F.mse_loss(z, z_q.detach())  # moves the encoder only
        return Quantised(straight_through(z, z_q), codes, codebook_term + self.beta * commitment_term)

    def lookup(self, codes: Tensor) -> Tensor:
        """Fetch the vectors of codes (b g g) int64  ->  z_q (b z g g)."""
        return rearrange(self.normalise(self.vectors, dim=1)[codes], "b h w z -> b z h w")

    def clamp(self, z: Tensor) -> Tensor:
        """Bring z (b z g g), moved freely, back to where codes are: the sphere, or each channel's range."""
        if self.l2_normalised:
            return self.normalise(z, dim=1)
        low, high = (rearrange(bound, "z -> z 1 1") for bound in self.vectors.detach().aminmax(dim=0))
        return z.clamp(low, high)

    def normalise(self, x: Tensor, dim: int) -> Tensor:
        """Scale x to length 1 along `dim` if codes are l2-normalised; otherwise return it as it is."""
        return F.normalize(x, dim=dim) if self.l2_normalised else x

    def choose(self, rows: Tensor) -> Tensor:
        """Find a code for each of rows (n z): the nearest, or a common one that is nearly as near  ->  (n) int64.

        A plain sky could be any of a hundred nearly equal codes, picked by noise, which a model of the codes
        then has to predict. So a code also pays for its length in nats, -log share [Chou, Lookabaugh and Gray 1989].
        """
        price = -self.rate_weight * self.share.log()                                       # (v)
        return (squared_distances(rows, self.normalise(self.vectors.detach(), dim=1)) + price).argmin(dim=1)

    def count(self, codes: Tensor) -> None:
        """Keep account of which codes (n) a training batch chose."""
        chosen = torch.bincount(codes, minlength=len(self.idle))
        self.idle = torch.where(chosen > 0, 0, self.idle + 1)
        self.share.lerp_(chosen / len(codes), 0.01).clamp_(min=1e-5)  # over some hundred batches

    @torch.no_grad()
    def restart_dead_codes(self, rows: Tensor) -> None:
        """Move codes unused for `restart_after` batches onto latents of this batch, rows (n z).

        The worse a latent is served, the likelier a code comes to it, as in k-means++. Drawn evenly, most would
        land on the background, which has codes enough.
        """
        dead = self.idle >= self.restart_after                                             # (v)
        distance = squared_distances(rows, self.normalise(self.vectors, dim=1)).masked_fill(dead, torch.inf)
        odds = distance.amin(dim=1).nan_to_num(posinf=1).clamp(min=1e-9)                   # (n) alike if all are dead
        drawn = rows[torch.multinomial(odds, len(dead), replacement=True)]                 # (v z)
        self.vectors.copy_(torch.where(rearrange(dead, "v -> v 1"), drawn, self.vectors))
        self.idle[dead] = 0  # a full term in which to be chosen
        self.share[dead] = 1 / len(dead)


class GumbelCodebook(nn.Module):
    """Quantise by a classifier: each position has a logit for every code [DALL-E sec. 2.1; Jang et al. 2017].

    Evaluation takes the likeliest code. Training draws one: the largest logit after adding Gumbel noise is a
    sample of softmax(logits). Straight-through once more: forward the code that was drawn, backward the mean of
    all by softmax, so that each code that could have been drawn tells the encoder what it would have changed.
    Noise tries all codes while logits are flat, hence no restarts; a small KL keeps them from being sure too soon.

    codebook_size, codebook_dim: v and z, as above
    temperature: of the softmax backward; lower is truer to the draw and noisier. DALL-E goes from 1 to 1/16
    kl_weight: price of a nat of KL(softmax(logits) ‖ uniform), averaged over positions
    """

    def __init__(self, codebook_size: int, codebook_dim: int, temperature: float = 1.0, kl_weight: float = 5e-4):
        super().__init__()
        self.temperature, self.kl_weight = temperature, kl_weight
        self.proj = nn.Conv2d(codebook_dim, codebook_size, 1)
        self.vectors = nn.Parameter(torch.randn(codebook_size, codebook_dim))

    def forward(self, z: Tensor) -> Quantised:
        """Quantise z (b z g g): by chance in training mode, by argmax otherwise."""
        with torch.autocast(z.device.type, enabled=False):  # bf16 cannot tell close codes apart
            logits = self.proj(z.float())                                                  # (b v g g)
            noise = -torch.empty_like(logits).exponential_().log() if self.training else 0.0  # Gumbel's, or none
            codes = (logits + noise).argmax(dim=1)                                         # (b g g)
            soft = ((logits + noise) / self.temperature).softmax(dim=1)
            expected = einsum(soft, self.vectors.detach(), "b v h w, v z -> b z h w")
            z_q = self.lookup(codes) + (expected - expected.detach())  # the bracket is 0, with a gradient
            surplus = logits.log_softmax(dim=1) + log(len(self.vectors))  # in nats, over equal use
            kl = (logits.softmax(dim=1) * surplus).sum(dim=1).mean()
        return Quantised(z_q, codes, self.kl_weight * kl)

    def lookup(self, codes: Tensor) -> Tensor:
        """Fetch the vectors of codes (b g g) int64  ->  z_q (b z g g)."""
        return rearrange(self.vectors[codes], "b h w z -> b z h w")

    def clamp(self, z: Tensor) -> Tensor:
        """Return z (b z g g) as it is: some code is the likeliest anywhere, so z cannot stray."""
        return z


def usage(counts: Tensor) -> Tensor:
    """Return the share in [0, 1] of codes chosen at all; counts (v), how often each was (torch.bincount)."""
    return (counts > 0).float().mean()


def perplexity(counts: Tensor) -> Tensor:
    """Return how many codes in equal use would be as varied as counts (v): exp(entropy), in [1, v]."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()
