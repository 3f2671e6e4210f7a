"""`python -m data DIR`: what it says about a folder before anything is trained."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

import data
from data import __main__ as look
from conftest import ROOT


def said(*words) -> dict[str, str]:
    """Run it, and return its lines by their first word."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        look.main([*map(str, words)])
    lines = [line for line in printed.getvalue().splitlines() if line[0] != " "]
    return dict(line.split(maxsplit=1) for line in lines)


@pytest.fixture
def pets(tmp_path):
    """Class folders: 30 cats of 8 x 8, 30 dogs of 20 x 10, one dog that looks like a cat, one that cannot be read, a stray file."""
    for i in range(30):
        for name, size in (("cat", (8, 8)), ("dog", (20, 10))):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", size, (8 * i, 0, 200 * (name == "cat"))).save(tmp_path / name / f"{i}.png")
    Image.new("RGB", (8, 8), (0, 0, 200)).save(tmp_path / "dog" / "cat.png")
    (tmp_path / "dog" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "readme.md").write_text("pets")
    return tmp_path


def test_it_says_what_was_recognised_and_what_is_left_out(pets, tmp_path):
    lines = said(pets, "--out", tmp_path / "looks")
    assert lines["recognised"] == "class folders: 62 images, 62 captions; left out: 1 other suffix"
    counts = [int(words.split()[0]) for words in lines["split"].split(", ")[:2]]
    assert sum(counts) == 61 and lines["split"].endswith("a twentieth by a hash of the names")
    assert lines["captions"] == ("2 different captions, of 1 word; 2 images look like others that "
                                 "have other captions")
    assert lines["sizes"] == "short side 8 to 10, half up to 8; most frequent 8 x 8, 31 times"
    assert lines["skipped"] == "1"
    with Image.open(tmp_path / "looks" / "sheet.png") as sheet:
        assert sheet.width > 8 * 128


def test_it_counts_captions_that_are_too_long_for_a_model(tmp_path):
    for i, words in enumerate((3, 200)):
        Image.new("RGB", (8, 8), (100 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(" ".join(f"word{i}{k}" for k in range(words)))
    assert "so train.py refuses 1 captions, or cuts them with --truncate" in said(tmp_path, "--out", tmp_path / "looks")["tokens"]


def test_it_tells_splits_from_one_set_used_for_both(tmp_path):
    for i in range(6):
        for folder in ("one", "two/train", "two/val"):
            path = tmp_path / folder / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * i, len(folder), 0)).save(path)
    line = "6 images to train on, 6 held out"
    assert said(tmp_path / "one", "--out", tmp_path / "looks")["split"] == f"{line} (the same, as they are so few)"
    assert said(tmp_path / "two", "--out", tmp_path / "looks")["split"] == f"{line}, as the folder says"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_name_that_is_no_text_is_written_everywhere(tmp_path):
    for name in (b"caf\xe9", b"dog"):
        (tmp_path / os.fsdecode(name)).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / os.fsdecode(name) / "1.png")
        (tmp_path / os.fsdecode(name) / "broken.png").write_bytes(b"no picture")
    result = subprocess.run([sys.executable, "-m", "data", str(tmp_path), "--out", str(tmp_path / "looks")], cwd=ROOT,
                            capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert result.returncode == 0 and "caf\\udce9/broken.png" in result.stdout, result.stderr
    index = (tmp_path / "looks" / "index.jsonl").read_text(encoding="utf-8").splitlines()
    assert {os.path.basename(os.path.dirname(json.loads(line)["file"])) for line in index} == {"caf\udce9", "dog"}


def test_it_is_a_command_and_refuses_in_one_line(tmp_path):
    result = subprocess.run([sys.executable, "-m", "data", str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "is not a folder" in result.stderr
    assert result.stderr.startswith("python -m data: ")


@pytest.mark.parametrize("words, message", [(["--layout", "tarr"], "no layout 'tarr'"), (["--image-size", 50], "cannot be halved")])
def test_a_layout_or_a_size_that_cannot_be_is_refused(pets, words, message):
    with pytest.raises(ValueError, match=message):
        said(pets, *words)


def test_images_that_look_the_same_are_right_for_the_captions_of_both(pets):
    images = data.load(pets, 8)
    names = [images.name(i).removeprefix(f"{pets}/") for i in range(len(images))]
    twins = [names.index("cat/0.png"), names.index("dog/cat.png"), names.index("dog/1.png")]
    assert images.right(twins, ["cat", "dog"]).tolist() == [[True, True], [True, True], [False, True]]
