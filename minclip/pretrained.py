"""Read a CLIP from a file, whoever wrote it.

A file is first read as data: tensors and plain values, never code. Then each of LAYOUTS is asked whether it knows this
one; the first that does hands back our config and the weights under our names. To read one more kind of file, write
one more such function.
"""

import os
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .model import CLIP, CLIPConfig


def from_minclip(checkpoint: Any) -> tuple[CLIPConfig, dict[str, Tensor]] | None:
    """Recognise what train.py saves: {"kind": "clip", "config": fields of CLIPConfig, "weights": state dict, ...}."""
    if isinstance(checkpoint, dict) and checkpoint.get("kind") == "clip":
        return CLIPConfig(**checkpoint["config"]), checkpoint["weights"]


# what the layout is called in messages -> the function that recognises it: None, or the config and our state dict
LAYOUTS: dict[str, Callable[[Any], tuple[CLIPConfig, dict[str, Tensor]] | None]] = {
    "clip.pt as train.py saves it": from_minclip,
}


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> CLIP:
    """Return the CLIP stored at `path`, on `device` and in eval mode.

    Raises ValueError, in one line, for a file that is damaged, runs code, or has a layout that is not known.
    """
    checkpoint = read(path)
    known = f"known layouts: {', '.join(LAYOUTS)}"
    for name, recognise in LAYOUTS.items():
        try:
            found = recognise(checkpoint)
            if found is None:
                continue
            config, weights = found
            model = CLIP(config)
            model.load_state_dict(weights)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} looks like {name}, but does not fit: {reason}") from error
        return model.to(device).eval()
    raise ValueError(f"{path} is {describe(checkpoint)}, not a CLIP that minclip reads; {known}")


def read(path: str | os.PathLike) -> Any:
    """Read a file of tensors and plain values, on the CPU, without running any code that it may carry."""
    try:
        # mmap leaves on disk what nobody asks for, such as an optimizer's state; only torch's zip format can
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise  # no such file, no permission: it says so itself
    except Exception as error:  # damaged bytes make the unpickler fail in any way there is
        raise ValueError(f"{path} is damaged, or no checkpoint of tensors and plain values ({type(error).__name__})") from error


def describe(checkpoint: Any) -> str:
    """Say in a few words what a file holds, for the message that refuses it."""
    if not isinstance(checkpoint, dict):
        return f"a {type(checkpoint).__name__}"
    if "kind" in checkpoint:
        return f"a checkpoint of kind {checkpoint['kind']!r}"
    return f"a dict with {', '.join(map(repr, list(checkpoint)[:3])) or 'nothing in it'}"
