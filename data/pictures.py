"""Read pictures of any format and mode, and turn them into square pixels and tensors.

    path --read_image--> RGB Image --square--> uint8 (h w 3) --to_float--> float (b 3 h w) in [-1, 1]
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import InputError, explained

Image.init()
# formats that Pillow opens without decoding them, or runs another program for
NOT_DECODED = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items()
            if kind in Image.OPEN.keys() - NOT_DECODED}

# open_image refuses such pictures, in one line
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_picture(name: str) -> bool:
    """Tell from its suffix whether a file is a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


# ---- Decoding ----

Opener = Callable[[], Image.Image]  # opens a picture that is not a file of its own


@contextmanager
def open_image(source: str | Path | Opener, name: str | None = None) -> Iterator[Image.Image]:
    """Open a picture for the length of a `with`, not yet decoded.

    name: what an error calls it; by default its path. Raises InputError if it cannot be opened, if it
    has more pixels than Pillow holds to be safe, or if its bytes turn out broken within the `with`.
    """
    opener = source if callable(source) else partial(Image.open, source)
    problem = f"{name or source} cannot be read as an image"
    with explained(problem):
        try:
            with opener() as image:
                if image.format in NOT_DECODED:
                    raise UnidentifiedImageError
                pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS or float("inf")
                if pixels > limit:  # Pillow itself refuses only twice as many
                    raise Image.DecompressionBombError(
                        f"Image size ({pixels} pixels) exceeds limit of {limit} pixels")
                yield image
        except UnidentifiedImageError as error:  # Pillow's own message repeats the path
            raise InputError(f"{problem} (its format is unknown); repair or remove it") from error
        except Image.DecompressionBombError as error:
            reason = str(error).split(",")[0]
            raise InputError(f"{problem} ({reason}); scale it down or remove it") from error


def read_image(source: str | Path | Opener, at_least: int | None = None,
               name: str | None = None) -> Image.Image:
    """Read a picture of any mode as RGB: upright, first frame, over white where transparent.

    at_least: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, many times faster, as long as no side
    gets shorter than this. name, and the InputError for what cannot be read: see open_image.
    """
    with open_image(source, name) as image:
        if at_least:
            image.draft("RGB", (at_least, at_least))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode[0] in "IF":
            return _eight_bits(image).convert("RGB")
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 or 32 bits or floats to 0..255; Pillow's own conversion clips at 255.

    16 bits are divided by 257. Floats are multiplied by 255 if all lie in [0, 1], and kept if all lie
    in [0, 255]. Levels outside such a range are scaled from the least to the greatest.
    """
    levels = np.asarray(image, np.float32)
    finite = levels[np.isfinite(levels)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    for top in (1, 255) if image.mode == "F" else (65535,):
        if 0 <= low and high <= top:
            low, high = 0, top
            break
    levels = (np.nan_to_num(levels, nan=low, neginf=low, posinf=high) - low) / (high - low or 1)
    return Image.fromarray((255 * levels).round().astype(np.uint8))


def square(image: Image.Image, image_size: int) -> np.ndarray:
    """Scale the short side to image_size (bicubic, antialiased), crop the centre -> uint8 (h w 3).

    It rounds as CLIP's own preprocessing does.
    """
    short, long = sorted(image.size)
    if long > 50 * short:  # crop first: scaled whole, so long a picture could fill the memory
        return np.asarray(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC))
    size = [image_size * side // short for side in image.size]
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - image_size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


# ---- Tensors ----


def to_tensor(images: Sequence[Image.Image], image_size: int) -> Tensor:
    """Turn RGB pictures of any size into float (b 3 h w) in [-1, 1], h = w = image_size."""
    return to_float(np.stack([square(image, image_size) for image in images]))


def to_float(pictures: np.ndarray) -> Tensor:
    """Turn uint8 (b h w 3) into float (b 3 h w) in [-1, 1]."""
    levels = rearrange(torch.from_numpy(pictures), "b h w c -> b c h w").contiguous()
    return levels.float() / 127.5 - 1


def to_pictures(images: Tensor) -> np.ndarray:
    """Turn float (b 3 h w) into uint8 (b h w 3), clipping what lies outside [-1, 1]."""
    levels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "b c h w -> b h w c").cpu().numpy()
