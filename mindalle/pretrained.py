"""Load a DALL·E from a file: recognise the layout by its content, rename the weights into ours.

minDALL-E, 1.3 billion parameters, is published by Kakao Brain as one archive (linked from the
README of kakaobrain/minDALL-E; weights under CC BY-NC-SA 4.0). `load` takes its folder,

    1.3B/  config.yaml  stage1_last.ckpt  stage2_last.ckpt  tokenizer/

and reads its transformer, stage 2; stage 1 is a VQGAN. Weights stay mapped from the file until they
are used, except for the joined queries, keys and values: loading takes half the file's size in
memory, using the model 1.3 times.
"""

import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .model import DALLE, DALLEConfig

FILES = ("dalle.pt", "stage2_last.ckpt")  # looked for in a folder: our own, then minDALL-E's

# part of a name in minDALL-E -> in ours; any other name stays as it is, and `fit` reports it
NAMES = {
    "tok_emb_txt.": "text_embedding.", "tok_emb_img.": "image_embedding.",
    "pos_emb_txt.weight": "text_positions", "pos_emb_img.weight": "image_positions",
    ".ln1.": ".ln_1.", ".attn.qkv.": ".attention.qkv.", ".attn.proj.": ".attention.out.",
    ".ln2.": ".ln_2.", ".mlp.0.": ".mlp.expand.", ".mlp.2.": ".mlp.contract.",
    "ln_f.": "norm.", "head_txt.": "text_head.", "head_img.": "image_head.",
}


def from_ours(checkpoint: Any, path: Path) -> tuple[DALLEConfig, dict[str, Tensor]] | None:
    """Read {"kind": "dalle", "config": its fields, "weights": state dict, ...}."""
    if not isinstance(checkpoint, dict) or checkpoint.get("kind") != "dalle":
        return None
    config = dict(checkpoint["config"])
    # older files hold two fields more: an option of training, and an order of decoding
    config.pop("text_loss_weight", None)
    if (order := config.pop("order", "row_major")) != "row_major":
        raise InputError(f"it draws codes in order {order}, this version row by row: train it anew")
    return DALLEConfig(**config), checkpoint["weights"]


def from_mindalle(checkpoint: Any, path: Path) -> tuple[DALLEConfig, dict[str, Tensor]] | None:
    """Read minDALL-E's state dict, bare or under "state_dict" with any other keys beside it."""
    weights = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or "tok_emb_img.weight" not in weights:
        return None
    weights = {name: weight for name, weight in weights.items() if not name.endswith(".attn.mask")}
    sizes = {
        "text_vocab": len(weights["tok_emb_txt.weight"]),
        "image_vocab": len(weights["tok_emb_img.weight"]),
        "text_length": len(weights["pos_emb_txt.weight"]),
        "grid": math.isqrt(len(weights["pos_emb_img.weight"])),
        "width": weights["tok_emb_txt.weight"].shape[-1],
        "layers": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
    }
    for layer in range(sizes["layers"]):
        for kind in ("weight", "bias"):
            names = [f"blocks.{layer}.attn.{part}.{kind}" for part in ("query", "key", "value")]
            weights[f"blocks.{layer}.attn.qkv.{kind}"] = join(weights, names, sizes["width"])
    for theirs, ours in NAMES.items():
        weights = {name.replace(theirs, ours): tensor for name, tensor in weights.items()}
    heads = read_heads(path.with_name("config.yaml"), sizes)
    return DALLEConfig(**sizes, heads=heads, rotary=False), weights


def join(weights: dict[str, Tensor], names: list[str], width: int) -> Tensor:
    """Take the tensors of these names out of weights and join them -> (names width) or (... width)

    Raises InputError for one of another shape: a row too many in one would make up for a row
    missing in another.
    """
    parts = [weights.pop(name) for name in names]
    for name, part in zip(names, parts):
        if set(part.shape) != {width}:
            raise InputError(f"{name} has another shape")
    return torch.cat(parts)


def read_heads(path: Path, sizes: dict[str, int]) -> int:
    """Read the number of heads, which no tensor shows, from the config.yaml beside the weights.

    Raises InputError where the file contradicts the weights, or asks for something that our model
    does not do. Without n_heads in a file only the published shape is accepted.
    """
    text = re.sub("#.*", "", path.read_text(encoding="utf-8")) if path.is_file() else ""
    sections = re.split(r"^(?=\w)", text, flags=re.MULTILINE)  # stage1 has an embed_dim as well
    stage2 = next((section for section in sections if section.startswith("stage2:")), "")
    settings = dict(re.findall(r"(\w+):[ \t]+['\"]?([^\s,}'\"]+)", stage2))
    for name, value in {
        "type": "transformer1d", "gelu_use_approx": False,
        "embed_dim": sizes["width"], "n_layers": sizes["layers"],
        "vocab_size_txt": sizes["text_vocab"], "vocab_size_img": sizes["image_vocab"],
        "ctx_len_txt": sizes["text_length"], "ctx_len_img": sizes["grid"] ** 2,
    }.items():
        if settings.get(name, str(value)).lower() != str(value).lower():
            raise InputError(f"{path.name} has {name}: {settings[name]}, "
                             f"but mindalle reads these weights as {name}: {value}")
    if "n_heads" in settings:
        return int(settings["n_heads"])
    published = DALLEConfig.mindalle_1_3b()
    if any(size != getattr(published, name) for name, size in sizes.items()):
        raise InputError(
            "no weight shows its number of heads: put the config.yaml with its n_heads beside it")
    return published.heads


# layout, as a refusal names it -> its reader: (checkpoint, path) -> config and weights, None if it
# is another layout
LAYOUTS = {
    "a dalle.pt of this project": from_ours, "minDALL-E's stage2_last.ckpt": from_mindalle,
}


def load(path: str | PathLike, device: str | torch.device = "cpu") -> DALLE:
    """Build the DALL·E of a file or of minDALL-E's folder, in eval mode.

    Raises InputError, one line that names the file, for any other.
    """
    path = locate(path)
    return build(path, read(path), LAYOUTS, DALLE, "mindalle").to(device).eval()


def build(path: Path, checkpoint: Any, layouts: dict[str, Callable],
          model_of: Callable[[Any], nn.Module], package: str) -> nn.Module:
    """Build the model of a checkpoint with the reader among `layouts` that recognises it."""
    for layout, reader in layouts.items():
        with as_input_error(path, layout):
            found = reader(checkpoint, path)
        if found is not None:
            config, weights = found
            with torch.device("meta"):  # shapes only: no time, no memory
                model = model_of(config)
            with as_input_error(path, layout):
                fit(model, weights)
            return model
    raise InputError(f"{path} is {describe(checkpoint)}: {package} reads {', '.join(layouts)}")


@contextmanager
def as_input_error(path: Path, layout: str) -> Iterator[None]:
    """Turn an error caused by the content of a file into an InputError of one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, KeyError):
            reason = f"{error.args[0]} is missing"
        raise InputError(f"{path} looks like {layout} but does not fit: {reason}") from error


def locate(path: str | PathLike, files: tuple[str, ...] = FILES,
           otherwise: str = "name the file itself") -> Path:
    """Return `path` if it is no folder, else the first of the files that the folder holds."""
    path = Path(path)
    if not os.path.isdir(path):  # unlike path.is_dir(), never raises: `read` names what is wrong
        return path
    for name in files:
        if os.path.isfile(path / name):
            return path / name
    raise InputError(f"{path} has none of {', '.join(files)}: {otherwise}")


# `fit` and `describe` have twins in the other two packages' pretrained.py, `ModelCheckpoint` and
# `read` in minvqgan's.
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
