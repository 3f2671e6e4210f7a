"""Read captions from tables: CSV and its kin, JSON lines, lists of objects, COCO and Karpathy's split.

    file --> (its columns, its records) --> Row(table, file of the picture, texts, split)

A record is (place, cells): "line 3" and what stands there under the name of each column.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

from .collection import Found, Row, title
from .errors import InputError, explained
from .texts import as_texts, open_text
from .tree import Tree

FILE = ("file_name", "filename", "file", "image_name", "image_path", "filepath", "file_path", "path",
        "image", "img", "image_id")
TEXT = ("text", "caption", "captions", "title", "sentence", "sentences", "comment", "description",
        "label", "fine_label", "class", "name")
NUMBERED = ("label", "fine_label", "class")  # columns in which a number is a caption
SEPARATORS = (",", ";", "\t", "|")
ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".token")
BEST = ("metadata.csv", "metadata.jsonl")  # where one is there, no other table counts
TOKEN = re.compile(r"(\S+\.\w+)#\d+\t(.+)")  # Flickr8k.token.txt: "1000.jpg#0<TAB>A child ..."

Record = tuple[str, dict[str, Any]]


class Columns(NamedTuple):
    """Which columns of a table say what."""

    file: str
    texts: tuple[str, ...]  # several where they are numbered: caption_0, caption_1

    def __str__(self) -> str:
        return ", ".join((self.file, *self.texts))

    def texts_of(self, cells: dict[str, Any]) -> list[str | int]:
        """Return the captions of a record, or the number of its class."""
        values = [(column, cells.get(column)) for column in self.texts]
        return [text for column, value in values for text in (
            [value] if type(value) is int and column in NUMBERED else as_texts(value))]


def find_columns(names: Sequence[str], files: Sequence[str] = FILE) -> Columns | None:
    """Find the columns of files and of texts among tidied names; None if either is lacking."""
    file = next((name for name in files if name in names), None)
    for text in TEXT:
        texts = tuple(name for name in names if re.fullmatch(rf"{text}(_?\d+)?", name))
        if file and texts:
            return Columns(file, texts)
    return None


def tidy(name: Any) -> str:
    """Write a column's name as FILE and TEXT do: " File Name" is file_name."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def candidates(tree: Tree, *endings: str) -> list[str]:
    """List the files that may be tables: at the top, in a split's folder, one level down.

    A file with the name of a picture holds the captions of that picture alone.
    """
    stems = {Path(name).stem for name in tree.images}
    return [name for name in tree.ending(*endings) if Path(name).stem not in stems and (
        name.count("/") < 2 or name.rpartition("/")[0] in tree.split_folders
        or "annotations" in name.split("/")[:-1])]


def table(tree: Tree) -> Found | None:
    """A table of files and texts, by whatever separator and under the usual names; several add up."""
    names = candidates(tree, *ENDINGS)
    best = [name for name in names if Path(name).name.lower() in BEST]
    tables = {}  # name -> columns, records
    for name in best or names:
        path = tree.root / name
        with explained(f"{path} cannot be read"):
            recognise = _objects if path.suffix.lower() in (".json", ".jsonl") else _lines
            if found := recognise(path):
                tables[name] = found
        if best and not found:
            raise InputError(f"{path} lacks file_name or text; give it both columns")
    for name in list(tables):  # Flickr8k's second table, in which "running" is "run"
        if name.lower().endswith("lemma.token.txt") and name.replace(".lemma", "") in tables:
            del tables[name]
    if not tables:
        return None
    rows = (Row(name, cells.get(columns.file), list(map(str, columns.texts_of(cells))),
                cells.get("split"), place)
            for name, (columns, records) in tables.items() for place, cells in records)
    first = next(iter(tables.values()))[0]
    required = any(columns.file != "image_id" for columns, _ in tables.values())  # or no files are meant
    return Found(f"{title(list(tables), 'tables')} ({first})", rows, set(tables), required)


# ---- Lines: CSV and its kin, Flickr8k's tokens ----


def _lines(path: Path) -> tuple[Columns, Iterator[Record]] | None:
    """Recognise a table by its first line -> its columns, its records; None if it is none."""
    with open_text(path) as lines:
        first = next(filter(str.strip, lines), "")[: csv.field_size_limit()]  # no header is longer
    if TOKEN.match(first):
        return Columns("image", ("caption",)), _tokens(path)
    for separator in SEPARATORS:
        header = next(csv.reader([first], delimiter=separator, skipinitialspace=True), ())
        header = [tidy(column) for column in header]
        if columns := find_columns(header):
            return columns, _cells(path, separator, header)
    return None


def _tokens(path: Path) -> Iterator[Record]:
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                match = TOKEN.match(line.strip())
                yield f"line {number}", dict(zip(("image", "caption"), match.groups() if match else ()))


def _cells(path: Path, separator: str, header: list[str]) -> Iterator[Record]:
    # Flickr30k's `|` table has quotes that quote nothing
    quoting = csv.QUOTE_NONE if separator == "|" else csv.QUOTE_MINIMAL
    with open_text(path) as lines:
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True,
                            quoting=quoting)
        ended, started = 0, False  # the line at which the last row ended; whether the header has passed
        try:
            for cells in reader:
                line, ended = ended + 1, reader.line_num
                cells = [cell.strip() for cell in cells]
                if any(cells) and started:
                    if any(cells[len(header) :]):
                        name = "tab" if separator == "\t" else separator
                        raise InputError(f"{path}, line {line}: {len(cells)} fields under {len(header)} "
                                         f"columns; put quotes around texts that hold a {name}")
                    yield f"line {line}", dict(zip(header, cells))
                started = started or any(cells)
        except csv.Error as error:
            raise InputError(f"{path} cannot be read (line {reader.line_num}: {error}); double the "
                             "quotes within a text, and close each that opens") from error


# ---- Objects: JSON lines, a JSON list ----


def _objects(path: Path) -> tuple[Columns, Iterator[Record]] | None:
    """Recognise JSON objects by the keys of the first -> their columns, their records; or None."""
    objects = _json_lines(path) if path.suffix.lower() == ".jsonl" else (
        (f"entry {number}", entry) for number, entry in enumerate(_json(path, "[") or (), 1))
    records = ((place, {tidy(key): value for key, value in entry.items()}
                if isinstance(entry, dict) else {}) for place, entry in objects)
    first = next(records, ("", {}))
    # emoji.json: few have a text, all have a name
    filled = [key for key, value in first[1].items() if value not in (None, "", [])]
    columns = find_columns(filled) or find_columns(list(first[1]))
    return (columns, chain([first], records)) if columns else None


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path} cannot be read (line {number}: {error}); repair that "
                                     "line") from error


def _json(path: Path, opening: str, word: bytes = b"") -> Any:
    """Parse a JSON file if it begins with `opening` and contains `word`; else return None.

    So COCO's boxes, which lie beside its captions, are not parsed: that takes minutes.
    """
    with explained(f"{path} cannot be read"), open_text(path) as text, open(path, "rb") as file:
        if not text.read(64).lstrip().startswith(opening):
            return None
        if word and mmap(file.fileno(), 0, access=ACCESS_READ).find(word) < 0:
            return None
        text.seek(0)
        return json.load(text)


# ---- COCO, Karpathy ----


def coco(tree: Tree) -> Found | None:
    """COCO: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""
    return _from_json(tree, "COCO captions", b'"caption"', _coco_rows)


def karpathy(tree: Tree) -> Found | None:
    """Karpathy's dataset.json: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}."""
    return _from_json(tree, "Karpathy's split", b'"sentences"', _karpathy_rows)


def _from_json(tree: Tree, layout: str, word: bytes,
               rows_of: Callable[[Tree, str, dict], list[Row]]) -> Found | None:
    rows = {}
    for name in candidates(tree, ".json"):
        content = _json(tree.root / name, "{", word) or {}
        if isinstance(content.get("images"), list) and (found := rows_of(tree, name, content)):
            rows[name] = found
    return Found(f"{layout} {', '.join(rows)}", chain.from_iterable(rows.values()), set(rows), True)


def _coco_rows(tree: Tree, name: str, content: dict) -> list[Row]:
    notes = [note for note in content.get("annotations") or ()
             if isinstance(note, dict) and "caption" in note]
    try:
        files = {image["id"]: image["file_name"] for image in content["images"]}
        return [Row(name, files.get(note["image_id"]), as_texts(note["caption"]), None, f"annotation {i}")
                for i, note in enumerate(notes, 1)]
    except (KeyError, TypeError) as error:
        raise InputError(f"{tree.root / name} lacks {error} in some image or annotation; every image "
                         "needs id and file_name, every annotation image_id and caption") from error


def _karpathy_rows(tree: Tree, name: str, content: dict) -> list[Row]:
    rows = []
    for i, image in enumerate(content["images"], 1):
        file, sentences = (image.get(key) if isinstance(image, dict) else None
                           for key in ("filename", "sentences"))
        if isinstance(file, str) and isinstance(sentences, list):
            texts = [sentence.get("raw") for sentence in sentences if isinstance(sentence, dict)]
            folder = f"{image['filepath']}/" if image.get("filepath") else ""
            rows.append(Row(name, folder + file, as_texts(texts), image.get("split"), f"image {i}"))
    return rows
