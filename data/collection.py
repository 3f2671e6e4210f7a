"""What a layout gives: pictures with their captions, and where the pixels of each lie.

    layouts.read(folder) --> Collection: Picture, Picture, ... --> dataset.load --> Dataset, decoded
"""

from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


class Source(Protocol):
    """Where a picture's pixels lie. `path` is the file that holds them: its size and time tell whether they changed."""

    path: Path

    def open(self) -> Image.Image: ...


@dataclass(frozen=True)
class File:
    """A picture in a file of its own."""

    path: Path

    def open(self) -> Image.Image:
        return Image.open(self.path)


@dataclass(frozen=True)
class Slice:
    """A picture in the middle of a larger file: a member of a tar archive."""

    path: Path
    start: int
    size: int

    def open(self) -> Image.Image:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return Image.open(BytesIO(file.read(self.size)))


@dataclass(frozen=True, eq=False)
class Pixels:
    """A picture in an array of many, uint8 (n h w) or (n h w 3)."""

    path: Path
    array: np.ndarray
    index: int

    def open(self) -> Image.Image:
        return Image.fromarray(self.array[self.index])


@dataclass
class Picture:
    """A picture of a data set, not yet decoded."""

    name: str  # what a message calls it, unique in its set: a path relative to the folder, or "shard.tar: 0017.jpg"
    source: Source
    captions: list[str] = field(default_factory=list)
    split: str | None = None  # "train" or "held-out", where the layout says so


@dataclass
class Collection:
    """All that a layout found in a folder."""

    layout: str  # what was recognised, for people: "Flickr8k captions.txt (image, caption)"
    pictures: list[Picture]  # those with a caption
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (kind, name) of what is not used, as ("no caption", "dog.png")
    others: list[str] = field(default_factory=list)  # layouts that were recognised too, and not used

    @property
    def line(self) -> str:
        """Say what was recognised, how much, and what is left out, by kind."""
        counts = f"{self.layout}: {len(self.pictures):,} images, {sum(len(p.captions) for p in self.pictures):,} captions"
        kinds = Counter(kind for kind, _ in self.left_out)
        counts += "".join(f"; left out: {count:,} {kind}" for kind, count in kinds.most_common())
        return counts + "".join(f"; not used: {other}" for other in self.others)
