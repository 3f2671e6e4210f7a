"""Decode all pictures of a data set once, in order, into one block, and keep it beside the run for the next start.

    pictures, image_size --> key --> in use in this process, or CACHE/pictures-32.npy of that key --> Block
                                     neither: threads decode, CHUNK pictures a task, into a new one
"""

import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from mmap import mmap
from pathlib import Path
from threading import Event
from typing import BinaryIO
from weakref import WeakValueDictionary

import numpy as np
import PIL

from .collection import Picture
from .errors import InputError
from .pictures import read_image, square

VERSION = 1  # to be raised with each change of what decoding gives: blocks from before are then made anew
WORKERS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
CHUNK = 8  # pictures a task: small ones take less time than starting a task
DETAIL = 3  # a JPEG is read at a reduced scale if that leaves this many pixels a side for each that remains
IN_MEMORY = 2**30  # bytes; a larger block that has no folder of its own lies in a temporary file

Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Block:
    """All pictures of a data set, decoded."""

    pixels: np.ndarray  # uint8 (n h w 3)
    unreadable: dict[int, str]  # row -> the line that says why; such a row is black


_in_use: WeakValueDictionary[str, Block] = WeakValueDictionary()  # by key: the splits of a data set share their block


def decode(pictures: Sequence[Picture], image_size: int, folder: Path, cache: Path | None = None,
           progress: Progress | None = None) -> Block:
    """Decode pictures, or find them decoded -> Block, its rows in their order.

    folder: named in messages, before each picture's name. cache: the folder that keeps the block for the next start, or None.
    progress(done, total) is called after each picture that is decoded. Raises InputError if the block cannot be written.
    """
    key = fingerprint(pictures, image_size)
    shape = (len(pictures), image_size, image_size, 3)
    path = None if cache is None else Path(cache) / f"pictures-{image_size}.npy"
    block = _in_use.get(key) or path and _read(path, key, shape)
    if not block:
        job = shape, pictures, image_size, folder, progress
        if path:
            with _writing(path):
                block = _decode_and_keep(path, key, *job)
        elif np.prod(shape) <= IN_MEMORY:
            block = _decode_into_memory(*job)
        else:
            with _writing(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
                block = _decode_into_file(file, *job)
    _in_use[key] = block
    return block


def fingerprint(pictures: Sequence[Picture], image_size: int) -> str:
    """Hash what decoding depends on: names, files, their sizes and times, the size of the result, and the decoders."""
    digest, last, state = sha256(f"{VERSION} {PIL.__version__} {image_size}".encode()), None, None
    for picture in pictures:
        if (path := picture.source.path) is not last:  # many pictures may lie in one file
            try:
                last, found = path, os.stat(path)
                state = found.st_size, found.st_mtime_ns, found.st_ctime_ns  # the last tells of copies that keep the time
            except OSError:
                state = None
        text = f"{picture.name}\0{path}\0{getattr(picture.source, 'start', '')}\0{state}\0"
        digest.update(text.encode(errors="surrogatepass"))
    return digest.hexdigest()


# ---- Decoding ----


def _decode_all(pictures: Sequence[Picture], image_size: int, folder: Path, progress: Progress | None,
                write: Callable[[bytes], object]) -> dict[int, str]:
    """Decode pictures in threads and write them in order -> row -> why it cannot be read.

    Threads do, as Pillow lets others run while it decodes and scales; and only a few chunks lie in memory at any time.
    """
    def work(chunk: Sequence[Picture]) -> tuple[np.ndarray, list[str | None]]:
        pixels, reasons = np.zeros((len(chunk), image_size, image_size, 3), np.uint8), [None] * len(chunk)
        for i, picture in enumerate(chunk):
            if stop.is_set():
                break
            try:
                pixels[i] = square(read_image(picture.source, DETAIL * image_size, str(folder / picture.name)), image_size)
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


def _decode_into_memory(shape: tuple[int, ...], *job) -> Block:
    room = mmap(-1, int(np.prod(shape)))
    unreadable = _decode_all(*job, room.write)
    return Block(np.ndarray(shape, np.uint8, room), unreadable)


def _decode_into_file(file: BinaryIO, shape: tuple[int, ...], *job) -> Block:
    """Decode into an open file, then map it. A process that fills the disk through a map would be killed without a word."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    start = file.tell()
    unreadable = _decode_all(*job, file.write)
    file.flush()
    return Block(np.memmap(file, np.uint8, "r", start, shape), unreadable)


# ---- The block beside the run ----


def _decode_and_keep(path: Path, key: str, shape: tuple[int, ...], *job) -> Block:
    """Decode into a file beside `path` and rename it when it is whole: a crash leaves the old block, the new one or none."""
    about, temporary = path.with_suffix(".json"), path.with_name(f"{path.name}.{os.getpid()}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "w+b") as file:
            unreadable = _decode_into_file(file, shape, *job).unreadable
            os.fsync(file.fileno())
        about.unlink(missing_ok=True)  # first: it must never speak of another block
        os.replace(temporary, path)
        temporary.write_text(json.dumps({"key": key, "unreadable": list(unreadable.items())}), encoding="utf-8")
        os.replace(temporary, about)
        return Block(np.load(path, mmap_mode="r"), unreadable)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _writing(where: str | Path) -> Iterator[None]:
    """Turn an error of the disk into one line."""
    try:
        yield
    except BrokenPipeError:  # whoever reads what progress prints has gone
        raise
    except OSError as error:
        raise InputError(f"{where} cannot be written ({error.strerror or error}); make room there for the decoded pictures, "
                         "or allow writing") from error


def _read(path: Path, key: str, shape: tuple[int, ...]) -> Block | None:
    """Map the block that was kept; None if there is none, or one of other pictures, or anything is wrong with it."""
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        pixels = np.load(path, mmap_mode="r") if about["key"] == key else None
        if pixels.shape == shape and pixels.dtype == np.uint8:
            return Block(pixels, {int(row): str(reason) for row, reason in about["unreadable"]})
    except Exception:  # a foreign or broken file can fail in any way, and all are mended by decoding anew
        pass
    return None
