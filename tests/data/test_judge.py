"""The judge of the shapes world: what it reads, what it refuses, what overlaps."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageFilter

import data
from small_scenes import scenes, stage


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
