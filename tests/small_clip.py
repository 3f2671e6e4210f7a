"""A small CLIP as the tests of minclip share it: its config, its checkpoint, its inputs, and a tokenizer of a few captions."""

import dataclasses

import pytest
import torch

from minclip import CLIP, CLIPConfig, Tokenizer

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
CAPTIONS = [f"a {colour} {shape} on a black background" for colour in COLOURS for shape in SHAPES]
SMALL = CLIPConfig(
    image_size=16, patch_size=8, stem_width=0, vision_width=32, vision_layers=2, text_width=32, text_layers=2, embed_dim=16
)


def checkpoint(model: CLIP) -> dict:
    config = dataclasses.asdict(model.config)
    return {"kind": "clip", "config": config, "weights": model.state_dict(), "step": 7}


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 640)


@pytest.fixture
def model() -> CLIP:
    return CLIP(SMALL).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(16, 3, 16, 16) * 2 - 1


@pytest.fixture
def ids(tokenizer) -> torch.Tensor:
    return tokenizer.encode(CAPTIONS[:16], SMALL.context_length)
