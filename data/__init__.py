"""Serve captioned images: the shapes world, or a folder of your own.

                  random_scene           render                        read_scene
    seed, split, i ----------> Scene -------------> pixels (h w 3) ------------------> Scene
                      .caption |  ^ parse
                               v  |
                "a small red circle on a black background"

    load("shapes" | folder, image_size) --> Dataset --> .batch(indices)  .texts(indices, generator)

    folder --tree, layouts--> Collection: Picture, ... --decoding--> uint8 (n h w 3) --> Dataset

Pictures are uint8 (h w 3) in here, and float (b 3 h w) in [-1, 1] once they leave for a model.
"""

from .collection import Collection
from .dataset import Dataset, held_out_split, image_files, load
from .decoding import DETAIL
from .errors import InputError
from .judge import matches, overlap, read_scene
from .layouts import LAYOUTS
from .layouts import read as read_layout
from .pictures import open_image, read_image, to_pictures, to_tensor
from .shapes import (BACKGROUNDS, COLOURS, NOVEL, OUTLINES, RELATIONS, SHAPES, SPLITS, Object, Scene,
                     paint, parse, place, random_scene, render, split_of)

__all__ = [
    "load", "Dataset", "held_out_split", "InputError",
    "read_layout", "Collection", "LAYOUTS", "image_files",
    "open_image", "read_image", "to_tensor", "to_pictures", "DETAIL",
    "COLOURS", "SHAPES", "BACKGROUNDS", "RELATIONS", "OUTLINES", "NOVEL", "SPLITS",
    "Object", "Scene", "parse", "split_of", "random_scene", "place", "paint", "render",
    "read_scene", "matches", "overlap",
]
