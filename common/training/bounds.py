"""The first loss to expect, that of a model that knows nothing, and the lowest there can be."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

import data
import mindalle
import minclip
import minvqgan
from mindalle import unclip

UNTRAINED_STD = 0.6  # RMS of silu(x), x ~ N(0, 1): the scale of an untrained decoder's output


class Expected(NamedTuple):
    """What to expect of a loss."""

    first: float
    of: str                      # what has this loss
    lowest: float | None = None  # None: unknown

    def __str__(self) -> str:
        lowest = "" if self.lowest is None else f"; the lowest there can be: {self.lowest:.3f}"
        return f"expect a first loss of about {self.first:.3f}, that of {self.of}{lowest}"


def contrastive(name: str, ids: Tensor) -> Expected:
    """Expect CLIP's loss, by its name, of a batch with these captions (b t).

    Repeated captions raise the lowest: with eight captions in a batch of 128, softmax cannot tell
    the 16 images of one apart.
    """
    loss, _, bias = minclip.LOSSES[name]
    same = minclip.same_caption(ids)                                                     # (b b)
    first = loss(torch.zeros(same.shape) + (bias or 0.0), same).item()
    return Expected(first, "cosines of 0", loss(200.0 * same - 100.0, same).item() + 0.0)


def reconstruction(images: Tensor) -> Expected:
    """Expect VQGAN's loss of images (b 3 h w)."""
    noise = UNTRAINED_STD * torch.randn_like(images)
    return Expected(minvqgan.reconstruction_loss(images, noise).item(), "noise", 0.0)


def dalle(config: mindalle.DALLEConfig, images: data.Dataset, text_weight: float,
          dropout: float) -> Expected:
    """Expect DALL·E's loss. It is lowest when every picture is learned by heart.

    Then a caption costs as many nats as captions are uncertain, and a picture as many as there are
    pictures to a caption.
    """
    chance = Counter()
    for captions in images.captions:
        for caption in captions:
            chance[caption] += 1 / len(captions) / len(images)
    dropped = entropy([dropout, 1 - dropout])  # is the caption left out?
    caption = entropy(chance.values())
    choice = sum(math.log(len(captions)) for captions in images.captions) / len(images)
    pair = math.log(len(images)) + choice
    text = (dropped + (1 - dropout) * caption) / (config.text_length - 1)
    image = (1 - dropout) * (pair - caption) + dropout * math.log(len(images))
    image = image / config.image_length
    guess = (1 - text_weight) * math.log(config.image_vocab)
    guess += text_weight * math.log(config.text_vocab)
    return Expected(guess, "a guess", text_weight * text + (1 - text_weight) * image)


def denoising(x: Tensor, of: str) -> Expected:
    """Expect the diffusion loss of x (b ...), standardised embeddings or images."""
    return Expected(unclip.expected_loss(x), of)


def entropy(probabilities: Iterable[float]) -> float:
    """Return the entropy of a distribution, in nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)
