"""Figures of DALL·E 2: edits that are asked for, and how far drawings of a scene move."""

import random

import numpy as np
import pytest

import data
from common.scoring import unclip


def circles(*places):
    """Draw red circles at such a place from the left, each on a dark and on a light background."""
    return np.stack([data.paint([("circle", (x, 0.5, 0.2), (220, 40, 40))], (level,) * 3, 32)
                     for level in (20, 240) for x in places])


def test_the_spread_is_how_far_the_centre_moves_whatever_the_background():
    moved = circles(0.3, 0.7)
    assert unclip.spread_of_centres(moved, 2) == pytest.approx(0.2, abs=0.01)
    assert unclip.spread_of_centres(moved[[0, 0, 3, 3]], 2) == 0  # only the scenes differ


def test_faint_noise_does_not_change_the_spread():
    moved = circles(0.3, 0.7).astype(int)
    grain = np.random.default_rng(0).integers(-6, 7, moved.shape)
    noisy = (moved + grain).clip(0, 255).astype(np.uint8)
    assert unclip.spread_of_centres(noisy, 2) == pytest.approx(0.2, abs=0.01)


def test_a_changed_word_gives_one_object_another_colour_or_shape():
    rng, changes = random.Random(0), set()
    for _ in range(100):
        scene = data.random_scene(rng)
        changed = unclip.change_a_word(scene, rng)
        assert data.parse(changed.caption) == changed  # a caption: no two objects of one colour
        differing = [(i, name) for i, (a, b) in enumerate(zip(scene.objects, changed.objects))
                     for name in vars(a) if getattr(a, name) != getattr(b, name)]
        assert len(differing) == 1 and scene.background == changed.background
        changes |= set(differing)
    assert changes == {(0, "colour"), (0, "shape"), (1, "colour"), (1, "shape")}
