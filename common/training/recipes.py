"""How train.py trains each model. Every field is a flag, as the fields of the models' configs are.

A job of several models has so many minutes. Each model takes its share of them, or less if `enough` steps are done before; the
last one takes what is left.
"""

from dataclasses import dataclass
from typing import Any

from ..run.errors import InputError
from ..run.flags import Options, option


@dataclass(frozen=True)
class CLIPRecipe(Options):
    steps: int = option(2200, "optimiser steps", least=1)
    batch_size: int = option(128, "pairs of image and caption per step, each a negative for all others", least=1)
    learning_rate: float = option(1e-2, "highest learning rate, after the warm-up", least=0)
    warmup: float = option(0.05, "share of the training during which the rate rises", least=0.001, most=1)
    outer_rate: float = option(0.1, "learning-rate multiplier for embeddings, norm gains and biases", least=0)
    weight_decay: float = option(0.2, "weight decay of the matrices", least=0)
    look_alikes: float = option(0.3, "share of the training after which batches hold look-alikes; 1: never", least=0, most=1)
    look_alike_group: int = option(4, "captions that are hard to tell apart, in each group of such a batch", least=2)
    accumulate: int = option(1, "chunks of the batch, one at a time in memory; the gradients stay the same", least=1)
    shift: int | None = option(None, "pixels by which training pictures move at random, both ways (default: a sixteenth of their "
                                     "side on folders of fewer than 10,000, elsewhere 0)", least=0)
    scenes: int = option(80_000, "pictures of the shapes world to train on", least=1)
    share: float = option(0.13, "share of --minutes when all models are trained", least=0, most=1)
    enough: int = option(3000, "most steps of that share; the time that is left goes to the last model", least=1)


@dataclass(frozen=True)
class VQGANRecipe(Options):
    steps: int = option(1800, "optimiser steps", least=1)
    batch_size: int = option(16, "images per step", least=1)
    learning_rate: float = option(8e-3, "highest learning rate, after the warm-up", least=0)
    warmup: float = option(0.05, "share of the training during which the rate rises", least=0.001, most=1)
    outer_rate: float = option(1.0, "learning-rate multiplier for codebook, outer layers, norm gains and biases", least=0)
    discriminator: bool = option(False, "train against a patch discriminator: sharper pictures, slower steps")
    discriminator_start: float = option(0.55, "share of the training after which the discriminator takes part", least=0, most=1)
    discriminator_layers: int = option(2, "halvings in the discriminator; two suit pictures of 32 pixels", least=1)
    adversarial_weight: float = option(0.8, "strength of the discriminator relative to the reconstruction", least=0)
    shift: int | None = option(None, "pixels by which training pictures move at random, both ways (default: a sixteenth of their "
                                     "side on folders of fewer than 10,000, elsewhere 0)", least=0)
    scenes: int = option(80_000, "pictures of the shapes world to train on", least=1)
    share: float = option(0.2, "share of --minutes when all models are trained", least=0, most=1)
    enough: int = option(4000, "most steps of that share; the time that is left goes to the last model", least=1)


@dataclass(frozen=True)
class DALLERecipe(Options):
    steps: int = option(2500, "optimiser steps", least=1)
    batch_size: int = option(48, "captioned images per step", least=1)
    learning_rate: float = option(6.5e-3, "highest learning rate, after the warm-up", least=0)
    warmup: float = option(0.05, "share of the training during which the rate rises", least=0.001, most=1)
    outer_rate: float = option(1.0, "learning-rate multiplier for embeddings, heads, norm gains and biases", least=0)
    weight_decay: float = option(0.05, "weight decay of the matrices", least=0)
    text_loss_weight: float = option(1 / 8, "share of the text in the loss; the image has the rest", least=0, most=1)
    caption_dropout: float = option(0.05, "share of captions left out, for guidance; 1: train without", least=0, most=1)
    shift: int | None = option(None, "pixels by which training pictures move at random, both ways (default: a sixteenth of their "
                                     "side on folders of fewer than 10,000, elsewhere 0)", least=0)
    scenes: int = option(80_000, "pictures of the shapes world to train on", least=1)
    share: float = option(0.67, "share of --minutes when all models are trained, and what the others leave", least=0, most=1)


@dataclass(frozen=True)
class PriorRecipe(Options):
    steps: int = option(1600, "optimiser steps", least=1)
    batch_size: int = option(256, "pairs of caption and embedding per step", least=1)
    learning_rate: float = option(2e-3, "highest learning rate, after the warm-up", least=0)
    warmup: float = option(0.05, "share of the training during which the rate rises", least=0.001, most=1)
    outer_rate: float = option(0.5, "learning-rate multiplier for all but the hidden matrices", least=0)
    caption_dropout: float = option(0.1, "share of captions left out, for guidance", least=0, most=1)
    scenes: int = option(40_000, "pictures of the shapes world to train on", least=1)
    share: float = option(0.15, "share of --minutes when both parts are trained", least=0, most=1)
    enough: int = option(3000, "most steps of that share; the time that is left goes to the last model", least=1)


@dataclass(frozen=True)
class DecoderRecipe(Options):
    steps: int = option(12_000, "optimiser steps", least=1)
    batch_size: int = option(48, "images per step", least=1)
    learning_rate: float = option(3e-3, "highest learning rate, after the warm-up", least=0)
    warmup: float = option(0.05, "share of the training during which the rate rises", least=0.001, most=1)
    outer_rate: float = option(0.4, "learning-rate multiplier for all but the hidden matrices", least=0)
    embedding_dropout: float = option(0.1, "share of embeddings left out, for guidance", least=0, most=1)
    scenes: int = option(40_000, "pictures of the shapes world to train on", least=1)
    share: float = option(0.85, "share of --minutes when both parts are trained, and what the prior leaves", least=0, most=1)


def fitting(model: str, side: int) -> dict[str, Any]:
    """Return the config fields that follow from the side of the images in pixels, unless they are typed.

    side                                   28    32    40    48    56    64    80    96
    CLIP's patches a side                   7     4     5     6     7     4     5     6
    VQGAN's codes a side                    7     8    10    12    14    16    10    12
    VQGAN's channels at full resolution    16    16    16    16     8     8     8     8
    places a side in DALL·E 2's decoder    14    16    20    24    14    16    20    24

    Raises InputError for a side that cannot be halved often enough.
    """
    halvings = next(n for n in range(2, 99) if side <= 16 * 2**n)
    if side % 2**halvings:
        lower = side // 2**halvings * 2**halvings
        raise InputError(f"image_size {side} cannot be halved {halvings} times: choose {lower} or {lower + 2**halvings}")
    patch_size = max(2**n for n in range(1, 7) if side % 2**n == 0 and (n == 1 or side >= 4 * 2**n))
    large = side > 48  # where layers at full resolution take most of the time
    return {"clip": {"patch_size": patch_size},
            "vqgan": {"channels": 8 if large else 16, "multipliers": (1, 2, *[4] * (halvings - 2), 8 if large else 4)},
            "decoder": {"patch_size": 2 ** (((side - 1) // 48).bit_length() + 1), "channels": 64 if large else 48}}.get(model, {})
