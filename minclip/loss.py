"""Contrastive losses: tell which images and captions of a batch belong together.

                  captions j
    images i   [ same  .    .  ]      logits (i j) = scale * cosine (+ bias), from CLIP.logits
               [  .   same  .  ]      same (i j) boolean: caption j is right for image i;
               [  .    .   same]      None means the diagonal

    softmax    Which caption of the batch belongs to this image (a softmax over each row), and
               which image to this caption (over each column)? The loss is the mean of both
               cross-entropies [CLIP sec. 2.3, figure 3].
    sigmoid    Does this image belong to this caption, yes or no? Each pair is a question of its
               own, so nothing is normalised over the batch [SigLIP, Zhai et al. 2023,
               arXiv 2303.15343, algorithm 1].

Two losses to know, for a batch of b pairs: `first` is that of an untrained model, whose cosines
are all about 0; `guess` is that of the best constant logit. A loss that stays at `guess` is the
sign of a mistake, most often of features that were not normalised.

    softmax    first    ln b                                      4.85 for b = 128
               guess    ln b
    sigmoid    first    softplus(-bias) + (b - 1) softplus(bias)  10.01 for b = 128, bias = -10
               guess    ln b + (b - 1) ln(b / (b - 1))            5.85 for b = 128

Small data sets repeat their captions. Counting a repeated one as wrong would push an image away
from its own caption, so `same` counts it as right. The lowest loss that can be reached is then

    softmax    the entropy of the targets: ln 16 if each of 8 captions occurs 16 times in 128
    sigmoid    0; with 16 right captions for each image the first loss is 160

A new loss is a function of (logits, same) and a line in LOSSES; functools.partial binds a
hyperparameter of its own there.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def same_caption(ids: Tensor) -> Tensor:
    """Compare every caption with every other: ids (b t) -> boolean (b b), True where equal."""
    return (rearrange(ids, "i t -> i 1 t") == rearrange(ids, "j t -> 1 j t")).all(dim=-1)


def diagonal(logits: Tensor) -> Tensor:
    """Return boolean (i j), True where i = j: the only right caption of an image is its own."""
    return torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)


def row_cross_entropy(logits: Tensor, same: Tensor) -> Tensor:
    """Return the mean over rows of the cross-entropy; right columns divide the target equally.

    logits (i j), same boolean (i j) with at least one True in each row -> scalar.
    """
    return F.cross_entropy(logits, same / same.sum(dim=1, keepdim=True))


def softmax_loss(logits: Tensor, same: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy over captions and over images [CLIP figure 3].

    logits (i j), same (i j) -> scalar.
    """
    same = diagonal(logits) if same is None else same
    by_caption, same_by_caption = (rearrange(matrix, "i j -> j i") for matrix in (logits, same))
    image_to_text = row_cross_entropy(logits, same)
    text_to_image = row_cross_entropy(by_caption, same_by_caption)
    return (image_to_text + text_to_image) / 2


def sigmoid_loss(logits: Tensor, same: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of all pairs, summed, per image [SigLIP algorithm 1].

    logits (i j), same (i j) -> scalar: -sum log sigmoid(±logit) / b, + where same.
    """
    same = diagonal(logits) if same is None else same
    labels = torch.where(same, 1.0, -1.0)                                 # (i j)
    return -F.logsigmoid(labels * logits).sum() / len(logits)


class Objective(NamedTuple):
    """Name a contrastive loss, and the temperature and bias that training with it starts from."""

    loss: Callable[[Tensor, Tensor | None], Tensor]  # (logits (i j), same (i j) or None) -> scalar
    logit_scale: float                               # initial logarithm of the scale
    logit_bias: float | None                         # initial bias; None: no such parameter


LOSSES = {
    # [CLIP sec. 2.5]
    "softmax": Objective(softmax_loss, logit_scale=math.log(1 / 0.07), logit_bias=None),
    # nearly all pairs are wrong: without a bias the first steps only learn that [SigLIP sec. 3.2]
    "sigmoid": Objective(sigmoid_loss, logit_scale=math.log(10), logit_bias=-10.0),
}
