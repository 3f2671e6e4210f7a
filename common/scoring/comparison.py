"""Compare two sets of pictures, drawings with true ones: their distance, their variety, and what is copied.

    features (n f), (m f)     frechet_distance   0 for equal sets
                              covered            precision: how many drawings look like true pictures?
                                                 recall: how much of the variety of true pictures do drawings reach?
    pixels (n 3 h w)          closest            the training pictures closest to each
                              share_below        how many drawings are closer to a training picture than new ones are?

Distance, precision and recall depend on the number of pictures. Compare them only with the same figure for as many true pictures.
"""

import math

import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

import data

from .classifier import resize
from ..run.pictures import Progress, contact_sheet, to_pil

BATCH = 64  # training pictures compared at once
NEAREST = 3  # the neighbour that sets the radius of a sphere [Kynkäänniemi et al. 2019, sec. 3]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (f) and covariance (f f) of features (n f), in float64."""
    return x.double().mean(dim=0), torch.cov(rearrange(x.double(), "n f -> f n"), correction=1)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Fréchet distance of the Gaussians with the moments of features (n f) [Heusel et al. 2017, eq. 6].

    |mean difference|² + tr(A + B - 2 (A^½ B A^½)^½) of the covariances. 0 for equal sets. Few pictures raise it, even between
    two sets of true ones: compare it with that floor, for as many pictures.
    """
    (mean_a, A), (mean_b, B) = moments(a), moments(b)
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ rearrange(vectors, "f g -> g f")            # A^½, symmetric
    crossed = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + A.trace() + B.trace() - 2 * crossed).clamp(min=0).item()


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances (i j) of features a (i f), b (j f), exact also where they are tiny."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def covered(points: Tensor, by: Tensor, k: int = NEAREST) -> float:
    """Return the share of points (n f) that lie in the spheres around `by` (m f) [Kynkäänniemi et al. 2019, eq. 1, 2].

    A sphere reaches to the k-th nearest of the others. Drawings covered by true pictures: precision. True pictures covered by
    drawings: recall, which is low when all drawings are alike, however good.
    """
    radius = distances(by, by).kthvalue(k + 1, dim=1).values                                  # (m), the first is itself
    return (distances(points, by) <= radius).any(dim=1).double().mean().item()


@torch.no_grad()
def closest(images: Tensor, train: data.Dataset, side: int = 32) -> tuple[Tensor, Tensor]:
    """Find for each image (b 3 h w) in [-1, 1] the two training pictures with the least squared difference of pixels.

    All are scaled to at most `side` pixels. Training pictures pass by in batches, so any number fits in memory.
    -> mean squared differences (b 2), indices (b 2), the closest first
    """
    def flat(x: Tensor) -> Tensor:
        return rearrange(resize(x, min(side, images.shape[-1])), "b c h w -> b (c h w)")

    wanted, progress = flat(images), Progress("comparing with training pictures")             # (b p)
    best, found = torch.full((len(images), 2), math.inf), torch.zeros(len(images), 2, dtype=torch.long)
    for indices in torch.arange(len(train)).split(BATCH):
        others = flat(train.batch(indices))                                                   # (s p)
        # |x - y|² without |x|², which is the same for all y
        gaps = others.square().sum(dim=1) - 2 * wanted @ rearrange(others, "s p -> p s")      # (b s)
        best, places = torch.cat([best, gaps], dim=1).topk(2, largest=False)                  # (b 2)
        found = torch.cat([found, repeat(indices, "s -> b s", b=len(images))], dim=1).gather(1, places)
        progress(int(indices[-1]) + 1, len(train))

    def exact(some: Tensor) -> Tensor:  # as a difference of large sums is not
        others = torch.cat([flat(train.batch(indices)) for indices in some.split(BATCH)])
        return (wanted - others).square().mean(dim=1)

    return torch.stack([exact(some) for some in found.unbind(dim=1)], dim=1), found


def standing_out(gaps: Tensor) -> Tensor:
    """Return the gap to the closest over that to the second: gaps (b 2) -> ratios (b), near 1 for new pictures, 0 for copies."""
    return gaps[:, 0] / gaps[:, 1].clamp(min=1e-12)


def share_below(drawn: Tensor, true: Tensor) -> float:
    """Return how many of `drawn` (n) are less than the median of `true` (m): a half where both come from the same source.

    Of the gaps to the closest training picture [Meehan et al. 2020]: drawings are closer than new pictures are. Copies are, but
    so are drawings smoother than true pictures, and those of which there are many.
    Of the ratios of `standing_out`: one training picture is closer than all others, as it is for copies only.
    On Fashion-MNIST, gaps and ratios gave 0.91 and 0.52 for drawings from the two likeliest codes, 0.48 and 0.43 from all codes,
    0.61 and 0.52 for reconstructions of held-out pictures, 0.99 and 1.00 for reconstructions of training pictures.
    """
    return (drawn < true.quantile(0.5)).double().mean().item()


def beside_closest(drawn: Tensor, captions: list[str], indices: Tensor, train: data.Dataset) -> Image.Image:
    """Show each drawing (b 3 h w) with the training picture closest to it on its right, four pairs to a row."""
    pictures = [picture for pair in zip(to_pil(drawn), to_pil(train.batch(indices))) for picture in pair]
    found = [train.captions[i][0] for i in indices.tolist()]
    labels = [label for asked, near in zip(captions, found) for label in (f"drawn: {asked}", f"closest: {near}")]
    return contact_sheet(pictures, labels, columns=8)
