"""Loading a VQGAN: our own checkpoints, and published ones against the original's numbers.

THEIRS is what CompVis/taming-transformers@3ba01b241669f5ade541ce990f7650a3b8f65318 computes with
weights by seeded.fill, its own key names and resolution 16. z, codes, pixels: of image(3, 2, 16);
wide: of image(4, 1, 24); decoded: pixels of ids(5, ...). Four first and last values and the probe;
of codes the first 16 and the sum. Its Gumbel model with the argmax of its logits.
kakaobrain/minDALL-E@e5480076b9634e9dc097e1892157ed2cf15a2f86 has "vq" the same.
"""

import dataclasses
import os
import sys
from types import ModuleType
from unittest import mock

import pytest
import torch
from einops import rearrange
from published_vqgan import STATES, taming_shapes
from seeded import fill, ids, image, probe
from small_vqgan import pictures, save, small

import minvqgan.pretrained
from minvqgan import VQGAN, InputError, VQGANConfig, load

VQ = VQGANConfig(image_size=256, channels=128, multipliers=(1, 2, 1), residual_blocks=1,
                 z_channels=24, attention_resolutions=(128,), codebook_size=96, codebook_dim=8,
                 rate_weight=0.0)
CONFIGS = {"vq": VQ, "gumbel": dataclasses.replace(
    VQ, multipliers=(1, 1), residual_blocks=2, z_channels=16, codebook_size=64, codebook_dim=16,
    quantiser="gumbel")}
F16 = VQGANConfig.f16_1024()
F8 = dataclasses.replace(F16, multipliers=(1, 1, 2, 4), attention_resolutions=(32,),
                         codebook_size=8192, quantiser="gumbel")

THEIRS = {
    "vq": {
        "z": [-0.207867, -0.155903, -0.202236, -0.012538, -1.020323,
              -0.316109, -0.12456, -0.463465, -0.404325],
        "codes": [6, 76, 11, 44, 94, 86, 42, 1, 42, 3, 81, 44, 94, 42, 44, 83, 1465],
        "pixels": [0.046452, 0.079384, -0.030293, 0.2989, -0.352457,
                   -0.191524, -0.212364, -0.130634, 0.571139],
        "wide z": [-0.279241, -0.679148, -0.055, -0.432718, -0.897187,
                   -1.025354, -0.956082, -0.662347, 0.096695],
        "wide codes": [20, 27, 40, 76, 83, 6, 6, 20, 18, 36, 6, 11, 11, 4, 4, 86, 1303],
        "wide pixels": [0.215107, 0.206087, 0.196087, 0.228353, -0.027384,
                        0.120798, -0.0117, -0.139273, 0.627649],
        "decoded": [0.282464, 0.546702, 0.138437, 0.238254, -0.947793,
                    -0.613373, -0.419375, -0.294771, 0.843694],
    },
    "gumbel": {
        "z": [-0.514102, -0.792218, -0.816828, -0.462445, 0.768421,
              0.319554, 0.203893, -0.347626, -0.061604],
        "codes": [45, 43, 22, 55, 22, 43, 43, 55, 45, 34, 33, 34, 43, 33, 22, 27, 5007],
        "pixels": [0.336139, 0.507569, 0.381598, 0.169809, -0.285763,
                   0.150671, 0.123024, 0.168621, 0.305198],
        "wide z": [0.289656, -0.672806, -0.578212, -0.449941, -0.364999,
                   -0.266665, -0.274552, -0.212763, 0.748321],
        "wide codes": [34, 22, 34, 45, 45, 45, 55, 55, 22, 45, 55, 45, 33, 43, 43, 45, 5889],
        "wide pixels": [-0.001353, 0.218942, 0.576148, 0.450927, 0.04751,
                        0.141321, 0.283763, 0.257835, -0.1568],
        "decoded": [0.026402, 0.471765, 0.382742, 0.261563, 0.024993,
                    0.009991, 0.030738, 0.438345, 0.104358],
    },
}


def same_weights(model: VQGAN, again: VQGAN) -> bool:
    pairs = zip(model.state_dict().values(), again.state_dict().values())
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


# ---- Our own checkpoints --------------------------------------------------------------------


@pytest.mark.parametrize("change, reason", [
    ({"weights": {}}, "encoder.conv_in.weight is missing"), ({"config": {"sides": 1}}, "sides"),
    ({"config": {"l2_normalised": True}}, "l2_normalised, which is not supported: train it anew"),
])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(change, reason, tmp_path):
    save(tmp_path / "vqgan.pt", small())
    torch.save(torch.load(tmp_path / "vqgan.pt") | change, tmp_path / "vqgan.pt")
    match = f"vqgan.pt looks like a vqgan.pt .* but does not fit: .*{reason}"
    with pytest.raises(InputError, match=match):
        load(tmp_path)


def test_a_checkpoint_of_an_older_config_loads(tmp_path):
    model = small()
    save(tmp_path / "vqgan.pt", model, l2_normalised=False)
    content = torch.load(tmp_path / "vqgan.pt")
    del content["config"]["levels"]
    torch.save(content, tmp_path / "vqgan.pt")
    again = load(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.encode(pictures()), model.encode(pictures()))


# ---- Published weights ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    return {name: {key: fill(key, shape) for key, shape in shapes.items()}
            for name, shapes in STATES.items()}


def save_by_lightning(state: dict[str, torch.Tensor], path, **options) -> None:
    """Save a state dict as Lightning 1.0 does, whose files mention a class of its own."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    callbacks = {module.ModelCheckpoint: {"best_model_path": "last.ckpt"}}
    parents = {"pytorch_lightning": module, "pytorch_lightning.callbacks": module}
    with mock.patch.dict(sys.modules, parents | {name: module}):
        torch.save({"epoch": 1, "callbacks": callbacks, "state_dict": state}, path, **options)


@pytest.fixture(scope="module")
def files(states, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for name, state in states.items():
        discriminator = {"loss.discriminator.main.0.weight": torch.ones(2)}
        save_by_lightning(state | discriminator, folder / f"{name}.ckpt")
    return folder


def agrees(tensor: torch.Tensor, theirs: list[float], atol: float) -> bool:
    flat = tensor.detach().flatten()
    if not tensor.is_floating_point():
        return [*flat[:16].tolist(), flat.sum().item()] == theirs
    ours = [*flat[:4].tolist(), *flat[-4:].tolist(), probe(flat)]
    return ours == pytest.approx(theirs, rel=0, abs=atol)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("prefix, images", [("", image(3, 2, 16)), ("wide ", image(4, 1, 24))])
def test_latents_codes_and_pixels_are_the_originals(files, name, prefix, images):
    model, theirs = load(files / f"{name}.ckpt"), THEIRS[name]
    assert model.config == CONFIGS[name] and not model.training
    with torch.no_grad():
        reconstruction, quantised = model(images)
        # 2e-6 apart; eps 1e-5 instead of 1e-6 in GroupNorm would be 3e-5
        assert agrees(model.latents(images), theirs[f"{prefix}z"], atol=6e-6)
    assert agrees(quantised.codes, theirs[f"{prefix}codes"], 0)
    assert torch.equal(model.encode(images), quantised.codes)
    assert agrees(reconstruction, theirs[f"{prefix}pixels"], atol=1e-5)


@pytest.mark.parametrize("name, side", [("vq", 4), ("gumbel", 8)])
def test_published_weights_decode_codes_as_the_originals_do(files, name, side):
    model = load(files / f"{name}.ckpt")
    codes = rearrange(ids(5, 2, side**2, model.config.codebook_size), "b (h w) -> b h w", h=side)
    assert agrees(model.decode(codes), THEIRS[name]["decoded"], atol=1e-5)


@pytest.mark.parametrize("preset, arguments", [
    (F16, (128, (1, 1, 2, 2, 4), 2, (4,), 256, 1024, 256)),
    (F8, (128, (1, 1, 2, 4), 2, (3,), 256, 8192, 256, True)),
])
def test_published_sizes_are_inferred_and_every_tensor_has_its_place(preset, arguments, tmp_path):
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in taming_shapes(*arguments).items()}
    config, weights = minvqgan.pretrained.from_taming({"state_dict": state}, tmp_path / "last.ckpt")
    with torch.device("meta"):
        expected = VQGAN(config).state_dict()
    assert config == preset and len(state) == (301 if preset is F8 else 343)
    assert weights.keys() == expected.keys()
    assert all(weights[name].shape == expected[name].shape for name in expected)


@pytest.mark.parametrize("file", ["last.ckpt", "checkpoints/last.ckpt", "ckpts/last.ckpt",
                                  "stage1_last.ckpt"])
def test_a_published_folder_keeps_weights_and_resolution_in_files(file, states, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "model.yaml").write_text(
        "# resolution: 8\nimage_resolution: 9\n  resolution: 16\n  attn_resolutions: [8]\n")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    torch.save(states["vq"], tmp_path / file)  # a bare state dict
    model = load(tmp_path)
    assert model.config == dataclasses.replace(VQ, image_size=16, attention_resolutions=(8,))
    assert agrees(model.encode(image(4, 1, 24)), THEIRS["vq"]["wide codes"], 0)  # whatever the side


def test_a_file_from_before_torchs_zip_format_loads_too(files, states, tmp_path):
    save_by_lightning(states["gumbel"], tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    model, again = load(files / "gumbel.ckpt"), load(tmp_path / "old.ckpt")
    assert same_weights(model, again)


def test_an_unreadable_config_beside_published_weights_is_an_input_error(states, tmp_path):
    (tmp_path / "model.yaml").mkdir()
    assert "model.yaml" in refusal(states["vq"], tmp_path / "last.ckpt")


def test_training_on_from_published_weights_starts_with_every_code_where_it_was(files):
    model = load(files / "vq.ckpt").train()
    before = model.codebook.vectors.detach().clone()
    assert not model.codebook.idle.any()
    assert torch.equal(model.codebook.share, torch.full((96,), 1 / 96))
    model(image(3, 2, 16))
    assert torch.equal(model.codebook.vectors, before)


def test_loading_copies_no_page_of_the_file_and_training_writes_none(files, states):
    before = (files / "gumbel.ckpt").read_bytes()
    with torch.device("meta"):
        model = VQGAN(CONFIGS["gumbel"])
    _, weights = minvqgan.pretrained.from_taming(states["gumbel"], files / "gumbel.ckpt")
    minvqgan.pretrained.fit(model, weights)
    assert all(tensor.data_ptr() == weights[name].data_ptr()
               for name, tensor in model.state_dict().items())
    random = torch.get_rng_state()
    model = load(files / "gumbel.ckpt")
    assert torch.equal(torch.get_rng_state(), random)  # nor draws weights, to throw them away
    assert all(p.requires_grad for p in model.parameters())
    model(image(3, 2, 16))[0].sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert (files / "gumbel.ckpt").read_bytes() == before


def refusal(checkpoint, path) -> str:
    """Save a checkpoint that must be refused, and return the one line that does it."""
    torch.save(checkpoint, path)
    with pytest.raises(InputError) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("without, more, reason", [
    ("decoder.up.0.block.1.conv2", {},
     "decoder.levels.2.blocks.1.conv2.weight is missing (and 1 more)"),
    ("encoder.conv_in.weight", {}, "encoder.conv_in.weight is missing"),
    ("nothing", {"quantize.counts": torch.ones(96)}, "quantize.counts is one too many"),
    ("nothing", {"decoder.mid.attn_1.q.bias": torch.zeros(127)},
     "decoder.middle.1.query.bias has another shape"),
    ("nothing", {"decoder.norm_out.bias": "no tensor"}, "does not fit"),
])
def test_a_published_file_that_does_not_fit_is_refused(states, tmp_path, without, more, reason):
    state = {key: value for key, value in states["vq"].items() if without not in key} | more
    assert reason in refusal(state, tmp_path / "last.ckpt")


@pytest.mark.parametrize("ch", [32, 64, 192])  # the original has 32 groups of six, ours 16 of 12
def test_layers_that_would_be_normalised_in_other_groups_are_refused(ch, tmp_path):
    shapes = taming_shapes(ch, (1,), 1, (), 4, 8, 4)
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    message = refusal(state, tmp_path / "last.ckpt")
    assert f"{ch} wide" in message and "32 groups" in message


def test_a_lone_decoder_and_flax_weights_are_refused_with_a_remedy(states, tmp_path):
    state = {key.replace("quantize.", ""): value for key, value in states["vq"].items()}
    half = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    message = refusal(half, tmp_path / "detoker.pt")
    assert "only a decoder" in message and "f16 with 16384 codes" in message
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x83\xa7decoder")
    with pytest.raises(InputError, match="Flax.*f16 with 16384 codes"):
        load(tmp_path / "flax_model.msgpack")
