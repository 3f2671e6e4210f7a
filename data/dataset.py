"""Serve pictures and captions in batches, from the shapes world or a folder.

    load("shapes" | folder, image_size) --> Dataset --> .batch(indices)              float (b 3 h w) in [-1, 1]
                                                        .texts(indices, generator)   b captions, one of each picture's

A folder is read by layouts.py and decoded whole by decoding.py; a split is a choice of rows of the block.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .decoding import decode
from .errors import InputError
from .layouts import read
from .pictures import to_float
from .shapes import Scene, random_scene, render
from .split import fraction, train_and_held_out
from .tree import list_folder

CACHE_BYTES = 2**30  # scenes up to this size stay in memory once they are drawn


class Dataset:
    """Captioned pictures. `captions` has a list for each of them, `skipped` a line for each that is not used, and `about`
    says what was recognised ("" for the shapes world).

    fetch: list of indices -> uint8 (b h w 3). name: index -> what a message calls the picture, its path or "scene 17 of train".
    answers: a list for each picture of the captions that are right for it: its own, and those of pictures that look the same.
    """

    def __init__(self, captions: list[list[str]], fetch: Callable[[list[int]], np.ndarray], name: Callable[[int], str],
                 about: str = "", skipped: Sequence[str] = (), answers: list[list[str]] | None = None):
        self.captions, self.fetch, self.name, self.about, self.skipped = captions, fetch, name, about, list(skipped)
        self.answers = answers or captions

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Fetch pictures -> float (b 3 h w) in [-1, 1]."""
        return to_float(self.fetch(torch.as_tensor(indices).tolist()))

    def texts(self, indices: Sequence[int] | Tensor, generator: torch.Generator) -> list[str]:
        """Pick one caption for each index, uniformly among its own."""
        choices = [self.captions[i] for i in torch.as_tensor(indices).tolist()]
        picks = torch.rand(len(choices), generator=generator).tolist()
        return [texts[int(pick * len(texts))] for texts, pick in zip(choices, picks)]

    def right(self, indices: Sequence[int] | Tensor, texts: list[str]) -> Tensor:
        """Compare pictures with texts (t) -> boolean (b t), True where a text is among a picture's answers."""
        answers = [set(self.answers[i]) for i in torch.as_tensor(indices).tolist()]
        return torch.from_numpy(np.array([[text in right for text in texts] for right in answers]))


def load(
    source: str | Path, image_size: int, split: str = "train", count: int | None = None, seed: int = 0,
    progress: Callable[[int, int], None] | None = None, cache: str | Path | None = None,
    layout: str | None = None, class_names: Sequence[str] = (),
) -> Dataset:
    """Open a data set; raise InputError if it cannot be opened.

    "shapes": split "train", "unseen" or "novel"; count scenes, each drawn when first asked for. Scene i depends
        on nothing but (seed, split, i).
    a folder: split "train" or "held-out", as the folder says, or else a twentieth by a hash of the names is held out (below 20
        images, both are the whole folder). count limits the images. The seed has no effect: the same files stay held out.
        All pictures of both splits are decoded now, and progress(done, total) is called after each, unless they are found
        in the folder `cache`, where they are kept for the next start. layout, class_names: see layouts.read.
    """
    if image_size < 1 or (count is not None and count < 1):
        raise InputError(f"image_size and count must be at least 1, not {image_size} and {count}")
    if str(source) == "shapes":
        return _load_shapes(image_size, split, count, seed)
    if split not in ("train", "held-out"):
        raise InputError(f"a folder has no split {split!r}; choose train or held-out")

    folder, collection = Path(source), read(source, layout, class_names)
    pictures, rows = collection.pictures, _rows(collection.pictures, split)
    if count is not None:  # these alone are decoded; a cache is for the whole
        pictures, cache = [pictures[row] for row in rows[:count]], None
        rows = range(len(pictures))
    block = decode(pictures, image_size, folder, cache, progress)
    unreadable = [block.unreadable[row] for row in rows if row in block.unreadable]
    rows = np.array([row for row in rows if row not in block.unreadable], int)
    if not len(rows):
        raise InputError(f"{folder}: no image of the split {split} can be read; the first: {unreadable[0]}")
    left_out = [f"{folder / name}: {kind}" for kind, name in collection.left_out if kind != "other suffix"]
    captions, names = [pictures[row].captions for row in rows], [pictures[row].name for row in rows]  # and no picture: those hold pixels
    return Dataset(captions, lambda indices: block.pixels[rows[indices]], lambda i: str(folder / names[i]),
                   collection.line, unreadable + left_out, shared(captions, (hash(block.pixels[row].tobytes()) for row in rows)))


def shared(captions: list[list[str]], looks: Iterable[int]) -> list[list[str]]:
    """Give each picture the captions of all that look the same: captions, looks (n) -> captions (n)"""
    looks, together = list(looks), {}
    for look, texts in zip(looks, captions):
        known = together.setdefault(look, texts)
        if missing := [text for text in texts if text not in known]:
            together[look] = known + missing
    return [together[look] for look in looks]


def _rows(pictures: Sequence, split: str) -> list[int]:
    """Choose the rows of a split, in the order of their names' hashes: shuffled, so that the first few show all kinds."""
    number = {picture.name: row for row, picture in enumerate(pictures)}
    if any(picture.split for picture in pictures):
        names = sorted((picture.name for picture in pictures if picture.split == split), key=fraction)
    else:
        names = train_and_held_out(list(number))[split == "held-out"]
    return [number[name] for name in names]


def _load_shapes(image_size: int, split: str, count: int | None, seed: int) -> Dataset:
    if count is None:
        raise InputError("the shapes world has no fixed number of pictures; say how many scenes (count)")

    def scene(i: int) -> tuple[Scene, random.Random]:
        rng = random.Random(f"{seed} {split} {i}")  # a text seeds alike in every process
        return random_scene(rng, split), rng

    fits = 3 * image_size**2 * count <= CACHE_BYTES
    # one block, filled as pictures are asked for: thousands of small arrays would fragment the memory of a training
    pixels, drawn = np.empty((count if fits else 0, image_size, image_size, 3), np.uint8), np.zeros(count, bool)

    def fetch(indices: list[int]) -> np.ndarray:
        if not fits:
            return np.stack([render(*scene(i), image_size) for i in indices])
        for i in indices:
            if not drawn[i]:
                pixels[i], drawn[i] = render(*scene(i), image_size), True
        return pixels[indices]

    return Dataset([[scene(i)[0].caption] for i in range(count)], fetch, lambda i: f"scene {i} of {split}")


def image_files(folder: str | Path) -> list[str]:
    """List the pictures in and below a folder as sorted paths relative to it, by their suffixes, as layouts.read finds them.

    Raises InputError if there are none.
    """
    if names := list_folder(folder).images:
        return names
    raise InputError(f"{folder} holds no images; put PNG, JPEG, WebP or GIF files there")


def held_out_split(source: str | Path) -> str:
    """Name the split that is held out from training: "unseen" of the shapes world, "held-out" of a folder."""
    return "unseen" if str(source) == "shapes" else "held-out"
