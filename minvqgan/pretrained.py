"""Load a VQGAN from a checkpoint: recognise the layout by its content, rename its keys to ours.

taming-transformers published f16 with 1024 and with 16384 codes, and f8 with a Gumbel codebook of
8192 codes; minDALL-E's first stage has the keys of f16 with 16384. All sizes are inferred from the
tensors' shapes.
"""

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .layers import group_norm
from .model import VQGAN, VQGANConfig

# where a folder may keep its VQGAN: a run of ours, minDALL-E, and three of taming-transformers
FILES = ("vqgan.pt", "stage1_last.ckpt", "last.ckpt", "checkpoints/last.ckpt", "ckpts/last.ckpt")

Found = tuple[VQGANConfig, dict[str, Tensor]]  # weights under our names

# A key of taming-transformers becomes ours by all of these in turn.
RENAMED = {
    r"^quant_conv\.": "to_codebook.",
    r"^post_quant_conv\.": "from_codebook.",
    r"^quantize\.embed(ding)?\.weight$": "codebook.vectors",
    r"^quantize\.proj\.": "codebook.proj.",
    r"^encoder\.down\.": "encoder.levels.",
    r"\.(down|up)sample\.": ".resample.",
    r"\.mid\.block_1\.": ".middle.0.",
    r"\.mid\.attn_1\.": ".middle.1.",
    r"\.mid\.block_2\.": ".middle.2.",
    r"\.block\.": ".blocks.",
    r"\.nin_shortcut\.": ".shortcut.",
    r"\.attn\.": ".attentions.",
    r"\.q\.": ".query.",
    r"\.k\.": ".key.",
    r"\.v\.": ".value.",
    r"\.proj_out\.": ".out.",
}


def from_ours(checkpoint: Any, path: Path) -> Found | None:
    """Read {"kind": "vqgan", "config": its fields, "weights": state dict}; else None."""
    if not isinstance(checkpoint, dict) or checkpoint.get("kind") != "vqgan":
        return None
    config = dict(checkpoint["config"])
    if config.pop("l2_normalised", False):
        raise InputError("its codes are l2_normalised, which is not supported: train it anew")
    return VQGANConfig(**config), checkpoint["weights"]


def from_taming(checkpoint: Any, path: Path) -> Found | None:
    """Read taming-transformers' state dict, bare or in Lightning's {"state_dict": it}; else None."""
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not any(str(key).startswith("decoder.up.") for key in state):
        return None
    if not any(key.startswith("encoder.") for key in state):
        raise InputError("it is only a decoder, like min-dalle's detoker.pt, and cannot encode: "
                         "load taming-transformers' f16 with 16384 codes instead")
    config = infer_config(state, training_side(path))
    last = len(config.multipliers) - 1
    weights = {}
    for key, tensor in state.items():
        if key.startswith("loss."):  # discriminator and LPIPS
            continue
        for pattern, ours in RENAMED.items():
            key = re.sub(pattern, ours, key)
        # theirs count the decoder's levels from the full resolution, ours in order of execution
        key = re.sub(r"^decoder\.up\.(\d+)", lambda up: f"decoder.levels.{last - int(up[1])}", key)
        weights[key] = tensor
    if config.quantiser == "nearest":
        # new codes count as dead: unless idle is zero, further training would overwrite them
        size = config.codebook_size
        weights["codebook.idle"] = torch.zeros(size, dtype=torch.int64)
        weights["codebook.share"] = torch.full((size,), 1 / size)
    return config, weights


def infer_config(state: dict[str, Tensor], image_size: int) -> VQGANConfig:
    """Infer the config from the shapes of tensors with taming-transformers' names."""
    def count(prefix: str) -> int:
        names = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
        return len({name.split(".")[0] for name in names})

    channels = len(state["encoder.conv_in.weight"])
    levels = range(count("encoder.down."))
    widths = [len(state[f"encoder.down.{i}.block.0.conv1.weight"]) for i in levels]
    # No result depends on image_size: attention belongs to a level, whatever its side.
    attend = [image_size // 2**i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in state]
    if group_norm(channels).num_groups != 32:
        raise InputError(f"its first layer is {channels} wide, which group_norm in layers.py does "
                         "not divide into 32 groups, as the original does: it would load and "
                         "compute something else")
    gumbel = "quantize.embed.weight" in state
    vectors = state["quantize.embed.weight" if gumbel else "quantize.embedding.weight"]
    codebook_size, codebook_dim = vectors.shape
    return VQGANConfig(
        image_size=image_size, channels=channels,
        multipliers=tuple(width // channels for width in widths),
        residual_blocks=count("encoder.down.0.block."), attention_resolutions=tuple(attend),
        z_channels=len(state["encoder.conv_out.weight"]),
        codebook_size=codebook_size, codebook_dim=codebook_dim,
        quantiser="gumbel" if gumbel else "nearest", rate_weight=0.0)


def training_side(path: Path) -> int:
    """Find the side of the training images in a config beside the weights; 256 without one."""
    folder = path.absolute().parent
    for place in (folder, folder / "configs", folder.parent / "configs"):
        for file in sorted(place.glob("*.yaml")):
            text = file.read_text(encoding="utf-8", errors="replace")
            if found := re.search(r"^[^#\n]*\bresolution:\s*(\d+)", text, re.MULTILINE):
                return int(found[1])
    return 256


LAYOUTS = {  # by name in messages
    "a vqgan.pt of this project": from_ours,
    "a VQGAN of taming-transformers or minDALL-E": from_taming,
}


def load(path: str | PathLike, device: str | torch.device = "cpu") -> VQGAN:
    """Build the VQGAN in a file or folder, in eval mode; raise an InputError if it holds none."""
    path = locate(path)
    checkpoint = read(path)
    for layout, reader in LAYOUTS.items():
        with as_input_error(path, layout):
            found = reader(checkpoint, path)
        if found is not None:
            config, weights = found
            with torch.device("meta"):  # shapes only: no time, no memory
                model = VQGAN(config)
            with as_input_error(path, layout):
                fit(model, weights)
            return model.to(device).eval()
    raise InputError(f"{path} is {describe(checkpoint)}: minvqgan reads {', '.join(LAYOUTS)}")


@contextmanager
def as_input_error(path: Path, layout: str) -> Iterator[None]:
    """Turn an error that the content of a file caused into an InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, KeyError):
            reason = f"{error.args[0]} is missing"
        raise InputError(f"{path} looks like {layout} but does not fit: {reason}") from error


def locate(path: str | PathLike) -> Path:
    """Return `path` if it is no folder, else the first of FILES that the folder holds."""
    path = Path(path)
    if path.suffix == ".msgpack":
        raise InputError(f"{path} holds Flax weights, which only Flax reads: load "
                         "taming-transformers' f16 with 16384 codes, of which dalle-mini's VQGAN is "
                         "a copy")
    if not os.path.isdir(path):  # unlike path.is_dir(), never raises: `read` will, in one line
        return path
    for name in FILES:
        if os.path.isfile(path / name):
            return path / name
    raise InputError(f"{path} has none of {', '.join(FILES)}: name the file itself")


# `ModelCheckpoint`, `read` and `fit` have twins in mindalle/pretrained.py, `describe` also in
# minclip/pretrained.py.
class ModelCheckpoint:
    """Stand in for the class of this name that old Lightning files mention: it holds nothing and does nothing."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


def read(path: str | PathLike) -> Any:
    """Read a file of tensors and plain values onto the CPU; refuse one that asks to run code, naming what it wanted."""
    try:
        with torch.serialization.safe_globals([ModelCheckpoint]):
            # mmap leaves on disk what nobody asks for, such as an optimiser's state; it needs torch's zip format
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes make the unpickler fail in every way there is
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(f"{path} asks to run {wanted[1]}, which no file of weights needs: refused") from None
        reason, known = type(error).__name__, ", ".join(LAYOUTS)
        raise InputError(f"{path} is damaged, or no file of plain tensors ({reason}); supported: {known}") from error


def fit(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights into a model built on the meta device. Those of its precision stay mapped from their file.

    Raises InputError with the name of a tensor that is missing, one too many, or of another shape.
    """
    expected = model.state_dict()
    common = [name for name in expected if name in weights]
    misfits = {
        "is missing": [name for name in expected if name not in weights],
        "is one too many": [name for name in weights if name not in expected],
        "has another shape": [name for name in common if weights[name].shape != expected[name].shape],
    }
    for what, names in misfits.items():
        if names:
            raise InputError(f"{names[0]} {what}" + (f" (and {len(names) - 1} more)" if names[1:] else ""))
    model.load_state_dict({name: weights[name].to(expected[name].dtype) for name in expected}, assign=True)


def describe(checkpoint: Any) -> str:
    """Say in a few words what a file holds, for the message that refuses it."""
    if not isinstance(checkpoint, dict):
        return f"a {type(checkpoint).__name__}"
    if "kind" in checkpoint:
        return f"a checkpoint of kind {checkpoint['kind']!r}"
    return f"a dict with {', '.join(map(repr, list(checkpoint)[:3])) or 'nothing in it'}"
