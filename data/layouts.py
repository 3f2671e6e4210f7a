"""Recognise how a folder keeps its pictures and captions; nothing is guessed silently.

    read(folder) --> tree.list_folder --> LAYOUTS, the richest first --> collection.gather --> Collection
                                          parquet tar                    archives.py
                                          idx cifar npz                  arrays.py
                                          coco karpathy table            tables.py
                                          text classes                   here
"""

import os
import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from .archives import parquet, tar
from .arrays import cifar, idx, npz
from .collection import Collection, Found, Row, gather
from .errors import InputError, explained
from .tables import coco, karpathy, table
from .texts import as_texts, open_text
from .tree import Tree, list_folder

FEW = 8  # pictures that may all have the same caption: an example, or a first try
# labels/ is not among them: it holds boxes, as a rule
TEXT_FOLDER = re.compile(r"(texts?|captions?)([_-]\w+)?", re.IGNORECASE)


def text(tree: Tree) -> Found:
    """dog.png and dog.txt beside it, or images/a/1.jpg and text/a/1.txt: one caption a line."""
    folders = sorted({part for name in tree.ending(".txt") for part in name.split("/")[:-1]
                      if TEXT_FOLDER.fullmatch(part)})
    rows, used = [], set()
    for name in tree.images:
        *parents, stem = os.path.splitext(name)[0].split("/")
        parallel = ([*parents[:i], folder, *parents[i + 1 :], stem]
                    for i in range(len(parents) + 1) for folder in folders)
        places = ("/".join(parts) + ".txt" for parts in ([*parents, stem], *parallel))
        if place := next((place for place in places if place in tree.file_set), None):
            used.add(place)
            path = tree.root / place
            with explained(f"{path} cannot be read"), open_text(path) as file:
                if captions := as_texts(file.read().splitlines()):
                    rows.append(Row("", name, captions))
    return Found("text files, one a picture", rows, used)


def classes(tree: Tree) -> Found:
    """dog/1.png, animals/dog/1.png, train/dog/images/1.png: a folder's name is the caption.

    It is the nearest folder that tells pictures apart. A folder inside one that holds pictures itself
    is no class of its own: dog/more/2.png shows a dog.
    """
    full = {name: tree.folders(name) for name in tree.images}
    holders = set(full.values())
    nearest = {name: next((folders[:depth] for depth in range(1, len(folders))
                           if folders[:depth] in holders), folders)
               for name, folders in full.items()}
    captions = {name: folders[-1] for name, folders in nearest.items() if folders}
    for paths, up in product((nearest, full), range(max(map(len, holders), default=0))):
        level = {name: folders[-1 - up] for name, folders in paths.items() if len(folders) > up}
        if len(set(level.values())) > 1:
            captions = level
            break
    rows = [Row("", name, [caption]) for name, caption in captions.items()]
    return Found("class folders", rows, set())


LAYOUTS: dict[str, Callable[[Tree], Found | None]] = {
    "parquet": parquet, "tar": tar, "idx": idx, "cifar": cifar, "npz": npz,
    "coco": coco, "karpathy": karpathy, "table": table, "text": text, "classes": classes,
}  # the richest first: what says most about a picture wins


def read(folder: str | Path, layout: str | None = None,
         class_names: Sequence[str] = ()) -> Collection:
    """Find the captioned pictures of a folder, none of them decoded yet.

    layout: one of LAYOUTS, None to recognise it. class_names: what the numbers of classes stand for,
    where the data set does not say. Raises InputError if there are no pictures, no captions, or if it
    is doubtful what is meant.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    tree, collection = list_folder(folder), None
    for name in [layout] if layout else LAYOUTS:
        try:
            found = LAYOUTS[name](tree)
            other = found and gather(tree, found, class_names)
        except InputError:
            if collection is None:
                raise
            continue
        if collection is None:
            collection = other
        elif other and len(other.captions) > 1:
            collection.others.append(other.layout)
    if collection is None:
        raise InputError(_nothing(tree, layout))
    _check_captions(tree, collection, layout, class_names)
    return collection


def _check_captions(tree: Tree, collection: Collection, layout: str | None,
                    class_names: Sequence[str]) -> None:
    captions, count = collection.captions, len(collection.pictures)
    if class_names and captions.isdisjoint(class_names):
        raise InputError(f"{tree.root}: {collection.layout} says itself what each picture is, so "
                         "--class-names has no use: leave it out")
    if len(captions) == 1 and count > FEW and not layout:
        raise InputError(f"{tree.root} was read as {collection.layout}, which gives all {count:,} "
                         f"pictures the one caption {min(captions)!r}; if that is meant, or they lie "
                         f"there in another way, say so by --layout {'|'.join(LAYOUTS)}")


def _nothing(tree: Tree, layout: str | None) -> str:
    if layout:
        return (f"{tree.root} is not of the layout {layout}; choose another of {', '.join(LAYOUTS)}, "
                "or leave --layout out")
    if tree.images:
        return (f"{tree.root} holds images without captions; write NAME.txt beside each NAME.png, or "
                "a metadata.csv (file_name,text), or sort them into one sub-folder per class")
    if packed := tree.ending(".tar.gz", ".tgz"):
        return (f"{tree.root / packed[0]} is compressed, so no picture can be found in it without "
                "unpacking all before it; run gunzip on it")
    return (f"{tree.root} holds no images; put PNG, JPEG, WebP or GIF files there, or an archive with "
            "captions (tar shards, Parquet, idx, CIFAR, npz)")
