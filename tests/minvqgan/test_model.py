"""Claims about minvqgan's model and losses, each against exact values, a slow reference or plain autograd."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from small_vqgan import FSQ, GUMBEL, SMALL, pictures, small, taught
from torch import nn

import minvqgan.layers
from minvqgan import (QUANTISERS, VQGAN, InputError, PatchGAN, VQGANConfig, adaptive_weight, discriminator_loss,
                      generator_loss, psnr, reconstruction_loss)
from minvqgan.loss import hinge_discriminator, hinge_generator


# ---- the model


@pytest.mark.parametrize("multipliers", [(1, 2), (1, 2, 2), (1, 1, 2, 3)])
def test_encode_and_decode_shapes_follow_the_levels(multipliers):
    config = dataclasses.replace(SMALL, image_size=32, multipliers=multipliers)
    model = small(config)
    codes = model.encode(pictures(2, 32))
    assert codes.shape == (2, config.grid, config.grid) and config.grid == 32 // 2 ** (len(multipliers) - 1)
    assert codes.dtype == torch.int64 and 0 <= codes.min() and codes.max() < config.codebook_size
    assert model.decode(codes).shape == (2, 3, 32, 32)


def test_pictures_need_be_neither_square_nor_of_the_training_size():
    model = small()
    assert model.decode(model.encode(torch.zeros(1, 3, 24, 40))).shape == (1, 3, 24, 40)
    with pytest.raises(ValueError, match="multiples of 2") as error:
        model.encode(torch.zeros(1, 3, 24, 41))
    assert not isinstance(error.value, InputError)  # a bug of the caller, whose traceback must be seen


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, l2_normalised=True), GUMBEL, FSQ])
def test_decoding_the_codes_of_an_image_is_its_reconstruction(config):
    model = small(config)
    reconstruction, quantised = model(pictures())
    assert torch.equal(model.encode(pictures()), quantised.codes)
    assert torch.allclose(model.decode(quantised.codes), reconstruction, atol=1e-5)


def test_published_presets_have_the_published_sizes_and_shapes():
    with torch.device("meta"):
        models = {1024: VQGAN(VQGANConfig.f16_1024()), 16384: VQGAN(VQGANConfig.f16_16384()),
                  8192: VQGAN(VQGANConfig.f8_gumbel())}
    counts = {size: sum(p.numel() for p in model.parameters()) for size, model in models.items()}
    assert counts == {1024: 72_141_699, 16384: 76_073_859, 8192: 68_995_971}
    weights = {name: tuple(tensor.shape) for name, tensor in models[1024].named_parameters()}
    assert weights["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert weights["encoder.levels.2.blocks.0.shortcut.weight"] == (256, 128, 1, 1)
    assert weights["encoder.levels.4.blocks.0.shortcut.weight"] == (512, 256, 1, 1)
    assert weights["encoder.levels.4.attentions.1.query.weight"] == (512, 512, 1, 1)
    assert weights["encoder.conv_out.weight"] == (256, 512, 3, 3)
    assert weights["decoder.conv_in.weight"] == (512, 256, 3, 3)
    assert weights["decoder.levels.0.attentions.2.out.weight"] == (512, 512, 1, 1)  # lowest resolution first
    assert weights["decoder.levels.1.blocks.0.shortcut.weight"] == (256, 512, 1, 1)  # up.3, published
    assert weights["decoder.levels.3.blocks.0.shortcut.weight"] == (128, 256, 1, 1)  # up.1
    assert weights["decoder.levels.3.resample.conv.weight"] == (128, 128, 3, 3)
    assert weights["decoder.conv_out.weight"] == (3, 128, 3, 3)
    assert weights["to_codebook.weight"] == weights["from_codebook.weight"] == (256, 256, 1, 1)
    assert weights["codebook.vectors"] == (1024, 256)
    shortcuts = [name for name in weights if "shortcut.weight" in name]
    attentions = [name for name in weights if "query.weight" in name]
    assert len(shortcuts) == 4 and len(attentions) == 2 + 1 + 3 + 1
    assert VQGANConfig.f16_1024().grid == 16


def test_padding_on_the_way_down_is_right_and_bottom_only():
    down = minvqgan.layers.Downsample(1)
    nn.init.zeros_(down.conv.bias)
    nn.init.zeros_(down.conv.weight)
    down.conv.weight.data[0, 0, 0, 0] = 1  # picks the top left pixel under the kernel
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(down(image)[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))


def test_group_norm_computes_in_the_precision_of_its_weights_since_bf16_is_slow():
    norm = minvqgan.layers.group_norm(8)
    x = torch.randn(2, 8, 4, 4)
    assert norm(x.bfloat16()).dtype == torch.float32
    assert norm.double()(x).dtype == torch.float64


def test_group_norm_has_32_groups_for_published_widths_and_never_one_channel_a_group():
    assert [minvqgan.layers.group_norm(c).num_groups for c in (128, 256, 512)] == [32, 32, 32]
    assert all(c // minvqgan.layers.group_norm(c).num_groups >= 4 for c in (4, 8, 12, 16, 20, 32, 48, 96))
    assert all(c % minvqgan.layers.group_norm(c).num_groups == 0 for c in range(1, 130))


def test_attention_equals_torchs_own():
    torch.manual_seed(0)
    attention = minvqgan.layers.Attention(8)
    x = torch.randn(2, 8, 3, 5)
    q, k, v = (rearrange(f(attention.norm(x)), "b c h w -> b (h w) c")
               for f in (attention.query, attention.key, attention.value))
    mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "b (h w) c -> b c h w", h=3)
    assert torch.allclose(attention(x), x + attention.out(mixed), atol=1e-6)


def test_convolutions_start_so_that_a_signal_keeps_its_size():
    torch.manual_seed(0)
    for module in VQGAN(VQGANConfig()).modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert fan_in * module.weight.var().item() == pytest.approx(1, rel=0.3) and not module.bias.any()


@pytest.mark.parametrize("changes, remedy", [
    (dict(image_size=30), "not divisible by 4"), (dict(multipliers=()), "one or more whole numbers"),
    (dict(multipliers=(1, 2.5)), "one or more whole numbers"), (dict(codebook_dim=2.5), "codebook_dim is 2.5: make it a whole"),
    (dict(channels="16"), "channels is '16': make it a whole number"), (dict(beta=float("nan")), "beta is nan: make it 0 or more"),
    (dict(attention_resolutions=(7,)), "sides are"), (dict(channels=0), "1 or more"),
    (dict(beta=-1.0), "beta is -1.0: make it 0 or more"), (dict(rate_weight=-0.1), "rate_weight is -0.1"),
    (dict(quantiser="vector"), "'vector': it must be one of nearest, gumbel, fsq"),
])
def test_nonsense_in_the_config_is_refused_with_the_remedy(changes, remedy):
    with pytest.raises(InputError, match=remedy):
        VQGANConfig(**changes)


def test_every_config_field_has_a_help_text_and_the_quantisers_names_every_entry_of_the_table():
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(VQGANConfig)}
    assert all(helps.values()) and all(name in helps["quantiser"] for name in QUANTISERS)


def test_one_batch_can_be_learned_by_heart():
    untaught, model = taught(pictures(), steps=0).eval(), taught(pictures(), steps=150).eval()
    before, after = (reconstruction_loss(pictures(), each(pictures())[0]).item() for each in (untaught, model))
    assert after < before / 20


@pytest.mark.parametrize("config", [SMALL, GUMBEL, FSQ])
def test_bf16_autocast_learns_too_and_keeps_codes_and_their_loss_in_float32(config):
    model = VQGAN(config)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, quantised = model(pictures())
        loss, _ = generator_loss(pictures(), reconstruction, quantised.loss, model.last_weight,
                                 PatchGAN(channels=8, layers=1))
    loss.backward()
    assert reconstruction.dtype == torch.bfloat16 and quantised.z_q.dtype == quantised.loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---- the losses


def test_reconstruction_loss_is_exact():
    blank, contrasty = torch.full((3, 2, 2), 0.5), torch.tensor([-1.0, 1.0]).expand(3, 2, 2)
    images = torch.stack([blank, contrasty])
    change = rearrange(torch.tensor([0.1, -0.2]), "b -> b 1 1 1")
    squares = (1 + 0.3 / 0.01) * 0.1**2, (1 + 0.3 / 1.01) * 0.2**2  # a blank picture's weighs more
    assert reconstruction_loss(images, images + change).item() == pytest.approx((0.1 + squares[0] + 0.2 + squares[1]) / 2)


def test_hinge_losses_are_exact():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert hinge_discriminator(real, fake).item() == pytest.approx(0.5 * ((0.5 + 2) / 3 + (1 + 2) / 3))
    assert hinge_generator(torch.tensor([1.0, 2.0, 6.0])).item() == -3


def test_the_discriminators_loss_leaves_no_gradient_in_the_generator():
    model, discriminator = small(), PatchGAN(channels=8, layers=1)
    reconstruction, _ = model(pictures())
    discriminator_loss(discriminator, pictures(), reconstruction).backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())


def test_adaptive_weight_is_the_ratio_of_gradient_lengths_and_is_clamped():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction = (weight * torch.tensor([3.0, 4.0])).sum()
    adversarial = (weight * torch.tensor([0.0, 2.0])).sum()
    value = adaptive_weight(reconstruction, adversarial, weight)
    assert value.item() == pytest.approx(5 / (2 + 1e-4)) and not value.requires_grad
    assert adaptive_weight(1e6 * reconstruction, 1e-9 * adversarial, weight).item() == 1e4


def test_generator_loss_is_the_sum_of_its_parts_by_hand():
    model, discriminator, images = small(), PatchGAN(channels=8, layers=1), pictures()
    reconstruction, quantised = model(images)
    perceptual = lambda x, y: (x - y).abs().amax(dim=(1, 2, 3))
    loss, parts = generator_loss(images, reconstruction, quantised.loss, model.last_weight, discriminator,
                                 adversarial_weight=0.5, perceptual=perceptual)
    pixels = reconstruction_loss(images, reconstruction) + perceptual(images, reconstruction).mean()
    adversarial = -discriminator(reconstruction).mean()
    norms = [torch.autograd.grad(part, model.decoder.conv_out.weight, retain_graph=True)[0].norm()
             for part in (pixels, adversarial)]
    expected = pixels + quantised.loss + 0.5 * norms[0] / (norms[1] + 1e-4) * adversarial
    assert torch.allclose(loss, expected, atol=1e-5)
    assert set(parts) == {"reconstruction", "codebook", "adversarial", "adversarial_weight"}
    loss.backward()


def test_without_a_discriminator_the_adversarial_part_is_absent():
    model, images = small(), pictures()
    reconstruction, quantised = model(images)
    loss, parts = generator_loss(images, reconstruction, quantised.loss, model.last_weight)
    assert torch.equal(loss, reconstruction_loss(images, reconstruction) + quantised.loss)
    assert set(parts) == {"reconstruction", "codebook"}


def test_patchgan_sees_70_pixels_at_three_layers_and_fits_32_pixels():
    net = PatchGAN(channels=4, layers=3).eval()
    images = torch.randn(1, 3, 256, 256, requires_grad=True)
    scores = net(images)
    assert scores.shape == (1, 1, 30, 30)
    scores[0, 0, 15, 15].backward()
    seen = images.grad[0].abs().sum(dim=0).nonzero()
    assert (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist() == [70, 70]
    assert PatchGAN(channels=4, layers=2)(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 6, 6)
    with pytest.raises(InputError, match="fewer layers"):
        net(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="0 layers: both must be at least 1"):
        PatchGAN(layers=0)


def test_patchgan_at_its_defaults_has_the_published_layers():
    shapes = [tuple(m.weight.shape) for m in PatchGAN().modules() if isinstance(m, nn.Conv2d)]
    assert [m.negative_slope for m in PatchGAN().modules() if isinstance(m, nn.LeakyReLU)] == 4 * [0.2]
    assert shapes == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in PatchGAN().modules()) == 3


def test_forty_steps_of_the_discriminator_halve_its_loss():
    torch.manual_seed(0)
    discriminator, images = PatchGAN(channels=8, layers=1), pictures()
    fakes = images + 0.3 * torch.randn_like(images)
    optimiser = torch.optim.Adam(discriminator.parameters(), 2e-3)
    losses = []
    for _ in range(40):
        loss = discriminator_loss(discriminator, images, fakes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_psnr_is_ten_decibels_per_factor_of_ten_in_the_mean_square_and_at_most_106():
    images = torch.zeros(4, 3, 2, 2)
    others = images.clone()
    others[0] = 0.2          # 4 / 0.04 = 100
    others[1, 0, 0, 0] = 1   # 4 / (1 / 12) = 48
    others[2] = 2            # the whole range
    values = psnr(images, others).tolist()
    assert values == pytest.approx([20, 10 * math.log10(48), 0, 10 * math.log10(4e10)], abs=1e-4)
