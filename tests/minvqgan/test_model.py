"""VQGAN's model and configuration."""

import dataclasses

import pytest
import torch
from small_vqgan import FSQ, GUMBEL, SMALL, pictures, small, trained

from minvqgan import (QUANTISERS, VQGAN, InputError, PatchGAN, VQGANConfig, generator_loss,
                      reconstruction_loss)


@pytest.mark.parametrize("multipliers", [(1, 2), (1, 1, 2, 3)])
def test_encode_and_decode_shapes_follow_the_levels(multipliers):
    config = dataclasses.replace(SMALL, image_size=32, multipliers=multipliers)
    model, grid = small(config), 32 // 2 ** (len(multipliers) - 1)
    codes = model.encode(pictures(2, 32))
    assert codes.shape == (2, grid, grid) and config.grid == grid
    assert model.decode(codes).shape == (2, 3, 32, 32)


def test_pictures_need_be_neither_square_nor_of_the_training_size():
    model = small()
    assert model.decode(model.encode(torch.zeros(1, 3, 24, 40))).shape == (1, 3, 24, 40)
    with pytest.raises(ValueError, match="multiples of 2") as error:
        model.encode(torch.zeros(1, 3, 24, 41))
    assert not isinstance(error.value, InputError)  # the caller's bug: its traceback must be seen


def test_the_published_preset_has_the_published_shapes():
    with torch.device("meta"):
        model = VQGAN(VQGANConfig.f16_1024())
    assert sum(p.numel() for p in model.parameters()) == 72_141_699
    assert model.config.grid == 16
    weights = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    for name, shape in {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.levels.2.blocks.0.shortcut.weight": (256, 128, 1, 1),
        "encoder.levels.4.blocks.0.shortcut.weight": (512, 256, 1, 1),
        "encoder.levels.4.attentions.1.query.weight": (512, 512, 1, 1),
        "encoder.conv_out.weight": (256, 512, 3, 3),
        "decoder.conv_in.weight": (512, 256, 3, 3),
        "decoder.levels.0.attentions.2.out.weight": (512, 512, 1, 1),  # lowest resolution first
        "decoder.levels.1.blocks.0.shortcut.weight": (256, 512, 1, 1),  # up.3, as published
        "decoder.levels.3.blocks.0.shortcut.weight": (128, 256, 1, 1),  # up.1
        "decoder.levels.3.resample.conv.weight": (128, 128, 3, 3),
        "decoder.conv_out.weight": (3, 128, 3, 3),
        "to_codebook.weight": (256, 256, 1, 1), "from_codebook.weight": (256, 256, 1, 1),
        "codebook.vectors": (1024, 256),
    }.items():
        assert weights[name] == shape, name
    assert sum("shortcut.weight" in name for name in weights) == 4
    assert sum("query.weight" in name for name in weights) == 2 + 1 + 3 + 1


@pytest.mark.parametrize("changes, remedy", [
    (dict(image_size=30), "not divisible by 4"),
    (dict(multipliers=()), "one or more whole numbers"),
    (dict(multipliers=(1, 2.5)), "one or more whole numbers"),
    (dict(codebook_dim=2.5), "codebook_dim is 2.5: make it a whole"),
    (dict(channels="16"), "channels is '16': make it a whole number"),
    (dict(beta=float("nan")), "beta is nan: make it 0 or more"),
    (dict(attention_resolutions=(7,)), "sides are"), (dict(channels=0), "1 or more"),
    (dict(beta=-1.0), "beta is -1.0: make it 0 or more"),
    (dict(rate_weight=-0.1), "rate_weight is -0.1"),
    (dict(quantiser="vector"), "'vector': it must be one of nearest, gumbel, fsq"),
])
def test_nonsense_in_the_config_is_refused_with_the_remedy(changes, remedy):
    with pytest.raises(InputError, match=remedy):
        VQGANConfig(**changes)


def test_every_field_has_a_help_text_and_it_names_every_quantiser():
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(VQGANConfig)}
    assert all(helps.values()) and all(name in helps["quantiser"] for name in QUANTISERS)


def test_one_batch_can_be_learned_by_heart():
    before, after = (reconstruction_loss(pictures(), trained(steps)(pictures())[0]).item()
                     for steps in (0, 120))
    assert after < before / 20


@pytest.mark.parametrize("config", [SMALL, GUMBEL, FSQ])
def test_bf16_autocast_keeps_codes_and_their_loss_in_float32(config):
    model = VQGAN(config)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, quantised = model(pictures())
        loss, _ = generator_loss(pictures(), reconstruction, quantised.loss, model.last_weight,
                                 PatchGAN(channels=8, layers=1))
    loss.backward()
    assert reconstruction.dtype == torch.bfloat16
    assert quantised.z_q.dtype == quantised.loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
