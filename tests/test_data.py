"""The shapes world, its judge, captioned folders, and all that goes wrong."""

import csv
import json
import random
import tracemalloc
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import data
from data import dataset as data_sets
from data import split as splits


def scenes(split, count, seed=0):
    for i in range(count):
        rng = random.Random(f"{seed} {split} {i}")
        yield data.random_scene(rng, split), rng


def all_captions():
    singles = product(data.COLOURS, data.SHAPES, ("small", "large"), data.BACKGROUNDS)
    for colour, shape, size, background in singles:
        yield data.Scene((data.Object(colour, shape, size),), background).caption
    for first, shape, second, other in product(data.COLOURS, data.SHAPES, data.COLOURS, data.SHAPES):
        if first != second:
            for background, relation in product(data.BACKGROUNDS, data.RELATIONS):
                objects = data.Object(first, shape), data.Object(second, other)
                yield data.Scene(objects, background, relation).caption


def stage(*parts, background="black", size=32):
    """Draw (colour, shape, x, y, radius) parts wherever they are told to stand."""
    parts = [(shape, (x, y, radius), data.COLOURS[colour]) for colour, shape, x, y, radius in parts]
    return data.paint(parts, data.BACKGROUNDS[background], size)


# ---- captions and splits ----


def test_a_caption_says_an_before_a_vowel_and_a_before_a_consonant():
    two = data.Scene((data.Object("red", "circle"), data.Object("orange", "star")), "gray", "above")
    assert two.caption == "a red circle above an orange star on a gray background"
    one = data.Scene((data.Object("orange", "ring", "small"),), "black")
    assert one.caption == "a small orange ring on a black background"


def test_every_caption_parses_back_to_its_scene():
    captions = list(all_captions())
    assert len(captions) == 8 * 8 * 2 * 3 + 56 * 64 * 4 * 3
    assert all(data.parse(caption).caption == caption for caption in captions[::23])


@pytest.mark.parametrize("caption", [
    "", "a dog", "a red circle on a black background", "a small red circle",
    "a small mauve circle on a black background",
    "a small red circle above a blue star on a black background",
    "a red circle above a red star on a black background",
    "a red circle above a orange star on a black background",
    "a red circle above an orange star on a black background, really",
])
def test_what_is_no_caption_of_the_world_does_not_parse(caption):
    assert data.parse(caption) is None


def test_parsing_forgives_case_and_spacing():
    scene = data.parse("  A small RED circle\ton a black  background\n")
    assert scene.caption == "a small red circle on a black background"


def test_the_novel_pairs_are_the_eight_of_the_design():
    assert data.NOVEL == {("red", "circle"), ("green", "heart"), ("blue", "diamond"), ("yellow", "cross"),
                          ("purple", "ring"), ("orange", "star"), ("cyan", "triangle"), ("pink", "square")}


def test_a_novel_pair_is_always_in_novel_and_never_in_train_or_unseen():
    for split, novel in (("train", False), ("unseen", False), ("novel", True)):
        for scene, _ in scenes(split, 200):
            assert any((o.colour, o.shape) in data.NOVEL for o in scene.objects) == novel
            assert data.split_of(scene.caption) == split


def test_the_split_of_a_caption_never_changes():
    known = {
        "a small red circle on a black background": "novel",
        "a red square above an orange star on a gray background": "novel",
        "a green circle above a blue heart on a white background": "train",
        "a blue heart below a green circle on a white background": "train",
        "a blue cross left of a purple cross on a white background": "unseen",
        "a purple cross right of a blue cross on a white background": "unseen",
    }
    assert {caption: data.split_of(caption) for caption in known} == known
    singles = list(islice(all_captions(), 0, 384, 8))
    splits = "".join(data.split_of(caption)[0] for caption in singles)
    assert splits == "nutttttutttttttttnttutnutttnttuttttuttnttttntttu"


def test_a_tenth_of_the_captions_without_novel_pairs_is_unseen():
    captions = list(all_captions())
    for some in (captions[:384], captions[384::7]):
        splits = [data.split_of(caption) for caption in some]
        assert 0.08 < splits.count("unseen") / (splits.count("unseen") + splits.count("train")) < 0.12


def test_both_wordings_of_a_picture_share_a_split():
    for scene, _ in scenes("unseen", 60):
        if scene.relation:
            mirror = data.Scene(scene.objects[::-1], scene.background, data.RELATIONS[scene.relation])
            assert mirror.canonical == scene.canonical and data.split_of(mirror.caption) == "unseen"


def test_random_scenes_are_half_single_and_cover_every_word():
    drawn = [scene for scene, _ in scenes("train", 1500)]
    assert abs(sum(scene.relation is None for scene in drawn) / 1500 - 0.5) < 0.05
    for place, values in {"background": data.BACKGROUNDS, "relation": data.RELATIONS}.items():
        counts = [sum(getattr(scene, place) == value for scene in drawn) for value in values]
        assert min(counts) > 0.75 * max(counts)
    for field, values in {"colour": data.COLOURS, "shape": data.SHAPES}.items():
        found = [getattr(thing, field) for scene in drawn for thing in scene.objects]
        counts = [found.count(value) for value in values]
        assert min(counts) > 0.75 * max(counts)


# ---- drawing ----


def test_the_same_seed_draws_the_same_scene_and_picture():
    (scene, rng), (again, rng_again) = next(scenes("train", 1)), next(scenes("train", 1))
    assert scene == again
    assert np.array_equal(data.render(scene, rng), data.render(again, rng_again))
    assert not np.array_equal(data.render(scene, rng), data.render(scene, rng))


def test_numpy_and_python_generators_both_do():
    rng = np.random.default_rng(0)
    assert data.render(data.random_scene(rng, "train"), rng, 48).shape == (48, 48, 3)


def test_no_object_touches_the_edge():
    for split in data.SPLITS:
        for scene, rng in scenes(split, 100):
            image, background = data.render(scene, rng), data.BACKGROUNDS[scene.background]
            for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
                assert (edge == background).all(), scene.caption


def test_two_objects_never_touch_and_stand_as_the_relation_says():
    signs = {"above": (1, -1), "below": (1, 1), "left of": (0, -1), "right of": (0, 1)}
    seen = set()
    for scene, rng in scenes("train", 500):
        if scene.relation:
            (x, y, radius), (u, v, other) = data.place(scene, rng)
            assert np.hypot(x - u, y - v) > radius + other
            axis, sign = signs[scene.relation]
            first, second = ((x, u), (y, v))[axis]
            assert sign * (first - second) >= 0.36 - 1e-9, scene.caption
            near, far = sorted((first, second))
            assert 0.22 <= near <= 0.32 and 0.68 <= far <= 0.78
            across = ((y, v), (x, u))[axis]
            assert all(0.35 <= a <= 0.65 for a in across) and abs(across[0] - across[1]) <= 0.1
            assert all(0.19 * 0.85 <= r <= 0.19 * 1.1 for r in (radius, other))
            seen.add(scene.relation)
    assert seen == set(data.RELATIONS)


def test_a_lone_object_has_the_radius_of_its_size_and_roams_the_image():
    for size, radius in (("small", 0.13), ("large", 0.30)):
        scene, rng = data.Scene((data.Object("red", "star", size),), "white"), random.Random(0)
        places = np.array([data.place(scene, rng) for _ in range(300)])[:, 0]
        assert (abs(places[:, 2] / radius - 1) <= 0.1 + 1e-9).all() and np.ptp(places[:, 2]) > 0.15 * radius
        nearest = 1.25 * radius + 0.05
        assert (places[:, :2].min(0) < nearest).all() and (places[:, :2].max(0) > 1 - nearest).all()


@pytest.mark.parametrize("shape", data.SHAPES)
def test_a_shape_fills_its_circle_and_stays_within(shape):
    image = stage(("red", shape, 0.5, 0.5, 0.4), size=128).astype(int)
    ys, xs = np.nonzero(abs(image - data.BACKGROUNDS["black"]).sum(-1))
    distances = np.hypot(xs + 0.5 - 64, ys + 0.5 - 64) / (0.4 * 128)
    assert 0.97 < distances.max() < 1.03


def test_shapes_have_the_proportions_of_the_design():
    def spans(shape):
        return np.ptp(np.array(data.OUTLINES[shape]), axis=0)

    wide, high = spans("diamond")
    assert wide / high == pytest.approx(0.75)
    radii = sorted({round(np.hypot(*point), 6) for point in data.OUTLINES["star"]})
    assert radii == [0.42, 1.0] and len(data.OUTLINES["star"]) == 10
    arms = sorted({round(abs(x), 6) for x, _ in data.OUTLINES["cross"]})
    assert arms[0] / arms[1] == pytest.approx(1 / 3, abs=1e-5)
    ring = stage(("red", "ring", 0.5, 0.5, 0.4), size=128)[64]  # the middle row
    hole = (ring[:, 0] < 120)[64 - 51 : 64 + 51].sum()
    assert hole / 102.4 == pytest.approx(0.5, abs=0.03)


# ---- the judge ----


@pytest.mark.parametrize("split", data.SPLITS)
def test_the_judge_reads_at_least_99_percent_of_true_scenes(split):
    agreed = sum(data.matches(data.render(scene, rng), scene.caption) for scene, rng in scenes(split, 200))
    assert agreed >= 198


def test_the_judge_reads_larger_pictures():
    for scene, rng in scenes("train", 40, seed=1):
        assert data.read_scene(data.render(scene, rng, 64)) == scene.canonical
    for scene, rng in scenes("train", 10, seed=2):
        assert data.read_scene(data.render(scene, rng, 48)) == scene.canonical


def test_the_judge_reads_through_noise_and_slight_blur():
    agreed, noise = 0, np.random.default_rng(0)
    for scene, rng in scenes("train", 100, seed=3):
        image = Image.fromarray(data.render(scene, rng)).filter(ImageFilter.GaussianBlur(0.5))
        image = np.asarray(image) + noise.normal(0, 6, (32, 32, 3))
        agreed += data.matches(image.round().clip(0, 255).astype(np.uint8), scene.caption)
    assert agreed >= 98


def test_a_caption_with_any_one_word_changed_does_not_match():
    directions = ("above", "below", "left", "right")
    vocabulary = data.COLOURS, data.SHAPES, data.BACKGROUNDS, ("small", "large"), directions
    for scene, rng in scenes("train", 25, seed=4):
        image = data.render(scene, rng)
        for word in scene.caption.replace("left of", "left").replace("right of", "right").split():
            for words in map(tuple, vocabulary):
                if word in words:
                    other = words[(words.index(word) + 1) % len(words)]
                    changed = scene.caption.replace(f" {word} ", f" {other} ", 1)
                    for wrong, right in (("left b", "left of b"), ("a orange", "an orange")):
                        changed = changed.replace(wrong, right)
                    assert changed != scene.caption and not data.matches(image, changed), changed


def test_a_picture_matches_both_of_its_wordings_and_no_other_relation():
    image = stage(("red", "square", 0.5, 0.27, 0.19), ("blue", "star", 0.5, 0.73, 0.19))
    assert data.matches(image, "a red square above a blue star on a black background")
    assert data.matches(image, "a blue star below a red square on a black background")
    assert not data.matches(image, "a blue star above a red square on a black background")
    assert not data.matches(image, "a red square left of a blue star on a black background")


def test_the_judge_reads_nothing_from_a_picture_without_objects():
    assert data.read_scene(np.full((32, 32, 3), 128, np.uint8)) is None
    assert data.read_scene(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)) is None


def test_the_judge_rejects_a_third_object_of_any_colour():
    for colour in data.COLOURS:
        pair = [("red", "square", 0.3, 0.27, 0.19), ("blue", "star", 0.3, 0.73, 0.19)]
        assert data.read_scene(stage(*pair)) is not None
        assert data.read_scene(stage(*pair, (colour, "circle", 0.75, 0.5, 0.12))) is None, colour


def test_the_judge_rejects_half_a_shape():
    for shape in data.SHAPES:
        for rows in (slice(16, None), slice(None, 16)):
            image = stage(("red", shape, 0.5, 0.5, 0.3)).copy()
            assert data.read_scene(image).objects[0].shape == shape
            image[rows] = data.BACKGROUNDS["black"]
            assert data.read_scene(image) is None or data.read_scene(image).objects[0].shape != shape


def test_the_judge_rejects_a_ragged_shape():
    for shape, seed in product(data.SHAPES, range(3)):
        image = stage(("green", shape, 0.5, 0.5, 0.3), background="white").copy()
        image[np.random.default_rng(seed).random((32, 32)) < 0.3] = data.BACKGROUNDS["white"]
        assert data.read_scene(image) is None


def test_the_judge_rejects_an_outline_that_is_there_but_pale_in_places():
    accepted = 0
    for shape in data.SHAPES:
        for pair in ([("red", shape, 0.5, 0.5, 0.3)], [("blue", shape, 0.3, 0.27, 0.19), ("green", "ring", 0.3, 0.73, 0.19)]):
            image = stage(*pair).astype(int)
            image[:, ::4] = (image[:, ::4] + data.BACKGROUNDS["black"]) // 2
            accepted += data.read_scene(image.astype(np.uint8)) is not None
    assert accepted <= 3  # of 16


def test_the_judge_rejects_merged_shapes():
    for shape, other in product(data.SHAPES[:4], data.SHAPES[4:]):
        same = stage(("red", shape, 0.38, 0.5, 0.19), ("red", other, 0.62, 0.5, 0.19))
        assert data.read_scene(same) is None
        over = stage(("red", shape, 0.42, 0.5, 0.19), ("blue", other, 0.58, 0.5, 0.19))
        assert data.read_scene(over) is None


def test_the_judge_rejects_foreign_colours_sizes_and_askew_pairs():
    brown = data.paint([("circle", (0.5, 0.5, 0.3), (120, 70, 20))], data.BACKGROUNDS["white"], 32)
    assert data.read_scene(brown) is None
    assert data.read_scene(stage(("red", "circle", 0.5, 0.5, 0.20))) is None
    assert data.read_scene(stage(("red", "circle", 0.3, 0.3, 0.19), ("blue", "star", 0.7, 0.7, 0.19))) is None
    assert data.read_scene(stage(("red", "circle", 0.5, 0.27, 0.11), ("blue", "star", 0.5, 0.73, 0.19))) is None


# ---- overlap ----


def wrong_shapes(scene):
    """Yield the captions that name another shape for the first object."""
    for shape in data.SHAPES:
        if shape != scene.objects[0].shape:
            first = replace(scene.objects[0], shape=shape)
            yield replace(scene, objects=(first, *scene.objects[1:])).caption


@pytest.mark.parametrize("split", data.SPLITS)
def test_overlap_of_true_scenes_is_at_least_95_percent(split):
    true = [data.overlap(data.render(scene, rng), scene.caption) for scene, rng in scenes(split, 100)]
    assert np.mean(true) >= 0.95 and min(true) >= 0.9  # measured: 0.994, 0.963


def test_overlap_of_larger_true_scenes_is_at_least_95_percent():
    true = [data.overlap(data.render(scene, rng, 64), scene.caption) for scene, rng in scenes("train", 40)]
    assert np.mean(true) >= 0.95


def test_overlap_is_lower_for_any_wrong_shape():
    for scene, rng in scenes("train", 30, seed=6):
        image = data.render(scene, rng)
        right = data.overlap(image, scene.caption)
        assert all(data.overlap(image, caption) < right for caption in wrong_shapes(scene)), scene.caption


@pytest.mark.parametrize("background", data.BACKGROUNDS)
def test_overlap_of_a_blank_picture_is_zero(background):
    blank = np.full((32, 32, 3), data.BACKGROUNDS[background], np.uint8)
    for colour in data.COLOURS:
        assert data.overlap(blank, data.Scene((data.Object(colour, "cross", "small"),), background).caption) == 0


def test_overlap_of_noise_is_near_zero():
    rng = np.random.default_rng(0)
    noise = [data.overlap(rng.integers(0, 256, (32, 32, 3), np.uint8), scene.caption) for scene, _ in scenes("train", 100)]
    assert np.mean(noise) < 0.15 and max(noise) < 0.3


def test_overlap_is_zero_for_an_object_of_another_colour():
    for colour, other in product(data.COLOURS, data.COLOURS):
        for background in data.BACKGROUNDS:
            image = stage((colour, "star", 0.5, 0.5, 0.3), background=background)
            found = data.overlap(image, data.Scene((data.Object(other, "star", "large"),), background).caption)
            assert found > 0.95 if colour == other else found == 0


def test_overlap_is_the_mean_over_the_objects_that_the_caption_names():
    caption = "a red square above a blue star on a black background"
    square, star = ("red", "square", 0.5, 0.27, 0.19), ("blue", "star", 0.5, 0.73, 0.19)
    alone = data.overlap(stage(square), caption), data.overlap(stage(star), caption)
    assert all(0.45 < part <= 0.5 for part in alone)
    assert data.overlap(stage(square, star), caption) == pytest.approx(sum(alone))


def test_overlap_ignores_place_and_size_and_falls_with_each_missing_row():
    caption = "a large red square on a black background"
    for place in ((0.5, 0.5, 0.3), (0.4, 0.6, 0.2), (0.25, 0.25, 0.2)):
        assert data.overlap(stage(("red", "square", *place)), caption) > 0.95
    cut = []
    for rows in (0, 3, 6, 9):
        image = stage(("red", "square", 0.5, 0.5, 0.4)).copy()
        image[7 : 7 + rows] = data.BACKGROUNDS["black"]
        cut.append(data.overlap(image, caption))
    assert cut == sorted(cut, reverse=True) and 0.5 < cut[-1] < cut[-2] - 0.03


@pytest.mark.parametrize("size", [1, 2, 16, 32, 50])
def test_overlap_of_any_picture_lies_between_zero_and_one(size):
    rng = np.random.default_rng(size)
    flat = [np.full((size, size, 3), colour, np.uint8) for colour in (*data.COLOURS.values(), 0, 255)]
    noise = [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(10)]
    for image, (scene, _) in product(flat + noise, scenes("train", 10)):
        found = data.overlap(image, scene.caption)
        assert isinstance(found, float) and 0 <= found <= 1


def test_overlap_refuses_what_is_no_caption_of_the_world():
    with pytest.raises(data.InputError, match="'a dog' is not a caption"):
        data.overlap(np.zeros((32, 32, 3), np.uint8), "a dog")


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
def test_progress_is_called_for_every_picture_of_a_folder_and_ends_at_all(tmp_path, capsys, count, total):
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


def test_a_folder_holds_out_a_twentieth_that_stays_held_out_as_it_grows(tmp_path):
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


def test_pictures_that_a_folder_calls_held_out_are_held_out_and_no_others(tmp_path):
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


def test_a_first_look_at_a_picture_takes_no_more_memory_in_a_larger_data_set():
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
        patch.setattr(Path, "read_text", forbid)
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
    refused("not one image can be read; the first: .*1.png cannot be read as an image", str(tmp_path), 32)


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
