"""A small CLIP for the tests of minclip: its config, its captions and its checkpoint."""

import dataclasses

from minclip import CLIP, CLIPConfig

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
CAPTIONS = [f"a {colour} {shape} on a black background" for colour in COLOURS for shape in SHAPES]
SMALL = CLIPConfig(image_size=16, patch_size=8, stem_width=0, vision_width=32, vision_layers=2,
                   text_width=32, text_layers=2, embed_dim=16)


def checkpoint(model: CLIP) -> dict:
    config = dataclasses.asdict(model.config)
    return {"kind": "clip", "config": config, "weights": model.state_dict(), "step": 7}
