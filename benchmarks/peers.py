"""Build each peer in the shape of ours and, where the architectures agree, with our weights.

Every function of a pair returns our call, the peer's call, and how far the two are the same. It raises ImportError where
the peer is not installed.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import minclip
from minclip import CLIP, CLIPConfig
from minclip.pretrained import OPENAI_NAMES, rename
from mindalle import DALLE, DALLEConfig
from minvqgan import VQGAN, VQGANConfig, reconstruction_loss
from minvqgan.layers import group_norm
from tests import seeded

from .ours import autocast, clip_inputs, clip_step, dalle_inputs, dalle_sampling, dalle_step, training_step, vqgan_step
from .timing import Call


class Pair(NamedTuple):
    ours: Call
    peer: Call
    agreement: str  # how far the two are the same


def difference(ours: list[Tensor], peer: list[Tensor]) -> str:
    """Say how much outputs differ that should be the same."""
    apart, most = max((a - b).abs().max() for a, b in zip(ours, peer)), max(b.abs().max() for b in peer)
    return f"same weights: outputs of up to {most:.2g} differ by at most {apart:.1e}"


def parameter_counts(ours: nn.Module, peer: nn.Module) -> str:
    """Say how many trainable parameters either side has, where weights cannot be shared."""
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, peer)]
    return "another architecture: ours has {:,} parameters, the peer {:,}".format(*counts)


@contextmanager
def mocked_modules(*names: str) -> Iterator[None]:
    """Import a peer without those of its dependencies that its model never calls."""
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: MagicMock() for name in names})
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


# ---- CLIP ------------------------------------------------------------------------------------------------------------


def clip_transformers(config: CLIPConfig, b: int, device: str) -> Pair:
    """Pair CLIP's training step with that of transformers' CLIPModel."""
    from transformers import CLIPConfig as PeerConfig, CLIPModel, logging
    logging.disable_progress_bar()

    def encoder(name: str, **others) -> dict:
        width, layers, heads = (getattr(config, f"{name}_{size}") for size in ("width", "layers", "heads"))
        return dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
                    hidden_act=config.activation, projection_dim=config.embed_dim, **others)

    images, normalised, ids = clip_inputs(config, b, device)
    text = encoder("text", vocab_size=config.vocab_size, max_position_embeddings=config.context_length,
                   bos_token_id=config.vocab_size - 2, eos_token_id=config.vocab_size - 1)
    vision = encoder("vision", image_size=config.image_size, patch_size=config.patch_size)
    peer = CLIPModel(PeerConfig(text_config=text, vision_config=vision, projection_dim=config.embed_dim))
    ours = CLIP(config)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours.load_state_dict(minclip.load(folder).state_dict())
    ours, peer = ours.to(device), peer.to(device)
    forward = partial(peer, input_ids=ids, pixel_values=normalised)
    with torch.no_grad():
        same = difference(ours(images, ids), [forward().image_embeds, forward().text_embeds])
    return Pair(clip_step(ours, images, ids), training_step(peer, lambda: forward(return_loss=True).loss), same)


def clip_open_clip(config: CLIPConfig, b: int, device: str) -> Pair:
    """Pair CLIP's training step with that of open_clip's CLIP."""
    with mocked_modules("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops",
                        "torchvision.ops.misc", "timm", "transformers"):
        import open_clip

    images, normalised, ids = clip_inputs(config, b, device)
    vision = dict(layers=config.vision_layers, width=config.vision_width, patch_size=config.patch_size,
                  head_width=config.vision_width // config.vision_heads, image_size=config.image_size)
    text = dict(layers=config.text_layers, width=config.text_width, heads=config.text_heads,
                context_length=config.context_length, vocab_size=config.vocab_size)
    peer = open_clip.CLIP(config.embed_dim, vision, text, quick_gelu=config.activation == "quick_gelu").to(device)
    ours, loss = CLIP(config).to(device), open_clip.ClipLoss()
    ours.load_state_dict(rename(peer.state_dict(), OPENAI_NAMES))
    with torch.no_grad():
        same = difference(ours(images, ids), peer(normalised, ids)[:2])
    return Pair(clip_step(ours, images, ids), training_step(peer, lambda: loss(*peer(normalised, ids))), same)


# ---- DALL·E ----------------------------------------------------------------------------------------------------------


def gpt_2(ours: DALLE) -> nn.Module:
    """Build transformers' GPT-2 with our weights, and one vocabulary: first the text's, then the codes'."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config, weights = ours.config, {}
    peer = GPT2LMHeadModel(GPT2Config(
        vocab_size=config.text_vocab + config.image_vocab, n_positions=config.length, n_embd=config.width,
        n_layer=config.layers, n_head=config.heads, activation_function="gelu", tie_word_embeddings=False,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None))
    names = {"blocks.": "h.", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
             "mlp.expand": "mlp.c_fc", "mlp.contract": "mlp.c_proj", "norm.": "ln_f."}
    for name, tensor in ours.state_dict().items():
        if name.startswith(("blocks.", "norm.")):
            for our_part, part in names.items():
                name = name.replace(our_part, part)
            # they compute x @ weight, where we compute x @ weight.T
            weights[f"transformer.{name}"] = rearrange(tensor, "o i -> i o") if tensor.ndim == 2 else tensor
    weights["transformer.wte.weight"] = torch.cat([ours.text_embedding.weight, ours.image_embedding.weight])
    weights["transformer.wpe.weight"] = torch.cat([ours.text_positions, ours.image_positions])
    weights["lm_head.weight"] = torch.cat([ours.text_head.weight, ours.image_head.weight])
    peer.load_state_dict(weights)
    return peer.to(ours.text_positions.device)


def dalle_pytorch(ours: DALLE) -> nn.Module:
    """Build DALLE-pytorch's model of our sizes with its defaults: rotary positions, shifted tokens, a gated MLP."""
    with mocked_modules("taming", "taming.models", "taming.models.vqgan", "omegaconf", "pkg_resources"):
        from dalle_pytorch import DALLE as Peer, DiscreteVAE

    config = ours.config
    vae = DiscreteVAE(image_size=4 * config.grid, num_layers=2, num_tokens=config.image_vocab, hidden_dim=8)
    vae.decode = lambda codes: codes  # sampling is timed up to the codes, without pixels
    # it adds to its vocabulary a padding token for each text position
    peer = Peer(dim=config.width, vae=vae, num_text_tokens=config.text_vocab - config.text_length, depth=config.layers,
                text_seq_len=config.text_length, heads=config.heads, dim_head=config.width // config.heads)
    return peer.to(ours.text_positions.device)


def gpt_step_transformers(config: DALLEConfig, b: int, device: str) -> Pair:
    """Pair DALL·E's training step with that of GPT-2, whose loss counts each token of text and image alike."""
    text, codes = dalle_inputs(config, b, device)
    ours, t, v = DALLE(config).to(device), config.text_length, config.text_vocab
    peer = gpt_2(ours)
    ids = torch.cat([text, v + codes], dim=1)                                        # (b t+n)

    def loss() -> Tensor:
        logits = peer(ids, use_cache=False).logits[:, :-1]
        return F.cross_entropy(rearrange(logits, "b n v -> (b n) v").float(), rearrange(ids[:, 1:], "b n -> (b n)"))
    with torch.no_grad():
        logits = peer.eval()(ids).logits
        same = difference(ours(text, codes), [logits[:, : t - 1, :v], logits[:, t - 1 : -1, v:]])
    return Pair(dalle_step(ours, text, codes), training_step(peer, loss), same)


def gpt_step_dalle_pytorch(config: DALLEConfig, b: int, device: str) -> Pair:
    """Pair DALL·E's training step with that of DALLE-pytorch."""
    text, codes = dalle_inputs(config, b, device)
    ours = DALLE(config).to(device)
    peer = dalle_pytorch(ours)
    step = training_step(peer, lambda: peer(text, codes, return_loss=True))
    return Pair(dalle_step(ours, text, codes), step, parameter_counts(ours, peer))


def sampling_transformers(config: DALLEConfig, b: int, guidance: float, device: str) -> Pair:
    """Pair our sampling with transformers' `generate`; both keep keys and values in a cache."""
    text, _ = dalle_inputs(config, b, device)
    ours, v = DALLE(config).to(device).eval(), config.text_vocab
    peer = gpt_2(ours).eval()
    options = dict(max_new_tokens=config.image_length, pad_token_id=0, attention_mask=torch.ones_like(text))
    if guidance != 1:
        options |= dict(guidance_scale=guidance, negative_prompt_ids=torch.zeros_like(text))

    def draw(**choice) -> Tensor:
        with autocast(peer):
            return peer.generate(text, use_cache=True, **options, **choice)[:, config.text_length :]
    mine = rearrange(dalle_sampling(ours, text, guidance, temperature=0)(), "b g1 g2 -> b (g1 g2)")
    theirs = draw(do_sample=False, suppress_tokens=list(range(v))) - v
    same = f"same weights: {(mine == theirs).float().mean():.1%} of the codes are equal when both take the likeliest"
    return Pair(dalle_sampling(ours, text, guidance), partial(draw, do_sample=True, top_k=0), same)


def sampling_dalle_pytorch(config: DALLEConfig, b: int, guidance: float, device: str) -> Pair:
    """Pair our sampling with DALLE-pytorch's; both keep keys and values in a cache."""
    text, _ = dalle_inputs(config, b, device)
    ours = DALLE(config).to(device).eval()
    peer = dalle_pytorch(ours).eval()
    if guidance == 1:  # its own forward_with_cond_scale does not pass the cache on then
        peer.forward_with_cond_scale = lambda *args, cond_scale, cache: peer(*args, cache=cache)

    def draw() -> Tensor:
        with autocast(peer):  # a copy, because it overwrites the text with zeros
            return peer.generate_images(text.clone(), filter_thres=0, cond_scale=guidance, use_cache=True)
    return Pair(dalle_sampling(ours, text, guidance), draw, parameter_counts(ours, peer))


# ---- VQGAN -----------------------------------------------------------------------------------------------------------


def vqgan_diffusers(config: VQGANConfig, b: int, device: str) -> Pair:
    """Pair VQGAN's training step, without a discriminator, with that of diffusers' VQModel."""
    from diffusers import VQModel

    ours, levels = VQGAN(config), len(config.multipliers)
    peer = VQModel(block_out_channels=config.widths, layers_per_block=config.residual_blocks, norm_num_groups=1,
                   latent_channels=config.z_channels,
                   num_vq_embeddings=config.codebook_size, vq_embed_dim=config.codebook_dim,
                   down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels)
    for module in peer.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = group_norm(module.num_channels).num_groups  # ours depends on the number of channels
    names = {"encoder.levels": "encoder.down_blocks", "decoder.levels": "decoder.up_blocks", ".blocks.": ".resnets.",
             "shortcut": "conv_shortcut", "norm_out": "conv_norm_out", "middle.0": "mid_block.resnets.0",
             "middle.2": "mid_block.resnets.1", "middle.1": "mid_block.attentions.0", "0.norm.": "0.group_norm.",
             ".query": ".to_q", ".key": ".to_k", ".value": ".to_v", "attentions.0.out": "attentions.0.to_out.0",
             "to_codebook": "quant_conv", "from_codebook": "post_quant_conv",
             "codebook.vectors": "quantize.embedding.weight"}
    weights, theirs = {}, peer.state_dict()
    for name, parameter in ours.named_parameters():
        name = name.replace("resample", "downsamplers.0" if name.startswith("encoder") else "upsamplers.0")
        for our_part, part in names.items():
            name = name.replace(our_part, part)
        matrix = parameter.ndim == 4 and theirs[name].ndim == 2  # for some of our 1x1 convolutions
        weights[name] = rearrange(parameter.detach(), "o i 1 1 -> o i") if matrix else parameter.detach()
    peer.load_state_dict(weights)
    ours, peer = (model.to(device, memory_format=torch.channels_last) for model in (ours, peer))  # as train.py does
    images = seeded.image(0, b, config.image_size).to(device)
    with torch.no_grad():
        z = ours.latents(images)
        same = difference([z, ours.decode_latents(z)],
                          [peer.encode(images).latents, peer.decode(z, force_not_quantize=True).sample])

    def peer_loss() -> Tensor:
        out = peer(images)
        return reconstruction_loss(images, out.sample.float()) + out.commit_loss
    return Pair(vqgan_step(ours, images), training_step(peer, peer_loss), same)
