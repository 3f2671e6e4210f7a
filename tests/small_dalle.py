"""A small DALL·E as the tests of mindalle share it: its sizes, its inputs, and the designs that it comes in."""

import pytest
import torch

from mindalle import DALLE, DALLEConfig
from mindalle.layers import PATTERNS

SMALL = dict(text_vocab=11, image_vocab=13, text_length=5, grid=4, width=16, layers=2, heads=2)
T, N = 5, 16  # text tokens and codes of the small model
EPS = torch.finfo(torch.float32).eps

# every attention pattern must pass the tests that are parametrised over these
DESIGNS = [*(dict(attention=pattern) for pattern in PATTERNS), dict(attention="row,column")]
each_design = pytest.mark.parametrize("design", DESIGNS, ids=lambda design: "-".join(*design.items()))


def small_model(seed: int = 0, **changes) -> DALLE:
    """Build a model with weights so large that its predictions depend visibly on all they may see."""
    torch.manual_seed(seed)
    model = DALLE(DALLEConfig(**{**SMALL, **changes}))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (0.4 if parameter.ndim > 1 else 0.1)
    return model.eval()


def small_batch(b: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw captions (b t), codes (b n) and an empty caption (t,)."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(1, 11, (b, T), generator=generator)
    return text, torch.randint(13, (b, N), generator=generator), torch.zeros(T, dtype=torch.int64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
