"""The shapes world: its captions, splits and pictures."""

import random
from itertools import islice

import numpy as np
import pytest

import data
from small_scenes import all_captions, scenes, stage


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


def test_a_novel_pair_is_always_and_only_in_novel():
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


def test_a_lone_object_has_its_sizes_radius_and_roams_the_image():
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
