"""Time our models beside the libraries that people would use instead, on the same shapes.

    python -m benchmarks.bench                    every row
    python -m benchmarks.bench --only drawing     rows that have this in their name or their peer's

Everything runs on the CPU, with random weights. A machine that others share changes its speed, so
each round times ours, then the peer's, about half a second each; either runs in its faster
precision, fp32 or bf16. A ratio is the peer's median over ours (lowest .. highest of a round): above
1 we are faster. A row whose peer is not installed is skipped. This installs all of them:

    pip install transformers diffusers
    pip install --no-deps open_clip_torch ftfy wcwidth dalle-pytorch \\
        axial-positional-embedding rotary-embedding-torch
"""

import argparse
import platform
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import MagicMock, patch

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from common.training.device import keep_freed_memory
from minclip import CLIP, CLIPConfig, same_caption, softmax_loss
from mindalle import DALLE, DALLEConfig, dalle_loss, generate
from minvqgan import VQGAN, VQGANConfig, generator_loss, reconstruction_loss

ROUNDS, ROUND_SECONDS = 7, 0.5
# sized as our toys, built as published: no peer has a stem of small convolutions or 2-D RoPE
TOY_CLIP, TOY_DALLE = CLIPConfig(stem_width=0), DALLEConfig(rotary=False)

Timed = tuple[nn.Module, Callable[[], Any]]  # a model, and what is timed of it


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Timed:
    """Return a call that takes one step: zero_grad, loss, backward, AdamW."""
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        value = loss()
        with torch.autocast("cpu", enabled=False):  # backward uses the precisions of forward
            value.backward()
            optimiser.step()
    return model, step


def random_images(b: int, side: int) -> Tensor:
    return 2 * torch.rand(b, 3, side, side) - 1


def random_pairs(config: CLIPConfig, b: int) -> tuple[Tensor, Tensor]:
    """Draw images (b 3 h w) and captions (b t), whose last token is the end."""
    ids = torch.randint(1, config.vocab_size - 2, (b, config.context_length))
    ids[:, -1] = config.vocab_size - 1
    return random_images(b, config.image_size), ids


def random_tokens(config: DALLEConfig, b: int) -> tuple[Tensor, Tensor]:
    """Draw captions (b t) and codes (b n)."""
    text = torch.randint(1, config.text_vocab - config.text_length, (b, config.text_length))
    return text, torch.randint(config.image_vocab, (b, config.image_length))


# ---- Ours ---------------------------------------------------------------------------------------


def clip_step(config: CLIPConfig, b: int) -> Timed:
    model, (images, ids) = CLIP(config), random_pairs(config, b)
    return training_step(
        model, lambda: softmax_loss(model.logits(*model(images, ids)), same_caption(ids)))


def gpt_step(config: DALLEConfig, b: int) -> Timed:
    model, (text, codes) = DALLE(config), random_tokens(config, b)
    return training_step(model, lambda: dalle_loss(*model(text, codes), text, codes)[0])


def drawing(config: DALLEConfig, b: int, guidance: float) -> Timed:
    model, (text, _) = DALLE(config).eval(), random_tokens(config, b)
    return model, partial(generate, model, text, guidance=guidance, empty=torch.zeros_like(text[0]))


def vqgan_step(config: VQGANConfig, b: int) -> Timed:
    model = VQGAN(config).to(memory_format=torch.channels_last)  # as train.py does
    images = random_images(b, config.image_size)

    def loss() -> Tensor:
        reconstruction, quantised = model(images)
        return generator_loss(images, reconstruction.float(), quantised.loss, model.last_weight)[0]
    return training_step(model, loss)


# ---- Peers --------------------------------------------------------------------------------------


def without(*names: str) -> Any:
    """Import a peer without those of its dependencies that its model never calls."""
    return patch.dict(sys.modules, {name: MagicMock() for name in names})


def transformers_clip(config: CLIPConfig, b: int) -> Timed:
    from transformers import CLIPConfig as PeerConfig, CLIPModel

    def encoder(name: str, **sizes: int) -> dict[str, Any]:
        width = getattr(config, f"{name}_width")
        return dict(num_hidden_layers=getattr(config, f"{name}_layers"), hidden_size=width,
                    num_attention_heads=getattr(config, f"{name}_heads"), intermediate_size=4 * width,
                    hidden_act=config.activation, projection_dim=config.embed_dim, **sizes)

    text = encoder("text", vocab_size=config.vocab_size, eos_token_id=config.vocab_size - 1,
                   max_position_embeddings=config.context_length)
    vision = encoder("vision", image_size=config.image_size, patch_size=config.patch_size)
    config_of_both = PeerConfig(text_config=text, vision_config=vision, projection_dim=config.embed_dim)
    model, (images, ids) = CLIPModel(config_of_both), random_pairs(config, b)
    return training_step(model, lambda: model(ids, images, return_loss=True).loss)


def open_clip(config: CLIPConfig, b: int) -> Timed:
    with without("torchvision", "torchvision.transforms", "torchvision.transforms.functional",
                 "torchvision.ops", "torchvision.ops.misc", "timm", "transformers"):
        from open_clip import CLIP as Peer, ClipLoss

    c = config
    vision = dict(layers=c.vision_layers, width=c.vision_width, patch_size=c.patch_size,
                  image_size=c.image_size, head_width=c.vision_width // c.vision_heads)
    text = dict(layers=c.text_layers, width=c.text_width, heads=c.text_heads,
                vocab_size=c.vocab_size, context_length=c.context_length)
    model = Peer(c.embed_dim, vision, text, quick_gelu=c.activation == "quick_gelu")
    loss, (images, ids) = ClipLoss(), random_pairs(config, b)
    return training_step(model, lambda: loss(*model(images, ids)))


def gpt_2(config: DALLEConfig) -> nn.Module:
    """Build transformers' GPT-2 with one vocabulary: that of the text, then the codes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=config.text_vocab + config.image_vocab, n_positions=config.length,
        n_embd=config.width, n_layer=config.layers, n_head=config.heads, activation_function="gelu",
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None))


def gpt_2_step(config: DALLEConfig, b: int) -> Timed:
    model, (text, codes) = gpt_2(config), random_tokens(config, b)
    ids = torch.cat([text, config.text_vocab + codes], dim=1)                        # (b t+n)

    def loss() -> Tensor:
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        return F.cross_entropy(rearrange(logits, "b n v -> b v n"), ids[:, 1:])
    return training_step(model, loss)


def gpt_2_drawing(config: DALLEConfig, b: int, guidance: float) -> Timed:
    model, (text, _) = gpt_2(config).eval(), random_tokens(config, b)
    guided = dict(guidance_scale=guidance, negative_prompt_ids=torch.zeros_like(text))
    return model, partial(model.generate, text, do_sample=True, top_k=0, pad_token_id=0,
                          max_new_tokens=config.image_length, attention_mask=torch.ones_like(text),
                          **guided if guidance != 1 else {})


def dalle_pytorch(config: DALLEConfig) -> nn.Module:
    """Build DALLE-pytorch's model with its defaults: rotary positions, gated MLP."""
    with without("taming", "taming.models", "taming.models.vqgan", "omegaconf", "pkg_resources"):
        from dalle_pytorch import DALLE as Peer, DiscreteVAE

    c = config
    vae = DiscreteVAE(image_size=4 * c.grid, num_layers=2, num_tokens=c.image_vocab, hidden_dim=8)
    vae.decode = lambda codes: codes  # drawing is timed up to the codes, without pixels
    # it keeps an id of its own for each place in the text
    return Peer(dim=c.width, vae=vae, num_text_tokens=c.text_vocab - c.text_length, depth=c.layers,
                text_seq_len=c.text_length, heads=c.heads, dim_head=c.width // c.heads)


def dalle_pytorch_step(config: DALLEConfig, b: int) -> Timed:
    model, (text, codes) = dalle_pytorch(config), random_tokens(config, b)
    return training_step(model, lambda: model(text, codes, return_loss=True))


def dalle_pytorch_drawing(config: DALLEConfig, b: int, guidance: float) -> Timed:
    model, (text, _) = dalle_pytorch(config).eval(), random_tokens(config, b)
    if guidance == 1:  # its own forward_with_cond_scale does not pass the cache on then
        model.forward_with_cond_scale = lambda *args, cond_scale, cache: model(*args, cache=cache)
    return model, lambda: model.generate_images(  # from a copy: it overwrites the text with zeros
        text.clone(), filter_thres=0, cond_scale=guidance, use_cache=True)


def diffusers_vqgan(config: VQGANConfig, b: int) -> Timed:
    from diffusers import VQModel

    levels, images = len(config.multipliers), random_images(b, config.image_size)
    model = VQModel(
        block_out_channels=config.widths, layers_per_block=config.residual_blocks,
        down_block_types=("DownEncoderBlock2D",) * levels, latent_channels=config.z_channels,
        up_block_types=("UpDecoderBlock2D",) * levels, norm_num_groups=1,
        num_vq_embeddings=config.codebook_size, vq_embed_dim=config.codebook_dim)
    model.to(memory_format=torch.channels_last)

    def loss() -> Tensor:
        out = model(images)
        return reconstruction_loss(images, out.sample.float()) + out.commit_loss
    return training_step(model, loss)


# ---- Rows ---------------------------------------------------------------------------------------

ROWS = [  # name, our side, arguments of both sides, the peer's side by its package
    ("CLIP step, toy", clip_step, (TOY_CLIP, 128),
     {"transformers": transformers_clip, "open_clip_torch": open_clip}),
    ("CLIP step, ViT-B/32", clip_step, (CLIPConfig.vit_b_32(), 8),
     {"transformers": transformers_clip, "open_clip_torch": open_clip}),
    ("GPT step, toy", gpt_step, (TOY_DALLE, 48),
     {"transformers": gpt_2_step, "dalle-pytorch": dalle_pytorch_step}),
    ("drawing 64, toy", drawing, (TOY_DALLE, 64, 1.0),
     {"transformers": gpt_2_drawing, "dalle-pytorch": dalle_pytorch_drawing}),
    ("drawing 64, guided", drawing, (TOY_DALLE, 64, 3.0),
     {"transformers": gpt_2_drawing, "dalle-pytorch": dalle_pytorch_drawing}),
    ("VQGAN step, toy", vqgan_step, (VQGANConfig(), 16), {"diffusers": diffusers_vqgan}),
]


def clock(call: Callable[[], Any], times: int = 3) -> float:
    """Return the mean seconds of `times` calls."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def in_faster_precision(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call in fp32 or bf16, after both have been called once to warm up."""
    both = call, torch.autocast("cpu", torch.bfloat16)(call)
    return min(both, key=lambda call: (clock(call, 1), clock(call))[1])


def compare(*sides: Timed) -> str:
    """Time our side and the peer's in turn -> the rest of a row."""
    calls = [in_faster_precision(call) for _, call in sides]
    times = [max(1, round(ROUND_SECONDS / clock(call))) for call in calls]
    rounds = [[clock(*pair) for pair in zip(calls, times)] for _ in range(ROUNDS)]
    ours, peer = (median(seconds) for seconds in zip(*rounds))
    ratios = [theirs / mine for mine, theirs in rounds]
    sizes = " and ".join(f"{sum(p.numel() for p in model.parameters()):,}" for model, _ in sides)
    return (f"{peer / ours:.2f} ({min(ratios):.2f} .. {max(ratios):.2f}), ours {1e3 * ours:.1f} ms, "
            f"peer {1e3 * peer:.1f} ms, parameters {sizes}")


def processor() -> str:
    info = Path("/proc/cpuinfo")  # of Linux, where platform.processor() is often empty
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="time the rows whose name or peer contains this")
    only = parser.parse_args().only
    keep_freed_memory()
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, ours, shape, peers in ROWS:
        for package, peer in peers.items():
            if only in f"{name} {package}":
                try:
                    sides = ours(*shape), peer(*shape)
                except ImportError as error:
                    print(f"{name:20} {package}: skipped, {error}", flush=True)
                    continue
                print(f"{name:20} {package} {version(package)}: {compare(*sides)}", flush=True)


if __name__ == "__main__":
    main()
