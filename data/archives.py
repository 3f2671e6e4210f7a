"""Read pictures that are packed as files many to a file: tar shards, Parquet.

Pictures stay where they are until they are decoded: a Picture's source says where (collection.py).
"""

import json
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from .collection import Picture, Slice
from .errors import InputError
from .pictures import SUFFIXES
from .tables import as_texts, find_columns, tidy
from .tree import Found, Tree, class_captions, split_of_name, unreadable

# ---- tar shards ----


def tar(tree: Tree) -> Found | None:
    """WebDataset: 0017.jpg in a .tar beside 0017.txt, 0017.json ("caption" or "text") or 0017.cls, a class's number."""
    found, classes = Found("", [], set()), []  # classes: (Picture, number)
    for name in tree.ending(".tar"):
        pictures, texts = _read_shard(tree, name)
        for key, picture in pictures.items():
            said = texts[key].get("txt") or texts[key].get("json")
            picture.captions = said or []
            if not said and "cls" in texts[key]:
                classes.append((picture, texts[key]["cls"]))
        found.pictures += pictures.values()
        found.used.add(name)
    captions = class_captions([number for _, number in classes], tree.class_names, f"{tree.root}: .cls")
    for (picture, _), caption in zip(classes, captions):
        picture.captions = [caption]
    found.left_out = [("no caption", picture.name) for picture in found.pictures if not picture.captions]
    found.pictures = [picture for picture in found.pictures if picture.captions]
    found.layout = f"{len(found.used)} tar shards" if len(found.used) > 1 else "".join(found.used)
    return found if found.pictures else None


def _read_shard(tree: Tree, name: str) -> tuple[dict[str, Picture], dict[str, dict[str, Any]]]:
    """Index a shard, passing over the pixels -> pictures by key, and for each key what its .txt, .json and .cls say."""
    path, pictures, texts = tree.root / name, {}, defaultdict(dict)
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                shard.members = []  # or tarfile would keep every header in memory
                folder, _, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                key, full = f"{folder}/{stem}", f"{name}: {member.name}"
                if not member.isfile() or base.startswith("."):
                    continue
                if f".{kind.rpartition('.')[2].lower()}" in SUFFIXES:
                    source = Slice(path, member.offset_data, member.size)
                    pictures.setdefault(key, Picture(full, source, [], tree.split_of_file(name)))
                elif kind in ("txt", "json", "cls"):
                    letters = shard.extractfile(member).read().decode("utf-8-sig", errors="replace")
                    texts[key][kind] = _member_texts(tree.root / full, kind, letters)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise unreadable(path, error, "get it anew") from error
    return pictures, texts


def _member_texts(where: Path, kind: str, letters: str) -> list[str] | int:
    if kind == "txt":
        return as_texts(letters.splitlines())
    try:
        if kind == "cls":
            return int(letters)
        value = json.loads(letters)
    except (ValueError, RecursionError) as error:
        raise unreadable(where, error) from error
    value = value if isinstance(value, dict) else {}
    return as_texts(value.get("caption")) or as_texts(value.get("text"))


# ---- Parquet ----

PICTURE_COLUMNS = ("image", "img", "picture", "jpg", "png")


@dataclass(frozen=True)
class Row:
    """A picture in a Parquet file: its bytes, or the path of a file beside it."""

    path: Path
    group: int  # of rows, read as a whole
    row: int  # in the group
    column: str

    def open(self) -> Image.Image:
        with _reading:
            column = _column(self.path, self.group, self.column)
        cell = column[self.row].as_py()
        letters, file = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        return Image.open(BytesIO(letters) if letters is not None else self.path.parent / file)


_reading = Lock()  # or every worker would read the same group


@lru_cache(maxsize=2)  # pictures are decoded in order: the group at hand, and the next one if another worker is ahead
def _column(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=[column])[column]


def parquet(tree: Tree) -> Found | None:
    """Parquet as the Hub serves it: a column of pictures (bytes, or {"bytes", "path"}) and one of texts or classes."""
    if not (names := tree.ending(".parquet")):
        return None
    try:
        import pyarrow
        from pyarrow import parquet as reader
    except ImportError as error:
        if tree.ending(".tar"):
            return None
        raise InputError(f"{tree.root / names[0]} is a Parquet file, which pyarrow reads; install it: "
                         "pip install '.[parquet]'") from error
    found = Found("", [], set())
    for name in names:
        try:
            _add_parquet(tree, name, reader.ParquetFile(tree.root / name), found)
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(tree.root / name, error, "get it anew") from error
    shards = len(found.used)
    found.layout = f"{shards} Parquet files" if shards > 1 else "".join(found.used)
    return found if found.pictures else None


def _add_parquet(tree: Tree, name: str, file: Any, found: Found) -> None:
    """Add the pictures of a pyarrow ParquetFile; only its captions are read now."""
    path, schema = tree.root / name, file.schema_arrow
    original = {tidy(column): column for column in schema.names}
    columns = find_columns(list(original), PICTURE_COLUMNS)
    if columns is None and (tree.images or tree.ending(".tar")):  # img2dataset writes a table of addresses beside every shard
        return
    if columns is None:
        raise InputError(f"{path} has the columns {', '.join(schema.names)}; it needs one of pictures called image, and one "
                         "called text, caption or label")
    features = json.loads((schema.metadata or {}).get(b"huggingface", "{}")).get("info", {}).get("features", {})
    cells = file.read(columns=[original[column] for column in (*columns.texts, columns.split) if column]).to_pydict()
    texts = [[] for _ in range(file.metadata.num_rows)]
    for column in columns.texts:
        values = cells[original[column]]
        numbers = [value for value in values if type(value) is int and value >= 0]  # -1: a class that the Hub keeps secret
        names = tree.class_names or features.get(original[column], {}).get("names", ())
        captions = iter(class_captions(numbers, names, path))
        for own, value in zip(texts, values):
            own += [next(captions)] if type(value) is int and value >= 0 else as_texts(value)
    splits = cells[original[columns.split]] if columns.split else [None] * len(texts)
    rows = ((group, row) for group in range(file.num_row_groups) for row in range(file.metadata.row_group(group).num_rows))
    for i, (group, row) in enumerate(rows):
        picture = Picture(f"{name}: {i}", Row(path, group, row, original[columns.file]), texts[i],
                          split_of_name(str(splits[i])) or tree.split_of_file(name))
        if texts[i]:
            found.pictures.append(picture)
        else:
            found.left_out.append(("no caption", picture.name))
    found.used.add(name)
