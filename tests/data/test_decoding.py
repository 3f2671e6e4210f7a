"""Decoding a data set once, into a block that is kept: by many threads, whole or not at all."""

import os
import random
import signal
import tempfile
import time
import tracemalloc
from functools import partial
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
from PIL import Image

import data
from data import decoding
from data.collection import Picture
from small_folders import bomb

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _forget():
    decoding._in_use.clear()  # or a block that the last test holds would be found


@pytest.fixture
def reads(monkeypatch):
    """List the names of the pictures that are decoded from now on."""
    names, read_image = [], decoding.read_image
    monkeypatch.setattr(decoding, "read_image", lambda source, size, name:
                        names.append(os.path.basename(name)) or read_image(source, size, name))
    return names


def folder_of(path, count=30):
    path.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (9, 8), (i, 2 * i, 0)).save(path / f"{i}.png")
    (path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.png,number {i}\n" for i in range(count)))
    return path


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "pictures")


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def pixels(dataset):
    return data.to_pictures(dataset.batch(range(len(dataset))))


def fresh(*words, **options):
    """Load as the next process would."""
    decoding._in_use.clear()
    return data.load(*words, **options)


def shown(dataset):
    """Tell from its pixels which picture each of a data set's is, after making sure that its caption says so too."""
    numbers = pixels(dataset)[:, 0, 0, 0].tolist()
    assert dataset.captions == [[f"number {i}"] for i in numbers]
    return sorted(numbers)


class Slow:
    """A picture that takes a while to decode."""

    def __init__(self, level, seconds):
        self.level, self.seconds = level, seconds

    def __call__(self):
        time.sleep(self.seconds)
        if self.level % 7 == 3:
            raise ValueError("no picture")
        return Image.new("L", (3, 3), self.level)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_pictures_are_decoded_in_their_order_whatever_the_number_of_threads(monkeypatch, workers):
    monkeypatch.setattr(decoding, "WORKERS", workers)
    monkeypatch.setattr(decoding, "CHUNK", 2)
    rng, calls = random.Random(workers), []
    pictures = [Picture(str(i), Path("x"), Slow(i, rng.random() / 200)) for i in range(45)]
    block = decoding.decode(pictures, 2, Path("folder"), progress=lambda *call: calls.append(call))
    broken = list(range(3, 45, 7))
    assert list(block.unreadable) == broken and block.unreadable[3].startswith("folder/3 cannot be read as an image")
    assert block.pixels.shape == (45, 2, 2, 3)
    assert block.pixels[:, 1, 1, 2].tolist() == [0 if i in broken else i for i in range(45)]
    assert calls == [(i, 45) for i in range(1, 46)]


def test_threads_work_at_the_same_time(monkeypatch):
    monkeypatch.setattr(decoding, "WORKERS", 8)
    monkeypatch.setattr(decoding, "CHUNK", 1)
    start = time.perf_counter()
    decoding.decode([Picture(str(i), Path("x"), Slow(1, 0.05)) for i in range(16)], 2, Path("."))
    assert time.perf_counter() - start < 0.05 * 16 / 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="sends a signal as Unix does")
def test_ctrl_c_ends_decoding_at_once_and_leaves_nothing_behind(monkeypatch, cache):
    monkeypatch.setattr(decoding, "WORKERS", 2)
    pictures, begun, opening = [Picture(str(i), cache / "x", Slow(1, 0.1)) for i in range(200)], [], Slow.__call__
    monkeypatch.setattr(Slow, "__call__", lambda source: begun.append(source) or opening(source))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts a job with & has it ignored
    Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        decoding.decode(pictures, 2, Path("."), cache)
    signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - start < 1.5 and list(cache.iterdir()) == []
    count = len(begun)
    time.sleep(0.4)
    assert len(begun) == count  # nor do the threads go on


def test_decoding_takes_no_memory_but_the_pixels_for_more_pictures(cache):
    def peak(count):
        pictures = [Picture(str(i), path, partial(Image.fromarray, levels[i])) for i in range(count)]
        tracemalloc.start()
        decoding.decode(pictures, 16, Path("."), cache)
        allocated = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return allocated

    levels, path = np.zeros((4000, 2, 2), np.uint8), cache / "x"
    peak(100)  # whatever a first call sets up
    # bytes, for pixels of 2,304,000 in a file; a task for each would take 3,000,000
    assert peak(4000) - peak(1000) < 600_000


def test_both_splits_share_one_block_and_each_picture_is_decoded_once(folder, reads):
    train, held_out = data.load(folder, 4), data.load(folder, 4, "held-out")
    assert sorted(reads) == sorted(f"{i}.png" for i in range(30))
    assert sorted(shown(train) + shown(held_out)) == list(range(30))
    for path in folder.glob("*.png"):
        path.unlink()
    assert np.array_equal(pixels(train), pixels(train))


def test_a_change_is_seen_even_while_the_old_block_is_in_use(folder):
    before = data.load(folder, 4)
    Image.new("RGB", (9, 8), (99, 0, 0)).save(folder / "7.png")
    assert 99 in pixels(data.load(folder, 4)) and 99 not in pixels(before)


def test_the_second_start_decodes_nothing_and_is_the_same(folder, cache, reads):
    (folder / "3.png").write_text("not an image")
    first = {split: data.load(folder, 4, split, cache=cache) for split in ("train", "held-out")}
    assert len(reads) == 30 and [path.name for path in cache.iterdir()] == ["pictures-4.npy"]
    assert np.load(cache / "pictures-4.npy").shape == (30, 4, 4, 3)
    calls = []
    for split, dataset in first.items():
        again = fresh(folder, 4, split, cache=cache, progress=calls.append)
        assert np.array_equal(pixels(again), pixels(dataset)) and shown(again) == shown(dataset)
        assert again.skipped == dataset.skipped and again.captions == dataset.captions
    assert len(reads) == 30 and not calls and "3.png" in first["train"].skipped[0]


def rewrite(folder):
    state, content = os.stat(folder / "5.png"), (folder / "6.png").read_bytes()
    (folder / "5.png").write_bytes(content)
    assert len(content) == state.st_size
    os.utime(folder / "5.png", ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("change", [
    lambda folder: Image.new("RGB", (9, 8), (77, 0, 0)).save(folder / "5.png"),
    lambda folder: (folder / "5.png").unlink(),
    lambda folder: (folder / "5.png").write_text("not an image"),
    lambda folder: os.utime(folder / "5.png", (1, 1)),
    lambda folder: folder_of(folder, 31),
    rewrite,  # as long, and of the same time
])
def test_a_folder_that_changed_is_decoded_anew(folder, cache, reads, change):
    data.load(folder, 4, cache=cache)
    reads.clear()
    change(folder)
    found = fresh(folder, 4, cache=cache)
    assert len(reads) >= 29 and np.array_equal(pixels(found), pixels(fresh(folder, 4)))


def test_other_sizes_and_decoders_are_decoded_anew(folder, cache, reads, monkeypatch):
    data.load(folder, 4, cache=cache)
    assert fresh(folder, 5, cache=cache).batch([0]).shape == (1, 3, 5, 5) and len(reads) == 60
    assert fresh(folder, 4, cache=cache).batch([0]).shape == (1, 3, 4, 4) and len(reads) == 60
    monkeypatch.setattr(decoding, "VERSION", 0)
    fresh(folder, 4, cache=cache)
    assert len(reads) == 90


def replace_about(path, content):
    """Put other bytes behind the pixels of a block."""
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b'{"key"')] + content)


def foreign(path, array):
    np.save(path, array, allow_pickle=True)


@pytest.mark.parametrize("damage", [
    lambda cache: (cache / "pictures-4.npy").write_bytes(b""),
    lambda cache: (cache / "pictures-4.npy").write_bytes(b"PK\x03\x04"),
    lambda cache: (cache / "pictures-4.npy").write_bytes((cache / "pictures-4.npy").read_bytes()[:-1]),
    lambda cache: (cache / "pictures-4.npy").unlink(),
    lambda cache: foreign(cache / "pictures-4.npy", np.zeros((29, 4, 4, 3), np.uint8)),
    lambda cache: foreign(cache / "pictures-4.npy", np.zeros((30, 4, 4, 3), np.int8)),
    lambda cache: foreign(cache / "pictures-4.npy", np.array([{}], object)),
    lambda cache: replace_about(cache / "pictures-4.npy", b"\xff{"),
    lambda cache: replace_about(cache / "pictures-4.npy", b"[]"),
    lambda cache: replace_about(cache / "pictures-4.npy", b'{"key": 3}'),
    lambda cache: replace_about(cache / "pictures-4.npy", b""),
])
def test_a_broken_or_foreign_block_is_made_anew(folder, cache, reads, damage):
    before = shown(data.load(folder, 4, cache=cache))
    damage(cache)
    assert shown(fresh(folder, 4, cache=cache)) == before and len(reads) == 60
    assert shown(fresh(folder, 4, cache=cache)) == before and len(reads) == 60


def test_a_block_is_whole_or_the_one_from_before(folder, cache, reads):
    data.load(folder, 4, cache=cache)
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    folder_of(folder, 31)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fresh(folder, 4, cache=cache, progress=interrupt)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def refused(message, *words, **options):
    with pytest.raises(data.InputError, match=message) as error:
        fresh(*words, **options)
    assert "\n" not in str(error.value)


def test_a_folder_for_the_block_is_made_where_it_is_missing(folder, cache):
    data.load(folder, 4, cache=cache / "new" / "run")
    assert (cache / "new" / "run" / "pictures-4.npy").exists()


def test_a_full_or_unwritable_disk_is_named_in_one_line(folder, cache):
    resource = pytest.importorskip("resource")
    refused(r"pictures-4.npy cannot be written \(Not a directory\); make room", folder, 4, cache=folder / "1.png" / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        refused(r"pictures-4.npy cannot be written \(File too large\); make room", folder, 4, cache=cache)
        refused(rf"{tempfile.gettempdir()}.*cannot be written \(File too large\); make room", folder, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(cache.iterdir()) == []


def test_without_a_cache_the_block_leaves_no_file(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before, found = sorted(folder.iterdir()), fresh(folder, 4)
    assert sorted(folder.iterdir()) == before and not list((tmp_path / "temporary").iterdir())
    assert len(shown(found)) == len(found)


def test_a_few_images_are_decoded_alone_and_leave_the_block_be(folder, cache, reads):
    few = data.load(folder, 4, count=3, cache=cache)
    assert len(few) == 3 and len(reads) == 3 and list(cache.iterdir()) == []
    assert [few.name(i) for i in range(3)] == [fresh(folder, 4).name(i) for i in range(3)]
    shown(few)


def test_a_data_set_outlives_threads_bombs_and_broken_files(folder):
    Image.new("RGB", (30_000, 1), (1, 2, 3)).save(folder / "1.png")
    (folder / "2.png").write_bytes(bomb(50_000))
    (folder / "4.png").write_bytes((folder / "5.png").read_bytes()[:-30])
    (folder / "8.png").write_bytes(b"")
    train, held_out = data.load(folder, 64), data.load(folder, 64, "held-out")
    assert sorted(shown(train) + shown(held_out)) == sorted(set(range(30)) - {2, 4, 8})
    skipped = " ".join(train.skipped + held_out.skipped)
    assert all(f"{i}.png cannot be read" in skipped for i in (2, 4, 8)) and "2500000000 pixels" in skipped
