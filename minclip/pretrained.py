"""Load a CLIP from our own files or published ones: recognise the layout, rename its keys to ours.

The shapes of the weights give every size, but neither the number of attention heads nor the
activation of the MLPs. With a wrong one the weights load without an error and the features are
wrong. So neither is guessed: they come from the layout itself (OpenAI's files), from the config in
the folder of the weights, or from `preset`.

A new layout is one more function in LAYOUTS.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .files import read
from .model import CLIP, PIXEL_MEAN, PIXEL_STD, CLIPConfig

# in a folder, the first of these that exists is loaded
FILES = ("clip.pt", "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
         "model.safetensors", "pytorch_model.bin")

# Models published without a config: width and heads of the image encoder. In all of them text heads
# are 64 wide; the activation is GELU, or QuickGELU where the name ends in -quickgelu.
PRESETS = {"ViT-B-32": (768, 12), "ViT-B-16": (768, 12), "ViT-L-14": (1024, 16),
           "ViT-L-14-336": (1024, 16), "ViT-H-14": (1280, 16), "ViT-g-14": (1408, 16),
           "ViT-bigG-14": (1664, 16)}

OPENAI_NAMES = [  # theirs -> ours, each pattern applied in turn
    (r"^module\.", ""), (r"^text\.", ""),  # open_clip's parallel training, its CustomTextCLIP
    (r"^visual\.conv1\.", "image_encoder.patch_embedding."),
    (r"^visual\.positional_embedding$", "image_encoder.positions"),
    (r"^visual\.proj$", "image_encoder.projection"),
    (r"^visual\.", "image_encoder."),
    (r"^positional_embedding$", "text_encoder.positions"),
    (r"^text_projection$", "text_encoder.projection"),
    (r"^(token_embedding|transformer|ln_final)\.", r"text_encoder.\1."),
    (r"\.resblocks\.", ".blocks."),
    (r"\.attn\.in_proj_", ".attention.qkv."),
    (r"\.attn\.out_proj\.", ".attention.out."),
    (r"\.mlp\.c_fc\.", ".mlp.expand."), (r"\.mlp\.c_proj\.", ".mlp.contract."),
]
HUGGING_FACE_NAMES = [
    (r"^visual_projection\.weight$", "image_encoder.projection"),
    (r"^text_projection\.weight$", "text_encoder.projection"),
    (r"^vision_model\.", "image_encoder."), (r"^text_model\.", "text_encoder."),
    (r"\.embeddings\.position_embedding\.weight$", ".positions"), (r"\.embeddings\.", "."),
    (r"\.pre_layrnorm\.", ".ln_pre."), (r"\.post_layernorm\.", ".ln_post."),
    (r"\.final_layer_norm\.", ".ln_final."), (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.encoder\.layers\.", ".transformer.blocks."),
    (r"\.self_attn\.out_proj\.", ".attention.out."), (r"\.self_attn\.", ".attention."),
    (r"\.mlp\.fc1\.", ".mlp.expand."), (r"\.mlp\.fc2\.", ".mlp.contract."),
]


def load(path: str | PathLike, device: str | torch.device = "cpu",
         preset: str | None = None) -> CLIP:
    """Return the CLIP in a file, or in a folder that has one of FILES, in eval mode and float32.

    preset: one of PRESETS, optionally with -quickgelu, for weights without a config beside them
    Raises InputError, in one line, for a file that is missing, damaged, would run code, has no
    known layout, or has weights that do not fit its layout exactly.
    """
    path = locate(path)
    checkpoint = read(path)
    for layout, recognise in LAYOUTS.items():
        with as_input_error(path, layout):
            found = recognise(checkpoint, path, preset)
        if found is not None:
            config, weights = found
            with torch.device("meta"):  # shapes without values: no time and no memory
                model = CLIP(config)
            with as_input_error(path, layout):
                fit(model, weights)
            return model.to(device).eval()
    raise InputError(f"{path} is {describe(checkpoint)}: minclip reads {', '.join(LAYOUTS)}")


def locate(path: str | PathLike) -> Path:
    """Return the file of weights of a folder; a file is returned as it is."""
    if not os.path.isdir(path):
        return Path(path)
    for name in FILES:
        if os.path.exists(os.path.join(path, name)):
            return Path(path, name)
    raise InputError(f"{path} has none of {', '.join(FILES)}: name the file itself")


@contextmanager
def as_input_error(path: Path, layout: str) -> Iterator[None]:
    """Turn an error that the content of a file caused into an InputError of one line."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError,
            OSError) as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, KeyError):
            reason = f"{error.args[0]} is missing"
        raise InputError(f"{path} looks like {layout} but does not fit: {reason}") from error


# ---- The layouts: (checkpoint, its path, preset) -> config, weights; None for another layout ----

Found = tuple[CLIPConfig, dict[str, Tensor]]


def from_ours(checkpoint: Any, path: Path, preset: str | None) -> Found | None:
    """Read {"kind": "clip", "config": fields of CLIPConfig, "weights": our state dict, ...}."""
    if isinstance(checkpoint, dict) and checkpoint.get("kind") == "clip":
        return CLIPConfig(**checkpoint["config"]), checkpoint["weights"]
    return None


def from_openai(checkpoint: Any, path: Path, preset: str | None) -> Found | None:
    """Read OpenAI's archives: heads are 64 wide and the activation is QuickGELU in all of them."""
    # only their archives have this key
    if not isinstance(checkpoint, dict) or "input_resolution" not in checkpoint:
        return None
    if any(name.startswith("visual.layer1.") for name in checkpoint):
        raise InputError("its image encoder is a ResNet, and minclip has only Vision Transformers: "
                         "take a ViT")
    weights = rename(checkpoint, OPENAI_NAMES)
    for size in ("input_resolution", "context_length", "vocab_size"):  # the shapes give them too
        weights.pop(size, None)
    sizes = infer(weights)
    return CLIPConfig(**sizes, vision_heads=sizes["vision_width"] // 64,
                      text_heads=sizes["text_width"] // 64, activation="quick_gelu"), weights


def from_open_clip(checkpoint: Any, path: Path, preset: str | None) -> Found | None:
    """Read open_clip's weights and training checkpoints: OpenAI's names, open_clip_config.json."""
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict):
        checkpoint = checkpoint["state_dict"]
    if not isinstance(checkpoint, dict):
        return None
    if not any(re.search(r"^(module\.)?visual\.", name) for name in checkpoint):
        return None
    if any("visual.trunk." in name for name in checkpoint):
        raise InputError("its image encoder is one of timm's, and minclip has only CLIP's own: "
                         "take a ViT without timm")
    weights = rename(checkpoint, OPENAI_NAMES)
    weights["logit_scale"] = weights["logit_scale"].reshape(())  # some files have shape (1,)
    weights.pop("logit_bias", None)  # shifts all logits alike: rankings and softmax ignore it
    return config_from(infer(weights), path, preset, "open_clip_config.json",
                       open_clip_choices), weights


def from_hugging_face(checkpoint: Any, path: Path, preset: str | None) -> Found | None:
    """Read a CLIPModel of Hugging Face: separate q, k and v, projections transposed."""
    if not isinstance(checkpoint, dict):
        return None
    if "vision_model.embeddings.class_embedding" not in checkpoint:
        return None
    weights = rename(checkpoint, HUGGING_FACE_NAMES)
    for name in [name for name in weights if name.endswith(".position_ids")]:
        del weights[name]
    for name in [name for name in weights if ".attention.q_proj." in name]:
        q, k, v = (weights.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv")
        weights[name.replace("q_proj", "qkv")] = torch.cat([q, k, v])
    for encoder in ("image_encoder", "text_encoder"):
        weights[f"{encoder}.projection"] = weights[f"{encoder}.projection"].T
    return config_from(infer(weights), path, preset, "config.json", hugging_face_choices), weights


LAYOUTS: dict[str, Callable[[Any, Path, str | None], Found | None]] = {  # by name in messages
    "a clip.pt of this project": from_ours,
    "an archive of OpenAI": from_openai,
    "a file of open_clip": from_open_clip,
    "a CLIPModel of Hugging Face": from_hugging_face,
}


# ---- Shared by the layouts -----------------------------------------------------------------------


def rename(weights: dict[str, Tensor], table: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Rename keys by regular expressions; one that matches none is kept, for `fit` to report."""
    renamed = {}
    for name, tensor in weights.items():
        for theirs, ours in table:
            name = re.sub(theirs, ours, name)
        renamed[name] = tensor
    return renamed


def infer(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Infer from the shapes of the weights all sizes of CLIPConfig but the heads."""
    def layers(encoder: str) -> int:
        first = rf"{encoder}\.transformer\.blocks\.\d+\.ln_1\.weight"
        return len([name for name in weights if re.fullmatch(first, name)])

    vision_width, _, patch, _ = weights["image_encoder.patch_embedding.weight"].shape
    patches = len(weights["image_encoder.positions"]) - 1
    hidden = len(weights["image_encoder.transformer.blocks.0.mlp.expand.bias"])
    vocab_size, text_width = weights["text_encoder.token_embedding.weight"].shape
    return {
        "image_size": patch * round(patches**0.5), "patch_size": patch, "stem_width": 0,
        "vision_width": vision_width, "vision_layers": layers("image_encoder"),
        "vision_mlp_ratio": hidden / vision_width,
        "text_width": text_width, "text_layers": layers("text_encoder"), "vocab_size": vocab_size,
        "context_length": len(weights["text_encoder.positions"]),
        "embed_dim": weights["text_encoder.projection"].shape[1],
    }


def config_from(sizes: dict[str, Any], path: Path, preset: str | None, config_name: str,
                choices: Callable[[dict], tuple[dict, dict]]) -> CLIPConfig:
    """Add heads and activation to the sizes: from `preset`, or the config beside the weights."""
    if preset is not None:
        name = preset.replace("/", "-").replace("@", "-").removesuffix("px")
        width, heads = PRESETS.get(name.removesuffix("-quickgelu"), (None, None))
        if width is None:
            raise InputError(f"there is no preset {preset!r}: choose one of {', '.join(PRESETS)}, "
                             "with or without -quickgelu")
        if width != sizes["vision_width"]:
            raise InputError(f"the preset {preset} is {width} wide, the image encoder here "
                             f"{sizes['vision_width']}")
        activation = "quick_gelu" if name.endswith("-quickgelu") else "gelu"
        return CLIPConfig(**sizes, vision_heads=heads, text_heads=sizes["text_width"] // 64,
                          activation=activation)
    file = path.parent / config_name
    if not file.exists():
        raise InputError(f"heads and activation cannot be inferred from weights: put {config_name} "
                         f"beside them, or name a preset, one of {', '.join(PRESETS)}, ending in "
                         "-quickgelu where the model's name does")
    config_sizes, heads_and_activation = choices(json.loads(file.read_text(encoding="utf-8")))
    for field, value in config_sizes.items():
        if value != sizes[field]:
            raise InputError(f"{file} is of another model: {field} {value} there, {sizes[field]} "
                             "in the weights")
    return CLIPConfig(**sizes, **heads_and_activation)


def open_clip_choices(content: dict) -> tuple[dict, dict]:
    """Read open_clip_config.json -> sizes to agree with the weights; heads and activation."""
    model, pixels = content["model_cfg"], content.get("preprocess_cfg", {})
    vision, text = model["vision_cfg"], model["text_cfg"]
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "image_size",
             "layers", "width", "head_width", "mlp_ratio", "patch_size", "context_length",
             "vocab_size", "heads"}
    if surplus := {*model, *vision, *text} - known:
        raise InputError(f"its config asks for {sorted(surplus)[0]}, which minclip does not have")
    for name, ours in (("mean", PIXEL_MEAN), ("std", PIXEL_STD)):
        if tuple(pixels.get(name, ours)) != ours:
            raise InputError(f"it takes pixels of {name} {pixels[name]}, minclip those of {ours}")
    return ({"vision_width": vision["width"], "vision_layers": vision["layers"],
             "text_width": text["width"], "text_layers": text["layers"]},
            {"vision_heads": vision["width"] // vision.get("head_width", 64),
             "text_heads": text["heads"],
             "activation": "quick_gelu" if model.get("quick_gelu") else "gelu"})


def hugging_face_choices(content: dict) -> tuple[dict, dict]:
    """Read config.json -> sizes to agree with the weights; heads and activation.

    The file may leave out what equals the library's default.
    """
    def encoder_config(name: str, defaults: dict) -> dict:
        older = content.get(f"{name}_config_dict") or {}
        return {**defaults, **content.get(f"{name}_config", {}), **older}

    common = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
    vision = encoder_config("vision", {**common, "hidden_size": 768, "num_attention_heads": 12})
    text = encoder_config("text", {**common, "hidden_size": 512, "num_attention_heads": 8,
                                   "eos_token_id": 2, "vocab_size": 49408})
    if vision["hidden_act"] != text["hidden_act"]:
        raise InputError(f"its activations are {vision['hidden_act']} and {text['hidden_act']}, "
                         "and minclip has one for both")
    for encoder in (vision, text):
        if encoder["layer_norm_eps"] != 1e-5:
            raise InputError(f"its LayerNorms have eps {encoder['layer_norm_eps']}, minclip's 1e-5")
    if text["eos_token_id"] not in (2, text["vocab_size"] - 1):  # 2: an old config, highest id
        raise InputError(f"its captions end in id {text['eos_token_id']}, and minclip takes the "
                         "highest id for the end")
    return ({"vision_width": vision["hidden_size"], "vision_layers": vision["num_hidden_layers"],
             "text_width": text["hidden_size"], "text_layers": text["num_hidden_layers"]},
            {"vision_heads": vision["num_attention_heads"],
             "text_heads": text["num_attention_heads"],
             "activation": vision["hidden_act"]})


# `fit` and `describe` have twins in the other two packages' pretrained.py.
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
