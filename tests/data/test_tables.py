"""Captions in tables: exact captions and splits of a folder made in the test; every refusal is one line."""

import json
from collections import Counter

import pytest

from data.layouts import read
from data.tree import split_of_name
from small_folders import captions, make, refusal, splits, write


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


def test_a_table_names_files_beside_it_before_any_elsewhere(tmp_path):
    make(tmp_path, "a/1.png", "a/deep/1.png", "b/1.png", "b/2.png", "c/b/2.png", "c/b/3.png", "b/3.png")
    found = read(write(tmp_path, {"a/captions.csv": "image,text\n1.png,a cat\nb/2.png,a dog\nb\\3.png,a cow\n"}))
    assert captions(found) == {"a/1.png": ["a cat"], "b/2.png": ["a dog"], "b/3.png": ["a cow"]}


def test_of_equal_names_the_one_below_the_table_is_meant(tmp_path):
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
def test_a_name_tells_a_split_by_a_whole_word(name, split):
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
def test_a_list_of_paths_is_a_split_no_other_text_is(tmp_path, text, expected):
    make(tmp_path, "a/0.png", "b/1.png", "a/2.png")
    write(tmp_path, {"train.txt": text, "val.txt": "a/2.png\n"})
    assert splits(read(tmp_path)) == (expected or dict.fromkeys(("a/0.png", "b/1.png", "a/2.png")))


def test_a_list_may_leave_out_suffixes_as_food_101s_do(tmp_path):
    make(tmp_path, "images/pie/1.jpg", "images/pie/2.jpg", "images/cake/3.jpg")
    write(tmp_path, {"meta/train.txt": "pie/1\ncake/3\n", "meta/test.txt": "pie/2\n", "meta/classes.txt": "pie\ncake\n"})
    assert splits(read(tmp_path)) == {"images/pie/1.jpg": "train", "images/cake/3.jpg": "train", "images/pie/2.jpg": "held-out"}


def test_the_folders_in_a_list_tell_pictures_of_one_name_apart(tmp_path):
    make(tmp_path, "a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png")
    write(tmp_path, {"train.txt": "a/0.png\na/1.png\nB\\0.png\n", "test.txt": "b/1.png\n"})
    found = read(tmp_path)
    assert splits(found) == {"a/0.png": "train", "a/1.png": "train", "b/0.png": "train", "b/1.png": "held-out"}
    assert found.left_out == [("in no split", "b/2.png")]


def test_a_text_with_too_long_a_first_line_is_no_table(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    write(tmp_path, {"notes.txt": "note " * 30_000, "notes.csv": "note " * 30_000})
    assert captions(read(tmp_path)) == {"cat/1.png": ["cat"], "dog/1.png": ["dog"]}


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


def test_a_picture_that_both_splits_name_is_trained_on(tmp_path):
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


def test_incomplete_rows_and_missing_files_are_left_out_by_kind(tmp_path):
    make(tmp_path, "1.png", "2.png")
    found = read(write(tmp_path, {"captions.csv": "image,caption\n1.png,a cat\n2.png,\n,a dog\n3.png,a cow\n3.png,cow\n2.png\n"}))
    assert captions(found) == {"1.png": ["a cat"]}
    empty = [("row without file or text", f"captions.csv, line {line}") for line in (3, 4, 7)]
    assert found.left_out == [*empty, ("missing", "3.png"), ("no caption", "2.png")]


def test_quotes_between_bars_and_blank_last_cells_are_no_error(tmp_path):
    make(tmp_path, "1.png", "2.png")
    write(tmp_path, {"results.csv": 'image_name| comment\n1.png| "Go" says a sign\n1.png| "\n2.png| a dog | |\n'})
    assert captions(read(tmp_path)) == {"1.png": ['"Go" says a sign', '"'], "2.png": ["a dog"]}


def test_a_text_beside_a_picture_is_a_caption_never_a_table(tmp_path):
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


def test_a_table_whose_files_are_all_missing_names_the_first(tmp_path):
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
