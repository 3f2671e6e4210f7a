"""Read arrays of small pictures: MNIST's idx, CIFAR's pickles, npz. Nothing of a file is run as code.

    images (n h w) or (n h w 3), labels (n) --> Picture, its source Pixels(path, array, i), its caption the name of its class
"""

import gzip
import pickle
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from .collection import Picture, Pixels
from .errors import InputError
from .tables import as_texts
from .tree import Found, Tree, class_captions, split_of_name, unreadable


def from_arrays(path: Path, part: str, array: np.ndarray, captions: Sequence[list[str]], split: str | None) -> list[Picture]:
    """Make pictures of an array of them, uint8 (n h w) or (n h w 3), and n lists of captions. part: what names call it."""
    if len(array) != len(captions):
        raise InputError(f"{path} has {len(array):,} pictures but {len(captions):,} labels; get both files from the same source")
    return [Picture(f"{part}: {i}", Pixels(path, array, i), texts, split) for i, texts in enumerate(captions)]


def as_pictures(array: np.ndarray, where: str) -> np.ndarray:
    """Bring an array of grey or RGB pictures, channels first or last, to uint8 (n h w) or (n h w 3).

    Floats in [0, 1] are scaled to [0, 255]; all other numbers must lie in [0, 255] as they are.
    """
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        array = rearrange(array, "n c h w -> n h w c")
    if array.ndim == 4 and array.shape[3] == 1:
        array = rearrange(array, "n h w 1 -> n h w")
    if array.dtype.kind not in "uif" or 0 in array.shape or not (array.ndim == 3 or array.ndim == 4 and array.shape[3] == 3):
        raise InputError(f"{where} is {array.dtype} {array.shape}, no pictures; save them as uint8 (n h w) or (n h w 3)")
    if array.dtype == np.uint8:
        return array
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise InputError(f"{where} has values from {low:g} to {high:g}; save pictures as uint8, or as floats in [0, 1]")
    return (array * 255 if array.dtype.kind == "f" and high <= 1 else array).round().astype(np.uint8)


MNIST = "zero one two three four five six seven eight nine".split()
FASHION = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
KNOWN = {  # the first ten labels -> the title, the names of the classes
    (5, 0, 4, 1, 9, 2, 1, 3, 1, 4): ("MNIST", MNIST), (7, 2, 1, 0, 4, 1, 4, 9, 5, 9): ("MNIST", MNIST),
    (9, 0, 0, 3, 0, 2, 7, 2, 5, 5): ("Fashion-MNIST", FASHION), (9, 2, 1, 1, 6, 1, 4, 6, 5, 7): ("Fashion-MNIST", FASHION),
}


def idx(tree: Tree) -> Found | None:
    """MNIST and its kin: train-images-idx3-ubyte(.gz) with train-labels-idx1-ubyte(.gz), and t10k of both."""
    pairs = {}  # name of the pictures, without .gz -> (file of pictures, file of labels)
    for name in tree.files:
        bare = name.removesuffix(".gz")
        if re.search(r"images?[.-]idx3[.-]ubyte$", bare):
            labels = re.sub("(images?)([.-])idx3", lambda match: match[1].replace("image", "label") + match[2] + "idx1", bare)
            beside = next((label for label in (labels, labels + ".gz") if label in tree.there), None)
            if beside is None:
                raise InputError(f"{tree.root / name} has no labels beside it; put {labels} there")
            pairs[bare] = name, beside
    if len(sets := {re.sub("(train|t10k|test|val).*", "", bare) for bare in pairs}) > 1:
        raise InputError(f"{tree.root} holds {len(sets)} data sets ({', '.join(sorted(sets))}); move each into its own folder")
    labels = {bare: read_idx(tree.root / label, 1) for bare, (_, label) in pairs.items()}
    title, names = next((KNOWN[key] for some in labels.values() if (key := tuple(some[:10].tolist())) in KNOWN), ("idx", ()))
    names, found = tree.class_names or names, Found("", [], set())
    for bare, pair in pairs.items():
        captions = class_captions(labels[bare], names, tree.root / pair[1])
        array = read_idx(tree.root / pair[0], 3)                                             # (n h w)
        if transposed := "emnist" in bare.lower():
            array = rearrange(array, "n w h -> n h w")
        found.pictures += from_arrays(tree.root / pair[0], pair[0], array, [[text] for text in captions],
                                      tree.split_of_file(pair[0]))
        found.used |= {*pair, bare, bare + ".gz"}  # both, where one is the other packed
    found.layout = f"{title}, classes {', '.join(names)}" if len(names) <= 10 else f"{title}, {len(names)} classes"
    if pairs and transposed:  # EMNIST's files hold rows where MNIST's hold columns
        found.layout += ", EMNIST's pictures turned upright"
    return found if pairs else None


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Read an idx file of bytes -> uint8 (n) or (n h w): two zeros, the type 8, the rank, then each side as 4 bytes."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            letters = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error, "get it anew") from error
    shape = tuple(np.frombuffer(letters[4 : 4 + 4 * rank], ">u4").tolist()) if len(letters) >= 4 + 4 * rank else ()
    if letters[:4] != bytes((0, 0, 8, rank)) or len(letters) != 4 + 4 * rank + prod(shape):
        raise InputError(f"{path} is no idx file of {rank} axes, or not whole; get it anew")
    return np.ndarray(shape, np.uint8, letters, offset=4 + 4 * rank)


class Plain(pickle.Unpickler):
    """Unpickle arrays, texts, numbers, lists and dicts; refuse all else, since a pickle can run any code."""

    NUMPY = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype} | dict.fromkeys(
        (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")), np.empty(0).__reduce__()[0])

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.NUMPY:
            return self.NUMPY[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no picture needs")


def cifar(tree: Tree) -> Found | None:
    """CIFAR-10 (data_batch_1 to 5, test_batch, batches.meta) and CIFAR-100 (train, test, meta), as pickled for Python."""
    found = Found("", [], set())
    for meta in (name for name in tree.files if name.rpartition("/")[2] in ("batches.meta", "meta")):
        folder, _, base = meta.rpartition("/")
        prefix, ten = f"{folder}/" if folder else "", base == "batches.meta"
        wanted = r"data_batch_\d+|test_batch" if ten else "train|test"
        files = [name for name in tree.files if name.startswith(prefix) and re.fullmatch(wanted, name[len(prefix) :])]
        if not files:
            continue
        words = _unpickle(tree.root / meta, b"label_names" if ten else b"fine_label_names")[0]
        names = [word.decode(errors="replace") for word in words]
        for name in files:
            path = tree.root / name
            rows, labels = _unpickle(path, b"data", b"labels" if ten else b"fine_labels")
            if not (isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.shape == (len(labels), 3 * 32 * 32)):
                raise InputError(f"{path} does not hold pictures of 32 x 32 in red, green and blue; get it anew")
            array = rearrange(rows, "n (c h w) -> n h w c", c=3, h=32)
            captions = [[text] for text in class_captions(labels, tree.class_names or names, path)]
            found.pictures += from_arrays(path, name, array, captions, "held-out" if "test" in name[len(prefix) :] else "train")
        found.layout, found.used = f"CIFAR-{len(names)}", found.used | {meta, *files}
    return found if found.pictures else None


def _unpickle(path: Path, *keys: bytes) -> list[Any]:
    """Return some entries of a pickled dict."""
    try:
        with open(path, "rb") as file:
            whole = Plain(file, encoding="bytes").load()
        return [whole[key] for key in keys]
    except Exception as error:  # a broken pickle can raise anything
        raise unreadable(path, error, "get it anew") from error


PICTURES, LABELS = {"images", "image", "x", "data"}, {"labels", "label", "y", "captions", "caption", "texts", "text", "targets"}


def npz(tree: Tree) -> Found | None:
    """Arrays by name: images and labels (x and y, data and captions), or x_train, y_train, x_test, y_test and the like."""
    found = Found("", [], set())
    for name in tree.ending(".npz"):
        path = tree.root / name
        try:
            with np.load(path, allow_pickle=False) as arrays:
                keys = defaultdict(dict)  # split -> {"pictures": key, "labels": key}
                for key in arrays.files:
                    words = set(key.lower().split("_"))
                    kind = "labels" if words & LABELS else "pictures" if words & PICTURES else key
                    keys[split_of_name(key)].setdefault(kind, key)
                parts = [(split, pair["pictures"], arrays[pair["pictures"]], arrays[pair["labels"]])
                         for split, pair in keys.items() if {"pictures", "labels"} <= set(pair)]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise unreadable(path, error, "save it anew, texts as an array of str") from error
        for split, key, array, labels in parts:
            if labels.ndim == 2 and labels.shape[1] == 1:
                labels = rearrange(labels, "n 1 -> n")
            if labels.dtype.kind == "U":
                captions = [as_texts(texts) for texts in labels.tolist()]
            elif labels.dtype.kind in "ui" and labels.ndim == 1:
                captions = [[text] for text in class_captions(labels, tree.class_names, path)]
            else:
                raise InputError(f"{path} has labels of {labels.dtype} {labels.shape}; save (n) texts as str or classes as int")
            array = as_pictures(array, f"{path} {key}")
            found.pictures += from_arrays(path, f"{name} {key}", array, captions, split or tree.split_of_file(name))
            found.used.add(name)
    found.layout = f"arrays of {', '.join(sorted(found.used))}"
    return found if found.pictures else None
