"""Train on a batch whose activations do not fit into memory [GradCache, Gao et al. 2021, sec. 3].

Summing the losses of small batches is not the same: their images meet fewer wrong captions. But the
loss depends on a batch only through its features, and those are small. So: embed all chunks without
a graph, take the gradient of the one loss at the features, then embed each chunk again and
backpropagate the gradient of its features into the weights. The price is a second forward pass.
"""

import torch
from torch import Tensor

from .loss import LOSSES
from .model import CLIP


def accumulated_backward(model: CLIP, images: Tensor, ids: Tensor, chunks: int,
                         same: Tensor | None = None) -> Tensor:
    """Add the gradient of the batch's loss to every .grad, with the activations of one chunk.

    images (b 3 h w), ids (b t), same (b b) boolean or None, as in loss.py -> the loss, without a
    graph
    """
    pairs = list(zip(images.chunk(chunks), ids.chunk(chunks)))
    with torch.no_grad():
        features = [model(*pair) for pair in pairs]
    # drop the weights that autocast cached under no_grad, or the second pass has no graph
    torch.clear_autocast_cache()

    image_features, text_features = (torch.cat(part).requires_grad_() for part in zip(*features))
    loss = LOSSES[model.config.loss].loss(model.logits(image_features, text_features), same)
    with torch.autocast(images.device.type, enabled=False):  # backward has forward's precisions
        loss.backward()  # reaches the features, the temperature and the bias

    gradients = zip(image_features.grad.chunk(chunks), text_features.grad.chunk(chunks))
    for pair, gradient in zip(pairs, gradients):
        features = model(*pair)
        with torch.autocast(images.device.type, enabled=False):
            torch.autograd.backward(features, gradient)
    return loss.detach()
