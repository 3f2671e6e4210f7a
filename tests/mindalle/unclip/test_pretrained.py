"""What loading a prior or a decoder promises: every name is a claim, and each can fail."""

import dataclasses
import json
import math
import os

import pytest
import torch
from einops import rearrange

import seeded
from mindalle import InputError
from mindalle.pretrained import fit
from mindalle.unclip.decoder import Decoder, DecoderConfig
from mindalle.unclip.diffusion import SCHEDULES, guided, sample
from mindalle.unclip.pretrained import STATS, from_diffusers, from_karlo, load, read
from mindalle.unclip.prior import Prior, PriorConfig
from published_karlo import CHECKPOINT, published_shapes

# kakaobrain/karlo at 3c68a50, filled by seeded.fill under its own names, computed the numbers below: the first four, the
# last two, and the probe of (3 e). `forward` is one pass, `draws` are 25 steps under guidance 2, by eta: DDIM and DDPM.
PUBLISHED = {
    "two heads": dict(
        sizes=dict(text_length=8, embed_dim=16, width=128, layers=2), heads=2,
        forward=([0.3867791, 1.474777, -0.2976879, 1.291915], [-1.647259, 1.163906], 0.7351876),
        draws={0: ([0.2247028, 1.358101, 1.427446, 1.095856], [-2.101031, 1.560565], 0.7756378),
               1: ([0.2208476, 1.359023, 1.42075, 1.093395], [-2.083116, 1.575271], 0.7482217)},
    ),
    "three heads": dict(
        sizes=dict(text_length=5, embed_dim=24, width=192, layers=3), heads=3,
        forward=([-0.5819575, 1.280111, 0.1248739, -0.1153389], [1.441693, 0.09889065], -0.272793),
        draws={0: ([-1.643835, 1.608652, -2.476418, -0.09911849], [0.143472, 0.5365384], -1.180824),
               1: ([-1.493783, 1.594956, -2.468608, -0.3415945], [0.04917926, 0.6058322], -1.303838)},
    ),
}
SPACED = [round(i * 999 / 24) for i in range(25)]  # the steps of 1000 that Karlo takes to draw
DIFFUSERS = {  # Karlo's names -> diffusers'; c_qkv is taken apart into to_q, to_k and to_v
    "model.text_enc_proj": "encoder_hidden_states_proj", "model.text_emb_proj": "embedding_proj",
    "model.clip_img_proj": "proj_in", "model.out_proj": "proj_to_clip_embeddings", "model.final_ln": "norm_out",
    "model.positional_embedding": "positional_embedding", "model.prd_emb": "prd_embedding",
    "model.time_embed.0": "time_embedding.linear_1", "model.time_embed.2": "time_embedding.linear_2",
    "model.transformer.resblocks": "transformer_blocks", "ln_1": "norm1", "ln_2": "norm3", "attn.c_qkv": "attn1.to_qkv",
    "attn.c_proj": "attn1.to_out.0", "mlp.c_fc": "ff.net.0.proj", "mlp.c_proj": "ff.net.2",
}
Weights = dict[str, torch.Tensor]


def as_diffusers(weights: Weights, stats: tuple[torch.Tensor, torch.Tensor]) -> Weights:
    """Give Karlo's weights the names and shapes of diffusers."""
    renamed = {"clip_mean": stats[0][None], "clip_std": stats[1][None]}
    for name, tensor in weights.items():
        for theirs, ours in DIFFUSERS.items():
            name = name.replace(theirs, ours)
        if "to_qkv" in name:
            parts = rearrange(tensor, "(k three c) ... -> three (k c) ...", three=3, c=64)
            renamed |= {name.replace("to_qkv", f"to_{letter}"): part.contiguous() for letter, part in zip("qkv", parts)}
        else:
            renamed[name] = tensor
    return renamed


def save_safetensors(weights: Weights, path) -> None:
    """Write tensors: the length of the header, the header, the numbers."""
    dtypes = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in weights.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        offsets = [len(numbers), len(numbers) + len(raw)]
        header[name] = {"dtype": dtypes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        numbers += raw
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers)


def published(name: str, change=lambda weights: None) -> tuple[Weights, tuple[torch.Tensor, torch.Tensor]]:
    """Fill Karlo's weights, and the mean and std of the embeddings."""
    e = PUBLISHED[name]["sizes"]["embed_dim"]
    weights = {key: seeded.fill(key, shape) for key, shape in published_shapes(**PUBLISHED[name]["sizes"]).items()}
    change(weights)
    return weights, (seeded.fill("mean.bias", (e,)), seeded.fill("std.weight", (e,)))


def publish_karlo(folder, name: str = "two heads", change=lambda weights: None):
    """Write the files that Karlo publishes into a folder, and return it."""
    weights, stats = published(name, change)
    torch.save({"state_dict": weights, "global_step": 1_000_000}, folder / CHECKPOINT)
    torch.save(stats, folder / STATS)
    return folder


def publish_diffusers(folder, name: str = "two heads", change=lambda weights: None, suffix: str = "safetensors", **settings):
    """Write the files that diffusers makes of Karlo's into a folder, and return it."""
    weights = as_diffusers(*published(name))
    change(weights)
    write = save_safetensors if suffix == "safetensors" else torch.save
    write(weights, folder / f"diffusion_pytorch_model.{suffix}")
    sizes, heads = PUBLISHED[name]["sizes"], PUBLISHED[name]["heads"]
    config = dict(_class_name="PriorTransformer", additional_embeddings=4, attention_head_dim=64, dropout=0.0,
                  embedding_dim=sizes["embed_dim"], num_attention_heads=heads, num_embeddings=sizes["text_length"],
                  num_layers=sizes["layers"])
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


LAYOUTS = {"karlo": publish_karlo, "diffusers": publish_diffusers,
           "diffusers, pickled": lambda *options: publish_diffusers(*options, suffix="bin")}
each_size = pytest.mark.parametrize("name", PUBLISHED)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def normal(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(seeded.noise(name, shape)).float()


def captions(name: str) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Make the conditions of three captions, token features (b t d), mask (b t), z_t (b e), and of an empty one."""
    t, e = PUBLISHED[name]["sizes"]["text_length"], PUBLISHED[name]["sizes"]["embed_dim"]
    mask = torch.arange(t) < torch.tensor([[t], [t // 2], [2]])
    return ((normal("words", 3, t, e), mask, normal("z_t", 3, e)),
            (normal("empty words", t, e), mask[2], normal("empty z_t", e)))


def published_schedule() -> tuple[torch.Tensor, torch.Tensor]:
    """Compute √ᾱ and √(1 - ᾱ) of Karlo's 1000 steps: cos² [Improved DDPM eq. 17], each β at most 0.999."""
    f = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    kept = torch.cumprod(1 - (1 - f[1:] / f[:-1]).clamp(max=0.999), dim=0)
    return kept.sqrt(), (1 - kept).sqrt()


def on_the_straight_path(x: torch.Tensor, steps) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn what Karlo reads at some steps, x (b e), into our x(t) (b e) and t (b)."""
    signal, noise = (part[steps] for part in published_schedule())
    total = rearrange(signal + noise, "b -> b 1")
    return (x / total).float(), (signal / (signal + noise)).float()


def assert_matches(z: torch.Tensor, facts: tuple[list[float], list[float], float], tolerance: float) -> None:
    first, last, probe = facts
    assert z.flatten()[:4].tolist() == pytest.approx(first, abs=tolerance)
    assert z.flatten()[-2:].tolist() == pytest.approx(last, abs=tolerance)
    assert seeded.probe(z) == pytest.approx(probe, abs=tolerance)  # every element has a part in it


# ------------------------------------------------------------------------------------------------- Karlo, in its layouts


@each_size
@each_layout
def test_karlos_prior_computes_what_its_own_code_computes(name, layout, tmp_path):
    facts = PUBLISHED[name]
    prior = load(LAYOUTS[layout](tmp_path, name))
    sizes = {**facts["sizes"], "token_width": facts["sizes"]["embed_dim"], "heads": facts["heads"]}
    assert prior.config == PriorConfig(**sizes, schedule="cosine") and not prior.training
    condition, _ = captions(name)
    x, t = on_the_straight_path(normal("x", 3, prior.config.embed_dim), [999, 500, 0])
    with torch.no_grad():
        assert_matches(prior(x, t, *condition), facts["forward"], 1e-5)


@pytest.mark.parametrize("eta", [0, 1])
@each_size
@each_layout
def test_drawing_takes_the_steps_of_karlos_own_sampler(name, layout, eta, tmp_path, monkeypatch):
    prior = load(LAYOUTS[layout](tmp_path, name))
    noise, t = on_the_straight_path(normal("noise", 3, prior.config.embed_dim), [999])
    times = [on_the_straight_path(noise, [step])[1].item() for step in reversed(SPACED)] + [1.0]
    fresh = iter([normal(f"fresh {i}", *noise.shape) for i in range(24)])
    monkeypatch.setattr(torch, "randn", lambda shape, **_: next(fresh))
    z = sample(guided(prior, *captions(name), 2.0), noise, times, eta)
    assert_matches(prior.standardise_image.inverse(z), PUBLISHED[name]["draws"][eta], 1e-4)


def test_the_cosine_schedule_is_that_of_karlo_at_each_of_its_steps():
    steps, x = torch.arange(1000), torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    theirs, their_steps = SCHEDULES["cosine"](*on_the_straight_path(x, steps))
    assert their_steps.equal(steps.float())
    torch.testing.assert_close(theirs, x, atol=1e-6, rtol=0)
    ends = SCHEDULES["cosine"](x[:2], torch.tensor([0.0, 1.0]))
    assert ends[0].equal(x[:2]) and ends[1].tolist() == [999, 0]  # noise, and data


@each_layout
def test_padding_never_matters_to_a_loaded_prior(layout, tmp_path):
    prior = load(LAYOUTS[layout](tmp_path, "two heads"))
    (features, mask, z_t), _ = captions("two heads")
    x, t = normal("x", 3, 16), torch.tensor([0.1, 0.5, 0.9])
    padding = rearrange(mask.logical_not(), "b t -> b t 1")
    with torch.no_grad():
        before = prior(x, t, features, mask, z_t)
        assert prior(x, t, torch.where(padding, 100.0, features), mask, z_t).equal(before)
        moved = prior(x, t, torch.where(padding, features, features + 1), mask, z_t) - before
    assert (moved.abs().amax(dim=1) > 0.01).all()  # while tokens do


@each_layout
def test_a_loaded_prior_has_the_published_mean_and_std(layout, tmp_path):
    prior, (mean, std), z = load(LAYOUTS[layout](tmp_path, "two heads")), published("two heads")[1], normal("z", 3, 16)
    assert prior.standardise_image.mean.equal(mean) and prior.standardise_image.std.equal(std)
    assert prior.standardise_text(z).equal(z)


def test_the_published_shape_is_the_preset_karlo(tmp_path):
    torch.save((torch.zeros(768), torch.ones(768)), tmp_path / STATS)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 32, "attention_head_dim": 64}')
    with torch.device("meta"):
        shapes = published_shapes(text_length=77, embed_dim=768, width=2048, layers=20)
        theirs = {name: torch.empty(shape) for name, shape in shapes.items()}
        diffusers = as_diffusers(theirs, (torch.empty(768), torch.empty(768)))
    for found in (from_karlo({"state_dict": theirs}, tmp_path / CHECKPOINT), from_diffusers(diffusers, tmp_path / "x.bin")):
        config, weights = found
        assert config == PriorConfig.karlo()
        with torch.device("meta"):
            prior = Prior(config)
        fit(prior, weights)  # every name and every shape
        assert sum(parameter.numel() for parameter in prior.parameters()) == 1_022_028_544


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@each_layout
def test_weights_of_another_precision_come_back_in_float32(layout, dtype, tmp_path):
    def convert(weights):
        weights |= {name: tensor.to(dtype) for name, tensor in weights.items()}

    (tmp_path / "full").mkdir()
    full = load(LAYOUTS[layout](tmp_path / "full", "two heads"))
    for name, weight in load(LAYOUTS[layout](tmp_path, "two heads", convert)).named_parameters():
        assert weight.dtype == torch.float32 and weight.equal(full.get_parameter(name).to(dtype).float())


def test_changing_a_model_leaves_its_file_as_it_was(tmp_path):
    path = publish_diffusers(tmp_path) / "diffusion_pytorch_model.safetensors"
    before = path.read_bytes()
    for parameter in load(tmp_path).parameters():
        parameter.data.zero_()
    assert path.read_bytes() == before


# ------------------------------------------------------------------------------------------------- refusals


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_karlo_folder_without_its_statistics_is_refused_by_their_name(tmp_path):
    (publish_karlo(tmp_path) / STATS).unlink()
    assert f"put {STATS}" in refusal(tmp_path) and str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("stats", [torch.ones(3, 16), (torch.ones(16),), (torch.ones(16), torch.ones(15)), "mean"])
def test_statistics_that_are_no_mean_and_std_are_refused(tmp_path, stats):
    torch.save(stats, publish_karlo(tmp_path) / STATS)
    assert "looks like Karlo's prior but does not fit" in refusal(tmp_path)


@pytest.mark.parametrize("key, shape, message", [
    ("model.text_enc_proj.weight", None, "tokens_in.weight is missing"),
    ("model.positional_embedding", None, "positions is missing"),
    ("model.transformer.resblocks.1.attn.c_qkv.bias", None, "blocks.1.attention.qkv.bias is missing"),
    ("model.final_ln.weight", None, "norm.weight is missing"),
    ("model.transformer.resblocks.0.attn.scale", (2,), "blocks.0.attn.scale is one too many"),
    ("model.causal_mask", (1, 12, 12), "causal_mask is one too many"),
    ("model.final_ln.bias", (9,), "norm.bias has another shape"),
    ("model.positional_embedding", (2, 12, 128), "positions has another shape"),
    ("model.positional_embedding", (128,), "not enough values"),
    ("model.text_enc_proj.weight", (128,), "tokens_in.weight has another shape"),
    ("model.prd_emb", (1, 2, 128), "query has another shape"),
    ("model.transformer.resblocks.1.attn.c_qkv.weight", (383, 128), "blocks.1.attention.qkv.weight has another shape"),
    ("model.transformer.resblocks.1.attn.c_qkv.weight", (576, 128), "blocks.1.attention.qkv.weight has another shape"),
])
def test_weights_of_karlo_that_do_not_fit_are_named(tmp_path, key, shape, message):
    def change(weights):
        weights.pop(key) if shape is None else weights.update({key: torch.ones(shape)})

    text = refusal(publish_karlo(tmp_path, change=change))
    assert "looks like Karlo's prior but does not fit" in text and message in text


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("key, shape, message", [
    ("proj_in.weight", None, "image_in.weight is missing"),
    ("prd_embedding", None, "query is missing"),
    ("clip_std", None, "standardise_image.std is missing"),
    ("transformer_blocks.1.attn1.to_k.bias", None, "blocks.1.attn1.to_k.bias is missing"),
    ("norm_in.weight", (128,), "norm_in.weight is one too many"),
    ("clip_mean", (2, 16), "standardise_image.mean has another shape"),
    ("norm_out.bias", (9,), "norm.bias has another shape"),
    ("transformer_blocks.1.attn1.to_v.weight", (127, 128), "blocks.1.attn1.to_v.weight has another shape"),
])
def test_weights_of_diffusers_that_do_not_fit_are_named(tmp_path, key, shape, message, suffix):
    def change(weights):
        weights.pop(key) if shape is None else weights.update({key: torch.ones(shape)})

    text = refusal(publish_diffusers(tmp_path, change=change, suffix=suffix))
    assert "looks like diffusers' prior but does not fit" in text and message in text


@pytest.mark.parametrize("settings, message", [
    (dict(num_attention_heads=4), "attention_head_dim: 64"),
    (dict(num_attention_heads=0), "attention_head_dim: 64"),
    (dict(num_attention_heads=0, attention_head_dim=128), "heads is 0"),
    (dict(num_attention_heads=4, attention_head_dim=32), None),
    (dict(num_embeddings=9), "num_embeddings: 9"),
    (dict(num_embeddings=12, additional_embeddings=0), "num_embeddings: 12"),
    (dict(time_embed_act_fn="gelu"), "time_embed_act_fn: gelu"),
])
def test_a_config_of_diffusers_holds_unless_the_weights_contradict_it(tmp_path, settings, message):
    publish_diffusers(tmp_path, **settings)
    if message:
        assert message in refusal(tmp_path)
    else:
        assert load(tmp_path).config.heads == 4


def test_heads_are_not_guessed_where_the_config_is_missing_or_silent(tmp_path):
    (publish_diffusers(tmp_path) / "config.json").write_text("{}")
    assert "num_attention_heads is missing" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json: No such file" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(8), b"\x10" + bytes(7) + b'{"a": [1, 2]}   ', b"\xff" * 50])
@pytest.mark.parametrize("name", [CHECKPOINT, "diffusion_pytorch_model.safetensors", "prior.pt"])
def test_a_damaged_file_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path / name)


def test_safetensors_cut_anywhere_are_refused(tmp_path):
    path = publish_diffusers(tmp_path) / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for length in (4, 8, 100, 3000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "safetensors but does not fit" in refusal(tmp_path)


@pytest.mark.parametrize("name", [CHECKPOINT, STATS])
def test_a_file_that_asks_to_run_code_is_refused(tmp_path, name):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Attack()}, publish_karlo(tmp_path) / name)
    assert "asks to run" in refusal(tmp_path) and "mkdir" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------- our own files

OURS = {"prior": lambda: Prior(PriorConfig(width=32, layers=1, heads=2)), "decoder": lambda: Decoder(DecoderConfig())}


def test_a_run_is_no_model_but_each_of_its_files_is(tmp_path):
    for kind, build in OURS.items():
        config, weights = (model := build()).config, model.state_dict()
        torch.save({"kind": kind, "config": dataclasses.asdict(config), "weights": weights}, tmp_path / f"{kind}.pt")
    assert "name prior.pt or decoder.pt" in refusal(tmp_path)
    assert [type(load(tmp_path / f"{kind}.pt")) for kind in OURS] == [Prior, Decoder]
