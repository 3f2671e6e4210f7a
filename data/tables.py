"""Read captions from tables: CSV and its kin, JSON lines, COCO's captions, Karpathy's split.

    file --> rows: Row(table, line, file, texts, split) --> gather --> Found: the files are looked up, rows of one add up
"""

import csv
import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

from .collection import File, Picture
from .errors import InputError
from .tree import Found, Tree, class_captions, split_of_name, unreadable

FILE = ("file_name", "filename", "file", "image_name", "image_path", "filepath", "file_path", "path", "image", "img", "image_id")
TEXT = ("text", "caption", "captions", "title", "sentence", "sentences", "comment", "description", "label", "fine_label", "class",
        "name")
NUMBERED = ("label", "fine_label", "class")  # columns whose numbers are texts: in JSON, they are no strings
SEPARATORS = (",", ";", "\t", "|")
ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".token")
BEST = ("metadata.csv", "metadata.jsonl")
TOKEN = re.compile(r"(\S+\.\w+)#\d+\t(.+)")  # a line of Flickr8k.token.txt: "1000.jpg#0<TAB>A child ..."


class Row(NamedTuple):
    table: str  # relative to the root
    place: str  # "line 3", or "entry 3" of a JSON file
    file: str | None
    texts: list[str]
    split: Any  # what the table says, None if nothing


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what."""

    file: str
    texts: tuple[str, ...]  # several where they are numbered: caption_0, caption_1
    split: str | None

    def __str__(self) -> str:
        return ", ".join((self.file, *self.texts))

    def row(self, table: str, place: str, cells: dict[str, Any]) -> Row:
        file = cells.get(self.file)
        values = [(column, cells.get(column)) for column in self.texts]
        texts = [text for column, value in values
                 for text in as_texts(str(value) if column in NUMBERED and type(value) is int else value)]
        split = cells.get(self.split)
        return Row(table, place, file if isinstance(file, str) else None, texts, split)


def find_columns(names: Sequence[str], files: Sequence[str] = FILE) -> Columns | None:
    """Find the columns of files and of texts among tidied names; None if either is lacking."""
    file = next((name for name in files if name in names), None)
    texts = next((some for text in TEXT if (some := [name for name in names if re.fullmatch(rf"{text}(_?\d+)?", name)])), None)
    return Columns(file, tuple(texts), "split" if "split" in names else None) if file and texts else None


def tidy(name: Any) -> str:
    """Write a column's name as FILE and TEXT do: " File Name" is file_name."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def as_texts(value: Any) -> list[str]:
    """Return the captions in a cell, a text or a list of texts, without blanks around and without empty ones."""
    values = value if isinstance(value, list) else [value]
    texts = (re.sub("[\ud800-\udfff]", "\ufffd", text).strip() for text in values if isinstance(text, str))  # broken bytes
    return [text for text in texts if text]


# ---- CSV, TSV, JSON lines, lists of objects ----


def table(tree: Tree) -> Found | None:
    """A table of files and texts, by whatever separator and under the usual names; one for each split add up."""
    names = _candidates(tree, *ENDINGS)
    best = [name for name in names if name.rpartition("/")[2].lower() in BEST]
    tables = {}  # name -> (its columns, its rows)
    for name in best or names:
        try:
            found = (_read_objects if name.lower().endswith((".json", ".jsonl")) else _read_lines)(tree, name)
        except OSError as error:
            raise unreadable(tree.root / name, error) from error
        if found:
            tables[name] = found
        elif best:
            raise InputError(f"{tree.root / name} lacks file_name or text; give it both columns")
    for name in [name for name in tables if name.lower().endswith("lemma.token.txt")]:
        if name.replace(".lemma", "") in tables:  # Flickr8k's second table, in which "running" is "run"
            del tables[name]
    if not tables:
        return None
    columns = next(iter(tables.values()))[0]
    title = ", ".join(tables) if len(tables) < 4 else f"{len(tables)} tables"
    must = any(columns.file != "image_id" for columns, _ in tables.values())  # those may number something else
    return gather(tree, chain.from_iterable(rows for _, rows in tables.values()), f"{title} ({columns})", set(tables), must)


def _candidates(tree: Tree, *endings: str) -> list[str]:
    """List the files that may be tables: at the top, in a split's folder, one level down; not those of single pictures."""
    stems = {_stem(name) for name in tree.images}
    return [name for name in tree.ending(*endings) if _stem(name) not in stems and (
        name.count("/") < 2 or name.rpartition("/")[0] in tree.split_folders or "annotations" in name.split("/")[:-1])]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]


def open_text(path: Path):
    """Open a text in UTF-8, or in UTF-16 if it says so."""
    with open(path, "rb") as file:
        wide = file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)  # what Excel calls Unicode text
    encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")  # a file's name may be no text
    return open(path, encoding=encoding, errors=errors, newline="")


def _read_lines(tree: Tree, name: str) -> tuple[Columns, Iterator[Row]] | None:
    """Recognise a table by its first line -> (its columns, its rows), or None if it is none."""
    with open_text(tree.root / name) as lines:
        first = next(filter(str.strip, lines), "")[: csv.field_size_limit()]  # no header is longer
    if TOKEN.match(first):
        return Columns("image", ("caption",), None), _tokens(tree, name)
    for separator in SEPARATORS:
        header = [tidy(column) for column in next(csv.reader([first], delimiter=separator, skipinitialspace=True), ())]
        if columns := find_columns(header):
            return columns, _rows(tree, name, separator, header, columns)
    return None


def _tokens(tree: Tree, name: str) -> Iterator[Row]:
    with open_text(tree.root / name) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                match = TOKEN.match(line.strip())
                yield Row(name, f"line {number}", match and match[1], as_texts(match and match[2]), None)


def _rows(tree: Tree, name: str, separator: str, header: list[str], columns: Columns) -> Iterator[Row]:
    """Read the rows under a header. Flickr30k's `|` table has quotes that quote nothing."""
    path = tree.root / name
    quoting = csv.QUOTE_NONE if separator == "|" else csv.QUOTE_MINIMAL
    with open_text(tree.root / name) as lines:
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True, quoting=quoting)
        ended, started = 0, False  # the line at which the last row ended; whether the header has passed
        try:
            for cells in reader:
                line, ended = ended + 1, reader.line_num
                cells = [cell.strip() for cell in cells]
                if not any(cells):
                    continue
                if not started:
                    started = True
                    continue
                if any(cells[len(header) :]):
                    raise InputError(f"{path}, line {line}: {len(cells)} fields under {len(header)} columns; put quotes around "
                                     f"texts that hold a {'tab' if separator == chr(9) else separator}")
                yield columns.row(name, f"line {line}", dict(zip(header, cells)))
        except csv.Error as error:
            raise InputError(f"{path} cannot be read (line {reader.line_num}: {error}); double the quotes within a text, and "
                             "close each that opens") from error


def _read_objects(tree: Tree, name: str) -> tuple[Columns, Iterator[Row]] | None:
    """Recognise JSON lines, or a JSON list, of objects by the keys of the first -> (its columns, its rows)."""
    objects = (_json_list if name.lower().endswith(".json") else _json_lines)(tree, name)
    keyed = ((place, {tidy(key): value for key, value in row.items()} if isinstance(row, dict) else {}) for place, row in objects)
    first = next(keyed, ("", {}))
    filled = [key for key, value in first[1].items() if value not in (None, "", [])]  # emoji.json: few have a text, all a name
    columns = find_columns(filled) or find_columns(list(first[1]))
    return (columns, (columns.row(name, place, row) for place, row in chain([first], keyed))) if columns else None


def _json_list(tree: Tree, name: str) -> Iterator[tuple[str, Any]]:
    with open_text(tree.root / name) as file:
        if not file.read(64).lstrip().startswith("["):  # so that a large file of something else is not parsed
            return
    yield from ((f"entry {number}", row) for number, row in enumerate(tree.json(name), 1))


def _json_lines(tree: Tree, name: str) -> Iterator[tuple[str, Any]]:
    with open_text(tree.root / name) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{tree.root / name} cannot be read (line {number}: {error}); repair that line") from error


# ---- COCO and Karpathy ----


def coco(tree: Tree) -> Found | None:
    """Captions as COCO keeps them: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""
    return _from_json(tree, "COCO captions", b'"caption"', _coco_rows)


def karpathy(tree: Tree) -> Found | None:
    """Karpathy's dataset.json of Flickr8k, Flickr30k and COCO: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}."""
    return _from_json(tree, "Karpathy's split", b'"sentences"', _karpathy_rows)


def _from_json(tree: Tree, title: str, word: bytes, rows_of: Callable[[Tree, str, dict], list[Row]]) -> Found | None:
    names, rows = [], []
    for name in _candidates(tree, ".json"):
        whole = tree.json(name) if _mentions(tree.root / name, word) else None
        if isinstance(whole, dict) and isinstance(whole.get("images"), list) and (found := rows_of(tree, name, whole)):
            names.append(name)
            rows += found
    return gather(tree, rows, f"{title} {', '.join(names)}", set(names))


def _mentions(path: Path, word: bytes) -> bool:
    """Tell whether a word is in a file; COCO's boxes stand beside its captions, and take minutes to parse."""
    try:
        with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as letters:
            return letters.find(word) >= 0
    except ValueError:  # an empty file
        return False
    except OSError as error:
        raise unreadable(path, error) from error


def _coco_rows(tree: Tree, name: str, whole: dict) -> list[Row]:
    notes = [note for note in whole.get("annotations") or () if isinstance(note, dict) and "caption" in note]
    try:
        files = {image["id"]: image["file_name"] for image in whole["images"]}
        return [Row(name, f"annotation {i}", files.get(note["image_id"]), as_texts(note["caption"]), None)
                for i, note in enumerate(notes, 1)]
    except (KeyError, TypeError) as error:
        raise InputError(f"{tree.root / name} lacks {error} in some image or annotation; every image needs id and file_name, "
                         "every annotation image_id and caption") from error


def _karpathy_rows(tree: Tree, name: str, whole: dict) -> list[Row]:
    rows = []
    for i, image in enumerate(whole["images"], 1):
        if isinstance(image, dict) and isinstance(image.get("sentences"), list) and isinstance(image.get("filename"), str):
            sentences = [sentence for sentence in image["sentences"] if isinstance(sentence, dict)]
            texts = [text for sentence in sentences for text in as_texts(sentence.get("raw"))]
            folder = f"{image['filepath']}/" if image.get("filepath") else ""
            rows.append(Row(name, f"image {i}", folder + image["filename"], texts, image.get("split")))
    return rows


# ---- Rows to pictures ----


def gather(tree: Tree, rows: Iterable[Row], layout: str, used: set[str], must: bool = True) -> Found | None:
    """Look up the file of every row and add up its texts; what has no file, or no text, or is missing is left out.

    A row's split is that of its column, or else of its table's name, of its table's folder, of the picture's folder.
    None if there are no rows. If not a single file is there, InputError, or None where none must be (must=False).
    """
    pictures, known, missing, left_out = {}, {}, {}, []  # known: what a row says -> path, split; missing: name -> its row
    for row in rows:
        if not row.file or not row.texts:
            left_out.append(("row without file or text", f"{row.table}, {row.place}"))
            continue
        key = row.table, row.file, row.split and split_of_name(str(row.split))
        if key not in known:
            split = key[2] or tree.split_of_file(row.table)
            path = tree.resolve(row.file, row.table.rpartition("/")[0], split)
            known[key] = path, split or tree.split(path or "")
        path, split = known[key]
        if path is None:
            missing.setdefault(row.file, row)
            continue
        texts = row.texts
        if tree.class_names and all(text.isdecimal() for text in texts):
            texts = class_captions([int(text) for text in texts], tree.class_names, tree.root / row.table)
        if path not in pictures:
            pictures[path] = Picture(path, File(tree.root / path), [], split)
        picture = pictures[path]
        picture.captions += [text for text in texts if text not in picture.captions]
        if split == "train" or not picture.split:  # named by the tables of both, it is trained on and so not held out
            picture.split = split
    if pictures:
        return Found(layout, list(pictures.values()), used | set(pictures), left_out + [("missing", name) for name in missing])
    if missing and must:
        name, row = next(iter(missing.items()))
        path = tree.root / row.table
        raise InputError(f"{path}, {row.place}: {name!r} is neither in {path.parent} nor anywhere below {tree.root}, nor is "
                         f"any of the {len(missing):,} files named; correct the names, or choose another layout by --layout")
    if left_out and must:
        raise InputError(f"{tree.root / left_out[0][1]}: lacks file_name or text, as does every row; give them both")
    return None
