"""List a folder once for every layout: its files, which are pictures, which folders are splits.

    list_folder(root) --> Tree --> LAYOUTS[name](tree)
                          .files .images .split(name) .folders(name) .resolve(name in a table)

All names are relative to the root, with "/" between the parts.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import InputError, explained
from .pictures import is_picture
from .split import split_of_name
from .texts import open_text


@dataclass
class Tree:
    """The files in and below a folder, and what their names tell."""

    root: Path
    files: list[str]  # sorted
    broken: list[str]  # links that lead nowhere

    @cached_property
    def file_set(self) -> set[str]:
        return set(self.files)

    @cached_property
    def images(self) -> list[str]:
        return [name for name in self.files if is_picture(name)]

    def ending(self, *suffixes: str) -> list[str]:
        """List the files with one of the suffixes, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def folders(self, name: str) -> tuple[str, ...]:
        """Return the folders that a file lies in, from the root down, without splits."""
        parents = (folder for folder in _parents(name) if folder not in self.split_folders)
        return tuple(folder.rpartition("/")[2] for folder in parents)

    # ---- Splits ----

    def split(self, name: str) -> str | None:
        """Tell the split of a file by a list that names it, or else by the folders it lies in."""
        *folders, stem = _without_suffix(name.lower()).split("/")
        for listed, split in self._listed.get(stem, ()):
            if _shared_end(listed, folders) == min(len(listed), len(folders)):
                return split  # one of the two paths is the end of the other
        folders = (folder for folder in _parents(name) if folder in self.split_folders)
        return next((self.split_folders[folder] for folder in folders), None)

    @cached_property
    def split_folders(self) -> dict[str, str]:
        """Map folders to "train" or "held-out".

        A folder called train is a class where it stands among bus and car: its siblings must be
        splits too, or "train" and "held-out" must both be among them.
        """
        children = defaultdict(set)
        for folder in {parent for name in self.files for parent in _parents(name)}:
            parent, _, child = folder.rpartition("/")
            children[parent].add(child)
        splits = {}
        for parent, names in children.items():
            kinds = {name: split_of_name(name) for name in names}
            if None not in kinds.values() or {"train", "held-out"} <= set(kinds.values()):
                splits |= {f"{parent}/{name}".lstrip("/"): kind for name, kind in kinds.items() if kind}
        return splits

    @cached_property
    def split_lists(self) -> dict[str, list[str]]:
        """Find texts that list pictures, one a line, and whose names tell a split -> their lines.

        They are Flickr8k's Flickr_8k.trainImages.txt, Food-101's meta/train.txt and the like.
        """
        lists = {}
        for name in self.ending(".txt", ".lst"):
            if split_of_name(os.path.basename(name)):
                path = self.root / name
                with explained(f"{path} cannot be read"), open_text(path) as lines:
                    paths = [line.strip().lower().replace("\\", "/") for line in lines if line.strip()]
                if paths and paths[0].rpartition("/")[2] in self._by_name:
                    lists[name] = paths
        return lists

    @cached_property
    def _listed(self) -> dict[str, list[tuple[list[str], str]]]:
        """Map names without suffix to what the lists say of them: (their folders, the split)."""
        listed = defaultdict(list)
        for name, paths in self.split_lists.items():
            for path in dict.fromkeys(paths):
                *folders, stem = _without_suffix(path).split("/")
                listed[stem].append((folders, split_of_name(os.path.basename(name))))
        return listed

    # ---- Files that a table names ----

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Map names without folders, with and without suffix, to the pictures that bear them."""
        named = defaultdict(list)
        for path in self.images:
            base = path.rpartition("/")[2].lower()
            for name in (base, _without_suffix(base)):
                named[name].append(path)
        return named

    def resolve(self, name: str, folder: str, split: str | None = None) -> str | None:
        r"""Find the file that a table means by "0.png", "./img/0.png", "img\0.png", "0" or an absolute path.

        folder: the table's, "" for the root. split: the table's, if it has one. The file is sought
        beside the table, then from the root, then by its name without folders.
        Returns None if it is missing; raises InputError if several files may be meant.
        """
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            for start in dict.fromkeys((folder, "")):
                path = os.path.relpath(os.path.join(self.root, start, spelling), self.root)
                path = path.replace(os.sep, "/")
                if path in self.file_set or os.path.isfile(self.root / path):
                    return path
        *parents, base = name.replace("\\", "/").lower().strip("/").split("/")
        candidates = self._by_name.get(base, [])
        for rank in (lambda path: _shared_end(path.lower().split("/")[:-1], parents),
                     lambda path: self.split(path) == split,
                     lambda path: path.startswith(f"{folder}/")):
            if len(candidates) > 1:
                best = max(map(rank, candidates))
                candidates = [path for path in candidates if rank(path) == best]
        if len(candidates) > 1:
            raise InputError(f"{self.root}: {name!r} may be {candidates[0]} or {candidates[1]}; write "
                             "the folder before the name in the table")
        return candidates[0] if candidates else None


def _parents(name: str) -> Iterator[str]:
    """Yield the folders that a file lies in, from the root down: "a/b/c.png" -> "a", "a/b"."""
    return (name[: slash.start()] for slash in re.finditer("/", name))


def _without_suffix(name: str) -> str:
    return os.path.splitext(name)[0] if is_picture(name) else name


def _shared_end(a: list[str], b: list[str]) -> int:
    """Count the equal parts at the end of two paths."""
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count


def list_folder(root: str | Path) -> Tree:
    """List the files in and below a folder; raise InputError if that cannot be done.

    Links are followed. Each folder and file counts once, under its own name rather than a link's, so
    that loops end. Hidden names and __MACOSX, which a Mac packs into archives, are passed over.
    """
    if not os.path.isdir(root):
        raise InputError(f"{root} is not a folder; give one of captioned images, or the word shapes")
    folders, links, seen = [str(root)], [], set()
    files, linked, broken = {}, {}, []  # files, linked: real path -> path
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # links last: their own names go first
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        with explained(f"{folder} cannot be listed", "allow reading it, or move it elsewhere", OSError):
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            path, link = entry.path, entry.is_symlink()
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if os.path.isdir(path) if link else entry.is_dir():  # entry's own raises on a link to itself
                (links if link else folders).append(path)
            elif not link and entry.is_file():
                files.setdefault(os.path.join(real, entry.name), path)
            elif os.path.isfile(path):
                linked.setdefault(os.path.realpath(path), path)
            elif link:
                broken.append(path)
    base = len(os.path.join(root, ""))
    found, broken = (sorted(path[base:].replace(os.sep, "/") for path in paths)
                     for paths in ((linked | files).values(), broken))
    return Tree(Path(root), found, broken)
