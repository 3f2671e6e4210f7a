"""Data sets of scenes and of captioned folders, and all that goes wrong."""

import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
from data import dataset as data_sets
from data import split as splits


# ---- data sets ----


def test_a_shapes_item_depends_on_seed_split_and_index_alone():
    long, short = data.load("shapes", 32, count=12), data.load("shapes", 32, count=5)
    assert len(long) == 12 and long.captions[:5] == short.captions
    assert torch.equal(long.batch([4, 1]), short.batch(torch.tensor([4, 1])))
    assert data.load("shapes", 32, count=5, seed=1).captions != short.captions
    assert data.load("shapes", 32, "unseen", count=5).captions != short.captions


def test_a_shapes_picture_shows_its_caption():
    for split in data.SPLITS:
        dataset = data.load("shapes", 32, split, count=20)
        batch = dataset.batch(range(20))
        assert batch.shape == (20, 3, 32, 32) and batch.dtype == torch.float32
        assert -1 <= batch.min() < batch.max() <= 1
        for picture, caption in zip(data.to_pictures(batch), dataset.texts(range(20), torch.Generator())):
            assert data.split_of(caption) == split and data.matches(picture, caption)


def picture(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (level, 0, 0)).save(path)


def contents(dataset):
    levels = data.to_pictures(dataset.batch(range(len(dataset))))[:, 0, 0, 0].tolist()
    return dict(zip(levels, dataset.captions))


def test_text_files_beside_the_images_hold_one_caption_a_line(tmp_path):
    picture(tmp_path / "one.png", 10)
    (tmp_path / "one.txt").write_text("\ufeffa cat\n\n  ein Kätzchen \n", encoding="utf-8")
    picture(tmp_path / "deep" / "two.png", 20)
    (tmp_path / "deep" / "two.txt").write_text("a dog")
    assert contents(data.load(str(tmp_path), 8)) == {10: ["a cat", "ein Kätzchen"], 20: ["a dog"]}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_metadata_table_may_name_a_file_more_than_once(tmp_path, kind):
    picture(tmp_path / "one.png", 10)
    picture(tmp_path / "deep" / "two.png", 20)
    rows = [("one.png", "a cat, asleep"), ("deep/two.png", 'a "dog"'), ("one.png", "ein Kätzchen")]
    with open(tmp_path / f"metadata.{kind}", "w", encoding="utf-8", newline="") as file:
        if kind == "csv":
            csv.writer(file).writerows([("text", "file_name"), *((text, name) for name, text in rows)])
        else:
            file.writelines(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows)
    expected = {10: ["a cat, asleep", "ein Kätzchen"], 20: ['a "dog"']}
    assert contents(data.load(str(tmp_path), 8)) == expected


def test_a_sub_folders_name_is_the_caption_of_its_images(tmp_path):
    for i, name in enumerate(("a cat/1.png", "a cat/more/2.png", "a dog/1.png", ".thumbnails/1.png")):
        picture(tmp_path / name, 10 + i)
    assert contents(data.load(str(tmp_path), 8)) == {10: ["a cat"], 11: ["a cat"], 12: ["a dog"]}


def test_a_pictures_name_is_its_path_or_its_number_and_split(tmp_path):
    for i in range(3):
        picture(tmp_path / "red" / f"{i}.png", i)
    dataset = data.load(str(tmp_path), 8)
    levels = data.to_pictures(dataset.batch(range(3)))[:, 0, 0, 0].tolist()
    assert [dataset.name(i) for i in range(3)] == [str(tmp_path / "red" / f"{level}.png") for level in levels]
    assert data.load("shapes", 32, "novel", count=5).name(4) == "scene 4 of novel"


@pytest.mark.parametrize("count, total", [(None, 5), (4, 4)])
def test_progress_is_called_for_every_picture_of_a_folder(tmp_path, capsys, count, total):
    for i in range(5):
        picture(tmp_path / "red" / f"{i}.png", i)
    (tmp_path / "red" / "2.png").write_text("not an image")
    calls = []
    data.load(str(tmp_path), 8, count=count, progress=lambda *call: calls.append(call))
    assert calls == [(done, total) for done in range(1, total + 1)]
    assert capsys.readouterr() == ("", "")


def test_the_held_out_split_of_a_source_can_be_loaded(tmp_path):
    picture(tmp_path / "red" / "1.png")
    assert data.held_out_split("shapes") == "unseen" and data.held_out_split(tmp_path) == "held-out"
    for source in ("shapes", str(tmp_path), tmp_path):
        assert len(data.load(source, 8, data.held_out_split(source), count=1)) == 1


def test_texts_picks_among_an_images_captions_by_the_generator(tmp_path):
    picture(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("a\nb\nc")
    dataset = data.load(str(tmp_path), 8)
    texts = dataset.texts([0] * 300, torch.Generator().manual_seed(0))
    assert texts == dataset.texts([0] * 300, torch.Generator().manual_seed(0))
    assert all(60 < texts.count(text) < 140 for text in "abc")


def names(dataset):
    return [dataset.name(i) for i in range(len(dataset))]


def test_a_twentieth_is_held_out_and_stays_as_folders_grow(tmp_path):
    for i in range(120):
        picture(tmp_path / f"red {i % 2}" / f"{i}.png", i)
    train, held_out = data.load(str(tmp_path), 4), data.load(str(tmp_path), 4, "held-out")
    assert not set(names(train)) & set(names(held_out)) and len(train) + len(held_out) == 120
    assert 1 <= len(held_out) <= 14
    for i in range(120, 160):
        picture(tmp_path / "blue" / f"{i}.png", i)
    assert set(names(held_out)) <= set(names(data.load(str(tmp_path), 4, "held-out")))
    few = data.load(str(tmp_path), 4, count=7)
    assert names(few) == names(data.load(str(tmp_path), 4))[:7]


def test_which_pictures_are_held_out_by_their_names_never_changes(tmp_path):
    for i in range(40):
        picture(tmp_path / f"{i}.png", i)
        (tmp_path / f"{i}.txt").write_text(f"number {i}")
    assert list(contents(data.load(tmp_path, 4, "held-out"))) == [33, 6]
    assert list(contents(data.load(tmp_path, 4)))[:5] == [0, 8, 38, 18, 34]


def test_only_pictures_that_a_folder_calls_held_out_are_held_out(tmp_path):
    for i in range(30):
        picture(tmp_path / ("test" if i % 3 == 0 else "train") / "ab"[i % 2] / f"{i}.png", i)
    train, held_out = data.load(tmp_path, 4), data.load(tmp_path, 4, "held-out")
    assert sorted(contents(held_out)) == list(range(0, 30, 3)) and len(train) == 20
    assert contents(held_out)[9] == ["b"] and not set(contents(train)) & set(contents(held_out))


def test_a_few_pictures_of_a_folder_are_of_all_kinds(tmp_path):
    for i in range(60):
        picture(tmp_path / "train" / f"kind {i // 20}" / f"{i}.png", i)
    picture(tmp_path / "test" / "kind 0" / "60.png", 60)
    assert len({text for texts in data.load(tmp_path, 4, count=12).captions for text in texts}) == 3


def test_a_folder_below_20_images_is_in_both_splits(tmp_path):
    for i in range(19):
        picture(tmp_path / f"red {i % 2}" / f"{i}.png")
    assert len(data.load(str(tmp_path), 4)) == len(data.load(str(tmp_path), 4, "held-out")) == 19
    picture(tmp_path / "red 1" / "19.png")
    train, held_out = data.load(str(tmp_path), 4), data.load(str(tmp_path), 4, "held-out")
    assert sorted(names(train) + names(held_out)) == sorted(str(tmp_path / f"red {i % 2}" / f"{i}.png") for i in range(20))
    assert 1 <= len(held_out) < 5


def test_at_least_one_image_is_held_out(tmp_path, monkeypatch):
    for i in range(20):
        picture(tmp_path / f"red {i % 2}" / f"{i}.png")
    monkeypatch.setattr(splits, "fraction", lambda name: 0.5)
    assert len(data.load(str(tmp_path), 4, "held-out")) == 1 and len(data.load(str(tmp_path), 4)) == 19


def named(skipped, folder):
    """Tell which image each line is about, relative to the folder; its own path may hold spaces."""
    ends = (" cannot be read as an image", ": no caption", ": missing")
    paths = [line.split(next(end for end in ends if end in line))[0] for line in skipped]
    return sorted(Path(path).relative_to(folder).as_posix() for path in paths)


def broken_folder(tmp_path):
    for i in range(4):
        picture(tmp_path / "red" / f"{i}.png", 10 * i)
    whole = (tmp_path / "red" / "1.png").read_bytes()
    (tmp_path / "red" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "red" / "2.png").write_text("not an image")
    picture(tmp_path / "loose.png")


def test_unreadable_and_uncaptioned_images_are_skipped_by_name(tmp_path):
    broken_folder(tmp_path)
    dataset = data.load(str(tmp_path), 8)
    assert len(dataset) == 2 and set(contents(dataset)) == {0, 30}
    assert named(dataset.skipped, tmp_path) == ["loose.png", "red/1.png", "red/2.png"]
    assert all("\n" not in line for line in dataset.skipped)


def test_every_image_is_either_used_or_skipped_never_both(tmp_path):
    broken_folder(tmp_path)
    dataset = data.load(str(tmp_path), 8)
    used = {Path(name).relative_to(tmp_path).as_posix() for name in names(dataset)}
    assert sorted([*used, *named(dataset.skipped, tmp_path)]) == data.image_files(tmp_path)


def test_a_broken_picture_is_skipped_in_its_own_split_alone(tmp_path):
    for i in range(6):
        picture(tmp_path / ("train" if i < 3 else "test") / "ab"[i % 2] / f"{i}.png", i)
    (tmp_path / "train" / "a" / "0.png").write_text("not an image")
    assert named(data.load(tmp_path, 8).skipped, tmp_path) == ["train/a/0.png"]
    assert data.load(tmp_path, 8, "held-out").skipped == []


def test_files_that_are_no_pictures_are_not_reported_as_skipped(tmp_path):
    broken_folder(tmp_path)
    (tmp_path / "red" / "readme.md").write_text("about")
    assert named(data.load(tmp_path, 8).skipped, tmp_path) == ["loose.png", "red/1.png", "red/2.png"]


def test_a_data_set_says_what_was_recognised(tmp_path):
    broken_folder(tmp_path)
    about = data.load(tmp_path, 8).about
    assert about == data.read_layout(tmp_path).line and "4 images" in about
    assert data.load("shapes", 8, count=1).about == ""


def test_a_folders_layout_and_names_of_classes_can_be_said(tmp_path):
    for i in range(3):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", i)
        (tmp_path / "ab"[i % 2] / f"{i}.txt").write_text(f"number {i}")
    assert contents(data.load(tmp_path, 8)) == {i: [f"number {i}"] for i in range(3)}
    assert contents(data.load(tmp_path, 8, layout="classes")) == {0: ["a"], 1: ["b"], 2: ["a"]}
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_sets, "read", lambda *words: asked.append(words) or data.read_layout(words[0]))
        data.load(tmp_path, 8, layout="text", class_names=("x", "y"))
    assert asked == [(tmp_path, "text", ("x", "y"))]


def test_a_first_picture_takes_no_more_memory_in_larger_sets():
    def peak(count):
        pixels = np.zeros((count, 1, 1, 3), np.uint8)
        dataset = data.Dataset([["a dot"]] * count, lambda indices: pixels[indices], str)
        dataset.batch([1])  # whatever a first call sets up
        tracemalloc.start()
        dataset.batch([0])
        allocated = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return allocated

    assert peak(300_000) < 100_000  # bytes; a list of all indices takes 2,400,000


def test_scenes_too_many_to_keep_are_drawn_anew_and_are_the_same(monkeypatch):
    kept = data.load("shapes", 8, count=3)
    monkeypatch.setattr(data_sets, "CACHE_BYTES", 3 * 8 * 8 * 3 - 1)
    drawn = data.load("shapes", 8, count=3)
    for _ in range(2):
        assert torch.equal(kept.batch([2, 0]), drawn.batch([2, 0]))


@pytest.mark.parametrize("write", ["./{}", "deep/../{}", "{folder}/{}"])
def test_a_table_may_write_a_path_in_other_ways(tmp_path, write):
    picture(tmp_path / "one.png", 10)
    name = write.format("one.png", folder=tmp_path)
    rows = [("file_name", "text"), (name, "a cat"), ("one.png", "ein Kätzchen")]
    with open(tmp_path / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    dataset = data.load(str(tmp_path), 8)
    assert contents(dataset) == {10: ["a cat", "ein Kätzchen"]} and dataset.skipped == []


def test_a_table_may_name_images_outside_its_folder(tmp_path):
    picture(tmp_path / "elsewhere" / "two.png", 20)
    picture(tmp_path / "here" / "one.png", 10)
    (tmp_path / "here" / "metadata.csv").write_text("file_name,text\n../elsewhere/two.png,a dog\n")
    dataset = data.load(str(tmp_path / "here"), 8)
    assert contents(dataset) == {20: ["a dog"]} and named(dataset.skipped, tmp_path) == ["here/one.png"]


def test_a_file_name_that_is_no_text_is_skipped_like_any_other(tmp_path):
    picture(tmp_path / "one.png", 10)
    rows = [{"file_name": name, "text": "a cat"} for name in ("one.png", "\udce4.png")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = data.load(str(tmp_path), 8)
    assert contents(dataset) == {10: ["a cat"]} and len(dataset.skipped) == 1


# ---- what goes wrong ----


def refused(message, *arguments, **options):
    with pytest.raises(data.InputError, match=message) as error:
        data.load(*arguments, **options)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)


def test_a_missing_folder_is_named(tmp_path):
    refused("nowhere is not a folder", str(tmp_path / "nowhere"), 32)


def test_a_folder_of_an_impossible_name_is_no_folder():
    refused("is not a folder", "x" * 300, 32)
    refused("is not a folder", "x\0x", 32)


def test_what_may_not_be_read_is_named_with_the_reason(tmp_path, monkeypatch):
    def forbid(*_, **__):
        raise PermissionError(13, "Permission denied")

    picture(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("a cat")
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", forbid)
        refused(r"one.txt cannot be read \(Permission denied\)", str(tmp_path), 32)
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", forbid)
        refused("cannot be listed .*Permission denied", str(tmp_path), 32)
    (tmp_path / "metadata.csv").write_text("file_name,text\none.png,a cat\n")
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", forbid)
        refused(r"metadata.csv cannot be read \(Permission denied\)", str(tmp_path), 32)


def test_the_shapes_world_must_be_told_how_many_scenes():
    refused("say how many scenes", "shapes", 32)


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("a cat")
    refused("holds no images", str(tmp_path), 32)


def test_images_without_captions_are_refused_with_the_three_remedies(tmp_path):
    picture(tmp_path / "one.png")
    refused("without captions.*NAME.txt.*metadata.csv.*sub-folder", str(tmp_path), 32)
    (tmp_path / "one.txt").write_text(" \n")
    refused("without captions", str(tmp_path), 32)


@pytest.mark.parametrize("name, text, message", [
    ("metadata.csv", "file,words\none.png,a cat\n", "lacks file_name or text"),
    ("metadata.csv", "file_name,text\none.png\n", "lacks file_name or text"),
    ("metadata.csv", "file_name,text\n", "without captions"),
    ("metadata.jsonl", '{"file_name": "one.png"}\n', "lacks file_name or text"),
    ("metadata.jsonl", '["one.png", "a cat"]\n', "lacks file_name or text"),
    ("metadata.jsonl", '{"file_name": "one.png", "text": 3}\n', "lacks file_name or text"),
    ("metadata.jsonl", "{one.png\n", "metadata.jsonl cannot be read"),
])
def test_a_table_without_its_columns_is_named(tmp_path, name, text, message):
    picture(tmp_path / "one.png")
    (tmp_path / name).write_text(text)
    refused(message, str(tmp_path), 32)


def test_a_folder_of_nothing_but_broken_images_is_refused_by_the_first(tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "1.png").write_bytes(b"\x89PNG\r\n")
    refused("no image of the split train can be read; the first: .*1.png cannot be read as an image", str(tmp_path), 32)


def test_unknown_splits_and_senseless_numbers_are_refused(tmp_path):
    picture(tmp_path / "red" / "1.png")
    refused("no split 'held-out'; choose one of train, unseen, novel", "shapes", 32, "held-out", count=1)
    refused("no split 'novel'; choose train or held-out", str(tmp_path), 32, "novel")
    refused("at least 1", "shapes", 0)
    refused("at least 1", "shapes", 32, count=0)
    with pytest.raises(data.InputError, match="'a dog' is not a caption"):
        data.split_of("a dog")


def test_a_scene_is_drawn_when_first_asked_for_and_only_then(monkeypatch):
    world, drawn = data.load("shapes", 8, count=4), []
    monkeypatch.setattr(data_sets, "render", lambda *words: drawn.append(words) or data.render(*words))
    assert torch.equal(world.batch([0, 1, 2, 0]), world.batch([0, 1, 2, 0]))
    assert len(drawn) == 3
