"""The objective of DALL·E, and the caption dropout that guidance needs: pure functions."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def dalle_loss(
    text_logits: Tensor, image_logits: Tensor, text: Tensor, codes: Tensor,
    text_weight: float = 1 / 8,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the losses of text and image, in nats a token, weighted 1 to 7 [DALL·E sec. 2.2].

    Images are the goal; learning to predict text helps to understand it. Padding is text too.

    text_logits (b t-1 v), image_logits (b n v), text (b t), codes (b n) or (b g g)
    -> loss, text loss, image loss, each ()
    """
    text_loss = cross_entropy(text_logits, text[:, 1:])  # nothing predicts a caption's first token
    image_loss = cross_entropy(image_logits, codes)
    return text_weight * text_loss + (1 - text_weight) * image_loss, text_loss, image_loss


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Average -log p(target) over all tokens, in float32: (b n v), targets (b ...) -> ()"""
    logits = rearrange(logits, "b n v -> (b n) v").float()
    return F.cross_entropy(logits, rearrange(targets, "b ... -> (b ...)"))


def drop_captions(text: Tensor, empty: Tensor, probability: float) -> Tensor:
    """Replace captions (b t) by the empty one (t) with this probability -> (b t) [CFG alg. 1]

    So the model learns images without a caption too, which guidance needs.
    """
    dropped = torch.rand(len(text), 1, device=text.device) < probability  # (b 1)
    return torch.where(dropped, empty, text)
