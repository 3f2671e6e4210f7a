"""Judge pictures of the shapes world from pixels alone, with no learned part.

    read_scene(image)          the scene, if the picture shows one without a flaw
    matches(image, caption)    whether that is the caption's scene: True or False
    overlap(image, caption)    how much of the right shapes is there in the right colours, in [0, 1]

An edge pixel mixes the background with an object's colour. The share of the colour is the object's coverage of the
pixel, and all measurements are made on such coverages (h w) in [0, 1].
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from einops import einsum, rearrange
from PIL import Image, ImageFilter

from .shapes import BACKGROUNDS, COLOURS, RADII, SHAPES, Object, Place, Scene, paint, parse, scene_of

SIDE = 32  # pixels; a picture of any other size is scaled to SIDE x SIDE first
SMALLEST = 8  # fewest pixels, at least half covered, that count as an object
MIN_OVERLAP = 0.87  # least intersection over union, softened, of an object with the best of the shapes
MAX_RESIDUAL = 48.0  # most that 3 x 3 pixels, averaged, may differ from the scene drawn again, in RGB levels


def read_scene(image: np.ndarray) -> Scene | None:
    """Read the scene, canonically worded, from a picture, uint8 (h w 3); None if it shows none without a flaw.

    1. The border gives the background. 2. A pixel mixes the background with one object's colour: the pair of
    colours that leaves the smallest residual wins, and the mixing ratios are the coverages of the objects.
    3. Each coverage must overlap some shape. 4. The scene drawn again must look like the picture everywhere.
    """
    pixels = _pixels(image)
    border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), 0)  # (c)
    background = min(BACKGROUNDS, key=lambda name: np.abs(border - BACKGROUNDS[name]).sum())

    cover, residuals = _unmix(pixels, background)
    pairs = np.stack(np.triu_indices(len(COLOURS), 1), 1)
    pair = pairs[np.minimum(residuals[pairs[:, 0]], residuals[pairs[:, 1]]).sum((1, 2)).argmin()]

    objects, places = [], []
    for one, other in (pair, pair[::-1]):
        own = cover[one] * (residuals[one] < residuals[other])
        if (own > 0.5).sum() >= SMALLEST:
            found, shape, where = _recognise(own)
            if found < MIN_OVERLAP:
                return None
            objects.append(Object(list(COLOURS)[one], shape))
            places.append(where)

    parts = [(o.shape, where, COLOURS[o.colour]) for o, where in zip(objects, places)]
    difference = pixels - paint(parts, BACKGROUNDS[background], SIDE)  # averages out at a blurred edge, not at a flaw
    if not objects or (_soften(rearrange(difference, "h w c -> c h w")) ** 2).sum(0).max() > MAX_RESIDUAL**2:
        return None
    return _name(objects, places, background)


def matches(image: np.ndarray, caption: str) -> bool:
    """Tell whether a picture, uint8 (h w 3), shows all that a caption says, and nothing else."""
    scene = parse(caption)
    return scene is not None and read_scene(image) == scene.canonical


def overlap(image: np.ndarray, caption: str) -> float:
    """Measure how much of a picture, uint8 (h w 3), has the right shapes in the right colours -> in [0, 1].

    For each object that the caption names: what has its colour overlaps its shape, drawn at the same centre and area
    (intersection over union, softened), or 0 if that colour is not there. The result is the mean over the objects.
    Their places and sizes do not count. Raise InputError if the caption is not one of the shapes world.
    """
    scene = scene_of(caption)
    cover, residuals = _unmix(_pixels(image), scene.background)
    nearest, ratios = residuals.argmin(0), []  # each pixel belongs to the colour that explains it best
    for o in scene.objects:
        colour = list(COLOURS).index(o.colour)
        own = cover[colour] * (nearest == colour)
        ratios.append(_recognise(own, (o.shape,))[0] if (own > 0.5).sum() >= SMALLEST else 0.0)
    return float(np.mean(ratios))


def _pixels(image: np.ndarray) -> np.ndarray:
    """Scale a picture to SIDE x SIDE -> float32 (h w 3), 0..255."""
    if image.shape[:2] != (SIDE, SIDE):
        image = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))
    return image.astype(np.float32)


def _unmix(pixels: np.ndarray, background: str) -> tuple[np.ndarray, np.ndarray]:
    """Explain each pixel by each colour over the background -> coverages in [0, 1], squared residuals, both (k h w).

    The k colours are those of COLOURS. A coverage is the projection on the line from the background to the colour.
    """
    base = np.array(BACKGROUNDS[background], np.float32)
    rays = np.array(list(COLOURS.values()), np.float32) - base  # (k c)
    cover = einsum(pixels - base, rays, "h w c, k c -> k h w") / rearrange((rays**2).sum(1), "k -> k 1 1")
    cover = cover.clip(0, 1)
    return cover, ((pixels - base - einsum(cover, rays, "k h w, k c -> k h w c")) ** 2).sum(-1)


def _recognise(cover: np.ndarray, shapes: Sequence[str] = SHAPES) -> tuple[float, str, Place]:
    """Find which of the shapes a coverage (h w) overlaps best -> overlap in [0, 1], shape, place.

    The centroid is the centre and the area gives the radius, so each shape takes one drawing and no search.
    """
    near = Image.fromarray((cover > 0.4).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    cover = cover * np.asarray(near)  # what is further out is noise
    ticks, mass, target = (np.arange(SIDE) + 0.5) / SIDE, cover.mean(), _soften(cover)
    x, y = cover.mean(0) @ ticks / mass / SIDE, cover.mean(1) @ ticks / mass / SIDE

    def overlaps(shapes, areas):
        places = [(x, y, math.sqrt(mass / area)) for area in areas]
        drawn = np.stack([paint([(shape, where, 255)], 0, SIDE) for shape, where in zip(shapes, places)]) / 255
        soft = _soften(drawn)
        ratios = np.minimum(soft, target).sum((1, 2)) / np.maximum(soft, target).sum((1, 2))
        return [*zip(ratios, shapes, places)], drawn.mean((1, 2)) * areas / mass

    found, areas = overlaps(shapes, [_area(shape) for shape in shapes])
    best = max(found)
    again, _ = overlaps([best[1]], [areas[found.index(best)]])  # sub-pixels round the area: correct it
    return max(best, *again)


@cache
def _area(shape: str) -> float:
    """Measure a shape's area / radius² as it is drawn."""
    return float(paint([(shape, (0.5, 0.5, 0.2), 255)], 0, SIDE).mean()) / 255 / 0.2**2


def _soften(maps: np.ndarray) -> np.ndarray:
    """Average 3 x 3 pixels, (... h w) -> (... h-2 w-2): a blur then weighs less than a missing corner."""
    rows = maps[..., :-2, :] + maps[..., 1:-1, :] + maps[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _name(objects: list[Object], places: list[Place], background: str) -> Scene | None:
    """Name the size or the relation; None if a size fits no word, or two objects stand diagonally."""
    (x, y, radius), (u, v, _) = places[0], places[-1]
    if len(objects) == 1:
        size = "small" if radius < 0.2 else "large"
        scene = Scene((Object(objects[0].colour, objects[0].shape, size),), background)
    else:
        across, down = abs(x - u), abs(y - v)
        relation = ("left of" if x < u else "right of") if across > down else "above" if y < v else "below"
        scene = Scene(tuple(objects), background, relation).canonical
        if max(across, down) < 2 * min(across, down):
            return None
    nominal = RADII[scene.objects[0].size]
    return scene if all(abs(radius - nominal) < nominal / 4 for _, _, radius in places) else None
