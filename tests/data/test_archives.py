"""Pictures packed many to a file: tar shards, Parquet."""

import io
import json
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from data.layouts import read
from small_folders import captions, image_bytes, levels, make, refusal, splits


# ---- tar shards ----


def make_tar(path, members):
    with tarfile.open(path, "w") as shard:
        for name, letters in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(letters)
            shard.addfile(info, io.BytesIO(letters))


def test_tar_shards_give_captions_of_txt_json_and_cls(tmp_path):
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
    assert found.line == "set-train-0000.tar, set-val-0000.tar: 3 images, 4 captions; left out: 1 no caption"


def test_a_shards_classes_without_names_are_refused_with_their_number(tmp_path):
    make_tar(tmp_path / "0.tar", {"1.png": b"", "1.cls": b"0", "2.png": b"", "2.cls": b"6\n"})
    message = "DIR/0.tar numbers its classes from 0 to 6; give 7 names, in this order, by --class-names"
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


def test_img2datasets_table_of_addresses_is_passed_over(tmp_path, monkeypatch):
    make_tar(tmp_path / "00000.tar", {"0.jpg": image_bytes(3, "JPEG"), "0.txt": b"a cat"})
    make_parquet(tmp_path / "00000.parquet", {"url": ["https://"], "caption": ["a cat"], "key": ["0"]})
    assert captions(read(tmp_path)) == {"00000.tar: 0.jpg": ["a cat"]}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert captions(read(tmp_path)) == {"00000.tar: 0.jpg": ["a cat"]}


def test_workers_that_want_one_group_of_parquet_read_it_once(tmp_path, monkeypatch):
    make_parquet(tmp_path / "0.parquet", {"image": cells(*range(8)), "text": [str(i) for i in range(8)]}, group=4)
    from pyarrow import parquet

    reads, reader = [], parquet.ParquetFile.read_row_group
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", lambda self, group, **options: (
        reads.append(group), time.sleep(0.05), reader(self, group, **options))[2])
    pictures = read(tmp_path).pictures
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda picture: picture.open(), pictures))) == 8
    assert sorted(reads) == [0, 1]


def test_without_pyarrow_a_parquet_file_is_refused_with_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "0.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(tmp_path) == "DIR/0.parquet is a Parquet file, which pyarrow reads; install it: pip install '.[parquet]'"
