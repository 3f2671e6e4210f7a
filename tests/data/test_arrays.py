"""Arrays of small pictures: MNIST's idx, CIFAR's pickles, npz."""

import gzip
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.layouts import read
from small_folders import captions, levels, refusal, splits


# ---- idx ----

MNIST_TRAIN, MNIST_TEST = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
FASHION_TRAIN = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


def make_idx(folder, part, labels, packed=False, style="-idx{}-ubyte"):
    """Write a pair of files; picture i is of level i."""
    pictures = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    for kind, array in (("images", pictures), ("labels", np.array(labels, np.uint8))):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        path = folder / f"{part}-{kind}{style.format(array.ndim)}{'.gz' if packed else ''}"
        path.write_bytes((gzip.compress if packed else bytes)(header + array.tobytes()))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("style", ["-idx{}-ubyte", ".idx{}-ubyte"])
def test_mnist_is_known_by_its_first_labels_and_split_by_name(tmp_path, packed, style):
    make_idx(tmp_path, "train", MNIST_TRAIN, packed, style)
    make_idx(tmp_path, "t10k", MNIST_TEST, packed, style)
    found = read(tmp_path)
    train = [picture for picture in found.pictures if picture.split == "train"]
    assert [picture.captions for picture in train[:4]] == [["five"], ["zero"], ["four"], ["one"]]
    assert Counter(splits(found).values()) == {"train": 10, "held-out": 10}
    assert [np.asarray(picture.open())[0, 0] for picture in train] == list(range(10))
    assert found.line == "MNIST, classes zero, one, two, three, four, five, six, seven, eight, nine: 20 images, 20 captions"


def test_fashion_mnist_is_known_by_its_first_labels(tmp_path):
    make_idx(tmp_path, "train", FASHION_TRAIN)
    assert [picture.captions[0] for picture in read(tmp_path).pictures[:4]] == ["ankle boot", "t-shirt", "t-shirt", "dress"]


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_true_fashion_mnist_is_read_whole():
    found = read("/usr/share/datasets/fashion-mnist")
    counts = Counter((picture.split, picture.captions[0]) for picture in found.pictures)
    assert len(counts) == 20 and counts["train", "bag"] == 6000 and counts["held-out", "bag"] == 1000
    assert len(found.pictures) == 70_000 and found.left_out == []


def test_other_idx_files_need_names_of_classes(tmp_path):
    make_idx(tmp_path, "train", [0, 2, 1])
    assert refusal(tmp_path, class_names=["o", "ki"]) == (
        "DIR/train-images-idx3-ubyte numbers its classes from 0 to 2; give 3 names, not 2, in this order, by --class-names")
    found = read(tmp_path, class_names=["o", "ki", "su"])
    assert [picture.captions for picture in found.pictures] == [["o"], ["su"], ["ki"]]
    assert found.line == "idx files: 3 images, 3 captions"


def test_a_pair_that_is_there_packed_and_unpacked_counts_once(tmp_path):
    make_idx(tmp_path, "train", MNIST_TRAIN)
    make_idx(tmp_path, "train", MNIST_TRAIN, packed=True)
    assert len(read(tmp_path).pictures) == 10


def test_broken_idx_files_are_refused_by_name(tmp_path):
    make_idx(tmp_path, "train", MNIST_TRAIN)
    labels, images = tmp_path / "train-labels-idx1-ubyte", tmp_path / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    assert refusal(tmp_path) == "DIR/train-images-idx3-ubyte is no idx file of 3 axes, or not whole; get it anew"
    images.write_bytes(whole)
    labels.write_bytes(labels.read_bytes()[:-1].replace(bytes((0, 0, 0, 10)), bytes((0, 0, 0, 9))))
    assert refusal(tmp_path, class_names=MNIST_TRAIN) == (
        "DIR/train-images-idx3-ubyte has 10 pictures but 9 labels; get both files from the same source")
    labels.unlink()
    assert refusal(tmp_path) == "DIR/train-images-idx3-ubyte has no labels beside it; put train-labels-idx1-ubyte there"
    images.unlink()
    make_idx(tmp_path, "train", MNIST_TRAIN, packed=True)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-9])
    assert refusal(tmp_path).startswith("DIR/train-labels-idx1-ubyte.gz cannot be read (")


def test_two_sets_of_idx_files_in_one_folder_are_refused(tmp_path):
    make_idx(tmp_path, "emnist-letters-train", [0])
    make_idx(tmp_path, "emnist-digits-train", [0])
    assert refusal(tmp_path) == "DIR holds 2 data sets (emnist-digits-, emnist-letters-); move each into its own folder"


def test_emnists_pictures_which_are_stored_transposed_are_turned_upright(tmp_path):
    make_idx(tmp_path, "emnist-digits-train", [0, 1])
    path = tmp_path / "emnist-digits-train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:16] + bytes(range(16)) + bytes(16))
    found = read(tmp_path, class_names=("zero", "one"))
    with found.pictures[0].open() as image:
        assert image.getpixel((0, 1)) == 1 and image.getpixel((1, 0)) == 4  # (x, y)
    assert found.layout == "EMNIST, turned upright"


# ---- CIFAR ----


def make_cifar(folder, hundred=False):
    folder.mkdir(exist_ok=True)
    rows = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8)[::-1].reshape(2, 3, 32, 32).copy()
    rows[0, :, 0, 0], rows[1, :, 0, 0], rows[0, :, 5, 7] = 10, 20, (1, 2, 3)
    rows = rows.reshape(2, 3072)
    label, meta = ((b"fine_labels", b"fine_label_names"), "meta") if hundred else ((b"labels", b"label_names"), "batches.meta")
    for name in ("train", "test") if hundred else ("data_batch_1", "data_batch_2", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({b"data": rows, label[0]: [1, 0]}, protocol=3))
    (folder / meta).write_bytes(pickle.dumps({label[1]: [b"airplane", b"frog"]}, protocol=3))


@pytest.mark.parametrize("hundred, parts", [(False, ["data_batch_1", "data_batch_2", "test_batch"]), (True, ["train", "test"])])
def test_cifars_pickles_give_pictures_classes_and_splits(tmp_path, hundred, parts):
    make_cifar(tmp_path / "cifar", hundred)
    found = read(tmp_path)
    assert captions(found) == {f"cifar/{part}: {i}": [["frog"], ["airplane"]][i] for part in parts for i in range(2)}
    assert splits(found) == {f"cifar/{part}: {i}": "held-out" if "test" in part else "train" for part in parts for i in range(2)}
    assert levels(found) == {"frog": 10, "airplane": 20}
    assert found.pictures[0].open().getpixel((7, 5)) == (1, 2, 3)  # column, row
    assert found.line == f"CIFAR-2: {2 * len(parts)} images, {2 * len(parts)} captions"


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_a_pickle_of_anything_but_arrays_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_cifar(tmp_path / "cifar")
    (tmp_path / "cifar" / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    assert refusal(tmp_path / "cifar") == ("DIR/data_batch_1 cannot be read (it asks for posix.system, which no picture "
                                           "needs); get it anew")
    assert not Path("evil").exists()


def test_a_batch_of_other_sides_is_refused_by_name(tmp_path):
    make_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": np.zeros((2, 30), np.uint8), b"labels": [0, 1]}, protocol=3))
    assert refusal(tmp_path) == "DIR/test_batch does not hold pictures of 32 x 32 in red, green and blue; get it anew"


# ---- npz ----

RED = np.stack([np.full((4, 4), level, np.uint8) for level in (10, 20, 30)])


@pytest.mark.parametrize("pictures, labels", [
    ("images", "labels"), ("x", "y"), ("X", "captions"), ("data", "texts"), ("image", "label")])
def test_arrays_give_texts_as_captions_and_numbers_by_name(tmp_path, pictures, labels):
    np.savez(tmp_path / "a.npz", **{pictures: RED, labels: np.array(["a cat", "a dog", "a cow"])})
    found = read(tmp_path)
    assert captions(found) == {f"a.npz {pictures}: {i}": [text] for i, text in enumerate(["a cat", "a dog", "a cow"])}
    assert levels(found) == {"a cat": 10, "a dog": 20, "a cow": 30} and found.line == "arrays of a.npz: 3 images, 3 captions"
    np.savez(tmp_path / "a.npz", **{pictures: RED, labels: np.array([[1], [0], [1]])})
    assert list(captions(read(tmp_path, class_names=["zero", "one"])).values()) == [["one"], ["zero"], ["one"]]
    assert refusal(tmp_path) == "DIR/a.npz numbers its classes from 0 to 1; give 2 names, in this order, by --class-names"


@pytest.mark.parametrize("keys", ["x_train y_train x_test y_test", "train_images train_labels test_images test_labels",
                                  "train_images train_labels val_images val_labels"])
def test_the_names_of_arrays_tell_the_split(tmp_path, keys):
    texts = np.array(["a cat", "a dog", "a cow"])
    np.savez(tmp_path / "a.npz", **dict(zip(keys.split(), (RED, texts, RED[:2], texts[:2]))))
    assert list(splits(read(tmp_path)).values()) == ["train"] * 3 + ["held-out"] * 2


@pytest.mark.parametrize("array", [
    RED, RED[..., None], RED[:, None], RED / 255, RED.astype(np.float32), RED.astype(np.int64),
    np.stack([RED] * 3, axis=-1), np.stack([RED] * 3, axis=1)])
def test_arrays_of_any_number_and_order_of_axes_become_the_same_pictures(tmp_path, array):
    np.savez(tmp_path / "a.npz", images=array, labels=np.array(["a", "b", "c"]))
    assert levels(read(tmp_path)) == {"a": 10, "b": 20, "c": 30}


def test_channels_are_moved_last_and_floats_fill_the_range(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), np.uint8)
    array[0, 0, 0, 0] = 255
    for images in (array, array / 255):
        np.savez(tmp_path / "a.npz", images=images, labels=np.array(["a", "b"]))
        for picture, expected in zip(read(tmp_path).pictures, array):
            assert np.array_equal(np.asarray(picture.open()), np.stack(list(expected), axis=-1))


@pytest.mark.parametrize("arrays, message", [
    ({"images": RED, "labels": np.array(["a", "b"])}, "a.npz has 3 pictures but 2 labels; get both files from the same source"),
    ({"images": RED - 300.0, "labels": np.array(["a", "b", "c"])},
     "a.npz images has values from -290 to -270; save pictures as uint8, or as floats in [0, 1]"),
    ({"images": RED[0], "labels": np.array(["a"])},
     "a.npz images is uint8 (4, 4), no pictures; save them as uint8 (n h w) or (n h w 3)"),
    ({"images": RED, "labels": np.zeros((3, 5), int)},
     "a.npz has labels of int64 (3, 5); save (n) texts as str or classes as int"),
    ({"images": RED, "labels": np.array([-1, 0, 1])}, "a.npz has the label -1; classes are numbered from 0 on"),
    ({"images": RED, "labels": np.array(["a", Evil()], object)}, "a.npz cannot be read (Object arrays cannot be loaded when "
                                                                 "allow_pickle=False); save it anew, texts as an array of str"),
])
def test_arrays_that_are_no_captioned_pictures_are_refused_by_file_and_remedy(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    assert refusal(tmp_path, class_names=["x", "y"]) == f"DIR/{message}"


def test_a_broken_npz_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", images=RED, labels=np.array(["a", "b", "c"]))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    assert refusal(tmp_path).startswith("DIR/a.npz cannot be read (")
