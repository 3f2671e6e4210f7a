"""Read a CLIP from a file, whoever wrote it.

A file is first read as data: tensors and plain values, never code. Then each of LAYOUTS is asked in turn; the
first that knows the file hands back our config, and the weights under our names. One more layout is one more
function.
"""

import zipfile
from collections.abc import Callable
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from .model import CLIP, CLIPConfig


def from_minclip(checkpoint: Any) -> tuple[CLIPConfig, dict[str, Tensor]] | None:
    """Recognise our own: {"kind": "clip", "config": fields of CLIPConfig, "weights": our state dict, ...}."""
    if not isinstance(checkpoint, dict) or checkpoint.get("kind") != "clip":
        return None
    return CLIPConfig(**checkpoint["config"]), checkpoint["weights"]


# name, for messages -> the function that returns config and weights, or None where the layout is another
LAYOUTS: dict[str, Callable[[Any], tuple[CLIPConfig, dict[str, Tensor]] | None]] = {
    "clip.pt as saved by train.py": from_minclip,
}


def load(path: str | PathLike, device: str | torch.device = "cpu") -> CLIP:
    """Return the CLIP stored at `path`, on `device` and in eval mode.

    Raises ValueError, in one line, for a file that is damaged, would run code, or has no layout that we know.
    """
    checkpoint = read(path)
    for layout, recognise in LAYOUTS.items():
        try:
            found = recognise(checkpoint)
            if found is None:
                continue
            config, weights = found
            model = CLIP(config)
            model.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]  # a mismatch lists every weight, a line each
            raise ValueError(f"{path} looks like {layout}, but its parts do not fit: {reason}") from error
        return model.to(device).eval()
    raise ValueError(f"{path} is {describe(checkpoint)}; minclip reads these layouts: {', '.join(LAYOUTS)}")


# `read` and `describe` have twins in the other two packages' pretrained.py.
def read(path: str | PathLike) -> Any:
    """Read a file of tensors and plain values onto the CPU: any other object in it could run code as it is read."""
    try:
        # mmap leaves on disk what nobody asks for, such as an optimiser's state; only torch's zip format can
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise  # no such file, no permission: it says so itself
    except Exception as error:  # damaged bytes make the unpickler fail in every way there is
        reason, known = type(error).__name__, ", ".join(LAYOUTS)
        raise ValueError(f"{path} is no file of plain tensors, or damaged ({reason}); what is read: {known}") from error


def describe(checkpoint: Any) -> str:
    """Say in a few words what a file holds, for the message that refuses it."""
    if not isinstance(checkpoint, dict):
        return f"a {type(checkpoint).__name__}"
    if "kind" in checkpoint:
        return f"a checkpoint of kind {checkpoint['kind']!r}"
    return f"a dict with {', '.join(map(repr, list(checkpoint)[:3])) or 'nothing in it'}"
