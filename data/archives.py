"""Read pictures that are packed as files many to a file: tar shards, Parquet.

The pictures stay in there, undecoded: a Row's `open` knows where.
"""

import json
import tarfile
from collections import defaultdict
from functools import lru_cache, partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from .collection import Found, Row, title
from .errors import InputError, explained
from .pictures import is_picture
from .tables import find_columns, tidy
from .texts import as_texts
from .tree import Tree

# ---- tar shards ----


def tar(tree: Tree) -> Found:
    """WebDataset: 0017.jpg in a .tar beside 0017.txt, 0017.json or 0017.cls."""
    names = tree.ending(".tar")
    rows = [row for name in names for row in _shard(tree, name)]
    return Found(title(names, "tar shards"), rows, set(names))


def _json_texts(content: str) -> list[str]:
    value = json.loads(content)
    value = value if isinstance(value, dict) else {}
    return as_texts(value.get("caption")) or as_texts(value.get("text"))


# suffix of a member -> what reads captions from it; the first that finds any counts
CAPTIONS = {"txt": lambda content: as_texts(content.splitlines()), "json": _json_texts,
            "cls": lambda content: [int(content)]}


def _shard(tree: Tree, name: str) -> list[Row]:
    """Index a shard, passing over the pixels."""
    path, pictures, texts = tree.root / name, {}, defaultdict(dict)  # by folder and stem
    with explained(f"{path} cannot be read", "get it anew"), tarfile.open(path, "r:") as shard:
        for member in shard:
            shard.members = []  # or tarfile would keep every header in memory
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if not member.isfile() or not stem:
                continue
            if is_picture(base):
                pictures.setdefault((folder, stem), (member.name, member.offset_data, member.size))
            elif suffix in CAPTIONS:
                content = shard.extractfile(member).read().decode("utf-8-sig", errors="replace")
                with explained(f"{path}: {member.name} cannot be read"):
                    texts[folder, stem][suffix] = CAPTIONS[suffix](content)
    rows = []
    for key, (member, start, size) in pictures.items():
        captions = next(filter(None, map(texts[key].get, CAPTIONS)), [])
        image = partial(_member, path, start, size)
        rows.append(Row(name, f"{name}: {member}", captions, open=image))
    return rows


def _member(path: Path, start: int, size: int) -> Image.Image:
    with open(path, "rb") as file:
        file.seek(start)
        return Image.open(BytesIO(file.read(size)))


# ---- Parquet ----

PICTURE_COLUMNS = ("image", "img", "picture", "jpg", "png")


def parquet(tree: Tree) -> Found | None:
    """Parquet as the Hub serves it: a column of pictures and one of texts or classes."""
    rows = {}
    for name in tree.ending(".parquet"):
        path = tree.root / name
        try:
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            if tree.ending(".tar"):  # the table beside a shard
                return None
            raise InputError(f"{path} is a Parquet file, which pyarrow reads; install it: "
                             "pip install '.[parquet]'") from error
        with explained(f"{path} cannot be read", "get it anew"):
            if (found := _parquet_rows(tree, name, ParquetFile(path))) is not None:
                rows[name] = found
    return Found(title(list(rows), "Parquet files"), chain.from_iterable(rows.values()), set(rows))


def _parquet_rows(tree: Tree, name: str, file: Any) -> list[Row] | None:
    """Read the captions of a pyarrow ParquetFile; None if it has no pictures and need not have."""
    path, schema = tree.root / name, file.schema_arrow
    original = {tidy(column): column for column in schema.names}
    columns = find_columns(list(original), PICTURE_COLUMNS)
    if columns is None:
        if tree.images or tree.ending(".tar"):  # img2dataset writes a table beside each shard
            return None
        raise InputError(f"{path} has the columns {', '.join(schema.names)}; it needs one of "
                         "pictures called image, and one called text, caption or label")
    info = json.loads((schema.metadata or {}).get(b"huggingface", "{}")).get("info", {})
    features = info.get("features", {})
    names = features.get(original[columns.texts[0]], {}).get("names", ())
    wanted = [original[column] for column in (*columns.texts, "split") if column in original]
    rows = []
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=wanted).to_pylist()
        for row, cells in enumerate(table):
            cells = {tidy(column): value for column, value in cells.items()}
            # -1: a class that the Hub keeps secret
            texts = [text for text in columns.texts_of(cells) if text != -1]
            image = partial(_cell, path, group, row, original[columns.file])
            rows.append(Row(name, f"{name}: {len(rows)}", texts, cells.get("split"), open=image,
                            class_names=names))
    return rows


def _cell(path: Path, group: int, row: int, column: str) -> Image.Image:
    """Open a picture from its cell: bytes, or {"bytes", "path"}, the path of a file beside it."""
    with _reading:
        cell = _column(path, group, column)[row].as_py()
    cell = cell if isinstance(cell, dict) else {"bytes": cell}
    content = cell.get("bytes")
    return Image.open(path.parent / cell["path"] if content is None else BytesIO(content))


_reading = Lock()  # or every worker would read the same group


@lru_cache(maxsize=2)  # in order: the group at hand, and the next one if another worker is ahead
def _column(path: Path, group: int, column: str) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path).read_row_group(group, columns=[column])[column]
