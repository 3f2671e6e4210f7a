"""Serve captioned images: the shapes world, drawn and judged with no learned part, or a folder of your own.

                  random_scene          draw                         judge
    seed, split, i ──────────► Scene ─────────► pixels (h w 3) ─────────────► Scene
                       .caption ▼ ▲ parse
                "a small red circle on a black background"

    load("shapes" | folder, image_size) ► Dataset ► .batch(indices) (b 3 h w)  .texts(indices, generator)

Pictures are uint8 (h w 3) in here, and float (b 3 h w) in [-1, 1] once they leave for a model.
"""

import csv
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from einops import einsum, rearrange
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor


class DataError(ValueError):
    """Say in one line what is wrong with the data, and the remedy."""


def fraction(name: str) -> float:
    """Hash a name to a number in [0, 1): the same in every process and year, which Python's hash() is not."""
    return int.from_bytes(sha256(name.encode()).digest()[:6], "big") / 2**48


# ---- The shapes world: what can be said --------------------------------------------------------------------

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220),
           "yellow": (240, 210, 50), "purple": (150, 60, 190), "orange": (245, 135, 35),
           "cyan": (60, 200, 220), "pink": (245, 130, 180)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
BACKGROUNDS = {"black": (20, 20, 24), "white": (240, 240, 240), "gray": (128, 128, 128)}
RELATIONS = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}  # mirrors
RADII = {"small": 0.13, "large": 0.30, None: 0.19}  # by size (None: in company), in sides of the image
NOVEL = {(colour, SHAPES[(8 - i) % 8]) for i, colour in enumerate(COLOURS)}  # pairs that training never shows
SPLITS = ("train", "unseen", "novel")


@dataclass(frozen=True)
class Object:
    colour: str
    shape: str
    size: str | None = None  # "small" or "large" when alone, None in company

    @property
    def caption(self) -> str:
        words = " ".join(filter(None, (self.size, self.colour, self.shape)))
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    objects: tuple[Object, ...]  # one, or two of different colours
    background: str
    relation: str | None = None  # in which the first object stands to the second

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
    """Read a caption, forgiving case and spacing; None if it is none. parse(scene.caption) == scene."""
    caption = " ".join(caption.lower().split())
    thing = f"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    company = f"(?: ({'|'.join(RELATIONS)}) an? {thing})?"
    pattern = f"an? (?:(small|large) )?{thing}{company} on a ({'|'.join(BACKGROUNDS)}) background"
    if not (found := re.fullmatch(pattern, caption)):
        return None
    size, colour, shape, relation, other_colour, other_shape, background = found.groups()
    if (size is None) == (relation is None) or colour == other_colour:
        return None  # one object has a size, two have a relation
    others = (Object(other_colour, other_shape),) if relation else ()
    scene = Scene((Object(colour, shape, size), *others), background, relation)
    return scene if scene.caption == caption else None  # "a orange star" ends here


def split_of(caption: str) -> str:
    """Tell "train", "unseen" or "novel" from the caption alone.

    The two wordings of a picture ("A above B", "B below A") share a split, or the unseen would be seen.
    """
    if (scene := parse(caption)) is None:
        example = Scene((Object("red", "circle", "small"),), "black").caption
        raise DataError(f"{caption!r} is not a caption of the shapes world; write, say, {example!r}")
    if any((o.colour, o.shape) in NOVEL for o in scene.objects):
        return "novel"
    return "unseen" if fraction(scene.canonical.caption) < 1 / 10 else "train"


def random_scene(rng: random.Random | np.random.Generator, split: str = "train") -> Scene:
    """Choose one object or two with even odds, then uniformly among the split's scenes of that many."""
    if split not in SPLITS:
        raise DataError(f"the shapes world has no split {split!r}; choose one of {', '.join(SPLITS)}")

    def pick(items):
        return tuple(items)[int(rng.random() * len(items))]

    alone = rng.random() < 0.5  # outside the loop: rejection must not tilt the odds
    while True:
        objects = [Object(pick(COLOURS), pick(SHAPES), pick(("small", "large")) if alone else None)]
        if not alone:
            objects.append(Object(pick([c for c in COLOURS if c != objects[0].colour]), pick(SHAPES)))
        scene = Scene(tuple(objects), pick(BACKGROUNDS), None if alone else pick(RELATIONS))
        if split_of(scene.caption) == split:
            return scene


# ---- The shapes world: how it looks ------------------------------------------------------------------------

CLEAR = 1 / 32  # of the side stays free at the image's edge and between two objects
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
for _shape, _outline in OUTLINES.items():  # every shape fills, and stays within, a circle of radius 1
    _radius = max(math.hypot(x, y) for x, y in _outline)
    OUTLINES[_shape] = [(x / _radius, y / _radius) for x, y in _outline]


def place(scene: Scene, rng: random.Random | np.random.Generator) -> list[Place]:
    """Choose where each object stands: with its whole circle in the image, and clear of the other's."""
    if scene.relation is None:
        radius = RADII[scene.objects[0].size] * rng.uniform(0.9, 1.1)
        return [(*(rng.uniform(radius + CLEAR, 1 - radius - CLEAR) for _ in "xy"), radius)]
    while True:
        shift, places = rng.uniform(-0.1, 0.1), []
        for centre in (0.27, 0.73) if scene.relation in ("above", "left of") else (0.73, 0.27):
            along, across = centre + rng.uniform(-0.05, 0.05), 0.5 + shift + rng.uniform(-0.05, 0.05)
            x, y = (across, along) if scene.relation in ("above", "below") else (along, across)
            places.append((x, y, RADII[None] * rng.uniform(0.85, 1.10)))
        (x, y, radius), (u, v, other) = places
        gaps = [min(x, y, 1 - x, 1 - y) - radius for x, y, radius in places]
        if min(*gaps, math.hypot(x - u, y - v) - radius - other) >= CLEAR:
            return places


def paint(parts: list[tuple[str, Place, Colour]], background: Colour, image_size: int) -> np.ndarray:
    """Draw (shape, place, colour) parts at 4x, then average each 4 x 4 pixels into one.

    The average leaves each pixel a mixture of what it covers; a sharper filter would ring beyond the colours.
    Comes back as uint8 (h w 3), or (h w) where colours are levels.
    """
    side = 4 * image_size
    image = Image.new("L" if isinstance(background, int) else "RGB", (side, side), background)
    pen = ImageDraw.Draw(image)
    for shape, (x, y, radius), colour in parts:
        for size, fill in [(radius, colour), (radius / 2, background)][: 2 if shape == "ring" else 1]:
            pen.polygon([(side * (x + size * u), side * (y + size * v)) for u, v in OUTLINES[shape]], fill)
    return np.asarray(image.reduce(4))


def draw(scene: Scene, rng: random.Random | np.random.Generator, image_size: int = 32) -> np.ndarray:
    """Draw a scene, somewhere that its caption allows  ->  uint8 (h w 3)."""
    parts = [(o.shape, where, COLOURS[o.colour]) for o, where in zip(scene.objects, place(scene, rng))]
    return paint(parts, BACKGROUNDS[scene.background], image_size)


# ---- The shapes world: the judge ---------------------------------------------------------------------------

EYE = 32  # pixels a side, at which the judge looks at any picture
SMALLEST = 8  # pixels, at least half covered, without which a colour is no object
OVERLAP = 0.87  # least intersection over union, softened, of an object with the best of the shapes
UNEXPLAINED = 48.0  # most that 3 x 3 pixels, averaged, may differ from the judge's own drawing, in RGB levels


def judge(image: np.ndarray) -> Scene | None:
    """Read the scene, canonically worded, off a picture, uint8 (h w 3); None if it shows no flawless one.

    1. The border tells the background. 2. A pixel mixes the background with one object's colour: the pair of
    colours that leaves the least unexplained wins, and the mixing ratios are the coverages of the objects.
    3. Each coverage must overlap some shape. 4. Drawn again, all of it must look like the picture everywhere.
    """
    if image.shape[:2] != (EYE, EYE):
        image = np.asarray(Image.fromarray(image).resize((EYE, EYE), Image.Resampling.BOX))
    pixels = image.astype(np.float32)
    border = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), 0)  # (c)
    background = min(BACKGROUNDS, key=lambda name: np.abs(border - BACKGROUNDS[name]).sum())

    base = np.array(BACKGROUNDS[background], np.float32)
    rays = np.array(list(COLOURS.values()), np.float32) - base  # (k c)
    cover = einsum(pixels - base, rays, "h w c, k c -> k h w") / rearrange((rays**2).sum(1), "k -> k 1 1")
    cover = cover.clip(0, 1)
    missed = ((pixels - base - einsum(cover, rays, "k h w, k c -> k h w c")) ** 2).sum(-1)  # (k h w)
    pairs = np.stack(np.triu_indices(len(rays), 1), 1)
    pair = pairs[np.minimum(missed[pairs[:, 0]], missed[pairs[:, 1]]).sum((1, 2)).argmin()]

    objects, places = [], []
    for mine, other in (pair, pair[::-1]):
        own = cover[mine] * (missed[mine] < missed[other])
        if (own > 0.5).sum() >= SMALLEST:
            near = Image.fromarray((own > 0.4).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
            overlap, shape, where = _recognise(own * np.asarray(near))  # what is further out is noise
            if overlap < OVERLAP:
                return None
            objects.append(Object(list(COLOURS)[mine], shape))
            places.append(where)

    parts = [(o.shape, where, COLOURS[o.colour]) for o, where in zip(objects, places)]
    off = pixels - paint(parts, BACKGROUNDS[background], EYE)  # averages out at a blurred edge, not at a flaw
    if not objects or (_soften(rearrange(off, "h w c -> c h w")) ** 2).sum(0).max() > UNEXPLAINED**2:
        return None
    return _word(objects, places, background)


def _recognise(cover: np.ndarray) -> tuple[float, str, Place]:
    """Find the shape that a coverage (h w) in [0, 1] overlaps best  ->  overlap in [0, 1], shape, place.

    The centroid is the centre and the area gives the radius, so each shape takes one drawing and no search.
    """
    ticks, mass, target = (np.arange(EYE) + 0.5) / EYE, cover.mean(), _soften(cover)
    x, y = cover.mean(0) @ ticks / mass / EYE, cover.mean(1) @ ticks / mass / EYE

    def overlaps(shapes, areas):
        places = [(x, y, math.sqrt(mass / area)) for area in areas]
        drawn = np.stack([paint([(shape, where, 255)], 0, EYE) for shape, where in zip(shapes, places)]) / 255
        soft = _soften(drawn)
        ratios = np.minimum(soft, target).sum((1, 2)) / np.maximum(soft, target).sum((1, 2))
        return [*zip(ratios, shapes, places)], drawn.mean((1, 2)) * areas / mass

    found, areas = overlaps(SHAPES, [_area(shape) for shape in SHAPES])
    best = max(found)
    again, _ = overlaps([best[1]], [areas[found.index(best)]])  # sub-pixels round the area: correct it
    return max(best, *again)


@cache
def _area(shape: str) -> float:
    """Measure a shape's area / radius² as it is drawn."""
    return float(paint([(shape, (0.5, 0.5, 0.2), 255)], 0, EYE).mean()) / 255 / 0.2**2


def _soften(maps: np.ndarray) -> np.ndarray:
    """Average 3 x 3 pixels, (... h w) -> (... h-2 w-2): blur weighs less there than a missing corner."""
    rows = maps[..., :-2, :] + maps[..., 1:-1, :] + maps[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _word(objects: list[Object], places: list[Place], background: str) -> Scene | None:
    """Name the size or the relation; None if the objects are too large or small for it, or stand askew."""
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
    usual = RADII[scene.objects[0].size]
    return scene if all(abs(radius - usual) < usual / 4 for _, _, radius in places) else None


def matches(image: np.ndarray, caption: str) -> bool:
    """Tell whether the judge finds all that a caption says, and nothing else, in a picture, uint8 (h w 3)."""
    scene = parse(caption)
    return scene is not None and judge(image) == scene.canonical


# ---- Pictures and tensors ----------------------------------------------------------------------------------


def read_image(path: str | Path) -> Image.Image:
    """Read a picture of any mode as RGB: upright, first frame, clear parts white, 16 bits scaled to 8."""
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # 16 bits; Pillow's own conversion clips at 255
                levels = (np.asarray(image, np.float32) / 257).round().clip(0, 255)
                image = Image.fromarray(levels.astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # on broken bytes Pillow's decoders raise whatever they stumble over
        raise DataError(f"{path} cannot be read as an image ({error}); repair or remove it") from error


def _square(image: Image.Image, image_size: int) -> np.ndarray:
    """Scale the short side to image_size (bicubic, antialiased) and crop the centre  ->  uint8 (h w 3).

    Every rounding is that of CLIP's own preprocessing.
    """
    short, long = sorted(image.size)
    if long > 50 * short:  # a thread, which scaled whole could fill the memory
        return np.asarray(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC))
    image = image.resize([image_size * side // short for side in image.size], Image.Resampling.BICUBIC)
    left, top = (round((side - image_size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


def to_tensor(images: Sequence[Image.Image], image_size: int) -> Tensor:
    """Turn RGB pictures of any size into a batch  ->  float (b 3 h w) in [-1, 1], h = w = image_size."""
    return _to_float(np.stack([_square(image, image_size) for image in images]))


def _to_float(pictures: np.ndarray) -> Tensor:
    return rearrange(torch.from_numpy(pictures), "b h w c -> b c h w").contiguous().float() / 127.5 - 1


def to_pictures(images: Tensor) -> np.ndarray:
    """Turn float (b 3 h w) into uint8 (b h w 3), clipping what lies outside [-1, 1]."""
    levels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "b c h w -> b h w c").cpu().numpy()


# ---- Data sets ---------------------------------------------------------------------------------------------

CACHE_BYTES = 2**30  # a data set stays decoded in memory up to here; a larger one is decoded batch by batch


class Dataset:
    """Hold captioned pictures: `sources` to decode, `captions`, a list each, and `skipped`, a line each."""

    def __init__(self, sources: Sequence, captions: list[list[str]], decode: Callable, image_size: int):
        self.sources, self.captions, self.skipped = list(sources), captions, []
        self.decode = decode  # source -> uint8 (h w 3), or DataError
        self.fits = 3 * image_size**2 * len(self.sources) <= CACHE_BYTES
        # one block, filled as pictures are asked for: thousands of small arrays would lie scattered among a training's large ones
        self._pixels = np.empty((len(self.sources) if self.fits else 0, image_size, image_size, 3), np.uint8)
        self._decoded = np.zeros(len(self.sources), bool)

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Fetch pictures  ->  float (b 3 h w) in [-1, 1]."""
        return _to_float(np.stack([self._picture(i) for i in torch.as_tensor(indices).tolist()]))

    def texts(self, indices: Sequence[int] | Tensor, generator: torch.Generator) -> list[str]:
        """Pick one caption for each index, evenly among its own."""
        choices = [self.captions[i] for i in torch.as_tensor(indices).tolist()]
        picks = torch.rand(len(choices), generator=generator).tolist()
        return [texts[int(pick * len(texts))] for texts, pick in zip(choices, picks)]

    def skip_unreadable(self) -> None:
        """Decode everything now, and let go of what cannot be read."""
        kept = []
        for i, source in enumerate(self.sources):
            try:
                self._pixels[len(kept)] = self.decode(source)
                kept.append(i)
            except DataError as error:
                self.skipped.append(str(error))
        self._decoded[: len(kept)] = True
        self.sources, self.captions = [self.sources[i] for i in kept], [self.captions[i] for i in kept]

    def _picture(self, i: int) -> np.ndarray:
        if self._decoded[i]:
            return self._pixels[i]
        for j in chain(range(i, len(self)), range(i)):
            try:
                picture = self.decode(self.sources[j])
                break
            except DataError as error:  # only now, as the folder was too large to check: on to the next
                self.skipped += {str(error)} - set(self.skipped)
        else:
            raise DataError(f"none of the {len(self)} images can be read; the first: {self.skipped[0]}")
        self.sources[i], self.captions[i] = self.sources[j], self.captions[j]  # a stand-in stays for good
        if self.fits:
            self._pixels[i], self._decoded[i] = picture, True
        return picture


def load(
    data: str | Path, image_size: int, split: str = "train", count: int | None = None, seed: int = 0
) -> Dataset:
    """Open a data set; raise DataError if it cannot be.

    "shapes": split "train", "unseen" or "novel"; count scenes (40,000), drawn when first asked for, scene i
        depending on nothing but (seed, split, i)
    a folder: split "train" or "held-out", a twentieth by a hash of the file names (below 20 images, each is
        all of them); count limits the images. No seed has a part: what is held out once stays held out.
    """
    if image_size < 1 or (count is not None and count < 1):
        raise DataError(f"image_size and count must be at least 1, not {image_size} and {count}")
    if str(data) != "shapes":
        return _load_folder(Path(data), image_size, split, count)

    def scene(i: int) -> tuple[Scene, random.Random]:
        rng = random.Random(f"{seed} {split} {i}")  # a text seeds alike in every process
        return random_scene(rng, split), rng

    indices = range(40_000 if count is None else count)
    captions = [[scene(i)[0].caption] for i in indices]
    return Dataset(indices, captions, lambda i: draw(*scene(i), image_size), image_size)


def _load_folder(folder: Path, image_size: int, split: str, count: int | None) -> Dataset:
    if split not in ("train", "held-out"):
        raise DataError(f"a folder has no split {split!r}; choose train or held-out")
    captions = read_captions(folder)
    names = sorted((name for name in captions if captions[name]), key=fraction)  # no meaning in this order
    if len(names) >= 20:
        held_out = max(1, sum(fraction(name) < 1 / 20 for name in names))
        names = names[held_out:] if split == "train" else names[:held_out]

    def decode(name: str) -> np.ndarray:
        return _square(read_image(folder / name), image_size)

    names = names[:count]
    dataset = Dataset(names, [captions[name] for name in names], decode, image_size)
    if dataset.fits:
        dataset.skip_unreadable()
    if not len(dataset):
        raise DataError(f"{folder}: not one image can be read; the first: {dataset.skipped[0]}")
    dataset.skipped += [f"{folder / name} has no caption" for name in captions if not captions[name]]
    return dataset


def image_files(folder: str | Path) -> list[str]:
    """List the images in and below a folder as sorted paths relative to it; DataError if there are none."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder; give one of captioned images, or the word shapes")
    paths = [path.relative_to(folder) for path in sorted(Path(folder).rglob("*.*")) if path.is_file()]
    paths = [path for path in paths if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".gif")]
    if names := [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]:
        return names
    raise DataError(f"{folder} holds no images; put PNG, JPEG, WebP or GIF files there")


def read_captions(folder: Path) -> dict[str, list[str]]:
    """Read a folder's captions, by whichever of three conventions it keeps -> {relative file name: captions}.

    metadata.csv or metadata.jsonl    columns file_name and text; a file may have several rows
    dog.png + dog.txt                 one caption a line
    dog/1.png                         the caption is the sub-folder's name
    """
    names = image_files(folder)
    captions = {name: [] for name in names}
    beside = {name: (folder / name).with_suffix(".txt") for name in names}
    tables = [folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()]
    if tables:
        for name, text in _read_table(tables[0]):
            captions.setdefault(name, []).append(text)
    elif any(path.is_file() for path in beside.values()):
        for name, path in beside.items():
            lines = path.read_text("utf-8-sig", errors="replace").splitlines() if path.is_file() else []
            captions[name] = [line.strip() for line in lines if line.strip()]
    else:
        captions = {name: [name.split("/")[0]] if "/" in name else [] for name in names}
    if not any(captions.values()):
        raise DataError(f"{folder} holds images without captions; write NAME.txt beside each NAME.png, "
                        "or a metadata.csv (file_name,text), or sort them into one sub-folder per class")
    return captions


def _read_table(table: Path) -> list[tuple[str, str]]:
    try:
        with open(table, encoding="utf-8-sig", errors="replace", newline="") as lines:
            read_json = map(json.loads, filter(str.strip, lines))
            rows = csv.DictReader(lines) if table.suffix == ".csv" else read_json
            return [(row["file_name"].strip(), row["text"].strip()) for row in rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{table} lacks file_name or text in some row; every row needs both") from error
    except (csv.Error, json.JSONDecodeError, OSError) as error:
        raise DataError(f"{table} cannot be read ({error}); repair or remove it") from error
