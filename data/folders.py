"""Find the captioned images of a folder: which files are images, what their captions are, which are held out."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError
from .split import fraction

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif")


def image_files(folder: str | Path) -> list[str]:
    """List the images in and below a folder as sorted paths relative to it; InputError if there are none."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder; give one of captioned images, or the word shapes")
    try:
        paths = [path.relative_to(folder) for path in sorted(Path(folder).rglob("*.*")) if path.is_file()]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror or error}); allow reading it") from error
    paths = [path for path in paths if path.suffix.lower() in EXTENSIONS]
    if names := [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]:
        return names
    raise InputError(f"{folder} holds no images; put PNG, JPEG, WebP or GIF files there")


def read_captions(folder: str | Path) -> dict[str, list[str]]:
    """Read a folder's captions, by whichever of three conventions it keeps -> {relative file name: captions}.

    metadata.csv or metadata.jsonl    columns file_name and text; a file may have several rows
    dog.png + dog.txt                 one caption a line
    dog/1.png                         the caption is the sub-folder's name

    An image without a caption has an empty list. InputError if none has one.
    """
    folder = Path(folder)
    names = image_files(folder)
    captions = {name: [] for name in names}
    beside = {name: (folder / name).with_suffix(".txt") for name in names}
    tables = [folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()]
    if tables:
        for name, text in _read_table(tables[0]):
            captions.setdefault(_relative(name, folder), []).append(text)
    elif any(path.is_file() for path in beside.values()):
        captions = {name: _read_lines(path) if path.is_file() else [] for name, path in beside.items()}
    else:
        captions = {name: [name.split("/")[0]] if "/" in name else [] for name in names}
    if not any(captions.values()):
        raise InputError(f"{folder} holds images without captions; write NAME.txt beside each NAME.png, "
                         "or a metadata.csv (file_name,text), or sort them into one sub-folder per class")
    return captions


def _relative(name: str, folder: Path) -> str:
    """Write a table's file name as image_files does ("./dog.png" is dog.png), or one file would count as two."""
    path, base = Path(os.path.abspath(folder / name)), Path(os.path.abspath(folder))
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else name


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); repair or remove it") from error
    return [line.strip() for line in lines if line.strip()]


def _read_table(table: Path) -> list[tuple[str, str]]:
    try:
        with open(table, encoding="utf-8-sig", errors="replace", newline="") as lines:
            read_json = map(json.loads, filter(str.strip, lines))
            rows = csv.DictReader(lines) if table.suffix == ".csv" else read_json
            return [(row["file_name"].strip(), row["text"].strip()) for row in rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{table} lacks file_name or text in some row; every row needs both") from error
    except (csv.Error, json.JSONDecodeError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{table} cannot be read ({reason}); repair or remove it") from error


def train_and_held_out(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hold out a twentieth of the names by their hash; below 20 names, each is in both.

    A hash below 1/20 keeps a name held out as the folder grows. Both lists are in the order of the hashes: shuffled.
    """
    names = sorted(names, key=fraction)
    if len(names) < 20:
        return names, names
    count = max(1, sum(fraction(name) < 1 / 20 for name in names))
    return names[count:], names[:count]
