"""Read a checkpoint into a VQGAN: a layout is recognised by what the file holds, its keys renamed to ours."""

import zipfile
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from .model import VQGAN, VQGANConfig


def read_ours(checkpoint: Any) -> tuple[VQGANConfig, dict[str, Tensor]] | None:
    """Read {"kind": "vqgan", "config": its fields, "weights": state dict, ...}; None for anything else."""
    if isinstance(checkpoint, dict) and checkpoint.get("kind") == "vqgan":
        return VQGANConfig(**checkpoint["config"]), checkpoint["weights"]
    return None


# What a refusal lists -> its reader, which returns None for any other. One of published weights must
# add "codebook.idle" as zeros: a new codebook counts as dead, and training on would wipe what was loaded;
# and an even "codebook.share".
LAYOUTS = {"a vqgan.pt of this project": read_ours}


def load(path: str | PathLike, device: str | torch.device = "cpu") -> VQGAN:
    """Build the VQGAN that the file holds, in eval mode; else a ValueError says in one line what it holds."""
    checkpoint = read(path)
    for reader in LAYOUTS.values():
        try:
            if (found := reader(checkpoint)) is not None:
                config, weights = found
                model = VQGAN(config)
                model.load_state_dict(weights)
                return model.to(device).eval()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]  # PyTorch lists every key that does not fit
            raise ValueError(f"{path} is damaged or from another version: {reason}") from None
    raise ValueError(f"{path} is {describe(checkpoint)}: minvqgan reads {', '.join(LAYOUTS)}")


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
