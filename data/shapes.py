"""Describe and draw the shapes world: captions, the splits they belong to, and pictures of them.

                  random_scene           render = place, then paint
    seed, split, i ----------> Scene ------------------------------> pixels, uint8 (h w 3)
                      .caption |  ^ parse
                               v  |
                "a small red circle on a black background"
"""

import math
import random
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .errors import InputError
from .split import fraction

# ---- What a caption can say ----

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220),
           "yellow": (240, 210, 50), "purple": (150, 60, 190), "orange": (245, 135, 35),
           "cyan": (60, 200, 220), "pink": (245, 130, 180)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
BACKGROUNDS = {"black": (20, 20, 24), "white": (240, 240, 240), "gray": (128, 128, 128)}
RELATIONS = {"above": "below", "below": "above",  # to the inverse
             "left of": "right of", "right of": "left of"}
RADII = {"small": 0.13, "large": 0.30, None: 0.19}  # None: one of two objects; in sides of the image
# pairs that training never shows
NOVEL = {(colour, SHAPES[(8 - i) % 8]) for i, colour in enumerate(COLOURS)}
SPLITS = ("train", "unseen", "novel")


@dataclass(frozen=True)
class Object:
    colour: str
    shape: str
    size: str | None = None  # "small" or "large" for a single object, None for one of two

    @property
    def caption(self) -> str:
        words = " ".join(filter(None, (self.size, self.colour, self.shape)))
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    objects: tuple[Object, ...]  # one, or two of different colours
    background: str
    relation: str | None = None  # of the first object to the second

    @property
    def caption(self) -> str:
        objects = f" {self.relation} ".join(o.caption for o in self.objects)
        return f"{objects} on a {self.background} background"

    @property
    def canonical(self) -> "Scene":
        """Word the scene with "above" or "left of": A below B is the same picture as B above A."""
        if self.relation not in ("below", "right of"):
            return self
        return Scene(self.objects[::-1], self.background, RELATIONS[self.relation])


def parse(caption: str) -> Scene | None:
    """Read a caption in any case and spacing -> Scene, or None if it is not one."""
    caption = " ".join(caption.lower().split())
    thing = f"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    second = f"(?: ({'|'.join(RELATIONS)}) an? {thing})?"
    pattern = f"an? (?:(small|large) )?{thing}{second} on a ({'|'.join(BACKGROUNDS)}) background"
    if not (match := re.fullmatch(pattern, caption)):
        return None
    size, colour, shape, relation, other_colour, other_shape, background = match.groups()
    if (size is None) == (relation is None) or colour == other_colour:
        return None  # one object has a size, two have a relation
    others = (Object(other_colour, other_shape),) if relation else ()
    scene = Scene((Object(colour, shape, size), *others), background, relation)
    return scene if scene.caption == caption else None  # "a orange star" fails here


def scene_of(caption: str) -> Scene:
    """Read a caption; raise InputError if it is not one."""
    if scene := parse(caption):
        return scene
    example = Scene((Object("red", "circle", "small"),), "black").caption
    raise InputError(f"{caption!r} is not a caption of the shapes world; write, say, {example!r}")


def split_of(caption: str) -> str:
    """Tell "train", "unseen" or "novel" from the caption alone.

    The two wordings of a picture ("A above B", "B below A") share a split, or training would show
    unseen pictures.
    """
    scene = scene_of(caption)
    if any((o.colour, o.shape) in NOVEL for o in scene.objects):
        return "novel"
    return "unseen" if fraction(scene.canonical.caption) < 1 / 10 else "train"


def random_scene(rng: random.Random | np.random.Generator, split: str = "train") -> Scene:
    """Choose one object or two with even odds, then uniformly among such scenes of the split."""
    if split not in SPLITS:
        raise InputError(f"the shapes world has no split {split!r}; choose one of "
                         f"{', '.join(SPLITS)}")

    def pick(items):
        return tuple(items)[int(rng.random() * len(items))]

    single = rng.random() < 0.5  # outside the loop: rejection must not change the odds
    while True:
        colour, shape = pick(COLOURS), pick(SHAPES)
        objects = [Object(colour, shape, pick(("small", "large")) if single else None)]
        if not single:
            objects.append(Object(pick([c for c in COLOURS if c != colour]), pick(SHAPES)))
        scene = Scene(tuple(objects), pick(BACKGROUNDS), None if single else pick(RELATIONS))
        if split_of(scene.caption) == split:
            return scene


# ---- How it looks ----

MARGIN = 1 / 32  # of the side stays free at the image's edge and between two objects
Place = tuple[float, float, float]  # centre x, centre y (downwards), radius, in sides of the image
Colour = tuple[int, int, int] | int  # RGB, or one level of grey, 0..255


def _corners(count: int, inner: float = 1.0, turn: float = 0.0) -> list[tuple[float, float]]:
    polar = [(inner if i % 2 else 1.0, math.tau * (turn + i / count)) for i in range(count)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in polar]


def _heart(a: float) -> tuple[float, float]:
    y = -13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a)
    return 16 * math.sin(a) ** 3, y + 0.77


# Corners around the centroid, y downwards. The hole of a ring is painted over it.
OUTLINES = {"circle": _corners(48), "square": _corners(4, turn=1 / 8), "triangle": _corners(3),
            "star": _corners(10, inner=0.42), "ring": _corners(48),
            "diamond": [(0, -4), (3, 0), (0, 4), (-3, 0)],
            "cross": [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1),
                      (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)],
            "heart": [_heart(math.tau * i / 48) for i in range(48)]}
for _shape, _outline in OUTLINES.items():  # every shape fills a circle of radius 1
    _radius = max(math.hypot(x, y) for x, y in _outline)
    OUTLINES[_shape] = [(x / _radius, y / _radius) for x, y in _outline]


def place(scene: Scene, rng: random.Random | np.random.Generator) -> list[Place]:
    """Choose each object's centre and radius: its circle lies in the image and touches no other."""
    if scene.relation is None:
        radius = RADII[scene.objects[0].size] * rng.uniform(0.9, 1.1)
        return [(*(rng.uniform(radius + MARGIN, 1 - radius - MARGIN) for _ in "xy"), radius)]
    while True:
        shift, places = rng.uniform(-0.1, 0.1), []
        for centre in (0.27, 0.73) if scene.relation in ("above", "left of") else (0.73, 0.27):
            along = centre + rng.uniform(-0.05, 0.05)
            across = 0.5 + shift + rng.uniform(-0.05, 0.05)
            x, y = (across, along) if scene.relation in ("above", "below") else (along, across)
            places.append((x, y, RADII[None] * rng.uniform(0.85, 1.10)))
        (x, y, radius), (u, v, other) = places
        gaps = [min(x, y, 1 - x, 1 - y) - radius for x, y, radius in places]
        if min(*gaps, math.hypot(x - u, y - v) - radius - other) >= MARGIN:
            return places


def paint(parts: list[tuple[str, Place, Colour]], background: Colour,
          image_size: int) -> np.ndarray:
    """Draw (shape, place, colour) parts at 4x, then average each 4 x 4 pixels into one.

    The average makes each pixel a mixture of what it covers; a sharper filter overshoots at edges.
    Returns uint8 (h w 3), or (h w) where colours are levels of grey.
    """
    side = 4 * image_size
    image = Image.new("L" if isinstance(background, int) else "RGB", (side, side), background)
    canvas = ImageDraw.Draw(image)
    for shape, (x, y, radius), colour in parts:
        hole = [(radius / 2, background)] if shape == "ring" else []
        for size, fill in [(radius, colour), *hole]:
            corners = [(side * (x + size * u), side * (y + size * v)) for u, v in OUTLINES[shape]]
            canvas.polygon(corners, fill)
    return np.asarray(image.reduce(4))


def render(scene: Scene, rng: random.Random | np.random.Generator,
           image_size: int = 32) -> np.ndarray:
    """Draw a scene, each object at random where its caption allows -> uint8 (h w 3)."""
    places = place(scene, rng)
    parts = [(o.shape, where, COLOURS[o.colour]) for o, where in zip(scene.objects, places)]
    return paint(parts, BACKGROUNDS[scene.background], image_size)
