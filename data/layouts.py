"""Recognise how a folder keeps its pictures and captions, by what lies there; nothing is guessed silently.

    read(folder) --> tree.list_folder --> LAYOUTS, the richest first --> Collection
                                          parquet tar                    archives.py
                                          idx cifar npz                  arrays.py
                                          coco karpathy table            tables.py
                                          text classes                   here
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from .archives import parquet, tar
from .arrays import cifar, idx, npz
from .collection import Collection, File, Picture
from .errors import InputError
from .tables import as_texts, coco, karpathy, open_text, table
from .tree import Found, Tree, list_folder, unreadable

FEW = 8  # pictures that may all have the same caption: an example, or a first try
TEXT_FOLDER = re.compile(r"(texts?|captions?)([_-]\w+)?", re.IGNORECASE)  # beside images/; labels/ holds boxes, as a rule


def text(tree: Tree) -> Found | None:
    """dog.png and dog.txt beside it, or images/a/1.jpg and text/a/1.txt: one caption a line."""
    folders = sorted({part for name in tree.ending(".txt") for part in name.split("/")[:-1] if TEXT_FOLDER.fullmatch(part)})
    found = Found("text files, one a picture", [], set())
    for name in tree.images:
        *parents, base = os.path.splitext(name)[0].split("/")
        parallel = ([*parents[:i], folder, *parents[i + 1 :], base] for i in range(len(parents) + 1) for folder in folders)
        places = ("/".join(parts) + ".txt" for parts in ([*parents, base], *parallel))
        if place := next((place for place in places if place in tree.there), None):
            found.used.add(place)
            if captions := _read_lines(tree.root / place):
                found.used.add(name)
                found.pictures.append(Picture(name, File(tree.root / name), captions, tree.split(name)))
    return found if found.pictures else None


def _read_lines(path: Path) -> list[str]:
    try:
        with open_text(path) as file:
            return as_texts(file.read().splitlines())
    except OSError as error:
        raise unreadable(path, error) from error


def classes(tree: Tree) -> Found | None:
    """dog/1.png, animals/dog/1.png, train/dog/images/1.png: the caption is the nearest folder that tells pictures apart.

    A folder inside one that holds pictures itself is no class of its own: dog/more/2.png shows a dog.
    """
    holds = {tree.folders(name) for name in tree.images}
    whole = {name: tree.folders(name) for name in tree.images}
    own = {name: next((folders[:depth] for depth in range(1, len(folders)) if folders[:depth] in holds), folders)
           for name, folders in whole.items()}
    levels = ((paths, up) for paths in (own, whole) for up in range(max(map(len, paths.values()), default=0)))
    for paths, up in levels:
        captions = {name: folders[-1 - up] for name, folders in paths.items() if len(folders) > up}
        if len(set(captions.values())) > 1:
            break
    else:  # a single class
        captions = {name: folders[-1] for name, folders in own.items() if folders}
    pictures = [Picture(name, File(tree.root / name), [caption], tree.split(name)) for name, caption in captions.items()]
    return Found("class folders", pictures, set(captions)) if pictures else None


LAYOUTS: dict[str, Callable[[Tree], Found | None]] = {
    "parquet": parquet, "tar": tar, "idx": idx, "cifar": cifar, "npz": npz,
    "coco": coco, "karpathy": karpathy, "table": table, "text": text, "classes": classes,
}  # the richest first: what says most about a picture wins


def read(folder: str | Path, layout: str | None = None, class_names: Sequence[str] = ()) -> Collection:
    """Find the captioned pictures of a folder, none of them decoded yet.

    layout: one of LAYOUTS, None to recognise it. class_names: what the numbers of classes stand for, where the data
    set does not say. Raises InputError, one line, if there are no pictures, no captions, or something is doubtful.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    tree, found, others = list_folder(folder, class_names), None, []
    for name in [layout] if layout else LAYOUTS:
        if found is None:
            found = LAYOUTS[name](tree)
        elif (other := _alternative(name, tree)) is not None:
            others.append(other)
    if found is None:
        raise InputError(_nothing(tree, layout))
    captions = {caption for picture in found.pictures for caption in picture.captions}
    if class_names and captions.isdisjoint(class_names):
        raise InputError(f"{tree.root}: {found.layout} says itself what each picture is, so --class-names has no use: leave it out")
    _refuse_one_caption(tree, found, captions, layout)
    left_out = found.left_out + [("broken link", name) for name in tree.broken]
    images = set(tree.images)
    left_out += [("no caption" if name in images else "other suffix", name) for name in tree.files
                 if name not in found.used and name not in tree.split_lists]
    return Collection(found.layout, _settle_splits(found.pictures, left_out), left_out, others)


def _alternative(name: str, tree: Tree) -> str | None:
    """Name a layout that fits too, unless it gives all pictures the same caption."""
    try:
        found = LAYOUTS[name](tree)
    except InputError:
        return None
    return found.layout if found and len({caption for p in found.pictures for caption in p.captions}) > 1 else None


def _nothing(tree: Tree, layout: str | None) -> str:
    if layout:
        return f"{tree.root} is not of the layout {layout}; choose another of {', '.join(LAYOUTS)}, or leave --layout out"
    if not tree.images and (packed := tree.ending(".tar.gz", ".tgz")):
        return (f"{tree.root / packed[0]} is compressed, so no picture can be found in it without unpacking all before it; "
                "run gunzip on it")
    if not tree.images:
        return (f"{tree.root} holds no images; put PNG, JPEG, WebP or GIF files there, or an archive with captions "
                "(tar shards, Parquet, idx, CIFAR, npz)")
    return (f"{tree.root} holds images without captions; write NAME.txt beside each NAME.png, or a metadata.csv "
            "(file_name,text), or sort them into one sub-folder per class")


def _refuse_one_caption(tree: Tree, found: Found, captions: set[str], layout: str | None) -> None:
    if len(captions) == 1 and len(found.pictures) > FEW and not layout:
        raise InputError(f"{tree.root} was read as {found.layout}, which gives all {len(found.pictures):,} pictures the one "
                         f"caption {min(captions)!r}; if that is meant, or they lie there in another way, say so by --layout "
                         f"{'|'.join(LAYOUTS)}")


def _settle_splits(pictures: list[Picture], left_out: list[tuple[str, str]]) -> list[Picture]:
    """Keep the splits where both are there, and then only what is in one of them; else forget them."""
    if {"train", "held-out"} <= {picture.split for picture in pictures}:
        left_out += [("in no split", picture.name) for picture in pictures if picture.split is None]
        return [picture for picture in pictures if picture.split]
    for picture in pictures:
        picture.split = None
    return pictures
