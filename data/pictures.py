"""Read pictures of any format and mode, and turn them into square pixels and tensors.

    path | Source --read_image--> RGB Image --square--> uint8 (h w 3) --to_float--> float (b 3 h w) in [-1, 1]
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .collection import File, Source
from .errors import InputError

Image.init()
OTHERS = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}  # Pillow opens them, but decodes none, or runs another program for it
SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN.keys() - OTHERS)

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # open_image refuses such pictures, in one line

# ---- Decoding ----


@contextmanager
def open_image(source: str | Path | Source, name: str | None = None) -> Iterator[Image.Image]:
    """Open a picture for the length of a `with`, not yet decoded.

    Raises InputError, which calls it `name`, if the picture has more pixels than Pillow holds to be safe, or whatever goes
    wrong within the `with`: on broken bytes decoders raise all kinds of exceptions.
    """
    source = File(Path(source)) if isinstance(source, (str, Path)) else source
    try:
        with source.open() as image:
            if image.format in OTHERS:
                raise UnidentifiedImageError
            pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS or float("inf")
            if pixels > limit:  # Pillow itself refuses only twice as many
                raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels")
            yield image
    except InputError:
        raise
    except Exception as error:
        reason, remedy = getattr(error, "strerror", None) or str(error) or type(error).__name__, "repair or remove it"
        if isinstance(error, UnidentifiedImageError):  # its own words hold the path once more, or an address
            reason = "its format is unknown"
        if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            reason, remedy = reason.split(",")[0], "scale it down or remove it"
        raise InputError(f"{name or source.path} cannot be read as an image ({' '.join(reason.split())}); {remedy}") from error


def read_image(source: str | Path | Source, at_least: int | None = None, name: str | None = None) -> Image.Image:
    """Read a picture of any mode as RGB: upright, first frame, over white where transparent.

    16 bits are divided by 257, floats multiplied by 255 if all lie in [0, 1], and left alone if all lie in [0, 255]. Levels
    outside such a range are scaled from the least to the greatest.

    at_least: a JPEG may come at 1/2, 1/4 or 1/8 of its size while no side gets shorter than this: many times faster.
    Raises InputError, which calls the picture `name`, if it cannot be read or has too many pixels.
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
    """Scale 16 or 32 bits or floats to 0..255, as read_image says; Pillow's own conversion clips at 255."""
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
    """Scale the short side to image_size (bicubic, antialiased) and crop the centre -> uint8 (h w 3).

    Every rounding is that of CLIP's own preprocessing.
    """
    short, long = sorted(image.size)
    if long > 50 * short:  # crop before scaling: scaled whole, so long a picture could fill the memory
        return np.asarray(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC))
    image = image.resize([image_size * side // short for side in image.size], Image.Resampling.BICUBIC)
    left, top = (round((side - image_size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


# ---- Tensors ----


def to_tensor(images: Sequence[Image.Image], image_size: int) -> Tensor:
    """Turn RGB pictures of any size into a batch -> float (b 3 h w) in [-1, 1], h = w = image_size."""
    return to_float(np.stack([square(image, image_size) for image in images]))


def to_float(pictures: np.ndarray) -> Tensor:
    """Turn uint8 (b h w 3) into float (b 3 h w) in [-1, 1]."""
    return rearrange(torch.from_numpy(pictures), "b h w c -> b c h w").contiguous().float() / 127.5 - 1


def to_pictures(images: Tensor) -> np.ndarray:
    """Turn float (b 3 h w) into uint8 (b h w 3), clipping what lies outside [-1, 1]."""
    levels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "b c h w -> b h w c").cpu().numpy()
