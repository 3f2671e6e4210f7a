"""Contrastive losses: tell which images and captions of a batch belong together.

                  captions j
    images i   [ same  .    .  ]      logits (i j) = scale * cosine (+ bias), from CLIP.logits
               [  .   same  .  ]      same (i j) boolean: caption j is right for image i; None means the diagonal
               [  .    .   same]

    softmax    Which caption of the batch belongs to this image (a softmax over each row), and which image to this
               caption (over each column)? The loss is the mean of both cross-entropies [CLIP sec. 2.3, figure 3].
    sigmoid    Does this image belong to this caption, yes or no? Each pair is a question of its own, so the loss needs
               no normalisation over the batch [SigLIP, Zhai et al. 2023, arXiv 2303.15343, algorithm 1].

Two losses to know, for a batch of b pairs: `first` is that of an untrained model, whose cosines are all about 0; `guess` is
that of the best constant logit. A loss that stays at `guess` is the sign of a mistake, most often of features that were not
normalised.

    softmax    first    ln b                                              4.85 for b = 128
               guess    ln b
    sigmoid    first    softplus(-bias) + (b - 1) softplus(bias)          10.01 for b = 128 and bias = -10, give or take 1
               guess    ln b + (b - 1) ln(b / (b - 1)), about ln b + 1    5.85 for b = 128

Small data sets repeat their captions, and counting a repeated one as wrong would push an image away from its own caption:
`same` counts it as right. Then an image has several right captions, and the lowest loss that can be reached is

    softmax    the entropy of the targets: ln 16 when each of eight captions occurs 16 times in a batch of 128
    sigmoid    0; with 16 right captions for each image the first loss is 160

A new loss is a function of (logits, same) and a line in LOSSES; functools.partial binds a hyperparameter of its own there.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

if TYPE_CHECKING:  # model.py imports this file
    from .model import CLIP


def same_caption(ids: Tensor) -> Tensor:
    """Compare every caption with every other: ids (b t) -> boolean (b b), True where they are equal."""
    return (rearrange(ids, "i t -> i 1 t") == rearrange(ids, "j t -> 1 j t")).all(dim=-1)


def diagonal(logits: Tensor) -> Tensor:
    """Return boolean (i j), True where i = j: the only right caption of an image is its own."""
    return torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)


def row_cross_entropy(logits: Tensor, same: Tensor) -> Tensor:
    """Return the mean over rows of the cross-entropy with the right columns, which share the target equally.

    logits (i j), same boolean (i j) with at least one True in each row -> scalar.
    """
    return F.cross_entropy(logits, same / same.sum(dim=1, keepdim=True))


def softmax_loss(logits: Tensor, same: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy over captions and over images: logits (i j), same (i j) -> scalar [CLIP figure 3]."""
    same = diagonal(logits) if same is None else same
    image_to_text = row_cross_entropy(logits, same)
    text_to_image = row_cross_entropy(rearrange(logits, "i j -> j i"), rearrange(same, "i j -> j i"))
    return (image_to_text + text_to_image) / 2


def sigmoid_loss(logits: Tensor, same: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of all pairs, summed, per image: logits (i j), same (i j) -> scalar.

    -sum log sigmoid(label * logit) / b, label +1 where same, else -1 [SigLIP algorithm 1].
    """
    same = diagonal(logits) if same is None else same
    labels = torch.where(same, 1.0, -1.0)                                 # (i j)
    return -F.logsigmoid(labels * logits).sum() / len(logits)


class Objective(NamedTuple):
    """Name a contrastive loss, and the temperature and bias that a model trained with it starts from."""

    loss: Callable[[Tensor, Tensor | None], Tensor]  # (logits (i j), same (i j) boolean or None) -> scalar
    logit_scale: float                               # initial logarithm of the scale
    logit_bias: float | None                         # initial bias; None: the model has no such parameter


LOSSES = {
    "softmax": Objective(softmax_loss, logit_scale=math.log(1 / 0.07), logit_bias=None),  # [CLIP sec. 2.5]
    # nearly all pairs are wrong: without the bias the first steps only learn to say no [SigLIP sec. 3.2]
    "sigmoid": Objective(sigmoid_loss, logit_scale=math.log(10), logit_bias=-10.0),
}


def accumulated_backward(
    model: "CLIP", images: Tensor, ids: Tensor, chunks: int, same: Tensor | None = None,
    gather: Callable[..., tuple[Tensor, ...]] = lambda *features: features,
) -> Tensor:
    """Add the gradient of the whole batch's loss to every .grad, keeping the activations of one chunk at a time.

    images (b 3 h w), ids (b t), same (b b) boolean or None, as in the model's own loss -> that loss, without a graph.
    gather: where several processes share the batch, joins their features, with gradients.

    Summing the losses of small batches is not the same: their images meet fewer wrong captions. But the loss depends on
    a batch only through its features, and those are small. So [GradCache, Gao et al. 2021, sec. 3]: embed all chunks
    without a graph, take the gradient of the one loss at the features, then embed each chunk again and backpropagate the
    gradient of its features into the weights. The price is a second forward pass.
    """
    pairs = list(zip(images.chunk(chunks), ids.chunk(chunks)))
    with torch.no_grad():
        features = [model(*pair) for pair in pairs]
    # drop the weights that autocast cached under no_grad, or the second pass has no graph back to the parameters
    torch.clear_autocast_cache()

    image_features, text_features = (torch.cat(parts).requires_grad_() for parts in zip(*features))
    loss = LOSSES[model.config.loss].loss(model.logits(*gather(image_features, text_features)), same)
    with torch.autocast(images.device.type, enabled=False):  # a backward pass uses the precisions of its forward pass
        loss.backward()  # reaches the features, the temperature and the bias; the chunks below use neither of the last two

    for pair, *gradients in zip(pairs, image_features.grad.chunk(chunks), text_features.grad.chunk(chunks)):
        features = model(*pair)
        with torch.autocast(images.device.type, enabled=False):
            torch.autograd.backward(features, gradients)
    return loss.detach()
