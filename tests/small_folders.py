"""Folders of a few pictures with captions, made in a test, and what was read of them."""

import io
import struct
import zlib

import pytest
from PIL import Image

import data
from data.layouts import read


def image_bytes(level=0, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(file, kind)
    return file.getvalue()


def make(folder, *names):
    """Write pictures by name, each of its own level of red."""
    for level, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(level))
    return folder


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def captions(collection):
    return {picture.name: picture.captions for picture in collection.pictures}


def splits(collection):
    return {picture.name: picture.split for picture in collection.pictures}


def levels(collection):
    """Decode every picture -> the red of its first pixel, by caption."""
    found = {}
    for picture in collection.pictures:
        with picture.open() as image:
            found[picture.captions[0]] = image.convert("RGB").getpixel((0, 0))[0]
    return found


def refusal(folder, **options):
    """Return the one line of a refusal, the folder in it written as DIR."""
    with pytest.raises(data.InputError) as error:
        read(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(folder), "DIR")


def chunk(kind, content=b""):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"no pixels") + chunk(b"IEND")
