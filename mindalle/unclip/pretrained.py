"""Load a prior or a decoder from a file: recognise its layout, rename the weights into ours.

Karlo's prior, 1.02 billion parameters, is the published one (kakaobrain/karlo; weights under
CreativeML OpenRAIL-M). `load` takes the folder that the setup.sh of that repository fills, or the
same weights in the layout of diffusers (Hugging Face, kakaobrain/karlo-v1-alpha):

    v1.0.alpha/  prior-ckpt-step=01000000-of-01000000.ckpt  ViT-L-14_stats.th
    prior/       config.json  diffusion_pytorch_model.safetensors or .bin

Karlo's prior reads OpenAI's CLIP ViT-L/14: the token features after ln_final, and z_t. Neither z_t
nor the z_i that it draws is of unit length.
"""

import json
import mmap
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from .. import pretrained as dalle
from ..errors import InputError
from .decoder import Decoder, DecoderConfig
from .prior import Prior, PriorConfig

# looked for in a folder; not ours, since a run has both a prior.pt and a decoder.pt
FILES = (
    "prior-ckpt-step=01000000-of-01000000.ckpt",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
)
STATS = "ViT-L-14_stats.th"  # beside Karlo's weights: (mean, std) of the image embeddings

CONFIGS = {"prior": PriorConfig, "decoder": DecoderConfig}  # kind of our checkpoints -> its config
DTYPES = {  # safetensors' names
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}

# part of a name in Karlo, then in diffusers -> in ours; any other name stays as it is, and `fit`
# reports it
KARLO_NAMES = {
    "text_enc_proj.": "tokens_in.", "text_emb_proj.": "text_in.",
    "time_embed.": "time_in.", "clip_img_proj.": "image_in.",
    "prd_emb": "query", "positional_embedding": "positions", "transformer.resblocks.": "blocks.",
    ".attn.c_qkv.": ".attention.qkv.", ".attn.c_proj.": ".attention.out.",
    ".mlp.c_fc.": ".mlp.expand.", ".mlp.c_proj.": ".mlp.contract.",
    "final_ln.": "norm.", "out_proj.": "out.",
}
DIFFUSERS_NAMES = {
    "encoder_hidden_states_proj.": "tokens_in.", "embedding_proj.": "text_in.",
    "time_embedding.linear_1.": "time_in.0.", "time_embedding.linear_2.": "time_in.2.",
    "proj_in.": "image_in.", "prd_embedding": "query", "positional_embedding": "positions",
    "transformer_blocks.": "blocks.",
    ".norm1.": ".ln_1.", ".attn1.to_out.0.": ".attention.out.", ".norm3.": ".ln_2.",
    ".ff.net.0.proj.": ".mlp.expand.", ".ff.net.2.": ".mlp.contract.",
    "norm_out.": "norm.", "proj_to_clip_embeddings.": "out.",
    "clip_mean": "standardise_image.mean", "clip_std": "standardise_image.std",
}

Found = tuple[PriorConfig | DecoderConfig, dict[str, Tensor]]  # a config, weights under our names


def from_ours(checkpoint: Any, path: Path) -> Found | None:
    """Read {"kind": "prior" or "decoder", "config": its fields, "weights": state dict, ...}."""
    if isinstance(checkpoint, dict) and checkpoint.get("kind") in CONFIGS:
        return CONFIGS[checkpoint["kind"]](**checkpoint["config"]), checkpoint["weights"]
    return None


def from_karlo(checkpoint: Any, path: Path) -> Found | None:
    """Read Karlo's state dict, its names behind "model.", and the STATS beside it."""
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or "model.prd_emb" not in weights:
        return None
    if not path.with_name(STATS).is_file():
        raise InputError(f"put {STATS}, the mean and std of its embeddings, beside it")
    mean, std = read(path.with_name(STATS))
    weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    weights |= {"standardise_image.mean": mean, "standardise_image.std": std}
    weights = rename(weights, KARLO_NAMES)
    sizes = infer_sizes(weights)
    heads = sizes["width"] // 64  # in no tensor; Karlo's heads are 64 wide
    for name in [name for name in weights if ".attention.qkv." in name]:
        if len(weights[name]) == 3 * sizes["width"]:  # if not, `fit` names it
            weights[name] = rearrange(
                weights[name], "(k three c) ... -> (three k c) ...", three=3, k=heads)
    return PriorConfig(**sizes, heads=heads, schedule="cosine"), weights


def from_diffusers(checkpoint: Any, path: Path) -> Found | None:
    """Read the state dict of diffusers' PriorTransformer, and its config.json."""
    if not isinstance(checkpoint, dict) or "proj_to_clip_embeddings.weight" not in checkpoint:
        return None
    weights = rename(checkpoint, DIFFUSERS_NAMES)
    sizes = infer_sizes(weights)
    for name in [name for name in weights if ".attn1.to_q." in name]:
        names = [name.replace("to_q", f"to_{letter}") for letter in "qkv"]
        joined = dalle.join(weights, names, sizes["width"])
        weights[name.replace("attn1.to_q", "attention.qkv")] = joined
    heads = read_heads(path.with_name("config.json"), sizes)
    return PriorConfig(**sizes, heads=heads, schedule="cosine"), weights


def read_heads(path: Path, sizes: dict[str, int]) -> int:
    """Read the number of heads, which no tensor shows, from the config.json beside the weights.

    Raises InputError where the file contradicts the weights, or asks for something that our model
    does not do.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    for name, value in {
        "attention_head_dim": sizes["width"] // (heads or 1),  # PriorConfig refuses 0 heads
        "num_embeddings": sizes["text_length"],
        "additional_embeddings": 4, "time_embed_act_fn": "silu",
    }.items():
        if config.get(name, value) != value:
            raise InputError(f"{path.name} has {name}: {config[name]}, "
                             f"but mindalle reads these weights as {name}: {value}")
    return heads


# layout, as a refusal names it -> its reader: (checkpoint, path) -> Found, None if it is another
LAYOUTS = {
    "a prior.pt or decoder.pt of this project": from_ours, "Karlo's prior": from_karlo,
    "diffusers' prior": from_diffusers,
}


def load(path: str | PathLike, device: str | torch.device = "cpu") -> Prior | Decoder:
    """Build the model of a file, or of a folder with one of FILES, in eval mode.

    Raises InputError, one line that names the file, for any other.
    """
    path = locate(path)
    model = dalle.build(path, read(path), LAYOUTS, model_of, "mindalle.unclip")
    return model.to(device).eval()


def locate(path: str | PathLike) -> Path:
    """Return `path` if it is no folder, else the first of FILES that the folder holds."""
    return dalle.locate(path, FILES, "of a run, name prior.pt or decoder.pt itself")


def model_of(config: PriorConfig | DecoderConfig) -> Prior | Decoder:
    """Build the model that a config describes."""
    return Prior(config) if isinstance(config, PriorConfig) else Decoder(config)


def rename(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Rename weights by a table, and drop the axes of length 1 in front.

    A standardisation of z_t that changes nothing is added.
    """
    for theirs, ours in names.items():
        weights = {name.replace(theirs, ours): tensor for name, tensor in weights.items()}
    weights["positions"] = weights["positions"].squeeze(0)                              # (1 n d)
    weights["query"] = weights["query"].squeeze((0, 1))                                 # (1 1 d)
    for name in ("standardise_image.mean", "standardise_image.std"):
        weights[name] = weights[name].squeeze(0)                                        # (1 e)
    mean = weights["standardise_image.mean"]
    neutral = {"mean": torch.zeros_like(mean), "std": torch.ones_like(mean)}
    return weights | {f"standardise_text.{name}": tensor for name, tensor in neutral.items()}


def infer_sizes(weights: dict[str, Tensor]) -> dict[str, int]:
    """Infer from the shapes of renamed weights all sizes of PriorConfig but the heads."""
    width, embed_dim = weights["image_in.weight"].shape
    *_, token_width = weights["tokens_in.weight"].shape
    *_, length, _ = weights["positions"].shape
    layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    return {"embed_dim": embed_dim, "token_width": token_width, "text_length": length - 4,
            "width": width, "layers": layers}


def read(path: str | PathLike) -> Any:
    """Read a file of tensors and plain values onto the CPU: safetensors, or of torch.save."""
    if Path(path).suffix == ".safetensors":
        with dalle.as_input_error(Path(path), "a file of safetensors"):
            return read_safetensors(path)
    try:
        return dalle.read(path)
    except InputError as error:  # it may list the layouts that mindalle reads
        known = ", ".join(dalle.LAYOUTS), ", ".join(LAYOUTS)
        raise InputError(str(error).replace(*known)) from error


def read_safetensors(path: str | PathLike) -> dict[str, Tensor]:
    """Read {name: tensor}, mapped from the file.

    It holds the length of the header in 8 bytes; the header, JSON; and the numbers.
    """
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = 8 + int.from_bytes(memory[:8], "little")
    tensors = {}
    for name, entry in json.loads(memory[8:start]).items():
        if name != "__metadata__":
            (begin, end), dtype = entry["data_offsets"], DTYPES[entry["dtype"]]
            count = (end - begin) // dtype.itemsize
            numbers = torch.frombuffer(memory, dtype=dtype, count=count, offset=start + begin)
            tensors[name] = numbers.reshape(entry["shape"])
    return tensors
