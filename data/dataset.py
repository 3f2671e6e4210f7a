"""Serve pictures and captions in batches, from the shapes world or a folder.

    load("shapes" | folder, image_size) --> Dataset --> .batch(indices)             (b 3 h w)
                                                        .texts(indices, generator)  b captions

A folder is read by layouts.py and decoded whole by decoding.py; a split is a choice of its rows.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .decoding import Progress, decode
from .errors import InputError
from .layouts import read
from .pictures import to_float
from .shapes import Scene, random_scene, render
from .split import members
from .tree import list_folder

CACHE_BYTES = 2**30  # scenes up to this size stay in memory once they are drawn
Indices = Sequence[int] | Tensor


class Dataset:
    """Captioned pictures.

    captions: a list for each picture. fetch: list of indices -> uint8 (b h w 3). name: index -> what
    a message calls the picture, its path or "scene 17 of train". about: what was recognised, "" for
    the shapes world. skipped: a line for each picture that is not used. answers: a list for each
    picture of the captions that are right: its own, and those of pictures that look the same.
    """

    def __init__(self, captions: list[list[str]], fetch: Callable[[list[int]], np.ndarray],
                 name: Callable[[int], str], about: str = "", skipped: Sequence[str] = (),
                 answers: list[list[str]] | None = None):
        self.captions, self.answers = captions, answers or captions
        self.fetch, self.name, self.about, self.skipped = fetch, name, about, list(skipped)

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, indices: Indices) -> Tensor:
        """Fetch pictures -> float (b 3 h w) in [-1, 1]."""
        return to_float(self.fetch(torch.as_tensor(indices).tolist()))

    def texts(self, indices: Indices, generator: torch.Generator) -> list[str]:
        """Pick one caption for each index, uniformly among its own."""
        choices = [self.captions[i] for i in torch.as_tensor(indices).tolist()]
        picks = torch.rand(len(choices), generator=generator).tolist()
        return [texts[int(pick * len(texts))] for texts, pick in zip(choices, picks)]

    def right(self, indices: Indices, texts: list[str]) -> Tensor:
        """Compare pictures with texts (t) -> boolean (b t), True where a text is an answer."""
        answers = [set(self.answers[i]) for i in torch.as_tensor(indices).tolist()]
        return torch.from_numpy(np.array([[text in known for text in texts] for known in answers]))


def load(source: str | Path, image_size: int, split: str = "train", count: int | None = None,
         seed: int = 0, progress: Progress | None = None, cache: str | Path | None = None,
         layout: str | None = None, class_names: Sequence[str] = ()) -> Dataset:
    """Open a data set; raise InputError if it cannot be opened.

    "shapes": split "train", "unseen" or "novel"; count scenes, each drawn when first asked for. Scene
        i depends on nothing but (seed, split, i).
    a folder: split "train" or "held-out", as the folder says; if it does not, a twentieth is held out
        by a hash of the names, whatever the seed (below 20 images, both are the whole folder). All
        pictures of both splits are decoded now, or found in the folder `cache`, where they are kept;
        of the first `count` images alone, if that is given. progress: see decoding.decode; layout,
        class_names: see layouts.read.
    """
    if image_size < 1 or (count is not None and count < 1):
        raise InputError(f"image_size and count must be at least 1, not {image_size} and {count}")
    if str(source) == "shapes":
        return _load_shapes(image_size, split, count, seed)
    if split not in ("train", "held-out"):
        raise InputError(f"a folder has no split {split!r}; choose train or held-out")

    folder, collection = Path(source), read(source, layout, class_names)
    pictures = {picture.name: picture for picture in collection.pictures}
    names = members({name: picture.split for name, picture in pictures.items()}, split)
    if count is not None:  # these alone are decoded; a cache is for all pictures
        names, cache = names[:count], None
        pictures = {name: pictures[name] for name in names}
    block = decode(list(pictures.values()), image_size, folder, cache, progress)
    row_of = {name: row for row, name in enumerate(pictures)}
    skipped = [block.unreadable[row_of[name]] for name in names if row_of[name] in block.unreadable]
    names = [name for name in names if row_of[name] not in block.unreadable]
    if not names:
        raise InputError(f"{folder}: no image of the split {split} can be read; the first: "
                         f"{skipped[0]}")
    skipped += [f"{folder / name}: {kind}" for kind, name in collection.left_out
                if kind != "other suffix"]
    rows = np.array([row_of[name] for name in names])
    captions = [pictures[name].captions for name in names]
    answers = _answers(captions, [hash(block.pixels[row].tobytes()) for row in rows])
    return Dataset(captions, lambda indices: block.pixels[rows[indices]],
                   lambda i: str(folder / names[i]), collection.line, skipped, answers)


def _answers(captions: list[list[str]], looks: list[int]) -> list[list[str]]:
    """Give each picture the captions of all that look the same: captions, looks (n) -> (n)"""
    together = {}
    for look, texts in zip(looks, captions):
        known = together.setdefault(look, texts)
        if missing := [text for text in texts if text not in known]:
            together[look] = known + missing
    return [together[look] for look in looks]


def _load_shapes(image_size: int, split: str, count: int | None, seed: int) -> Dataset:
    if count is None:
        raise InputError("the shapes world has no fixed number of pictures; say how many scenes "
                         "(count)")

    def scene(i: int) -> tuple[Scene, random.Random]:
        rng = random.Random(f"{seed} {split} {i}")  # a text seeds alike in every process
        return random_scene(rng, split), rng

    fits = 3 * image_size**2 * count <= CACHE_BYTES
    # one block: thousands of small arrays would fragment the memory of a training
    pixels = np.empty((count if fits else 0, image_size, image_size, 3), np.uint8)
    drawn = np.zeros(count, bool)

    def fetch(indices: list[int]) -> np.ndarray:
        if not fits:
            return np.stack([render(*scene(i), image_size) for i in indices])
        for i in indices:
            if not drawn[i]:
                pixels[i], drawn[i] = render(*scene(i), image_size), True
        return pixels[indices]

    captions = [[scene(i)[0].caption] for i in range(count)]
    return Dataset(captions, fetch, lambda i: f"scene {i} of {split}")


def image_files(folder: str | Path) -> list[str]:
    """List the pictures in and below a folder as sorted paths relative to it, by their suffixes.

    Raises InputError if there are none.
    """
    if names := list_folder(folder).images:
        return names
    raise InputError(f"{folder} holds no images; put PNG, JPEG, WebP or GIF files there")


def held_out_split(source: str | Path) -> str:
    """Name the split that is not trained on: "unseen" of the shapes world, "held-out" of a folder."""
    return "unseen" if str(source) == "shapes" else "held-out"
