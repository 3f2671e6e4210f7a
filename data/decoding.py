"""Decode all pictures of a data set once, into a file that is mapped and may be kept.

    pictures, image_size --> key --> a block in use, or CACHE/pictures-32.npy, of that key --> Block
                                     neither: threads decode, CHUNK pictures a task, into a file
"""

import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import Event
from weakref import WeakValueDictionary

import numpy as np
import PIL

from .collection import Picture
from .errors import InputError, explained
from .pictures import read_image, square

VERSION = 1  # raise it with each change of what decoding gives: older blocks are then made anew
WORKERS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
              else os.cpu_count() or 1)
CHUNK = 8  # pictures a task: small ones take less time than starting a task
DETAIL = 3  # a JPEG may be decoded at a reduced scale that leaves so many pixels for each needed

Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Block:
    """All pictures of a data set, decoded."""

    pixels: np.ndarray  # uint8 (n h w 3), mapped from a file
    unreadable: dict[int, str]  # row -> the line that says why; such a row is black


_in_use: WeakValueDictionary[str, Block] = WeakValueDictionary()  # by key: splits share a block


def decode(pictures: Sequence[Picture], image_size: int, folder: Path, cache: Path | None = None,
           progress: Progress | None = None) -> Block:
    """Decode pictures, or find them decoded -> Block, its rows in their order.

    folder: named in messages, before each picture's name. cache: the folder that keeps the block; by
    default it lasts as long as it is in use. progress(done, total) is called after each picture that
    is decoded. Raises InputError if the block cannot be written.
    """
    key, shape = fingerprint(pictures, image_size), (len(pictures), image_size, image_size, 3)
    path = Path(cache or tempfile.gettempdir()) / f"pictures-{image_size}.npy"
    block = _in_use.get(key) or cache and _read(path, key)
    if not block:
        remedy = "make room there for the decoded pictures, or allow writing"
        with explained(f"{path} cannot be written", remedy, OSError), (
                # Windows deletes no file that is mapped
                nullcontext(cache) if cache
                else tempfile.TemporaryDirectory(ignore_cleanup_errors=True)) as place:
            block = _write(Path(place) / path.name, key, shape, pictures, folder, progress)
    _in_use[key] = block
    return block


def fingerprint(pictures: Sequence[Picture], image_size: int) -> str:
    """Hash what decoding depends on: names, files with their sizes and times, and the decoders."""
    digest = sha256(f"{VERSION} {PIL.__version__} {image_size}".encode())
    path, state = None, None
    for picture in pictures:
        if picture.path is not path:  # many pictures may lie in one file
            path = picture.path
            try:
                found = os.stat(path)  # its ctime tells of copies that keep the time
                state = found.st_size, found.st_mtime_ns, found.st_ctime_ns
            except OSError:
                state = None
        digest.update(f"{picture.name}\0{path}\0{state}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _decode(pictures: Sequence[Picture], image_size: int, folder: Path, progress: Progress | None,
            write: Callable[[bytes], object]) -> dict[int, str]:
    """Decode pictures in threads and write them in order -> row -> why it cannot be read.

    Threads do, as Pillow lets others run while it decodes and scales. Only a few chunks lie in memory
    at any time.
    """
    def work(chunk: Sequence[Picture]) -> tuple[np.ndarray, list[str | None]]:
        pixels = np.zeros((len(chunk), image_size, image_size, 3), np.uint8)
        reasons = [None] * len(chunk)
        for i, picture in enumerate(chunk):
            if stop.is_set():
                break
            try:
                image = read_image(picture.open, DETAIL * image_size, str(folder / picture.name))
                pixels[i] = square(image, image_size)
            except InputError as error:
                reasons[i] = str(error)
        return pixels, reasons

    stop, pool, done, unreadable = Event(), ThreadPoolExecutor(WORKERS), 0, {}
    tasks = (pool.submit(work, pictures[i : i + CHUNK]) for i in range(0, len(pictures), CHUNK))
    try:
        waiting = deque(islice(tasks, 2 * WORKERS))
        while waiting:
            pixels, reasons = waiting.popleft().result()
            waiting.extend(islice(tasks, 1))
            write(pixels.tobytes())
            for reason in reasons:
                if reason:
                    unreadable[done] = reason
                done += 1
                if progress:
                    progress(done, len(pictures))
    finally:  # Ctrl-C, say: wait for no more than the picture that each thread has begun
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return unreadable


# ---- The file ----


def _write(path: Path, key: str, shape: tuple[int, ...], pictures: Sequence[Picture], folder: Path,
           progress: Progress | None) -> Block:
    """Decode into a file beside `path`, renamed when whole: a crash leaves the old block or none.

    Behind the pixels stand the key and the unreadable rows. The file is mapped last: a process that
    fills the disk through a map would be killed without a word.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with open(temporary, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            unreadable = _decode(pictures, shape[1], folder, progress, file.write)
            about = {"key": key, "unreadable": list(unreadable.items())}
            file.write(json.dumps(about).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return Block(np.load(path, mmap_mode="r"), unreadable)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, key: str) -> Block | None:
    """Map the block that was kept; None if it is missing, broken or one of other pictures."""
    try:
        pixels = np.load(path, mmap_mode="r")
        with open(path, "rb") as file:
            file.seek(pixels.offset + pixels.nbytes)
            about = json.load(file)
        return Block(pixels, dict(about["unreadable"])) if about["key"] == key else None
    except Exception:  # a foreign file can fail in any way; all are mended by decoding anew
        return None
