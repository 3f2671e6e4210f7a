"""Every layout of captioned pictures that is read: exact captions and splits, on a folder made in the test; every refusal."""

import gzip
import io
import json
import os
import pickle
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
from data.layouts import LAYOUTS, read
from data.tree import list_folder, split_of_name


def image_bytes(level=0, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(file, kind)
    return file.getvalue()


def make(folder, *names):
    """Write pictures by name, each of its own level of red."""
    for level, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(level))
    return folder


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def captions(collection):
    return {picture.name: picture.captions for picture in collection.pictures}


def splits(collection):
    return {picture.name: picture.split for picture in collection.pictures}


def levels(collection):
    """Decode every picture -> the red of its first pixel, by caption."""
    found = {}
    for picture in collection.pictures:
        with picture.source.open() as image:
            found[picture.captions[0]] = image.convert("RGB").getpixel((0, 0))[0]
    return found


def refusal(folder, **options):
    """Return the one line of a refusal, the folder in it written as DIR."""
    with pytest.raises(data.InputError) as error:
        read(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(folder), "DIR")


def test_class_names_that_the_layout_has_no_use_for_are_refused(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    assert refusal(tmp_path, class_names=["a", "b"]).startswith("DIR: class folders says itself what each picture is, so --class-names")


# ---- class folders ----


@pytest.mark.parametrize("names, expected", [
    (["cat/1.png", "dog/1.png"], ["cat", "dog"]),
    (["animals/cat/1.png", "animals/dog/1.png"], ["cat", "dog"]),
    (["animals/cat/1.png", "things/car/1.png"], ["cat", "car"]),
    (["cat/images/1.png", "dog/images/1.png"], ["cat", "dog"]),
    (["cat/1.png", "cat/more/2.png", "dog/1.png"], ["cat", "cat", "dog"]),
    (["set/logo.png", "set/cat/1.png", "set/dog/1.png"], ["set", "cat", "dog"]),
    (["001.Black_footed/1.png", "002.Laysan/1.png"], ["001.Black_footed", "002.Laysan"]),
    (["bus/1.png", "car/1.png", "train/1.png"], ["bus", "car", "train"]),
    (["cat/1.png"], ["cat"]),
])
def test_a_caption_is_the_nearest_folder_that_tells_pictures_apart(tmp_path, names, expected):
    found = read(make(tmp_path, *names))
    assert captions(found) == {name: [caption] for name, caption in zip(names, expected)}
    assert set(splits(found).values()) == {None}


@pytest.mark.parametrize("train, held_out", [
    ("train", "test"), ("Training", "Validation"), ("data/train", "data/val"), ("seg_train/seg_train", "seg_test/seg_test"),
    ("train2017", "val2017"),
])
def test_folders_named_after_splits_are_no_classes(tmp_path, train, held_out):
    found = read(make(tmp_path, f"{train}/cat/1.png", f"{train}/dog/1.png", f"{held_out}/cat/1.png"))
    assert captions(found) == {f"{train}/cat/1.png": ["cat"], f"{train}/dog/1.png": ["dog"], f"{held_out}/cat/1.png": ["cat"]}
    assert splits(found) == {f"{train}/cat/1.png": "train", f"{train}/dog/1.png": "train", f"{held_out}/cat/1.png": "held-out"}


def test_a_split_of_which_one_half_is_empty_is_none(tmp_path):
    found = read(make(tmp_path, "train/cat/1.png", "train/dog/1.png"))
    assert captions(found) == {"train/cat/1.png": ["cat"], "train/dog/1.png": ["dog"]}
    assert set(splits(found).values()) == {None}


def test_what_lies_in_neither_split_is_left_out(tmp_path):
    found = read(make(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/dog/1.png", "extra/dog/3.png"))
    assert "extra/dog/3.png" not in captions(found) and found.left_out == [("in no split", "extra/dog/3.png")]


def test_pictures_that_lie_loose_beside_class_folders_have_no_caption(tmp_path):
    found = read(make(tmp_path, "cat/1.png", "dog/1.png", "loose.png"))
    assert found.left_out == [("no caption", "loose.png")]


def test_the_line_counts_what_is_used_and_what_is_left_out_by_kind(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png", "loose.png")
    write(tmp_path, {"notes.doc": "", "dog/Thumbs.db": ""})
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert read(tmp_path).line == ("class folders: 2 images, 2 captions; left out: 2 other suffix; left out: 1 broken link; "
                                   "left out: 1 no caption")


# ---- listing ----


def test_linked_folders_and_files_count_once_and_loops_end(tmp_path):
    make(tmp_path, "set/cat/1.png", "set/dog/1.png", "elsewhere/2.png")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "cat" / "zero.png").symlink_to(tmp_path / "set" / "cat" / "1.png")
    (tmp_path / "set" / "bird").symlink_to(tmp_path / "elsewhere")
    assert captions(read(tmp_path / "set")) == {"bird/2.png": ["bird"], "cat/1.png": ["cat"], "dog/1.png": ["dog"]}


@pytest.mark.parametrize("link", ["a", "z"])
def test_what_is_linked_too_goes_by_its_own_name_whichever_comes_first(tmp_path, link):
    make(tmp_path, "m/cat/1.png", "m/dog/2.png", f"{link}/cow/3.png")
    (tmp_path / link / "cow" / "1.png").symlink_to(tmp_path / "m" / "cat" / "1.png")
    (tmp_path / link / "hound").symlink_to(tmp_path / "m" / "dog")
    (tmp_path / f"{link}hound").symlink_to(tmp_path / "m" / "dog")
    assert captions(read(tmp_path)) == {"m/cat/1.png": ["cat"], "m/dog/2.png": ["dog"], f"{link}/cow/3.png": ["cow"]}


def test_hidden_names_and_the_rubbish_of_archives_are_passed_over(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png", "dog/._1.png", ".thumbs/1.png", "__MACOSX/cat/1.png")
    found = read(tmp_path)
    assert sorted(captions(found)) == ["cat/1.png", "dog/1.png"] and found.left_out == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_that_are_not_utf_8_are_read_from_folders_and_tables(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    make(tmp_path / "folders", f"cat/{name}", "dog/1.png")
    assert captions(read(tmp_path / "folders"))[f"cat/{name}"] == ["cat"]
    make(tmp_path / "table", name)
    (tmp_path / "table" / "metadata.csv").write_bytes(b"file_name,text\ncaf\xe9.png,caf\xe9\n")
    assert captions(read(tmp_path / "table")) == {name: ["caf\ufffd"]}


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jfif", ".bmp", ".tiff", ".avif", ".webp", ".gif"])
def test_every_suffix_that_pillow_opens_is_a_picture(tmp_path, suffix):
    if suffix.lower() not in Image.registered_extensions():
        pytest.skip("this Pillow does not open it")
    make(tmp_path, f"cat/1{suffix}", "dog/1.png")
    assert captions(read(tmp_path))[f"cat/1{suffix}"] == ["cat"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def forbid(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", forbid)
    assert refusal(tmp_path) == "DIR cannot be listed (Permission denied); allow reading it"


# ---- text files ----


@pytest.mark.parametrize("picture, text", [
    ("1.png", "1.txt"), ("a/1.png", "a/1.txt"), ("1.png", "captions/1.txt"), ("images/a/1.png", "text/a/1.txt"),
    ("CUB/images/a/1.png", "CUB/text_c10/a/1.txt"), ("train/images/1.png", "train/captions/1.txt"),
    ("images/train/1.png", "Texts/train/1.txt"), ("images/1.png", "images/text/1.txt"),
])
def test_a_text_file_lies_beside_its_picture_or_in_a_parallel_folder(tmp_path, picture, text):
    make(tmp_path, picture)
    found = read(write(tmp_path, {text: "\ufeffa cat\n\n  ein Kätzchen \n"}))
    assert captions(found) == {picture: ["a cat", "ein Kätzchen"]}
    assert found.line == "text files, one a picture: 1 images, 2 captions"


def test_files_of_boxes_in_labels_are_no_captions(tmp_path):
    make(tmp_path, "images/1.png")
    write(tmp_path, {"labels/1.txt": "0 0.5 0.5 0.1 0.1"})
    assert captions(read(tmp_path, layout="classes")) == {"images/1.png": ["images"]}
    assert "is not of the layout text" in refusal(tmp_path, layout="text")


def test_a_blank_text_is_no_caption(tmp_path):
    make(tmp_path, "1.png", "2.png", "3.png")
    found = read(write(tmp_path, {"1.txt": "a cat", "2.txt": " \n"}))
    assert captions(found) == {"1.png": ["a cat"]} and found.left_out == [("no caption", "2.png"), ("no caption", "3.png")]


def test_text_files_take_their_split_from_the_folders(tmp_path):
    make(tmp_path, "train/1.png", "test/1.png")
    found = read(write(tmp_path, {"train/1.txt": "a cat", "test/1.txt": "a dog"}))
    assert splits(found) == {"train/1.png": "train", "test/1.png": "held-out"}


# ---- tables ----

TABLES = {  # name of the table -> its text; all say that 1.png is "a cat, asleep" and 2.png "a dog" and "ein Hund"
    "metadata.csv": 'file_name,text\n1.png,"a cat, asleep"\n2.png,a dog\n2.png,ein Hund\n',
    "captions.txt": 'image,caption\n1.png,"a cat, asleep"\n2.png,a dog\n\n2.png,ein Hund\n',
    "results.csv": 'image_name| comment_number| comment\n1.png| 0| a cat, asleep\n2.png| 0|   a dog \n2.png| 1| ein Hund\n',
    "any.csv": '\ufeffid; File Name ;Title\n1; 1.png ; "a cat, asleep"\n2;2.png;a dog\n3;2.png;ein Hund\n',
    "blank.csv": 'filepath, sentence\n1.png, "a cat, asleep"\n2.png, a dog\n2.png,"ein Hund"\n,\n',
    "tabs.tsv": "path\tlabel\n1.png\ta cat, asleep\n2.png\ta dog\n2.png\tein Hund\n",
    "numbered.csv": 'image,caption_0,caption_1\n1.png,"a cat, asleep",\n2.png,a dog,ein Hund\n',
    "image_id.csv": 'image_id,description\n1,"a cat, asleep"\n2,a dog\n2,ein Hund\n',
    "metadata.jsonl": '{"file_name": "1.png", "text": "a cat, asleep"}\n\n'
                      '{"file_name": "2.png", "text": ["a dog", "ein Hund"]}\n',
    "list.json": '[{"image": "1.png", "caption": "a cat, asleep"}, {"image": "2.png", "caption": ["a dog", "ein Hund"]}]',
    "Flickr8k.token.txt": "1.png#0\ta cat, asleep\n2.png#0\ta dog\n2.png#1\tein Hund\n",
    "dataset_flickr.json": json.dumps({"images": [
        {"filename": "1.png", "sentences": [{"raw": "a cat, asleep"}]},
        {"filename": "2.png", "sentences": [{"raw": "a dog"}, {"raw": " ein Hund "}]}]}),
    "captions.json": json.dumps({"images": [{"id": 7, "file_name": "1.png"}, {"id": 9, "file_name": "2.png"}], "annotations": [
        {"image_id": 7, "caption": "a cat, asleep"}, {"image_id": 9, "caption": "a dog"},
        {"image_id": 9, "caption": "ein Hund\n"}]}),
}


@pytest.mark.parametrize("folder", ["", "images/", "flickr/Images/"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_gives_every_picture_its_captions_wherever_it_lies(tmp_path, name, folder):
    make(tmp_path, f"{folder}1.png", f"{folder}2.png", f"{folder}3.png")
    found = read(write(tmp_path, {name: TABLES[name], "README.txt": "Pictures, of cats and dogs"}))
    assert captions(found) == {f"{folder}1.png": ["a cat, asleep"], f"{folder}2.png": ["a dog", "ein Hund"]}
    assert Counter(found.left_out) == Counter([("no caption", f"{folder}3.png"), ("other suffix", "README.txt")])


@pytest.mark.parametrize("name, line", [
    ("captions.txt", "captions.txt (image, caption)"), ("results.csv", "results.csv (image_name, comment)"),
    ("any.csv", "any.csv (file_name, title)"), ("numbered.csv", "numbered.csv (image, caption_0, caption_1)"),
    ("captions.json", "COCO captions captions.json"), ("dataset_flickr.json", "Karpathy's split dataset_flickr.json"),
    ("Flickr8k.token.txt", "Flickr8k.token.txt (image, caption)"),
])
def test_the_line_names_the_table_and_its_columns(tmp_path, name, line):
    make(tmp_path, "1.png", "2.png")
    assert read(write(tmp_path, {name: TABLES[name]})).line == f"{line}: 2 images, 3 captions"


@pytest.mark.parametrize("written", [
    "./img/1.png", r"img\1.png", r".\img\1.png", "img/../img/1.png", "{folder}/img/1.png", "1.png", "/elsewhere/1.png", "1",
    "img/1", "other/1.png", "1.PNG", "deep/img/1.png"])
def test_a_table_may_write_a_path_in_many_ways(tmp_path, written):
    make(tmp_path, "img/1.png", "img/2.png")
    name = written.format(folder=tmp_path)
    assert captions(read(write(tmp_path, {"metadata.csv": f"file_name,text\n{name},a cat\n"}))) == {"img/1.png": ["a cat"]}


def test_a_table_in_a_folder_names_files_beside_it_or_from_the_root_before_any_elsewhere(tmp_path):
    make(tmp_path, "a/1.png", "a/deep/1.png", "b/1.png", "b/2.png", "c/b/2.png", "c/b/3.png", "b/3.png")
    found = read(write(tmp_path, {"a/captions.csv": "image,text\n1.png,a cat\nb/2.png,a dog\nb\\3.png,a cow\n"}))
    assert captions(found) == {"a/1.png": ["a cat"], "b/2.png": ["a dog"], "b/3.png": ["a cow"]}


def test_of_several_files_of_a_name_the_one_below_the_tables_folder_is_meant(tmp_path):
    make(tmp_path, "a/images/1.png", "b/images/1.png")
    found = read(write(tmp_path, {"b/captions.csv": "image,text\n1.png,a cat\n"}))
    assert captions(found) == {"b/images/1.png": ["a cat"]}


def test_a_table_may_name_pictures_outside_its_folder(tmp_path):
    make(tmp_path, "elsewhere/1.png", "here/2.png")
    write(tmp_path, {"here/metadata.csv": "file_name,text\n../elsewhere/1.png,a cat\n2.png,a dog\n"})
    assert captions(read(tmp_path / "here")) == {"../elsewhere/1.png": ["a cat"], "2.png": ["a dog"]}


def test_the_folder_before_a_name_tells_which_of_several_files_is_meant(tmp_path):
    make(tmp_path, "set/a/1.png", "set/b/1.png")
    found = read(write(tmp_path, {"metadata.csv": "file_name,text\na/1.png,a cat\nb/1.png,a dog\n"}))
    assert captions(found) == {"set/a/1.png": ["a cat"], "set/b/1.png": ["a dog"]}


@pytest.mark.parametrize("name, split", [
    ("captions_val2014.json", "held-out"), ("train-00000-of-00001.parquet", "train"), ("t10k-images-idx3-ubyte.gz", "held-out"),
    ("Test.csv", "held-out"), ("trainval.txt", "train"), ("x_test", "held-out"), ("train_test.csv", None), ("captions.csv", None),
    ("valley.csv", None), ("contest.csv", None), ("Flickr_8k.devImages.txt", "held-out")])
def test_a_name_tells_a_split_by_a_whole_word_unless_it_tells_both(name, split):
    assert split_of_name(name) == split


def test_flickr8ks_lists_of_pictures_are_its_split(tmp_path):
    make(tmp_path, "Images/a.jpg", "Images/b.jpg", "Images/c.jpg", "Images/d.jpg")
    write(tmp_path, {"Flickr8k.token.txt": "".join(f"{name}.jpg#0\tPicture {name}.\n" for name in "abcd"),
                     "Flickr_8k.trainImages.txt": "a.jpg\nb.jpg\n", "Flickr_8k.testImages.txt": "c.jpg\n"})
    found = read(tmp_path)
    assert splits(found) == {"Images/a.jpg": "train", "Images/b.jpg": "train", "Images/c.jpg": "held-out"}
    assert found.left_out == [("in no split", "Images/d.jpg")]  # and the lists are not left out: they were used


@pytest.mark.parametrize("text, expected", [("a/0.png\nb/1.png\n", {"a/0.png": "train", "b/1.png": "train", "a/2.png": "held-out"}),
                                            ("a picture of a train\n", None), ("", None)])
def test_a_list_of_paths_is_a_split_and_any_other_text_is_not(tmp_path, text, expected):
    make(tmp_path, "a/0.png", "b/1.png", "a/2.png")
    write(tmp_path, {"train.txt": text, "val.txt": "a/2.png\n"})
    assert splits(read(tmp_path)) == (expected or dict.fromkeys(("a/0.png", "b/1.png", "a/2.png")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_a_table_may_be_written_in_the_encodings_that_excel_saves(tmp_path, encoding):
    make(tmp_path, "0.png", "1.png")
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "table.csv").write_text(f"{mark}file;text\n0.png;größer\n1.png;ein Käfer\n", encoding=encoding)
    assert captions(read(tmp_path)) == {"0.png": ["größer"], "1.png": ["ein Käfer"]}


def test_of_the_columns_of_texts_one_that_has_a_text_counts(tmp_path):
    make(tmp_path, "0.png", "1.png")
    write(tmp_path, {"emoji.json": '[{"name": "HASH KEY", "image": "0.png", "text": null}, {"name": "SMILE", "image": "1.png", "text": ":)"}]'})
    assert captions(read(tmp_path)) == {"0.png": ["HASH KEY"], "1.png": ["SMILE"]}


def test_the_split_of_a_table_tells_which_of_several_files_is_meant(tmp_path):
    make(tmp_path, "train/1.png", "test/1.png")
    found = read(write(tmp_path, {"train.csv": "image,text\n1.png,a cat\n", "test.csv": "image,text\n1.png,a dog\n"}))
    assert captions(found) == {"train/1.png": ["a cat"], "test/1.png": ["a dog"]}
    assert splits(found) == {"train/1.png": "train", "test/1.png": "held-out"}


def test_a_name_that_several_files_bear_is_refused_with_two_of_them(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png")
    write(tmp_path, {"metadata.csv": "file_name,text\n1.png,a cat\n"})
    assert refusal(tmp_path) == ("DIR: '1.png' may be a/1.png or b/1.png; write the folder before the name in the table")


SPLIT_TABLES = {
    "two tables": {"train.csv": "image,text\n1.png,a cat\n", "test.csv": "image,text\n2.png,a dog\n"},
    "a column": {"all.csv": "image,text,split\n1.png,a cat,train\n2.png,a dog,VAL\n"},
    "a column of JSON lines": {"all.jsonl": '{"image": "1.png", "text": "a cat", "split": "train"}\n'
                                            '{"image": "2.png", "text": "a dog", "split": "test"}\n'},
    "COCO's names": {f"annotations/captions_{split}2014.json": json.dumps({
        "images": [{"id": 1, "file_name": f"{number}.png"}], "annotations": [{"image_id": 1, "caption": caption}]})
        for split, number, caption in (("train", 1, "a cat"), ("val", 2, "a dog"))},
    "Karpathy's key": {"dataset.json": json.dumps({"images": [
        {"filename": "1.png", "split": "restval", "sentences": [{"raw": "a cat"}]},
        {"filename": "2.png", "split": "test", "sentences": [{"raw": "a dog"}]}]})},
}


@pytest.mark.parametrize("kind", SPLIT_TABLES)
def test_a_split_is_told_by(tmp_path, kind):
    make(tmp_path, "images/1.png", "images/2.png")
    found = read(write(tmp_path, SPLIT_TABLES[kind]))
    assert captions(found) == {"images/1.png": ["a cat"], "images/2.png": ["a dog"]}
    assert splits(found) == {"images/1.png": "train", "images/2.png": "held-out"}


def test_a_metadata_table_in_each_split_adds_up(tmp_path):
    make(tmp_path, "data/train/1.png", "data/test/1.png")
    found = read(write(tmp_path, {f"data/{split}/metadata.jsonl": json.dumps({"file_name": "1.png", "text": split})
                                  for split in ("train", "test")}))
    assert captions(found) == {"data/train/1.png": ["train"], "data/test/1.png": ["test"]}
    assert splits(found) == {"data/train/1.png": "train", "data/test/1.png": "held-out"}


def test_a_picture_that_both_splits_name_is_trained_on_and_not_held_out(tmp_path):
    make(tmp_path, "1.png", "2.png", "3.png")
    found = read(write(tmp_path, {"test.csv": "image,text\n1.png,a cat\n2.png,a dog\n",
                                  "train.csv": "image,text\n1.png,a cat\n3.png,a cow\n"}))
    assert splits(found) == {"1.png": "train", "2.png": "held-out", "3.png": "train"}
    assert captions(found)["1.png"] == ["a cat"]


def test_metadata_wins_over_other_tables(tmp_path):
    make(tmp_path, "1.png")
    found = read(write(tmp_path, {"metadata.csv": "file_name,text\n1.png,a cat\n", "other.csv": "file_name,text\n1.png,a dog\n"}))
    assert captions(found) == {"1.png": ["a cat"]} and found.left_out == [("other suffix", "other.csv")]


def test_flickr8ks_second_table_of_lemmas_is_not_used(tmp_path):
    make(tmp_path, "1.png")
    found = read(write(tmp_path, {"Flickr8k.token.txt": "1.png#0\tA cat runs .\n",
                                  "Flickr8k.lemma.token.txt": "1.png#0\tA cat run .\n"}))
    assert captions(found) == {"1.png": ["A cat runs ."]}


def test_coco_finds_its_captions_among_boxes_without_parsing_them(tmp_path):
    make(tmp_path, "coco/val2014/COCO_val2014_000000000042.jpg")
    write(tmp_path, {"coco/annotations/instances_val2014.json": '{"images": [], "annotations": [broken',
                     "coco/annotations/captions_val2014.json": json.dumps({
                         "images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}],
                         "annotations": [{"image_id": 42, "caption": "a cat"}]})})
    assert captions(read(tmp_path)) == {"coco/val2014/COCO_val2014_000000000042.jpg": ["a cat"]}


def test_rows_without_file_or_text_and_missing_files_are_left_out_by_kind(tmp_path):
    make(tmp_path, "1.png", "2.png")
    found = read(write(tmp_path, {"captions.csv": "image,caption\n1.png,a cat\n2.png,\n,a dog\n3.png,a cow\n3.png,cow\n2.png\n"}))
    assert captions(found) == {"1.png": ["a cat"]}
    empty = [("row without file or text", f"captions.csv, line {line}") for line in (3, 4, 7)]
    assert found.left_out == [*empty, ("missing", "3.png"), ("no caption", "2.png")]


def test_a_quote_in_a_table_of_bars_and_blank_cells_at_the_end_of_a_row_are_no_error(tmp_path):
    make(tmp_path, "1.png", "2.png")
    write(tmp_path, {"results.csv": 'image_name| comment\n1.png| "Go" says a sign\n1.png| "\n2.png| a dog | |\n'})
    assert captions(read(tmp_path)) == {"1.png": ['"Go" says a sign', '"'], "2.png": ["a dog"]}


def test_a_text_beside_a_picture_is_its_caption_even_if_it_looks_like_a_table(tmp_path):
    make(tmp_path, "1.png", "2.png")
    found = read(write(tmp_path, {"1.txt": "image, title\n2.png, a fake", "2.txt": "a dog"}))
    assert captions(found) == {"1.png": ["image, title", "2.png, a fake"], "2.png": ["a dog"]}


def test_numbers_in_json_are_captions_where_they_are_labels(tmp_path):
    make(tmp_path, "1.png")
    assert captions(read(write(tmp_path, {"labels.json": '[{"image": "1.png", "label": 3}]'}))) == {"1.png": ["3"]}


def test_numbers_of_classes_in_a_table_become_names_where_they_are_given(tmp_path):
    make(tmp_path, "1.png", "2.png")
    write(tmp_path, {"labels.csv": "image,label\n1.png,1\n2.png,0\n"})
    assert captions(read(tmp_path)) == {"1.png": ["1"], "2.png": ["0"]}
    assert captions(read(tmp_path, class_names=["cat", "dog"])) == {"1.png": ["dog"], "2.png": ["cat"]}


@pytest.mark.parametrize("name, text, message", [
    ("captions.csv", "image,caption\n1.png,a cat\n1.png,a, b, c, d\n",
     "captions.csv, line 3: 5 fields under 2 columns; put quotes around texts that hold a ,"),
    ("captions.csv", 'image,caption\n1.png,"a\ncat"\n1.png,"a\ndog",b\n',
     "captions.csv, line 4: 3 fields under 2 columns; put quotes around texts that hold a ,"),
    ("captions.tsv", "image\tcaption\n1.png\ta\tb\n",
     "captions.tsv, line 2: 3 fields under 2 columns; put quotes around texts that hold a tab"),
    ("captions.csv", 'image,caption\n1.png,"a cat\n1.png,a dog\n',
     "captions.csv cannot be read (line 3: unexpected end of data); double the quotes within a text, and close each that opens"),
    ("metadata.csv", "file,words\n1.png,a cat\n", "metadata.csv lacks file_name or text; give it both columns"),
    ("metadata.csv", "file_name,text\n1.png\n",
     "metadata.csv, line 2: lacks file_name or text, as does every row; give them both"),
    ("metadata.jsonl", '{"file_name": "1.png"}\n', "metadata.jsonl lacks file_name or text; give it both columns"),
    ("metadata.jsonl", '["1.png", "a cat"]\n', "metadata.jsonl lacks file_name or text; give it both columns"),
    ("metadata.jsonl", '{"file_name": "1.png", "text": 3}\n',
     "metadata.jsonl, line 1: lacks file_name or text, as does every row; give them both"),
    ("metadata.jsonl", "{one.png\n", "metadata.jsonl cannot be read (line 1: Expecting property name enclosed in double quotes: "
                                     "line 1 column 2 (char 1)); repair that line"),
    ("list.json", "[{]",
     "list.json cannot be read (Expecting property name enclosed in double quotes: line 1 column 3 (char 2)); "
     "repair or remove it"),
    ("coco.json", '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a cat"}]}',
     "coco.json lacks 'file_name' in some image or annotation; every image needs id and file_name, every annotation image_id "
     "and caption"),
])
def test_a_broken_table_is_refused_by_file_line_and_remedy(tmp_path, name, text, message):
    make(tmp_path, "1.png")
    write(tmp_path, {name: text})
    assert refusal(tmp_path) == f"DIR/{message}"


def test_a_table_none_of_whose_files_is_there_is_refused_with_the_first(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    write(tmp_path, {"sub/captions.csv": "image,caption\n7.png,a cat\n8.png,a dog\n"})
    assert refusal(tmp_path) == ("DIR/sub/captions.csv, line 2: '7.png' is neither in DIR/sub nor anywhere below DIR, "
                                 "nor is any of the 2 files named; correct the names, or choose another layout by --layout")
    assert captions(read(tmp_path, layout="classes")) == {"cat/1.png": ["cat"], "dog/1.png": ["dog"]}


def test_a_header_that_lacks_a_column_is_no_table(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    found = read(write(tmp_path, {"sizes.csv": "image,width\ncat/1.png,4\n", "ids.csv": "image_id,title\n77,none of these\n"}))
    assert captions(found) == {"cat/1.png": ["cat"], "dog/1.png": ["dog"]}
    assert found.left_out == [("other suffix", "ids.csv"), ("other suffix", "sizes.csv")]


def test_a_table_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def forbid(*_, **__):
        raise PermissionError(13, "Permission denied")

    make(tmp_path, "1.png")
    write(tmp_path, {"metadata.csv": "file_name,text\n1.png,a cat\n"})
    monkeypatch.setattr("builtins.open", forbid)
    assert refusal(tmp_path) == "DIR/metadata.csv cannot be read (Permission denied); repair or remove it"


# ---- tar shards ----


def make_tar(path, members):
    with tarfile.open(path, "w") as shard:
        for name, letters in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(letters)
            shard.addfile(info, io.BytesIO(letters))


def test_tar_shards_give_pictures_in_place_and_captions_of_txt_json_and_cls(tmp_path):
    make_tar(tmp_path / "set-train-0000.tar", {"a/1.png": image_bytes(1), "a/1.json": b'{"caption": "not this"}',
                                               "a/1.txt": b"a cat\n\nein K\xc3\xa4tzchen",
                                               "a/2.json": b'{"text": "a dog"}', "a/2.jpg": image_bytes(2), "a/9.png": b"?"})
    make_tar(tmp_path / "set-val-0000.tar", {"1.cls": b"1", "1.rgb.png": image_bytes(3), "readme.md": b"-", "._1.png": b""})
    found = read(tmp_path, class_names=["fish", "cow"])
    assert captions(found) == {"set-train-0000.tar: a/1.png": ["a cat", "ein Kätzchen"],
                               "set-train-0000.tar: a/2.jpg": ["a dog"],
                               "set-val-0000.tar: 1.rgb.png": ["cow"]}
    assert list(splits(found).values()) == ["train", "train", "held-out"]
    assert levels(found) == {"a cat": 1, "a dog": 2, "cow": 3}
    assert found.line == "2 tar shards: 3 images, 4 captions; left out: 1 no caption"


def test_classes_of_a_shard_without_names_are_refused_with_how_many_are_needed(tmp_path):
    make_tar(tmp_path / "0.tar", {"1.png": b"", "1.cls": b"0", "2.png": b"", "2.cls": b"6\n"})
    message = "DIR: .cls numbers its classes from 0 to 6; give 7 names, in this order, by --class-names"
    assert refusal(tmp_path) == message
    assert refusal(tmp_path, class_names=["cat"]) == message.replace("7 names", "7 names, not 1")


@pytest.mark.parametrize("cut", [0, 700, 1600])
def test_a_broken_shard_is_refused_by_name(tmp_path, cut):
    make_tar(tmp_path / "0.tar", {"1.txt": b"a cat", "1.png": b"x" * 2000})
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:cut])
    line = refusal(tmp_path)
    assert line.startswith("DIR/0.tar cannot be read (") and line.endswith("; get it anew")


def test_a_broken_text_in_a_shard_is_refused_by_name(tmp_path):
    make_tar(tmp_path / "0.tar", {"1.png": b"", "1.json": b"{"})
    assert refusal(tmp_path).startswith("DIR/0.tar: 1.json cannot be read (")


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
    assert [np.asarray(picture.source.open())[0, 0] for picture in train] == list(range(10))
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
        "DIR/train-labels-idx1-ubyte numbers its classes from 0 to 2; give 3 names, not 2, in this order, by --class-names")
    found = read(tmp_path, class_names=["o", "ki", "su"])
    assert [picture.captions for picture in found.pictures] == [["o"], ["su"], ["ki"]]
    assert found.line == "idx, classes o, ki, su: 3 images, 3 captions"


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
    with found.pictures[0].source.open() as image:
        assert image.getpixel((0, 1)) == 1 and image.getpixel((1, 0)) == 4  # (x, y)
    assert found.layout == "idx, classes zero, one, EMNIST's pictures turned upright"


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
    assert found.pictures[0].source.open().getpixel((7, 5)) == (1, 2, 3)  # column, row
    assert found.line == f"CIFAR-2: {2 * len(parts)} images, {2 * len(parts)} captions"


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_a_pickle_that_asks_for_anything_but_arrays_is_refused_and_runs_nothing(tmp_path, monkeypatch):
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


def test_channels_first_are_moved_last_and_floats_up_to_one_fill_the_range(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), np.uint8)
    array[0, 0, 0, 0] = 255
    for images in (array, array / 255):
        np.savez(tmp_path / "a.npz", images=images, labels=np.array(["a", "b"]))
        for picture, expected in zip(read(tmp_path).pictures, array):
            assert np.array_equal(np.asarray(picture.source.open()), np.stack(list(expected), axis=-1))


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


# ---- Parquet ----


def make_parquet(path, columns, features=None, group=2):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=group)


def cells(*numbers):
    return [{"bytes": image_bytes(number), "path": None} for number in numbers]


def test_parquet_of_the_hub_gives_names_of_classes_and_splits(tmp_path):
    features = {"img": {"_type": "Image"}, "label": {"names": ["cat", "dog", "cow"], "_type": "ClassLabel"}}
    make_parquet(tmp_path / "data/train-00000-of-00001.parquet", {"img": cells(1, 2, 3), "label": [1, 0, -1]}, features)
    make_parquet(tmp_path / "data/test-00000-of-00001.parquet", {"img": cells(4), "label": [2]}, features)
    found = read(tmp_path)
    train, test = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    assert captions(found) == {f"{test}: 0": ["cow"], f"{train}: 0": ["dog"], f"{train}: 1": ["cat"]}
    assert splits(found) == {f"{test}: 0": "held-out", f"{train}: 0": "train", f"{train}: 1": "train"}
    assert levels(found) == {"dog": 1, "cat": 2, "cow": 4} and found.left_out == [("no caption", f"{train}: 2")]
    assert found.line == "2 Parquet files: 3 images, 3 captions; left out: 1 no caption"


@pytest.mark.parametrize("columns, expected", [
    ({"text": ["a cat", "a dog", " "]}, [["a cat"], ["a dog"]]),
    ({"caption": [["a cat", "cat"], ["a dog"], []]}, [["a cat", "cat"], ["a dog"]]),
    ({"caption_0": ["a cat", "a dog", None], "caption_1": ["cat", None, None]}, [["a cat", "cat"], ["a dog"]]),
])
def test_parquet_gives_texts_lists_of_texts_and_numbered_columns(tmp_path, columns, expected):
    make_parquet(tmp_path / "0.parquet", {"image": cells(1, 2, 3), **columns})
    assert list(captions(read(tmp_path)).values()) == expected


def test_parquet_may_hold_bare_bytes_and_a_column_of_splits(tmp_path):
    columns = {"image": [image_bytes(7), image_bytes(8)], "text": ["a", "b"], "split": ["train", "test"]}
    make_parquet(tmp_path / "0.parquet", columns)
    found = read(tmp_path)
    assert levels(found) == {"a": 7, "b": 8} and list(splits(found).values()) == ["train", "held-out"]


def test_parquet_may_name_files_beside_it(tmp_path):
    make(tmp_path, "1.png", "img/2.png")
    make_parquet(tmp_path / "0.parquet", {"image": [{"bytes": None, "path": "img/2.png"}], "text": ["a"]})
    assert levels(read(tmp_path)) == {"a": 1}


def test_classes_of_parquet_without_names_are_refused(tmp_path):
    make_parquet(tmp_path / "0.parquet", {"image": cells(1), "label": [4]})
    assert refusal(tmp_path) == "DIR/0.parquet numbers its classes from 0 to 4; give 5 names, in this order, by --class-names"


def test_parquet_that_is_broken_or_holds_no_pictures_is_refused(tmp_path):
    make_parquet(tmp_path / "0.parquet", {"image": cells(1), "width": [4]})
    assert refusal(tmp_path) == ("DIR/0.parquet has the columns image, width; it needs one of pictures called image, and one "
                                 "called text, caption or label")
    (tmp_path / "0.parquet").write_bytes(b"PAR1")
    assert refusal(tmp_path).startswith("DIR/0.parquet cannot be read (")


def test_without_pyarrow_a_parquet_file_is_refused_with_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "0.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(tmp_path) == "DIR/0.parquet is a Parquet file, which pyarrow reads; install it: pip install '.[parquet]'"


# ---- several layouts, none, doubtful ones ----


def test_of_two_layouts_the_richer_wins_and_the_line_names_the_other(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    write(tmp_path, {"captions.csv": "image,caption\ncat/1.png,a fat cat\ndog/1.png,a dog\n"})
    assert read(tmp_path).line == "captions.csv (image, caption): 2 images, 2 captions; not used: class folders"
    assert captions(read(tmp_path, layout="classes")) == {"cat/1.png": ["cat"], "dog/1.png": ["dog"]}


def test_a_folder_of_pictures_under_a_table_is_no_other_layout(tmp_path):
    make(tmp_path, "Images/1.png")
    assert read(write(tmp_path, {"captions.csv": "image,caption\n1.png,a cat\n"})).others == []


def test_one_caption_for_more_than_a_few_pictures_is_refused_unless_a_layout_is_named(tmp_path):
    make(tmp_path, *(f"photos/{i}.png" for i in range(9)))
    assert refusal(tmp_path) == ("DIR was read as class folders, which gives all 9 pictures the one caption 'photos'; if that is "
                                 f"meant, or they lie there in another way, say so by --layout {'|'.join(LAYOUTS)}")
    assert len(read(tmp_path, layout="classes").pictures) == 9
    (tmp_path / "photos" / "8.png").unlink()
    assert len(read(tmp_path).pictures) == 8


def test_a_layout_that_is_not_there_or_not_known_is_refused_with_the_choices(tmp_path):
    make(tmp_path, "cat/1.png")
    choices = ", ".join(LAYOUTS)
    assert refusal(tmp_path, layout="tar") == f"DIR is not of the layout tar; choose another of {choices}, or leave --layout out"
    assert refusal(tmp_path, layout="zip") == f"there is no layout 'zip'; choose one of {choices}"


def test_pictures_without_captions_are_refused_with_the_ways_to_give_some(tmp_path):
    make(tmp_path, "1.png")
    assert refusal(tmp_path) == ("DIR holds images without captions; write NAME.txt beside each NAME.png, or a metadata.csv "
                                 "(file_name,text), or sort them into one sub-folder per class")
    write(tmp_path, {"metadata.csv": "file_name,text\n"})
    assert "holds images without captions" in refusal(tmp_path)


def test_a_folder_without_pictures_or_no_folder_at_all_is_refused(tmp_path):
    assert refusal(tmp_path).startswith("DIR holds no images; put PNG, JPEG")
    assert refusal(tmp_path / "no").startswith("DIR is not a folder")
    assert refusal("x\0x").endswith("is not a folder; give one of captioned images, or the word shapes")


def test_a_picture_is_either_used_or_left_out_never_both(tmp_path):
    make(tmp_path, "train/1.png", "test/1.png", "train/2.png", "loose.png")
    found = read(write(tmp_path, {"train/metadata.csv": "file_name,text\n1.png,a cat\n",
                                  "test/metadata.csv": "file_name,text\n1.png,a dog\n"}))
    used, left = set(captions(found)), [name for _, name in found.left_out]
    assert sorted([*used, *left]) == list_folder(tmp_path).images and len(left) == len(set(left))


def test_a_compressed_shard_is_refused_with_what_to_do(tmp_path):
    write(tmp_path, {"0.tar.gz": ""})
    assert refusal(tmp_path) == ("DIR/0.tar.gz is compressed, so no picture can be found in it without unpacking all before it; "
                                 "run gunzip on it")
