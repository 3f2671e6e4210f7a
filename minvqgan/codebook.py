"""Replace every latent vector by the nearest of v learned vectors, and let gradients through all the same.

The encoder draws a grid of vectors z. The codebook owns v vectors e_0 ... e_{v-1} of the same width. Each vector
of the grid is replaced by the nearest e_k, and the number k is its code: a picture becomes g·g integers
[VQ-VAE sec. 3.1; VQGAN eq. 2].

    z (b z g g) ──► nearest ──► codes (b g g) ──► lookup ──► z_q (b z g g) ──► decoder
         └──────────────────── straight_through: the gradient's way back ◄────────┘

"Nearest" is a staircase: nudge z a little and the code stays as it was, so the true gradient is zero nearly
everywhere and the encoder would never learn. Three remedies, all below:
  - `straight_through` hands the decoder's gradient on to the encoder as if nothing had been replaced;
  - the codebook term of the loss pulls codes towards latents, the commitment term pulls latents towards codes;
  - codes that no latent chooses get no gradient, so they are restarted where latents are.

To try another quantiser, write beside this class one with the same `forward`, `lookup` and `clamp`. Then change
the import and the call in model.py, the only two lines that name `Codebook`.

Departures: narrow and, by choice, l2-normalised codes [ViT-VQGAN sec. 3.2] and restarts, which keep all codes in
use; beta stands on the commitment term as in VQ-VAE eq. 3, where the published code has it on the codebook term.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn


class Quantised(NamedTuple):
    """Hold what comes of quantising a grid of latents."""

    z_q: Tensor    # (b z g g)  the chosen codebook vectors; their gradient goes to z
    codes: Tensor  # (b g g)    int64 in [0, v), the vectors' row numbers
    loss: Tensor   # ()         codebook term + beta · commitment term


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Return the values of z_q with the gradient of z [VQ-VAE sec. 3.2].

    Forward, z + (z_q - z) is z_q. Backward, the bracket is detached, a constant, and what is left is d/dz z = 1:
    z receives exactly the gradient that the decoder sends to z_q. It is an estimate, good as long as z_q is
    close to z: a change that would help the decoder at z_q is taken to help at z too.
    """
    return z + (z_q - z).detach()


def nearest(rows: Tensor, vectors: Tensor) -> Tensor:
    """Find the closest of vectors (v z) for each of rows (n z)  ->  codes (n,) int64.

    ‖row - e‖² = ‖row‖² - 2 row·e + ‖e‖² needs one matrix product, where subtracting would need n·v·z numbers.
    ‖row‖² is left out: it is the same for all e and cannot change which is least.
    """
    with torch.autocast(rows.device.type, enabled=False):  # in bf16 the nearest codes would be told apart wrongly
        distance = vectors.square().sum(dim=1) - 2 * einsum(rows, vectors, "n z, v z -> n v")
    return distance.argmin(dim=1)


class Codebook(nn.Module):
    """Quantise latents with v learned vectors.

    The vectors learn by gradient, through the codebook term. Moving averages (EMA) would need no such term, but
    two more buffers and an update rule of their own beside the optimiser.

    codebook_size: v, number of vectors
    codebook_dim: z, width of each
    l2_normalised: compare directions only; codes and latents then lie on the unit sphere
    beta: weight of the commitment term
    restart_after: training batches that a code may go unused before it is moved to where latents are
    """

    def __init__(self, codebook_size: int, codebook_dim: int, l2_normalised: bool, beta: float, restart_after: int):
        super().__init__()
        self.l2_normalised, self.beta, self.restart_after = l2_normalised, beta, restart_after
        self.vectors = nn.Parameter(torch.randn(codebook_size, codebook_dim))
        # Training batches since each code was last chosen. A new codebook counts as dead from end to end, so the
        # first training batch initialises it with encoder outputs. A buffer, so that a resumed run is the same.
        self.register_buffer("idle", torch.full((codebook_size,), restart_after))

    def forward(self, z: Tensor) -> Quantised:
        """Quantise z (b z g g). In training mode this also restarts dead codes, as BatchNorm updates its means."""
        z = self.normalise(z.float(), dim=1)
        rows = rearrange(z, "b z h w -> (b h w) z")
        if self.training:
            self.restart_dead_codes(rows.detach())
        codes = nearest(rows.detach(), self.normalise(self.vectors.detach(), dim=1))  # (b·h·w)
        if self.training:
            self.idle += 1
            self.idle[codes] = 0
        codes = rearrange(codes, "(b h w) -> b h w", h=z.shape[2], w=z.shape[3])
        z_q = self.lookup(codes)
        codebook_term = F.mse_loss(z_q, z.detach())    # moves the codes only
        commitment_term = F.mse_loss(z, z_q.detach())  # moves the encoder only
        return Quantised(straight_through(z, z_q), codes, codebook_term + self.beta * commitment_term)

    def lookup(self, codes: Tensor) -> Tensor:
        """Fetch the vectors of codes (b h w) int64  ->  z_q (b z h w)."""
        return rearrange(self.normalise(self.vectors, dim=1)[codes], "b h w z -> b z h w")

    def clamp(self, z: Tensor) -> Tensor:
        """Bring latents (b z h w) that were moved freely back to where codes are: the sphere, or each channel's range."""
        if self.l2_normalised:
            return self.normalise(z, dim=1)
        low, high = (rearrange(bound, "z -> z 1 1") for bound in self.vectors.detach().aminmax(dim=0))
        return z.clamp(low, high)

    def normalise(self, x: Tensor, dim: int) -> Tensor:
        """Scale x to length one along `dim` if codes are l2-normalised, or else return it as it is."""
        return F.normalize(x, dim=dim) if self.l2_normalised else x

    @torch.no_grad()
    def restart_dead_codes(self, rows: Tensor) -> None:
        """Move each code unused for `restart_after` batches onto a random one of rows (n z), this batch's latents."""
        dead = self.idle >= self.restart_after                                            # (v)
        drawn = rows[torch.randint(len(rows), (len(dead),), device=rows.device)]          # (v z)
        self.vectors.copy_(torch.where(rearrange(dead, "v -> v 1"), drawn, self.vectors))
        self.idle[dead] = 0  # a full term to be chosen in


def usage(counts: Tensor) -> Tensor:
    """Return the share in [0, 1] of codes chosen at all; counts (v), how often each was, as by torch.bincount."""
    return (counts > 0).float().mean()


def perplexity(counts: Tensor) -> Tensor:
    """Return how many codes, chosen equally often, would be as varied as counts (v): exp(entropy), in [1, v]."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()
