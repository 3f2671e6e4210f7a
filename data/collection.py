"""Turn what a layout says, row by row, into pictures with captions and a split.

    layout(tree) --> Found: Row, Row, ... --gather--> Collection: Picture, Picture, ... --> decoding

A row is a line of a table, an entry of an archive or an item of an array. The captions of a picture
that has several rows add up.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from .errors import InputError
from .pictures import Opener
from .split import split_of_name
from .tree import Tree


class Row(NamedTuple):
    """What a file says of one picture."""

    file: str  # relative to the root; "" where it is the picture's own place that tells its caption
    name: Any  # of the picture's file, as `file` writes it; with `open` the picture's final name
    texts: list[str | int]  # captions, or numbers of classes
    split: Any = None  # any word for it; None if the row does not say
    place: str = ""  # "line 3", or "entry 3" of a JSON file
    open: Opener | None = None  # of a picture inside `file`
    class_names: Sequence[str] = ()  # what numbers of classes stand for, where the data set says so


@dataclass
class Found:
    """What a layout found in a tree."""

    layout: str  # what was recognised, for people: "captions.txt (image, caption)"
    rows: Iterable[Row]
    used: set[str]  # the files that were read for captions; all others count as left out
    required: bool = False  # whether it is an error if no row leads to a picture


@dataclass
class Picture:
    """A picture of a data set, not yet decoded."""

    name: str  # unique in its set: a path relative to the folder, or "shard.tar: 0017.jpg"
    path: Path  # the file that holds it: its size and time tell whether the picture changed
    open: Opener
    captions: list[str] = field(default_factory=list)
    split: str | None = None  # "train" or "held-out", where the folder says so


@dataclass
class Collection:
    """All that a layout found in a folder."""

    layout: str
    pictures: list[Picture]  # those with a caption
    left_out: list[tuple[str, str]]  # (kind, name) of what is not used: ("no caption", "dog.png")
    others: list[str] = field(default_factory=list)  # layouts that fit too, and are not used

    @property
    def captions(self) -> set[str]:
        return {caption for picture in self.pictures for caption in picture.captions}

    @property
    def line(self) -> str:
        """Say what was recognised, how much, and what is left out, by kind."""
        captions = sum(len(picture.captions) for picture in self.pictures)
        kinds = Counter(kind for kind, _ in self.left_out).most_common()
        return "; ".join([f"{self.layout}: {len(self.pictures):,} images, {captions:,} captions",
                          *(f"left out: {count:,} {kind}" for kind, count in kinds),
                          *(f"not used: {layout}" for layout in self.others)])


def title(files: Sequence[str], kind: str) -> str:
    """Name a few files, or count many."""
    return ", ".join(files) if len(files) < 4 else f"{len(files)} {kind}"


def gather(tree: Tree, found: Found, class_names: Sequence[str] = ()) -> Collection | None:
    """Look up the picture of every row and add up its captions.

    class_names: what the numbers of classes stand for; the user's, which count before a row's own.
    Returns None if no row has both a picture and a caption, unless one is required. Raises InputError
    then, and if a class has no name.
    """
    split_of = cache(lambda file, word: split_of_name(word) or split_of_name(os.path.basename(file))
                     or tree.split(file))
    resolve = cache(tree.resolve)
    pictures, missing, left_out, unnamed = {}, {}, [], []  # unnamed: (class, row)
    for row in found.rows:
        texts = row.texts
        if not (isinstance(row.name, str) and row.name and texts):
            left_out.append(("no caption", row.name) if row.open else
                            ("row without file or text", f"{row.file}, {row.place}"))
            continue
        split = split_of(row.file, str(row.split))
        name = row.name if row.open else resolve(row.name, os.path.dirname(row.file), split)
        if name is None:
            missing.setdefault(row.name, row)
            continue
        if all(isinstance(text, int) or class_names and text.isdecimal() for text in texts):
            names, numbers = class_names or row.class_names, list(map(int, texts))
            unnamed += [(number, row) for number in numbers if not 0 <= number < len(names)]
            texts = [names[number] for number in numbers if 0 <= number < len(names)]
        if name not in pictures:
            path = tree.root / (row.file if row.open else name)
            pictures[name] = Picture(name, path, row.open or partial(Image.open, path))
            split = split or (None if row.open else tree.split(name))
        picture = pictures[name]
        picture.captions += [text for text in texts if text not in picture.captions]
        if split == "train" or not picture.split:  # what both splits name is trained on
            picture.split = split
    if unnamed:
        raise InputError(_unnamed_classes(tree, unnamed, class_names))
    if not pictures:
        if found.required and (missing or left_out):
            raise InputError(_no_pictures(tree, missing, left_out))
        return None
    images, used = set(tree.images), found.used | set(pictures) | set(tree.split_lists)
    left_out += [("missing", name) for name in missing]
    left_out += [("broken link", name) for name in tree.broken]
    left_out += [("no caption" if name in images else "other suffix", name)
                 for name in tree.files if name not in used]
    return Collection(found.layout, _settled(list(pictures.values()), left_out), left_out)


def _settled(pictures: list[Picture], left_out: list[tuple[str, str]]) -> list[Picture]:
    """Keep the splits, and only the pictures in one of them, if both were found; or forget them."""
    if {"train", "held-out"} <= {picture.split for picture in pictures}:
        left_out += [("in no split", picture.name) for picture in pictures if not picture.split]
        return [picture for picture in pictures if picture.split]
    for picture in pictures:
        picture.split = None
    return pictures


def _unnamed_classes(tree: Tree, unnamed: list[tuple[int, Row]], class_names: Sequence[str]) -> str:
    low, row = min(unnamed, key=lambda item: item[0])
    if low < 0:
        return f"{tree.root / row.file} has the label {low}; classes are numbered from 0 on"
    high, row = max(unnamed, key=lambda item: item[0])
    count = len(class_names or row.class_names)
    return (f"{tree.root / row.file} numbers its classes from 0 to {high}; give {high + 1} names"
            f"{f', not {count}' if count else ''}, in this order, by --class-names")


def _no_pictures(tree: Tree, missing: dict[str, Row], left_out: list[tuple[str, str]]) -> str:
    if not missing:
        return (f"{tree.root / left_out[0][1]}: lacks file_name or text, as does every row; "
                "give them both")
    name, row = next(iter(missing.items()))
    path = tree.root / row.file
    return (f"{path}, {row.place}: {name!r} is neither in {path.parent} nor anywhere below "
            f"{tree.root}, nor is any of the {len(missing):,} files named; correct the names, or "
            "choose another layout by --layout")
