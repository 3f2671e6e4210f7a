"""Read arrays of small pictures: MNIST's idx, CIFAR's pickles, npz. No file is run as code.

    images, uint8 (n h w) or (n h w 3), and labels (n) --> Rows that open an item of the array
"""

import gzip
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from .collection import Found, Row, title
from .errors import InputError, explained
from .split import split_of_name
from .texts import as_texts
from .tree import Tree


def _rows(tree: Tree, file: str, images: np.ndarray, labels: Sequence, split: str | None = None,
          names: Sequence[str] = (), part: str = "") -> Iterator[Row]:
    """Yield a row for each item of an array. part: the array's name where a file holds several."""
    if len(images) != len(labels):
        raise InputError(f"{tree.root / file} has {len(images):,} pictures but {len(labels):,} "
                         "labels; get both files from the same source")
    for i, label in enumerate(labels):
        texts = [label] if isinstance(label, int) else as_texts(label)
        yield Row(file, f"{file}{part}: {i}", texts, split, "", partial(_item, images, i), names)


def _item(images: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(images[index])


# ---- idx ----

MNIST = "zero one two three four five six seven eight nine".split()
FASHION = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "ankle boot"]
KNOWN = {  # the first ten labels -> the layout, the names of the classes
    (5, 0, 4, 1, 9, 2, 1, 3, 1, 4): ("MNIST", MNIST),
    (7, 2, 1, 0, 4, 1, 4, 9, 5, 9): ("MNIST", MNIST),
    (9, 0, 0, 3, 0, 2, 7, 2, 5, 5): ("Fashion-MNIST", FASHION),
    (9, 2, 1, 1, 6, 1, 4, 6, 5, 7): ("Fashion-MNIST", FASHION),
}


def idx(tree: Tree) -> Found:
    """MNIST and its kin: train-images-idx3-ubyte(.gz) with train-labels-idx1-ubyte(.gz)."""
    pairs = {}  # name of the pictures, without .gz -> file of pictures, file of labels
    for name in tree.files:
        if match := re.fullmatch(r"(.*)image(s?)([.-])idx3([.-]ubyte)(?:\.gz)?", name):
            labels = "{}label{}{}idx1{}".format(*match.groups())
            found = next((file for file in (labels, labels + ".gz") if file in tree.file_set), None)
            if not found:
                raise InputError(f"{tree.root / name} has no labels beside it; put {labels} there")
            pairs[name.removesuffix(".gz")] = name, found
    sets = {re.sub("(train|t10k|test|val).*", "", bare) for bare in pairs}
    if len(sets) > 1:
        raise InputError(f"{tree.root} holds {len(sets)} data sets ({', '.join(sorted(sets))}); "
                         "move each into its own folder")
    layout, names, rows, used = "idx files", (), [], set()
    labels = {bare: read_idx(tree.root / file, 1).tolist() for bare, (_, file) in pairs.items()}
    for first in (tuple(numbers[:10]) for numbers in labels.values()):
        if first in KNOWN:
            layout, names = KNOWN[first]
    for bare, (file, labels_file) in pairs.items():
        images = read_idx(tree.root / file, 3)                                           # (n h w)
        if "emnist" in bare.lower():  # its files hold rows where MNIST's hold columns
            layout, images = "EMNIST, turned upright", rearrange(images, "n w h -> n h w")
        rows += _rows(tree, file, images, labels[bare], names=names)
        used |= {file, labels_file, bare, bare + ".gz"}  # one may be the other, packed
    return Found(layout + (f", classes {', '.join(names)}" if names else ""), rows, used)


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Read an idx file of bytes -> uint8 (n) or (n h w).

    Its header: two zeros, the type 8, the rank, then each side as 4 bytes.
    """
    with explained(f"{path} cannot be read", "get it anew"):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    start = 4 + 4 * rank
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist()) if len(content) >= start else ()
    if content[:4] != bytes((0, 0, 8, rank)) or len(content) != start + prod(shape):
        raise InputError(f"{path} is no idx file of {rank} axes, or not whole; get it anew")
    return np.ndarray(shape, np.uint8, content, offset=start)


# ---- CIFAR ----


class Plain(pickle.Unpickler):
    """Unpickle arrays, texts, numbers, lists, dicts; refuse all else: a pickle can run any code."""

    NUMPY = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype} | dict.fromkeys(
        (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")),
        np.empty(0).__reduce__()[0])

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.NUMPY:
            return self.NUMPY[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no picture needs")


CIFAR = {  # file of the classes' names -> its key, the files of pictures, the key of their labels
    "batches.meta": (b"label_names", r"data_batch_\d+|test_batch", b"labels"),
    "meta": (b"fine_label_names", "train|test", b"fine_labels"),
}


def cifar(tree: Tree) -> Found:
    """CIFAR-10 (data_batch_1 to 5, test_batch) and CIFAR-100 (train, test), as pickled."""
    layout, rows, used = "", [], set()
    for meta in (name for name in tree.files if os.path.basename(name) in CIFAR):
        folder, base = os.path.split(meta)
        names_key, wanted, labels_key = CIFAR[base]
        for name in tree.files:
            if os.path.dirname(name) != folder or not re.fullmatch(wanted, os.path.basename(name)):
                continue
            path = tree.root / name
            names = _unpickle(tree.root / meta, names_key)[0]
            flat, labels = _unpickle(path, b"data", labels_key)
            if getattr(flat, "dtype", None) != np.uint8 or flat.shape != (len(labels), 3 * 32 * 32):
                raise InputError(f"{path} does not hold pictures of 32 x 32 in red, green and "
                                 "blue; get it anew")
            images = rearrange(flat, "n (c h w) -> n h w c", c=3, h=32)
            names = [word.decode(errors="replace") for word in names]
            split = "test" if "test" in os.path.basename(name) else "train"
            rows += _rows(tree, name, images, labels, split, names)
            layout, used = f"CIFAR-{len(names)}", used | {meta, name}
    return Found(layout, rows, used)


def _unpickle(path: Path, *keys: bytes) -> list[Any]:
    """Return some entries of a pickled dict."""
    with explained(f"{path} cannot be read", "get it anew"), open(path, "rb") as file:
        content = Plain(file, encoding="bytes").load()
        return [content[key] for key in keys]


# ---- npz ----

PICTURES = {"images", "image", "x", "data"}
LABELS = {"labels", "label", "y", "captions", "caption", "texts", "text", "targets"}


def npz(tree: Tree) -> Found:
    """Arrays by name: images and labels, x and y, data and captions; or x_train and the like."""
    rows, used = [], []
    for name in tree.ending(".npz"):
        path = tree.root / name
        with explained(f"{path} cannot be read", "save it anew, texts as an array of str"):
            with np.load(path, allow_pickle=False) as arrays:
                keys = defaultdict(dict)  # split -> {"images": key, "labels": key}
                for key in arrays.files:
                    words = set(key.lower().split("_"))
                    kind = "labels" if words & LABELS else "images" if words & PICTURES else key
                    keys[split_of_name(key)].setdefault(kind, key)
                parts = [(pair["images"], arrays[pair["images"]], arrays[pair["labels"]])
                         for pair in keys.values() if {"images", "labels"} <= set(pair)]
        for key, images, labels in parts:
            if labels.ndim == 2 and labels.shape[1] == 1:
                labels = rearrange(labels, "n 1 -> n")
            if labels.dtype.kind != "U" and not (labels.dtype.kind in "ui" and labels.ndim == 1):
                raise InputError(f"{path} has labels of {labels.dtype} {labels.shape}; save (n) "
                                 "texts as str or classes as int")
            images = as_pictures(images, f"{path} {key}")
            rows += _rows(tree, name, images, labels.tolist(), key, part=f" {key}")
            used.append(name)
    used = sorted(set(used))
    return Found(f"arrays of {title(used, 'npz files')}", rows, set(used))


def as_pictures(array: np.ndarray, name: str) -> np.ndarray:
    """Turn grey or RGB pictures, channels first or last, into uint8 (n h w) or (n h w 3).

    Floats in [0, 1] are scaled to [0, 255]; all other numbers must lie in [0, 255] as they are.
    """
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        array = rearrange(array, "n c h w -> n h w c")
    if array.ndim == 4 and array.shape[3] == 1:
        array = rearrange(array, "n h w 1 -> n h w")
    rgb = array.ndim == 4 and array.shape[3] == 3
    if array.dtype.kind not in "uif" or 0 in array.shape or not (array.ndim == 3 or rgb):
        raise InputError(f"{name} is {array.dtype} {array.shape}, no pictures; save them as uint8 "
                         "(n h w) or (n h w 3)")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise InputError(f"{name} has values from {low:g} to {high:g}; save pictures as uint8, "
                         "or as floats in [0, 1]")
    scale = 255 if array.dtype.kind == "f" and high <= 1 else 1
    return array if array.dtype == np.uint8 else (array * scale).round().astype(np.uint8)
