"""Time our models beside the libraries that people would use instead: same shapes, optimiser and, if they fit, weights.

    python -m tests.bench                    every row against its peers, on the CPU in fp32
    python -m tests.bench --only sampling    the rows with this in their names; --profile: where a slow one's time goes
    python -m tests.bench --cuda             on a GPU, bf16 autocast; and the 1.3 B shape against the hardware's limits

A round times ours, then the peer, for about half a second each. A ratio is the peer's seconds over ours in one
round: above 1 we are faster. Printed are the median, the least and the most over the rounds. A peer may be missing:

    pip install transformers diffusers
    pip install --no-deps open_clip_torch ftfy wcwidth dalle-pytorch axial-positional-embedding rotary-embedding-torch
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import minclip
from minclip import CLIP, CLIPConfig, contrastive_loss, same_caption
from minclip.model import PIXEL_MEAN, PIXEL_STD
from minclip.pretrained import OPENAI_NAMES, rename
from mindalle import DALLE, DALLEConfig, dalle_loss, generate
from minvqgan import VQGAN, VQGANConfig, generator_loss, reconstruction_loss
from minvqgan.layers import group_norm

from . import recipe

TURN = 0.5  # seconds that one side is timed in a round
DEVICE = "cpu"  # where all runs; main sets it


# ---- Timing ----------------------------------------------------------------------------------------------------------


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def clock(call, times: int = 1) -> float:
    """Return the mean seconds of a call."""
    wait()
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - start) / times


def repeats(call) -> int:
    """Warm a call up, and count how many of them fill a turn."""
    call()
    return max(1, round(TURN / clock(call)))


def settle(device: str, threads: int) -> None:
    global DEVICE
    DEVICE = device
    torch.set_num_threads(threads)


def peak_memory() -> int:
    """Return the most bytes that were in use at once so far."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def autocast():
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")


def training_step(model: nn.Module, loss):
    """Return a call that takes one step: zero_grad, loss(), backward, AdamW."""
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)

    def step():
        optimiser.zero_grad()
        with autocast():
            value = loss()
        value.backward()
        optimiser.step()
    return step


def difference(ours: list[Tensor], peer: list[Tensor]) -> str:
    """Say how far apart outputs are that should be the same."""
    apart, most = max((a - b).abs().max() for a, b in zip(ours, peer)), max(b.abs().max() for b in peer)
    return f"same weights: outputs of up to {most:.2g} differ by at most {apart:.1e}"


def sizes(ours: nn.Module, peer: nn.Module) -> str:
    """Say how many parameters train on either side, where weights cannot be shared."""
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, peer)]
    return "another architecture: ours has {:,} parameters, the peer {:,}".format(*counts)


@contextmanager
def hollow(*names: str):
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


# ---- The rows: each returns our call, the peer's call, and what was found to be equal --------------------------------


def clip_inputs(config: CLIPConfig, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw images (b 3 h w) in [-1, 1], the same normalised as peers take them, and captions (b t)."""
    images, ids = recipe.image(0, b, config.image_size), recipe.clip_ids(0, b, config.context_length, config.vocab_size)
    mean, std = (rearrange(torch.tensor(values), "c -> c 1 1") for values in (PIXEL_MEAN, PIXEL_STD))
    return images.to(DEVICE), (((images + 1) / 2 - mean) / std).to(DEVICE), ids.to(DEVICE)


def our_clip(model: CLIP, images: Tensor, ids: Tensor):
    return training_step(model, lambda: contrastive_loss(*model(images, ids), model.logit_scale, same_caption(ids)))


def clip_transformers(config: CLIPConfig, b: int):
    from transformers import CLIPConfig as PeerConfig, CLIPModel, logging
    logging.disable_progress_bar()

    def encoder(name: str, **others) -> dict:
        width, layers, heads = (getattr(config, f"{name}_{size}") for size in ("width", "layers", "heads"))
        return dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
                    hidden_act=config.activation, projection_dim=config.embed_dim, **others)

    images, normalised, ids = clip_inputs(config, b)
    text = encoder("text", vocab_size=config.vocab_size, max_position_embeddings=config.context_length,
                   bos_token_id=config.vocab_size - 2, eos_token_id=config.vocab_size - 1)
    vision = encoder("vision", image_size=config.image_size, patch_size=config.patch_size)
    peer = CLIPModel(PeerConfig(text_config=text, vision_config=vision, projection_dim=config.embed_dim))
    ours = CLIP(config)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours.load_state_dict(minclip.load(folder).state_dict())
    ours, peer = ours.to(DEVICE), peer.to(DEVICE)
    forward = partial(peer, input_ids=ids, pixel_values=normalised)
    with torch.no_grad():
        same = difference(ours(images, ids), [forward().image_embeds, forward().text_embeds])
    return our_clip(ours, images, ids), training_step(peer, lambda: forward(return_loss=True).loss), same


def clip_open_clip(config: CLIPConfig, b: int):
    with hollow("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops",
                "torchvision.ops.misc", "timm", "transformers"):
        import open_clip

    images, normalised, ids = clip_inputs(config, b)
    vision = dict(layers=config.vision_layers, width=config.vision_width, patch_size=config.patch_size,
                  head_width=config.vision_width // config.vision_heads, image_size=config.image_size)
    text = dict(layers=config.text_layers, width=config.text_width, heads=config.text_heads,
                context_length=config.context_length, vocab_size=config.vocab_size)
    peer = open_clip.CLIP(config.embed_dim, vision, text, quick_gelu=config.activation == "quick_gelu").to(DEVICE)
    ours, loss = CLIP(config).to(DEVICE), open_clip.ClipLoss()
    ours.load_state_dict(rename(peer.state_dict(), OPENAI_NAMES))
    with torch.no_grad():
        same = difference(ours(images, ids), peer(normalised, ids)[:2])
    return our_clip(ours, images, ids), training_step(peer, lambda: loss(*peer(normalised, ids))), same


def dalle_inputs(config: DALLEConfig, b: int) -> tuple[Tensor, Tensor]:
    """Draw captions (b t), of tokens that DALLE-pytorch knows too, and codes (b n)."""
    text = 1 + recipe.ids(0, b, config.text_length, config.text_vocab - config.text_length - 1)
    return text.to(DEVICE), recipe.ids(1, b, config.image_length, config.image_vocab).to(DEVICE)


def our_dalle(model: DALLE, text: Tensor, codes: Tensor):
    return training_step(model, lambda: dalle_loss(*model(text, codes), text, codes)[0])


def our_sampling(model: DALLE, text: Tensor, guidance: float, **options):
    def draw() -> Tensor:
        with autocast():
            return generate(model, text, guidance=guidance, empty=torch.zeros_like(text[0]), **options)
    return draw


def gpt_2(ours: DALLE) -> nn.Module:
    """Build transformers' GPT-2 with our weights: one vocabulary, first the text's, then the codes'."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config, weights = ours.config, {}
    peer = GPT2LMHeadModel(GPT2Config(
        vocab_size=config.text_vocab + config.image_vocab, n_positions=config.length + 1, n_embd=config.width,
        n_layer=config.layers, n_head=config.heads, activation_function="gelu", tie_word_embeddings=False,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None))
    names = {"blocks.": "h.", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
             "mlp.expand": "mlp.c_fc", "mlp.contract": "mlp.c_proj", "norm.": "ln_f."}
    for name, tensor in ours.state_dict().items():
        if name.startswith(("blocks.", "norm.")):
            for our_part, part in names.items():
                name = name.replace(our_part, part)
            weights[f"transformer.{name}"] = tensor.T if tensor.ndim == 2 else tensor  # theirs multiply from the right
    weights["transformer.wte.weight"] = torch.cat([ours.text_embedding.weight, ours.image_embedding.weight])
    weights["transformer.wpe.weight"] = torch.cat([ours.text_positions, ours.image_positions])
    weights["lm_head.weight"] = torch.cat([ours.text_head.weight, ours.image_head.weight])
    peer.load_state_dict(weights)
    return peer.to(DEVICE)


def dalle_pytorch(ours: DALLE) -> nn.Module:
    """Build DALLE-pytorch's model of our sizes with its defaults: rotary positions, shifted tokens, a gated MLP."""
    with hollow("taming", "taming.models", "taming.models.vqgan", "omegaconf", "pkg_resources"):
        from dalle_pytorch import DALLE as Peer, DiscreteVAE

    config = ours.config
    vae = DiscreteVAE(image_size=4 * config.grid, num_layers=2, num_tokens=config.image_vocab, hidden_dim=8)
    vae.decode = lambda codes: codes  # codes are compared, not pixels
    # it adds to its vocabulary a padding token for each text position
    return Peer(dim=config.width, vae=vae, num_text_tokens=config.text_vocab - config.text_length, depth=config.layers,
                text_seq_len=config.text_length, heads=config.heads, dim_head=config.width // config.heads).to(DEVICE)


def gpt_step_transformers(config: DALLEConfig, b: int):
    text, codes = dalle_inputs(config, b)
    ours, t, v = DALLE(config).to(DEVICE), config.text_length, config.text_vocab
    peer = gpt_2(ours)
    ids = torch.cat([text, v + codes], dim=1)                                        # (b t+n)

    def loss() -> Tensor:
        logits = peer(ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(rearrange(logits, "b n v -> (b n) v").float(), rearrange(ids[:, 1:], "b n -> (b n)"))
    with torch.no_grad():
        logits = peer.eval()(ids[:, :-1]).logits
        same = difference(ours(text, codes), [logits[:, : t - 1, :v], logits[:, t - 1 :, v:]])
    return our_dalle(ours, text, codes), training_step(peer, loss), same


def gpt_step_dalle_pytorch(config: DALLEConfig, b: int):
    text, codes = dalle_inputs(config, b)
    ours = DALLE(config).to(DEVICE)
    peer = dalle_pytorch(ours)
    step = training_step(peer, lambda: peer(text, codes, return_loss=True))
    return our_dalle(ours, text, codes), step, sizes(ours, peer)


def sampling_transformers(config: DALLEConfig, b: int, guidance: float):
    text, _ = dalle_inputs(config, b)
    ours, v = DALLE(config).to(DEVICE).eval(), config.text_vocab
    peer = gpt_2(ours).eval()
    options = dict(max_new_tokens=config.image_length, pad_token_id=0, attention_mask=torch.ones_like(text))
    if guidance != 1:
        options |= dict(guidance_scale=guidance, negative_prompt_ids=torch.zeros_like(text))

    def draw(**choice) -> Tensor:
        with autocast():
            return peer.generate(text, use_cache=True, **options, **choice)[:, config.text_length :]
    mine = rearrange(our_sampling(ours, text, guidance, temperature=0)(), "b g1 g2 -> b (g1 g2)")
    theirs = draw(do_sample=False, suppress_tokens=list(range(v))) - v
    same = f"same weights: {(mine == theirs).float().mean():.1%} of the codes are equal when both take the likeliest"
    return our_sampling(ours, text, guidance), partial(draw, do_sample=True, top_k=0), same


def sampling_dalle_pytorch(config: DALLEConfig, b: int, guidance: float):
    text, _ = dalle_inputs(config, b)
    ours = DALLE(config).to(DEVICE).eval()
    peer = dalle_pytorch(ours).eval()
    if guidance == 1:  # its forward_with_cond_scale forgets the cache then
        peer.forward_with_cond_scale = lambda *args, cond_scale, cache: peer(*args, cache=cache)

    def draw() -> Tensor:
        with autocast():  # a copy, because it zeroes the text that it is given
            return peer.generate_images(text.clone(), filter_thres=0, cond_scale=guidance, use_cache=True)
    return our_sampling(ours, text, guidance), draw, sizes(ours, peer)


def vqgan_diffusers(config: VQGANConfig, b: int):
    from diffusers import VQModel

    ours, levels = VQGAN(config), len(config.multipliers)
    peer = VQModel(block_out_channels=config.widths, layers_per_block=config.residual_blocks, norm_num_groups=1,
                   latent_channels=config.z_channels,
                   num_vq_embeddings=config.codebook_size, vq_embed_dim=config.codebook_dim,
                   down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels)
    for module in peer.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = group_norm(module.num_channels).num_groups  # ours have more where it is wider
    names = {"encoder.levels": "encoder.down_blocks", "decoder.levels": "decoder.up_blocks", ".blocks.": ".resnets.",
             "shortcut": "conv_shortcut", "norm_out": "conv_norm_out", "middle.0": "mid_block.resnets.0",
             "middle.2": "mid_block.resnets.1", "middle.1": "mid_block.attentions.0", "0.norm.": "0.group_norm.",
             ".query": ".to_q", ".key": ".to_k", ".value": ".to_v", "attentions.0.out": "attentions.0.to_out.0",
             "to_codebook": "quant_conv", "from_codebook": "post_quant_conv",
             "codebook.vectors": "quantize.embedding.weight"}
    weights, shapes = {}, peer.state_dict()
    for name, parameter in ours.named_parameters():
        name = name.replace("resample", "downsamplers.0" if name.startswith("encoder") else "upsamplers.0")
        for our_part, part in names.items():
            name = name.replace(our_part, part)
        weights[name] = parameter.detach().reshape(shapes[name].shape)  # where we have 1x1 kernels, they have matrices
    peer.load_state_dict(weights)
    ours, peer = (model.to(DEVICE, memory_format=torch.channels_last) for model in (ours, peer))  # as train.py does
    images = recipe.image(0, b, config.image_size).to(DEVICE)
    with torch.no_grad():
        z = ours.latents(images)
        same = difference([z, ours.decode_latents(z)],
                          [peer.encode(images).latents, peer.decode(z, force_not_quantize=True).sample])

    def our_loss() -> Tensor:
        reconstruction, quantised = ours(images)
        return generator_loss(images, reconstruction.float(), quantised.loss, ours.last_weight)[0]

    def peer_loss() -> Tensor:
        out = peer(images)
        return reconstruction_loss(images, out.sample.float()) + out.commit_loss
    return training_step(ours, our_loss), training_step(peer, peer_loss), same


def imports(rounds: int, goal: float = 50) -> None:
    """Print how long importing our packages takes after torch, each time in a new process."""
    line = ("import time, torch; start = time.perf_counter(); import minclip, minvqgan, mindalle; "
            "print(1000 * (time.perf_counter() - start))")
    took = [float(subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True).stdout)
            for _ in range(1 + rounds)][1:]  # the first may have to compile
    verdict = "reached" if median(took) <= goal else "MISSED"
    print(f"imports after torch: {median(took):.0f} ms ({min(took):.0f} .. {max(took):.0f})   goal {goal:g} ms {verdict}")


B_32 = CLIPConfig.vit_b_32()
# as large as our toys and built as the published models are: peers have no angles, and no stem of small convolutions
TOY = DALLEConfig(rotary=False)
TOY_CLIP = replace(B_32, **{name: value for name, value in vars(CLIPConfig()).items() if name != "stem_width"})
ROWS = [  # name, the peer's package, ratio to reach on the CPU, row
    ("CLIP step, toy", "transformers", 1.5, partial(clip_transformers, TOY_CLIP, 128)),
    ("CLIP step, toy", "open_clip_torch", 1.5, partial(clip_open_clip, TOY_CLIP, 128)),
    ("CLIP step, ViT-B/32", "transformers", 1.0, partial(clip_transformers, B_32, 8)),
    ("CLIP step, ViT-B/32", "open_clip_torch", 1.0, partial(clip_open_clip, B_32, 8)),
    ("GPT step, toy", "transformers", 1.5, partial(gpt_step_transformers, TOY, 48)),
    ("GPT step, toy", "dalle-pytorch", 4.0, partial(gpt_step_dalle_pytorch, TOY, 48)),
    ("sampling 64, toy", "transformers", 3.0, partial(sampling_transformers, TOY, 64, 1.0)),
    ("sampling 64, toy", "dalle-pytorch", 5.0, partial(sampling_dalle_pytorch, TOY, 64, 1.0)),
    ("sampling 64, guided", "transformers", 3.0, partial(sampling_transformers, TOY, 64, 3.0)),
    ("sampling 64, guided", "dalle-pytorch", 5.0, partial(sampling_dalle_pytorch, TOY, 64, 3.0)),
    ("VQGAN step, toy", "diffusers", 1.2, partial(vqgan_diffusers, VQGANConfig(), 16)),
]


def run(name: str, package: str, goal: float, row, rounds: int, profile: bool) -> None:
    """Print a line for a row, and what was found equal; with `profile`, also our operators if the goal is missed."""
    torch.manual_seed(0)
    try:
        *calls, same = row()
    except ImportError as error:
        print(f"{name:20} {package:16} skipped ({error}): pip install {package}, as this file begins", flush=True)
        return
    counts = [repeats(call) for call in calls]
    ours, peer = zip(*([clock(call, count) for call, count in zip(calls, counts)] for _ in range(rounds)))
    ratios = [b / a for a, b in zip(ours, peer)]
    found, reached = f"{median(ratios):5.2f} ({min(ratios):.2f} .. {max(ratios):.2f})", median(ratios) >= goal
    verdict = f"goal {goal:g} {'reached' if reached else 'MISSED'}" if DEVICE == "cpu" else ""
    print(f"{name:20} {package:16} ours {median(ours):7.4f} s   peer {median(peer):7.4f} s   {found}   {verdict}\n"
          f"{'':20} {same}", flush=True)
    if profile and not reached:
        show(account(calls[0]), clock(calls[0]), *rates())


# ---- Where the time goes ---------------------------------------------------------------------------------------------


class Ledger(TorchDispatchMode):
    """Write down under an operator's name its calls, seconds, operations of products, bytes read and written."""

    def __init__(self):
        super().__init__()
        self.rows = defaultdict(lambda: [0, 0.0, 0, 0])

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        packet, kwargs = operator.overloadpacket, kwargs or {}
        wait()
        start = time.perf_counter()
        out = operator(*args, **kwargs)
        wait()
        seconds = time.perf_counter() - start
        operations = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor) and not operator.is_view]
        entry = 1, seconds, operations, sum(x.nbytes for x in tensors)
        self.rows[packet.__name__] = [a + b for a, b in zip(self.rows[packet.__name__], entry)]
        return out


def account(call) -> dict[str, list]:
    """Call once under a Ledger  ->  operator: its calls, seconds, operations, bytes."""
    with Ledger() as ledger:
        call()
    return dict(ledger.rows)


def rates() -> tuple[float, float]:
    """Measure this machine  ->  operations a second of a large matrix product, bytes a second of a large copy."""
    side, dtype, floats = (8192, torch.bfloat16, 2**28) if DEVICE == "cuda" else (1536, torch.float32, 2**25)
    a, b = torch.randn(2, side, side, device=DEVICE, dtype=dtype)
    source, target = torch.randn(2, floats, device=DEVICE)
    product, copy = (min(clock(call, 4) for _ in range(5)) for call in (lambda: a @ b, lambda: target.copy_(source)))
    return 2 * side**3 / product, 2 * source.nbytes / copy


def show(rows: dict[str, list], seconds: float, matrix_rate: float, copy_rate: float, top: int = 8) -> None:
    """Print the operators that take longest beside their floor: operations or bytes at the machine's rates."""
    _, total, operations, _ = map(sum, zip(*rows.values()))
    print(f"      operator{'':26} calls       ms   share   floor, ms "
          f"({matrix_rate / 1e9:.0f} G operations/s, {copy_rate / 1e9:.1f} GB/s)")
    for name in sorted(rows, key=lambda name: -rows[name][1])[:top]:
        calls, spent, work, traffic = rows[name]
        floor = max(work / matrix_rate, traffic / copy_rate)
        print(f"      {name:34} {calls:5} {1e3 * spent:8.2f} {spent / total:7.1%} {1e3 * floor:8.2f}")
    print(f"      {'all, each alone':40} {1e3 * total:8.2f}         {1e3 * operations / matrix_rate:8.2f} of products; "
          f"unwatched {1e3 * seconds:.2f}", flush=True)


def against_the_hardware(config: DALLEConfig, b: int) -> None:
    """Print a training step as a share of the matrix rate, and sampling beside reading each weight once a token."""
    matrix_rate, copy_rate = rates()
    print(f"{matrix_rate / 1e12:.3g} T operations/s in a matrix product, {copy_rate / 1e9:.0f} GB/s in a copy")
    model = DALLE(config).to(DEVICE)
    count, tokens = sum(p.numel() for p in model.parameters()), b * config.length
    attention = 12 * config.layers * config.width * config.length * tokens  # two products, once forward, twice backward
    step = our_dalle(model, *dalle_inputs(config, b))
    seconds = min(clock(step) for _ in range(1 + repeats(step)))
    share = (6 * count * tokens + attention) / seconds / matrix_rate
    print(f"training step, {count:,} parameters, batch {b}: {seconds:.3f} s, {share:.1%} of the matrix rate, "
          f"{peak_memory() / 2**30:.1f} GiB")
    show(account(step), seconds, matrix_rate, copy_rate)

    del step  # and with it the optimiser's state
    model.zero_grad()
    model = model.requires_grad_(False).bfloat16().eval()  # half the bytes to read
    read = sum(p.nbytes for part in (model.blocks, model.image_head) for p in part.parameters())
    floor = config.image_length * read / copy_rate
    for many, guidance in ((1, 1.0), (1, 3.0), (16, 1.0), (16, 3.0)):
        text, _ = dalle_inputs(config, many)
        draw = partial(generate, model, text, guidance=guidance, empty=torch.zeros_like(text[0]), record=True)
        seconds = min(clock(draw) for _ in range(1 + repeats(draw)))
        print(f"sampling {many} of {config.image_length} tokens, guidance {guidance:g}: {seconds:.3f} s, "
              f"{seconds / floor:.2f} times the floor of {floor:.3f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--cuda", action="store_true", help="run on a GPU under bf16 autocast, and the 1.3 B shape too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    parser.add_argument("--only", default="", help="run the rows whose name or peer contains this")
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--profile", action="store_true", help="where a row that misses its goal spends its time")
    args = parser.parse_args()
    settle("cuda" if args.cuda else "cpu", args.threads)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if args.cuda else f'{args.threads} threads'}")
    for name, package, goal, row in ROWS:
        if args.only in f"{name} {package}":
            run(name, package, goal, row, args.rounds, args.profile)
    if args.only in "imports":
        imports(args.rounds)
    if args.cuda and args.only in "1.3 B":
        against_the_hardware(DALLEConfig.mindalle_1_3b(), 16)


if __name__ == "__main__":
    main()
