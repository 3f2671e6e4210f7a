"""Tell apart the pairs of a batch [CLIP sec. 2.3, figure 3], and train on batches larger than memory.

                  captions j
    images i   [ same  .    .  ]      logits = scale · cosine (b b). A softmax along a row asks: which caption
               [  .   same  .  ]      belongs to this image? One down a column: which image belongs to this
               [  .    .   same]      caption? The loss is the mean of both cross-entropies.

Before training the answers are no better than chance, so the first loss is about ln b: 4.85 for a batch of
128. A loss that stays there is the sign of a mistake, most often of features that were not normalised.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from .model import CLIP, MAX_LOGIT_SCALE


def same_caption(ids: Tensor) -> Tensor:
    """Compare every caption with every other: ids (b t) -> boolean (b b), True where they are equal."""
    return (rearrange(ids, "i t -> i 1 t") == rearrange(ids, "j t -> 1 j t")).all(dim=-1)


def row_cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Return the mean over rows of the cross-entropy with the right columns, which share the target equally.

    logits (i j), right boolean (i j) with one True or more in each row -> scalar.
    """
    return F.cross_entropy(logits, right / right.sum(dim=1, keepdim=True))


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, same: Tensor | None = None
) -> Tensor:
    """Return the symmetric cross-entropy between images and captions, a scalar [CLIP figure 3].

    Both features (b e) of unit length; logit_scale the logarithm of the scale, clamped to ln 100.
    same: boolean (b b), True where caption j is right for image i; without it only the diagonal is. Small
    worlds repeat their captions, and counting a repeated one as wrong would push an image away from its own
    caption. With repetitions the least possible loss is no longer 0 but the entropy of the targets.
    """
    if same is None:
        same = torch.eye(len(image_features), dtype=torch.bool, device=image_features.device)
    # kept out of autocast: bfloat16 has 8 bits, and logits near 100 would be off by a quarter
    with torch.autocast(image_features.device.type, enabled=False):
        scale = logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        logits = scale * einsum(image_features.float(), text_features.float(), "i e, j e -> i j")
        image_to_text = row_cross_entropy(logits, same)
        text_to_image = row_cross_entropy(rearrange(logits, "i j -> j i"), rearrange(same, "i j -> j i"))
    return (image_to_text + text_to_image) / 2


def accumulated_backward(
    model: CLIP, images: Tensor, ids: Tensor, chunks: int, same: Tensor | None = None
) -> Tensor:
    """Add to every .grad that of the loss over the whole batch, with the activations of one chunk at a time.

    images (b 3 h w), ids (b t), same as in contrastive_loss -> the loss, a scalar without gradient.

    Summing the losses of small batches is something else: their images meet fewer wrong captions. But the
    loss sees a batch only through its features, and those are small. So [GradCache, Gao et al. 2021, sec. 3]
    embed all chunks without a graph, take the gradient of the one loss at the features, then embed each chunk
    again and carry the gradient of its features on into the weights. The price is a second forward pass.
    """
    pairs = list(zip(images.chunk(chunks), ids.chunk(chunks)))
    with torch.no_grad():
        features = [model(*pair) for pair in pairs]
    torch.clear_autocast_cache()  # or the weights cast just now, without a graph, would serve below as well

    image_features, text_features = (torch.cat(parts).requires_grad_() for parts in zip(*features))
    loss = contrastive_loss(image_features, text_features, model.logit_scale, same)
    loss.backward()  # reaches the features and the temperature, which the chunks below never meet

    for pair, *gradients in zip(pairs, image_features.grad.chunk(chunks), text_features.grad.chunk(chunks)):
        torch.autograd.backward(model(*pair), gradients)
    return loss.detach()
