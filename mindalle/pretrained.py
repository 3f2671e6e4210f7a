"""Read a checkpoint into a DALL·E: recognise its layout by what it holds, and rename its keys into ours."""

import zipfile
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from .model import DALLE, DALLEConfig


def read_ours(checkpoint: Any) -> tuple[DALLEConfig, dict[str, Tensor]] | None:
    """Read {"kind": "dalle", "config": its fields, "weights": state dict, ...}; None for anything else."""
    if isinstance(checkpoint, dict) and checkpoint.get("kind") == "dalle":
        return DALLEConfig(**checkpoint["config"]), checkpoint["weights"]
    return None


# What a refusal lists, and its reader, which returns None where the file is of another layout.
LAYOUTS = {"a dalle.pt of this project": read_ours}


def load(path: str | PathLike, device: str | torch.device = "cpu") -> DALLE:
    """Build the DALL·E that the file holds, in eval mode. Any other file: a ValueError of one line."""
    checkpoint = read(path)
    for layout, reader in LAYOUTS.items():
        try:
            if (found := reader(checkpoint)) is not None:
                config, weights = found
                model = DALLE(config)
                model.load_state_dict(weights)
                return model.to(device).eval()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} looks like {layout} but does not fit: {reason}") from error
    raise ValueError(f"{path} is {describe(checkpoint)}: mindalle reads {', '.join(LAYOUTS)}")


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
