"""Read a VQGAN from a file of weights, ours or a published layout, and refuse any other by name."""

import zipfile
from os import PathLike
from pickle import UnpicklingError

import torch

from .model import VQGAN, VQGANConfig


def load(path: str | PathLike, device: str | torch.device = "cpu") -> VQGAN:
    """Return the VQGAN stored at `path`, on `device`, in eval mode.

    Nothing in the file is run: it may hold tensors and plain values only. Raises ValueError, one line, for a file
    that is damaged, of another kind or in a layout that is not in LAYOUTS; OSError if it cannot be opened.
    """
    with open(path, "rb") as file:
        mapped = zipfile.is_zipfile(file)  # torch's format since 1.6; older files cannot be mapped into memory
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        raise ValueError(f"{path} is not a file of plain tensors and values; it was not read further") from None
    for read in LAYOUTS.values():
        try:
            model = read(content)
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} looks like a VQGAN but does not fit: {reason[:300]}") from None
        if model is not None:
            return model.to(device).eval()
    raise ValueError(f"{path} holds {describe(content)}, which is no VQGAN; known layouts: {', '.join(LAYOUTS)}")


def read_own(content: object) -> VQGAN | None:
    """Build the model of a checkpoint written by train.py, or return None for anything else."""
    if not isinstance(content, dict) or content.get("kind") != "vqgan":
        return None
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in content["config"].items()}
    model = VQGAN(VQGANConfig(**config))
    model.load_state_dict(content["weights"])
    return model


# Layout -> reader(content) -> VQGAN, or None if the content is not of that layout. The first that fits is taken.
# A reader of published weights must fill codebook.idle with zeros: left as it is, the codebook counts as dead,
# and the first training batch would overwrite what was loaded.
LAYOUTS = {"our own vqgan.pt": read_own}


def describe(content: object) -> str:
    """Say in a few words what a file holds."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if "kind" in content:
        return f"a checkpoint of kind {content['kind']!r}"
    names = [str(name) for name in content]
    return f"a dict of {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
