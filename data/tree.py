"""List a folder once for every layout: its files, which of them are pictures, which folders are splits.

    list_folder(root) --> Tree --> LAYOUTS[name](tree) --> Found | None
                          .files .images .split(name) .folders(name) .resolve(name in a table)
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .collection import Picture
from .errors import InputError
from .pictures import SUFFIXES

SPLITS = dict.fromkeys(("train", "training", "trainval", "restval"), "train") | dict.fromkeys(
    ("val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation", "t10k"), "held-out")


@dataclass
class Found:
    """What a layout found in a tree."""

    layout: str  # what was recognised, for people: "captions.txt (image, caption)"
    pictures: list[Picture]
    used: set[str]  # the files that it read, pictures and tables: all others count as left out
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (kind, name) of what is no file: rows, missing pictures


@dataclass
class Tree:
    """The files in and below a folder, and what their names tell."""

    root: Path
    files: list[str]  # sorted, relative to root, "/" between the parts
    broken: list[str]  # links that lead nowhere
    class_names: Sequence[str] = ()  # what numbers of classes stand for, if the user said so

    @cached_property
    def there(self) -> set[str]:
        return set(self.files)

    @cached_property
    def images(self) -> list[str]:
        return [name for name in self.files if os.path.splitext(name)[1].lower() in SUFFIXES]

    @cached_property
    def split_folders(self) -> dict[str, str]:
        """Map folders to "train" or "held-out". A folder called train is a class where it stands among bus and car."""
        children = defaultdict(set)
        for folder in {name.rpartition("/")[0] for name in self.files}:
            while folder:
                parent, _, child = folder.rpartition("/")
                children[parent].add(child)
                folder = parent
        splits = {}
        for parent, names in children.items():
            kinds = {name: split_of_name(name) for name in names}
            if None not in kinds.values() or {"train", "held-out"} <= set(kinds.values()):
                splits |= {f"{parent}/{name}".lstrip("/"): kind for name, kind in kinds.items() if kind}
        return splits

    @cached_property
    def split_lists(self) -> dict[str, dict[str, str]]:
        """Find lists of pictures, one a line, whose names tell a split: list -> (picture, as the list writes it -> split).

        So Flickr8k keeps its split, Flickr_8k.trainImages.txt, devImages, testImages, and Food-101 its meta/train.txt.
        """
        lists = {}
        for name in self.ending(".txt", ".lst"):
            if split := split_of_name(os.path.basename(name)):
                with open(self.root / name, encoding="utf-8-sig", errors="surrogateescape") as lines:
                    paths = [line.strip().lower().replace("\\", "/") for line in lines if line.strip()]
                if paths and paths[0].rpartition("/")[2] in self._named:
                    lists[name] = dict.fromkeys(paths, split)
        return lists

    @cached_property
    def _listed(self) -> dict[str, list[tuple[list[str], str]]]:
        """Map base names without suffix to what the lists say of them: folders, split."""
        listed = defaultdict(list)
        for path, split in (item for paths in self.split_lists.values() for item in paths.items()):
            *folders, base = path.split("/")
            listed[_bare(base)].append((folders, split))
        return listed

    def split(self, name: str) -> str | None:
        """Tell the split of a file by a list that names it, or else by the folders it lies in."""
        *folders, base = name.lower().split("/")
        for listed, split in self._listed.get(_bare(base), ()):
            if _shared_end(listed, folders) == min(len(listed), len(folders)):  # one path is the end of the other
                return split
        return next((self.split_folders[folder] for folder in _parents(name) if folder in self.split_folders), None)

    def split_of_file(self, name: str) -> str | None:
        """Tell the split of a table or an archive by its own name, or else by its folders."""
        return split_of_name(os.path.basename(name)) or self.split(name)

    def folders(self, name: str) -> tuple[str, ...]:
        """Return the folders that a file lies in, from the root down, without those that are splits."""
        return tuple(folder.rpartition("/")[2] for folder in _parents(name) if folder not in self.split_folders)

    def ending(self, *suffixes: str) -> list[str]:
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def json(self, name: str) -> Any:
        """Parse a JSON file, once for all layouts that ask."""
        if name not in self._parsed:
            try:
                self._parsed[name] = json.loads((self.root / name).read_text("utf-8-sig", errors="surrogateescape"))
            except (OSError, ValueError, RecursionError) as error:
                raise unreadable(self.root / name, error) from error
        return self._parsed[name]

    @cached_property
    def _parsed(self) -> dict[str, Any]:
        return {}

    # ---- Files that a table names ----

    @cached_property
    def _root(self) -> str:
        return os.path.abspath(self.root)

    @cached_property
    def _named(self) -> dict[str, list[str]]:
        """Map base names, with and without suffix, to the pictures that bear them."""
        named = defaultdict(list)
        for path in self.images:
            base = path.rpartition("/")[2].lower()
            named[base].append(path)
            named[os.path.splitext(base)[0]].append(path)
        return named

    def resolve(self, name: str, beside: str, split: str | None = None) -> str | None:
        r"""Find the file that a table means: "0.png", "./img/0.png", "img\0.png", an absolute path, or "0".

        name: as the table writes it. beside: the table's folder, "" for the root. split: the table's, if it has one.
        It is sought beside the table, then from the root, then by its base name anywhere below.
        Returns its path as `files` writes it, None if it is missing; InputError if several files may be meant.
        """
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            for folder in dict.fromkeys((beside, "")):
                path = os.path.normpath(os.path.join(self._root, folder, spelling))
                path = path[len(self._root) + 1 :] if path.startswith(self._root + os.sep) else os.path.relpath(path, self._root)
                path = path.replace(os.sep, "/")
                if path in self.there or os.path.isfile(self.root / path):
                    return path
        parts = [part for part in name.replace("\\", "/").lower().split("/") if part]
        candidates = self._named.get(parts[-1], []) if parts else []
        for rank in (lambda path: _shared_end(path.lower().split("/")[:-1], parts[:-1]),
                     lambda path: self.split(path) == split,
                     lambda path: path.startswith(f"{beside}/")):
            if len(candidates) > 1:
                best = max(map(rank, candidates))
                candidates = [path for path in candidates if rank(path) == best]
        if len(candidates) > 1:
            raise InputError(f"{self.root}: {name!r} may be {candidates[0]} or {candidates[1]}; write the folder before the "
                             "name in the table")
        return candidates[0] if candidates else None


def split_of_name(name: str) -> str | None:
    """Read a split off a name: "captions_val2014.json" is "held-out", as is "testImages"; None if it tells none, or both."""
    words = (word.removesuffix("images") for word in re.findall("t10k|[a-z]+", name.lower()))
    kinds = {SPLITS[word] for word in words if word in SPLITS}
    return kinds.pop() if len(kinds) == 1 else None


def _parents(name: str) -> Iterator[str]:
    """Yield the folders that a file lies in as paths, from the root down: "a/b/c.png" -> "a", "a/b"."""
    return (name[: slash.start()] for slash in re.finditer("/", name))


def _bare(base: str) -> str:
    """Return a base name without the suffix of a picture."""
    stem, suffix = os.path.splitext(base)
    return stem if suffix in SUFFIXES else base


def _shared_end(a: list[str], b: list[str]) -> int:
    """Count the equal parts at the end of two paths."""
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count


def unreadable(path: Path, error: Exception, remedy: str = "repair or remove it") -> InputError:
    """Turn an error of the system or of a parser into one line that names the file."""
    reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
    return InputError(f"{path} cannot be read ({reason}); {remedy}")


def class_captions(labels: Sequence[int], names: Sequence[str], where: Path | str) -> list[str]:
    """Write numbers of classes, from 0 on, as their names; InputError if there are too few names."""
    low, high = (int(min(labels)), int(max(labels))) if len(labels) else (0, -1)
    if low < 0:
        raise InputError(f"{where} has the label {low}; classes are numbered from 0 on")
    if high >= len(names):
        had = f", not {len(names)}" if names else ""
        raise InputError(f"{where} numbers its classes from 0 to {high}; give {high + 1} names{had}, in this order, "
                         "by --class-names")
    return [names[int(label)] for label in labels]


def list_folder(root: str | Path, class_names: Sequence[str] = ()) -> Tree:
    """List the files in and below a folder; InputError if that cannot be done.

    Links are followed. Each folder and each file counts once, under its own name rather than a link's, so that loops
    end. Hidden names and __MACOSX, the rubbish in archives packed by a Mac, are passed over.
    """
    if not os.path.isdir(root):
        raise InputError(f"{root} is not a folder; give one of captioned images, or the word shapes")
    base, pending, links, seen, broken = os.path.join(root, ""), [str(root)], [], set(), []
    found, linked = {}, {}  # real path -> path
    try:
        while pending or links:
            folder = pending.pop() if pending else links.pop(0)  # links last: what they lead to may have been seen by then
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                link = entry.is_symlink()  # whose is_dir() would raise for a link to itself
                if os.path.isdir(entry.path) if link else entry.is_dir():
                    (links if link else pending).append(entry.path)
                elif os.path.isfile(entry.path) if link else entry.is_file():
                    path = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
                    (linked if link else found).setdefault(path, entry.path)
                elif link:
                    broken.append(entry.path)
    except OSError as error:
        raise InputError(f"{error.filename or root} cannot be listed ({error.strerror or error}); allow reading it, or move it "
                         "elsewhere") from error
    relative = lambda paths: sorted(path[len(base) :].replace(os.sep, "/") for path in paths)  # noqa: E731
    return Tree(Path(root), relative((linked | found).values()), relative(broken), tuple(class_names))
