"""The training's captioned pictures, the tokenizer learned from their captions, and whether the captions are short enough."""

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import data
from minclip import Tokenizer

from ..run.errors import InputError
from .distributed import leader_first
from ..run.pictures import Progress
from .recipes import CLIPRecipe
from ..run.runs import Run

LONGEST = 77  # most tokens in a caption, as in the published CLIP
FEW = 10_000  # pictures; of 1,822 DALL·E learned all by heart, of 60,000 none (docs/tried.md, results.md)
SHOWN = 20  # skipped pictures that are named; all are counted


def load_images(run: Run, image_size: int, count: int | None, split: str = "train") -> data.Dataset:
    """Open a split of the run's data set, once for all models; print what was recognised, and which pictures were skipped."""
    job = run.job
    if job.data != "shapes" or job.overfit:
        count = 1024 if job.overfit else None  # overfitting looks at one batch only
    if (image_size, count, split) in run.opened:
        return run.opened[image_size, count, split]
    seed = job.seed + (split != "train")  # the held-out scenes are those that `sample.py score` judges
    with leader_first():  # who decodes a folder's pictures into a file beside the run
        images = data.load(job.data, image_size, split, count, seed, Progress("reading pictures"), run.folder, job.layout,
                           job.class_names)
    if images.about and not run.opened:
        print(f"data: {images.about}", flush=True)
    run.opened[image_size, count, split] = images
    skipped = [reason for reason in images.skipped if reason not in run.named]
    run.named.update(skipped)
    for reason in skipped[:SHOWN]:
        print(f"skipped: {reason}", file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped)}, left {len(images)} images", file=sys.stderr)
    return images


def held_out_images(run: Run, image_size: int, count: int = 128) -> data.Dataset:
    """Open pictures that no training sees; of the shapes world, `count` of them."""
    return load_images(run, image_size, count, data.held_out_split(run.job.data))


def open_splits(run: Run, image_size: int, count: int) -> tuple[data.Dataset, data.Dataset]:
    """Open the pictures to train on, of the shapes world `count` of them, and the held-out ones; say once what they are."""
    new = not run.opened
    images, unseen = load_images(run, image_size, count), held_out_images(run, image_size)
    if new and images.about:
        print("".join(f"data: {line}\n" for line in describe(images, unseen)), end="", flush=True)
    return images, unseen


def describe(images: data.Dataset, unseen: data.Dataset) -> list[str]:
    """Say how many pictures there are to train on, how many captions, and what is repeated."""
    same = len(images) == len(unseen) < 20 and images.name(0) == unseen.name(0)
    both = " (the same, as they are so few)" if same else ""
    captions = distinct(images, unseen)
    lengths = sorted(len(caption.split()) for caption in captions)
    words = f"{lengths[0]} to {lengths[-1]} words" if lengths[0] < lengths[-1] else f"{lengths[0]} word{'s' * (lengths[0] != 1)}"
    equal = sum(len(answers) > len(own) for own, answers in zip(images.captions, images.answers))
    return [f"{len(images):,} images to train on, {len(unseen):,} held out{both}",
            f"{len(captions):,} different captions, of {words}"
            + (f"; {equal:,} images look like others that have other captions" if equal else "")]


def without_look_alikes(run: Run, captions: list[str], recipe: CLIPRecipe) -> CLIPRecipe:
    """Leave look-alikes out where captions hardly share words, unless --look-alikes is typed: ten classes look alike to none.

    captions: different ones. They share words if a word is in as many of them, on average, as a group of look-alikes holds.
    """
    uses = [word for caption in captions for word in set(caption.lower().split())]
    shared = len(uses) >= recipe.look_alike_group * len(set(uses))
    if recipe.look_alikes < 1 and "look_alikes" not in run.job.flags.get("clip", {}) and not shared:
        print("clip: the captions hardly share words, so no batch holds look-alikes")
        return dataclasses.replace(recipe, look_alikes=1.0)
    return recipe


def settle_shift(run: Run, images: data.Dataset, image_size: int, recipe: Any) -> Any:
    """Decide by how much training pictures move, unless --shift is typed: few pictures would be learned by heart."""
    if recipe.shift is not None:
        return recipe
    few = run.job.data != "shapes" and len(images) < FEW and not run.job.overfit
    if few:
        print(f"{len(images):,} pictures are few: they are moved at random by up to {image_size // 16} pixels")
    return dataclasses.replace(recipe, shift=image_size // 16 if few else 0)


def distinct(*sets: data.Dataset) -> list[str]:
    """List the captions of data sets, each once."""
    return list(dict.fromkeys(caption for images in sets for captions in images.captions for caption in captions))


def learn_tokenizer(run: Run, images: data.Dataset, vocab_size: int) -> Tokenizer:
    """Return the run's tokenizer, learned from the captions if the run has none. Raises InputError if it has another."""
    path = run.folder / "tokenizer.json"
    with leader_first():
        if run.job.resume and path.exists():
            return Tokenizer.load(path)
        tokenizer = Tokenizer.train((caption for captions in images.captions for caption in captions), vocab_size)
        if not path.exists():
            tokenizer.save(path)
        elif Tokenizer.load(path).fingerprint != tokenizer.fingerprint:
            raise InputError(f"{path} was learned from other captions or with another --vocab-size: name another --run")
        return tokenizer


def batches(captions: list[str], size: int = 4096) -> Iterator[list[str]]:
    for start in range(0, len(captions), size):
        yield captions[start : start + size]


def fitting_length(tokenizer: Tokenizer, captions: Iterable[str]) -> int:
    """Return the least multiple of 4 that holds every caption: from 16, which leaves room for other prompts, to LONGEST."""
    longest = 0
    for batch in batches(list(captions)):
        ends = tokenizer.encode(batch, LONGEST, truncate=True) == tokenizer.end                  # (b t)
        longest = max(longest, ends.any(dim=0).nonzero().max().item() + 1)
    return min(LONGEST, max(16, 4 * math.ceil(longest / 4)))


def check_lengths(run: Run, tokenizer: Tokenizer, length: int, *sets: data.Dataset) -> None:
    """Raise InputError if captions of any of the data sets take more than `length` tokens, unless they are to be cut."""
    if run.job.truncate:
        return
    if "dalle" in run.models:  # a model that is trained later must not refuse what an earlier one took
        length = min(length, LONGEST)
    captions = distinct(*sets)
    too_long = []
    for batch in batches(captions):
        ids = tokenizer.encode(batch, length + 1, truncate=True)                             # (b t+1)
        too_long += [caption for caption, last in zip(batch, ids[:, length]) if last == tokenizer.end]
    if too_long:
        name = next(images.name(i) for images in sets for i, texts in enumerate(images.captions) if too_long[0] in texts)
        raise InputError(f"{len(too_long)} of {len(captions)} captions take more than {length} tokens, first that of {name}: "
                         f"{too_long[0][:60]!r}; add --truncate to cut them, or shorten them")
