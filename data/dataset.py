"""Serve pictures and captions in batches, from the shapes world or a folder.

    load("shapes" | folder, image_size) --> Dataset --> .batch(indices)              float (b 3 h w) in [-1, 1]
                                                        .texts(indices, generator)   b captions, one of each picture's

Pictures are uint8 (h w 3) until they leave for a model as tensors.
"""

import random
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from .errors import InputError
from .folders import read_captions, train_and_held_out
from .shapes import Scene, random_scene, render

CACHE_BYTES = 2**30  # a data set up to this size stays decoded in memory; a larger one is decoded batch by batch


# ---- Pictures and tensors ----


def read_image(path: str | Path) -> Image.Image:
    """Read a picture of any mode as RGB: upright, first frame, over white where transparent, 16 bits scaled to 8."""
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # 16 bits; Pillow's own conversion clips at 255
                levels = (np.asarray(image, np.float32) / 257).round().clip(0, 255)
                image = Image.fromarray(levels.astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise all kinds of exceptions on broken bytes
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read as an image ({reason}); repair or remove it") from error


def _square(image: Image.Image, image_size: int) -> np.ndarray:
    """Scale the short side to image_size (bicubic, antialiased) and crop the centre -> uint8 (h w 3).

    Every rounding is that of CLIP's own preprocessing.
    """
    short, long = sorted(image.size)
    if long > 50 * short:  # crop before scaling: scaled whole, so long a picture could fill the memory
        return np.asarray(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC))
    image = image.resize([image_size * side // short for side in image.size], Image.Resampling.BICUBIC)
    left, top = (round((side - image_size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


def to_tensor(images: Sequence[Image.Image], image_size: int) -> Tensor:
    """Turn RGB pictures of any size into a batch -> float (b 3 h w) in [-1, 1], h = w = image_size."""
    return _to_float(np.stack([_square(image, image_size) for image in images]))


def _to_float(pictures: np.ndarray) -> Tensor:
    return rearrange(torch.from_numpy(pictures), "b h w c -> b c h w").contiguous().float() / 127.5 - 1


def to_pictures(images: Tensor) -> np.ndarray:
    """Turn float (b 3 h w) into uint8 (b h w 3), clipping what lies outside [-1, 1]."""
    levels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "b c h w -> b h w c").cpu().numpy()


# ---- Data sets ----


class Dataset:
    """Hold captioned pictures: `sources` to decode, `captions`, a list each; `skipped` has a line for each not used."""

    def __init__(self, sources: Sequence, captions: list[list[str]], decode: Callable[[Any], np.ndarray],
                 image_size: int, name: Callable[[Any], str] = str):
        self.sources, self.captions, self.skipped = list(sources), captions, []
        self.decode = decode  # source -> uint8 (h w 3), or InputError
        self._name = name  # source -> what to call it in a message
        self._unreadable = {}  # source -> the line about it; never tried again, or what is reported would be used
        self.fits = 3 * image_size**2 * len(self.sources) <= CACHE_BYTES
        # one block, filled as pictures are asked for: thousands of small arrays would fragment the memory of a training
        self._pixels = np.empty((len(self.sources) if self.fits else 0, image_size, image_size, 3), np.uint8)
        self._decoded = np.zeros(len(self.sources), bool)

    def __len__(self) -> int:
        return len(self.sources)

    def name(self, i: int) -> str:
        """Say what to call picture i in a message: its path, or "scene 17 of train"."""
        return self._name(self.sources[i])

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Fetch pictures -> float (b 3 h w) in [-1, 1]."""
        return _to_float(np.stack([self._picture(i) for i in torch.as_tensor(indices).tolist()]))

    def texts(self, indices: Sequence[int] | Tensor, generator: torch.Generator) -> list[str]:
        """Pick one caption for each index, uniformly among its own."""
        choices = [self.captions[i] for i in torch.as_tensor(indices).tolist()]
        picks = torch.rand(len(choices), generator=generator).tolist()
        return [texts[int(pick * len(texts))] for texts, pick in zip(choices, picks)]

    def skip_unreadable(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode everything now, and drop what cannot be read. progress(done, total) is called after each picture."""
        kept = []
        for i, source in enumerate(self.sources):
            try:
                self._pixels[len(kept)] = self.decode(source)
                kept.append(i)
            except InputError as error:
                self.skipped.append(str(error))
            if progress:
                progress(i + 1, len(self.sources))
        self._decoded[: len(kept)] = True
        self.sources, self.captions = [self.sources[i] for i in kept], [self.captions[i] for i in kept]

    def _picture(self, i: int) -> np.ndarray:
        if self._decoded[i]:
            return self._pixels[i]
        for j in chain(range(i, len(self)), range(i)):
            if (source := self.sources[j]) in self._unreadable:
                continue
            try:
                picture = self.decode(source)
                break
            except InputError as error:  # only now, as the folder was too large to check: on to the next
                self._unreadable[source] = str(error)
                self.skipped.append(str(error))
        else:
            first = next(iter(self._unreadable.values()))
            raise InputError(f"none of the {len(self)} images can be read; the first: {first}")
        self.sources[i], self.captions[i] = self.sources[j], self.captions[j]  # the next one replaces it for good
        if self.fits:
            self._pixels[i], self._decoded[i] = picture, True
        return picture


def load(
    source: str | Path, image_size: int, split: str = "train", count: int | None = None, seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Open a data set; raise InputError if it cannot be opened.

    "shapes": split "train", "unseen" or "novel"; count scenes, each drawn when first asked for. Scene i depends
        on nothing but (seed, split, i).
    a folder: split "train" or "held-out", a twentieth by a hash of the file names (below 20 images, both are
        the whole folder); count limits the images. The seed has no effect: the same files stay held out.
        If all pictures fit in memory, they are decoded now, and progress(done, total) is called after each.
    """
    if image_size < 1 or (count is not None and count < 1):
        raise InputError(f"image_size and count must be at least 1, not {image_size} and {count}")
    if str(source) != "shapes":
        return _load_folder(Path(source), image_size, split, count, progress)
    if count is None:
        raise InputError("the shapes world has no fixed number of pictures; say how many scenes (count)")

    def scene(i: int) -> tuple[Scene, random.Random]:
        rng = random.Random(f"{seed} {split} {i}")  # a text seeds alike in every process
        return random_scene(rng, split), rng

    captions = [[scene(i)[0].caption] for i in range(count)]
    return Dataset(range(count), captions, lambda i: render(*scene(i), image_size), image_size,
                   name=lambda i: f"scene {i} of {split}")


def _load_folder(
    folder: Path, image_size: int, split: str, count: int | None, progress: Callable[[int, int], None] | None
) -> Dataset:
    if split not in ("train", "held-out"):
        raise InputError(f"a folder has no split {split!r}; choose train or held-out")
    captions = read_captions(folder)
    train, held_out = train_and_held_out([name for name in captions if captions[name]])
    names = (train if split == "train" else held_out)[:count]

    def decode(name: str) -> np.ndarray:
        return _square(read_image(folder / name), image_size)

    texts = [captions[name] for name in names]
    dataset = Dataset(names, texts, decode, image_size, name=lambda name: str(folder / name))
    if dataset.fits:
        dataset.skip_unreadable(progress)
    if not len(dataset):
        raise InputError(f"{folder}: not one image can be read; the first: {dataset.skipped[0]}")
    dataset.skipped += [f"{folder / name} has no caption" for name in captions if not captions[name]]
    return dataset


def held_out_split(source: str | Path) -> str:
    """Name the split that is held out from training: "unseen" of the shapes world, "held-out" of a folder."""
    return "unseen" if str(source) == "shapes" else "held-out"
