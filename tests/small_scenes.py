"""Scenes of the shapes world for tests."""

import random
from itertools import product

import data


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
