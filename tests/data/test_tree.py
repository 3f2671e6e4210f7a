"""What a folder holds: links, names, suffixes."""

import os
import sys

import pytest
from PIL import Image

from data.layouts import read
from small_folders import captions, make, refusal


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
    assert refusal(tmp_path) == "DIR cannot be listed (Permission denied); allow reading it, or move it elsewhere"


def test_a_folder_inside_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    make(tmp_path, "cat/1.png", "lost/1.png")
    scandir = os.scandir

    def forbid_one(folder):
        if str(folder).endswith("lost"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbid_one)
    assert refusal(tmp_path) == "DIR/lost cannot be listed (Permission denied); allow reading it, or move it elsewhere"


def test_a_link_to_itself_is_a_broken_one(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "self").symlink_to("self")
    assert read(tmp_path).left_out == [("broken link", "self")]
