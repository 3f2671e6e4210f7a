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


def read(path: str | PathLike) -> Any:
    """Unpickle tensors and plain values only: any other object in the file could run code as it is read."""
    try:
        # Mapped into memory, what lies beside the weights (an optimiser's state) is never read from the disk.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise  # a missing file says so itself
    except Exception:  # arbitrary bytes can fail to be a pickle in any way
        raise ValueError(f"{path} is no file of plain tensors: mindalle reads {', '.join(LAYOUTS)}") from None


def describe(checkpoint: Any) -> str:
    """Say in a few words what was found in a file."""
    if not isinstance(checkpoint, dict):
        return f"a {type(checkpoint).__name__}"
    if "kind" in checkpoint:
        return f"a checkpoint of kind {checkpoint['kind']!r}"
    return f"a dict of {', '.join(map(str, list(checkpoint)[:3]))}, ..."
