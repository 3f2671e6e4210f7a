"""Judge pictures of the shapes world from pixels alone, with no learned part.

    read_scene(image)          the scene, if the picture shows one without a flaw
    matches(image, caption)    whether that is the caption's scene: True or False
    overlap(image, caption)    how much of the right shapes it shows in the right colours, in [0, 1]

An edge pixel mixes the background with an object's colour. The colour's fraction is the object's coverage
of the pixel, and all measurements are made on such coverages (h w).
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
MIN_OVERLAP = 0.87  # least intersection over union, softened, of an object with the best shape
MAX_RESIDUAL = 48.0  # largest difference from the scene drawn again, mean of 3 x 3 pixels, RGB levels


def read_scene(image: np.ndarray) -> Scene | None:
    """Read the scene, canonically worded, from a picture, uint8 (h w 3); None if it has any flaw.

    1. The border gives the background. 2. A pixel mixes the background with one object's colour: the
    pair of colours that leaves the smallest residual wins, and gives the coverages of the objects.
    3. Each coverage must overlap a shape. 4. The scene drawn again must look like the picture.
    """
    pixels = _pixels(image)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])  # (n c)
    border = np.median(edges, 0)  # (c)
    background = min(BACKGROUNDS, key=lambda name: np.abs(border - BACKGROUNDS[name]).sum())

    cover, residuals = _unmix(pixels, background)
    pairs = np.stack(np.triu_indices(len(COLOURS), 1), 1)
    pair = pairs[np.minimum(residuals[pairs[:, 0]], residuals[pairs[:, 1]]).sum((1, 2)).argmin()]

    objects, places = [], []
    for one, other in (pair, pair[::-1]):
        mask = cover[one] * (residuals[one] < residuals[other])
        if (mask > 0.5).sum() >= SMALLEST:
            ratio, shape, where = _recognise(mask)
            if ratio < MIN_OVERLAP:
                return None
            objects.append(Object(list(COLOURS)[one], shape))
            places.append(where)

    parts = [(o.shape, where, COLOURS[o.colour]) for o, where in zip(objects, places)]
    difference = pixels - paint(parts, BACKGROUNDS[background], SIDE)
    difference = _soften(rearrange(difference, "h w c -> c h w"))  # cancels at a blurred edge
    if not objects or (difference**2).sum(0).max() > MAX_RESIDUAL**2:
        return None
    return _name(objects, places, background)


def matches(image: np.ndarray, caption: str) -> bool:
    """Tell whether a picture, uint8 (h w 3), shows all that a caption says, and nothing else."""
    scene = parse(caption)
    return scene is not None and read_scene(image) == scene.canonical


def overlap(image: np.ndarray, caption: str) -> float:
    """Measure how much a picture, uint8 (h w 3), has the right shapes in the right colours -> [0, 1].

    For each object of the caption: the intersection over union, softened, of what has its colour with
    its shape drawn at the same centre and area; 0 without that colour. Returns the mean over the
    objects; places and sizes do not count. Raises InputError if it is no caption of this world.
    """
    scene = scene_of(caption)
    cover, residuals = _unmix(_pixels(image), scene.background)
    nearest, ratios = residuals.argmin(0), []  # the colour that explains a pixel best
    for o in scene.objects:
        colour = list(COLOURS).index(o.colour)
        mask = cover[colour] * (nearest == colour)
        ratios.append(_recognise(mask, (o.shape,))[0] if (mask > 0.5).sum() >= SMALLEST else 0.0)
    return float(np.mean(ratios))


def _pixels(image: np.ndarray) -> np.ndarray:
    """Scale a picture to SIDE x SIDE -> float32 (h w 3), 0..255."""
    if image.shape[:2] != (SIDE, SIDE):
        image = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))
    return image.astype(np.float32)


def _unmix(pixels: np.ndarray, background: str) -> tuple[np.ndarray, np.ndarray]:
    """Explain each pixel by each of the k COLOURS over the background.

    Returns coverages in [0, 1], the projections on the line from the background to the colour, and
    squared residuals, both (k h w).
    """
    base = np.array(BACKGROUNDS[background], np.float32)
    rays = np.array(list(COLOURS.values()), np.float32) - base  # (k c)
    lengths = rearrange((rays**2).sum(1), "k -> k 1 1")
    cover = (einsum(pixels - base, rays, "h w c, k c -> k h w") / lengths).clip(0, 1)
    explained = einsum(cover, rays, "k h w, k c -> k h w c")
    return cover, ((pixels - base - explained) ** 2).sum(-1)


def _recognise(cover: np.ndarray, shapes: Sequence[str] = SHAPES) -> tuple[float, str, Place]:
    """Find which of the shapes a coverage (h w) overlaps best -> overlap in [0, 1], shape, place.

    The centroid is the centre and the area gives the radius: one drawing a shape, and no search.
    """
    near = Image.fromarray((cover > 0.4).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    cover = cover * np.asarray(near)  # what is further out is noise
    ticks, mass, target = (np.arange(SIDE) + 0.5) / SIDE, cover.mean(), _soften(cover)
    x, y = cover.mean(0) @ ticks / mass / SIDE, cover.mean(1) @ ticks / mass / SIDE

    def overlaps(shapes, areas):
        places = [(x, y, math.sqrt(mass / area)) for area in areas]
        drawn = np.stack([paint([part], 0, SIDE) for part in zip(shapes, places, [255] * 8)]) / 255
        soft = _soften(drawn)
        ratios = np.minimum(soft, target).sum((1, 2)) / np.maximum(soft, target).sum((1, 2))
        return [*zip(ratios, shapes, places)], drawn.mean((1, 2)) * areas / mass

    found, areas = overlaps(shapes, [_area(shape) for shape in shapes])
    best = max(found)
    again, _ = overlaps([best[1]], [areas[found.index(best)]])  # corrects the area for sub-pixels
    return max(best, *again)


@cache
def _area(shape: str) -> float:
    """Measure a shape's area / radius² as it is drawn."""
    return float(paint([(shape, (0.5, 0.5, 0.2), 255)], 0, SIDE).mean()) / 255 / 0.2**2


def _soften(maps: np.ndarray) -> np.ndarray:
    """Average 3 x 3 pixels, (... h w) -> (... h-2 w-2): a blur weighs less than a missing corner."""
    rows = maps[..., :-2, :] + maps[..., 1:-1, :] + maps[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _name(objects: list[Object], places: list[Place], background: str) -> Scene | None:
    """Name the size or the relation; None if no word fits: other sizes, two objects at an angle."""
    (x, y, radius), (u, v, _) = places[0], places[-1]
    if len(objects) == 1:
        size = "small" if radius < 0.2 else "large"
        scene = Scene((Object(objects[0].colour, objects[0].shape, size),), background)
    else:
        across, down = abs(x - u), abs(y - v)
        relation = "left of" if x < u else "right of"
        if down >= across:
            relation = "above" if y < v else "below"
        scene = Scene(tuple(objects), background, relation).canonical
        if max(across, down) < 2 * min(across, down):
            return None
    nominal = RADII[scene.objects[0].size]
    return scene if all(abs(radius - nominal) < nominal / 4 for _, _, radius in places) else None
