"""What the tests of minclip share: one seed, a small model, its inputs, a tokenizer."""

import pytest
import torch
from small_clip import CAPTIONS, SMALL

from minclip import CLIP, Tokenizer


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
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
