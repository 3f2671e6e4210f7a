"""What DALL·E 2's diffusion decoder promises."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mindalle import InputError
from mindalle.unclip import Decoder, DecoderConfig, even_times, guided, invert, sample
from mindalle.unclip.decoder import AttentionBlock, Modulation, ResidualBlock, group_norm
from mindalle.unclip.diffusion import append_dims
from small_unclip import DECODER, new_decoder, normal, perturbed, rng


def kept(x: Tensor, t: Tensor) -> Tensor:
    """Return what the skip connection takes over from x(t) (b 3 h w): all in the end, half where the noise is as large as SKIP_STD."""
    return x * append_dims(0.01**2 / (0.01**2 + (1 - t) ** 2), x)


SHAPES = [dict(multipliers=(1,)), dict(multipliers=(1, 2)), dict(multipliers=(1, 2, 2)), dict(patch_size=1), dict(patch_size=4),
          dict(image_size=32), dict(image_size=64, patch_size=4, multipliers=(1, 2, 4)), dict(blocks=2), dict(image_size=12)]
each_shape = pytest.mark.parametrize("changes", SHAPES, ids=str)


@each_shape
def test_every_decoder_comes_to_depend_on_image_time_and_embedding(changes):
    decoder = new_decoder(**changes)
    side = decoder.config.image_size
    x, t, z = normal(2, 3, side, side), torch.tensor([0.3, 0.6], requires_grad=True), normal(2, 6).requires_grad_()
    torch.testing.assert_close(decoder(x, t, z), kept(x, t))
    assert decoder.positions.shape[1:] == (decoder.config.grid, decoder.config.grid)

    x.requires_grad_()
    image = perturbed(decoder)(x, t, z) - kept(x, t)
    assert image.shape == x.shape
    image.square().sum().backward()
    assert t.grad.abs().min() > 1e-4 and z.grad.norm(dim=1).min() > 1e-4
    assert (x.grad.abs() > 0).float().mean() > 0.99
    assert not [name for name, parameter in decoder.named_parameters() if parameter.grad is None or parameter.grad.norm() < 1e-5]


@each_shape
def test_a_change_of_the_image_changes_the_prediction_most_there(changes):
    decoder = new_decoder(**changes)
    side = decoder.config.image_size
    nn.init.normal_(decoder.conv_out.weight)
    for level in decoder.levels:  # what passes by the skips would be in its place even if the rest were not
        channels = level.up[0].conv2.out_channels
        level.up[0].shortcut.weight.data[:, channels:] = 0
    x, t, z = normal(1, 3, side, side), torch.tensor([0.5]), normal(1, 6)
    near = side // decoder.config.grid * 3  # two convolutions of 3 positions, and one position more
    for row, column in ((1, 1), (1, side - 2), (side - 2, 1), (side - 2, side - 2), (side // 2, side // 4)):
        changed = x.clone()
        changed[0, :, row, column] += 5
        apart = (decoder(changed, t, z) - decoder(x, t, z)).abs().sum(dim=(0, 1))
        places = (apart > 0.5 * apart.max()).nonzero()
        assert (places - torch.tensor([row, column])).abs().max() < near


def test_with_less_noise_left_the_decoder_keeps_more_of_the_image():
    decoder, x = perturbed(new_decoder()), normal(3, 3, 16, 16)
    apart = [(decoder(x, torch.full((3,), t), normal(3, 6)) - x).square().mean().sqrt().item() for t in (0.5, 0.99, 0.998, 1.0)]
    assert apart == sorted(apart, reverse=True) and apart[1] / apart[0] == pytest.approx(0.5, rel=0.15) and apart[-1] < 1e-6


def test_more_steps_redraw_an_inverted_image_more_exactly():
    decoder = perturbed(new_decoder())
    x, z = normal(2, 3, 16, 16), normal(2, 6)
    denoise, apart = guided(decoder, (z,), (decoder.empty,), 1.0), []
    for times in map(even_times, (32, 128, 512)):
        apart.append((sample(denoise, invert(denoise, x, times), times) - x).square().mean().sqrt().item())
    assert apart[0] > 1.5 * apart[1] > 3 * apart[2], apart


@pytest.mark.parametrize("level", [0, 1])
def test_the_skip_connection_of_each_level_reaches_the_output(level):
    decoder = perturbed(new_decoder(multipliers=(1, 2, 2)))
    decoder.levels[level].upsample.weight.data.zero_()  # nothing comes up from below
    decoder(normal(2, 3, 16, 16), torch.tensor([0.3, 0.6]), normal(2, 6)).square().sum().backward()
    assert all(parameter.grad.norm() > 1e-4 for parameter in decoder.levels[level].down.parameters())
    assert not decoder.levels[level].downsample.weight.grad.any()


def test_the_decoder_standardises_the_embedding_and_takes_the_mean_for_none():
    decoder, other = perturbed(new_decoder()), perturbed(new_decoder())
    other.standardise.fit(normal(20, 6, seed=3) + 0.3)
    x, t, z = normal(2, 3, 16, 16), torch.tensor([0.3, 0.6]), normal(2, 6)
    torch.testing.assert_close(other(x, t, other.standardise.inverse(z)), decoder(x, t, z))
    assert other.empty.equal(other.standardise.mean) and other.empty.shape == (6,)
    torch.testing.assert_close(other(x, t, other.empty.expand(2, 6)), decoder(x, t, torch.zeros(2, 6)))


def test_the_decoder_counts_time_in_thousandths():
    decoder, steps = new_decoder(), []
    decoder.time_in.register_forward_pre_hook(lambda module, inputs: steps.extend(inputs[0].tolist()))
    decoder(normal(3, 3, 16, 16), torch.tensor([0.0, 0.25, 1.0]), normal(3, 6))
    assert steps == [0, 250, 1000]


def test_all_blocks_of_the_decoder_read_one_condition_of_time_and_embedding():
    decoder, read = perturbed(new_decoder()), []
    for module in decoder.modules():
        if isinstance(module, Modulation):
            module.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    t, z = torch.tensor([0.3, 0.6]), normal(2, 6)
    decoder(normal(2, 3, 16, 16), t, z)
    (_, linear, _), (first, _, second) = decoder.condition, decoder.image_in
    expected = F.silu(linear(F.silu(decoder.time_in(1000 * t) + second(F.silu(first(z))))))
    assert len(read) == 5  # one on the way down, three in the middle, one on the way up
    for condition in read:
        torch.testing.assert_close(condition, expected)


def test_a_decoder_whose_blocks_do_nothing_yet_is_its_convolutions_alone():
    decoder, x = new_decoder(multipliers=(1, 2), patch_size=4), normal(2, 3, 16, 16)
    nn.init.normal_(decoder.conv_out.weight), nn.init.normal_(decoder.conv_out.bias)
    (level,), (shortcut,) = decoder.levels, [block.shortcut for block in decoder.levels[0].up]
    fine = F.conv2d(F.pixel_unshuffle(x, 4), decoder.conv_in.weight, decoder.conv_in.bias, padding=1)                # (b c 4 4)
    coarse = F.conv2d(fine, level.downsample.weight, level.downsample.bias, stride=2) + decoder.positions            # (b 2c 2 2)
    up = F.pixel_shuffle(F.conv2d(coarse, level.upsample.weight, level.upsample.bias), 2)
    up = F.conv2d(torch.cat([up, fine], dim=1), shortcut.weight, shortcut.bias)
    out = F.conv2d(F.silu(F.group_norm(up, 2)), decoder.conv_out.weight, decoder.conv_out.bias, padding=1)
    t = torch.tensor([0.3, 0.6])
    expected = F.pixel_shuffle(out, 4)
    torch.testing.assert_close(decoder(x, t, normal(2, 6)), expected + kept(x - expected, t))


def test_a_residual_block_is_that_of_improved_ddpm():
    torch.manual_seed(0)
    block = perturbed(ResidualBlock(16, 24, condition=5)).double()
    x, condition = normal(2, 16, 4, 4).double(), normal(2, 5).double()
    scale, shift = F.linear(condition, block.modulation.weight, block.modulation.bias)[:, :, None, None].chunk(2, dim=1)
    hidden = F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias))  # groups of four channels
    hidden = F.conv2d(hidden, block.conv1.weight, block.conv1.bias, padding=1)
    hidden = F.group_norm(hidden, 2, block.norm2.weight, block.norm2.bias) * (1 + scale) + shift
    change = F.conv2d(F.silu(hidden), block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x, condition), F.conv2d(x, block.shortcut.weight, block.shortcut.bias) + change)


def test_an_attention_block_is_dits_with_adaln_zero():
    torch.manual_seed(0)
    block = perturbed(AttentionBlock(8, heads=2, condition=5)).double()
    x, condition = normal(2, 8, 3, 4).double(), normal(2, 5).double()
    modulation = F.linear(condition, block.modulation.weight, block.modulation.bias)[:, None].chunk(6, dim=2)
    shifted = lambda tokens, scale, shift: F.layer_norm(tokens, (8,)) * (1 + scale) + shift  # noqa: E731
    tokens = rearrange(x, "b c h w -> b (h w) c")
    q, k, v = (rearrange(part, "b n (k c) -> b k n c", k=2)
               for part in block.attention.qkv(shifted(tokens, *modulation[:2])).chunk(3, dim=2))
    heads = rearrange(F.scaled_dot_product_attention(q, k, v), "b k n c -> b n (k c)")
    tokens = tokens + modulation[2] * block.attention.out(heads)
    hidden = F.gelu(block.mlp.expand(shifted(tokens, *modulation[3:5])))
    tokens = tokens + modulation[5] * block.mlp.contract(hidden)
    torch.testing.assert_close(block(x, condition), rearrange(tokens, "b (h w) c -> b c h w", h=3))


def test_a_block_changes_nothing_at_first():
    torch.manual_seed(0)
    x, condition = normal(2, 8, 4, 4), normal(2, 5)
    assert ResidualBlock(8, 8, condition=5)(x, condition).equal(x)
    assert AttentionBlock(8, heads=2, condition=5)(x, condition).equal(x)


@pytest.mark.parametrize("name", ["image_size", "embed_dim", "patch_size", "channels", "blocks", "heads", "condition_width"])
@pytest.mark.parametrize("value", [0, -2, 1.5, "4"])
def test_a_decoders_size_that_is_no_whole_number_is_refused(name, value):
    with pytest.raises(InputError, match=f"^{name} is {value!r}: make it"):
        DecoderConfig(**{name: value})


@pytest.mark.parametrize("nonsense, message", [
    (dict(image_size=34), "image_size 34 .* patch_size 2 and 1 halvings"), (dict(patch_size=3), "image_size 32 .* patch_size 3"),
    (dict(multipliers=(1, 1, 1, 1, 1, 1)), "image_size 32 .* 5 halvings"), (dict(heads=7), "96 channels, no multiple of 7 heads"),
    (dict(condition_width=33), "condition_width is 33: make it even"), (dict(multipliers=()), r"multipliers are \(\)"),
    (dict(multipliers=(1, 0)), r"multipliers are \(1, 0\)"),
    (dict(multipliers=(1.5,)), r"multipliers are \(1.5,\)"),
], ids=str)
def test_a_decoder_that_cannot_be_built_is_refused_by_name(nonsense, message):
    with pytest.raises(InputError, match=message):
        DecoderConfig(**nonsense)


@pytest.mark.parametrize("channels, groups", [(1, 1), (4, 1), (6, 1), (9, 1), (18, 2), (48, 4), (64, 16), (96, 8), (512, 32)])
def test_a_group_norm_has_at_most_32_groups_of_four_channels(channels, groups):
    assert group_norm(channels).num_groups == groups and (channels // groups >= 4 or channels < 4)


def test_the_heads_need_divide_no_other_level_than_the_coarsest():
    config = dataclasses.replace(DECODER, channels=6, multipliers=(1, 2), heads=4)
    assert Decoder(config)(normal(1, 3, 16, 16), torch.rand(1, generator=rng()), normal(1, 6)).shape == (1, 3, 16, 16)
    with pytest.raises(InputError, match="the coarsest level has 12 channels, no multiple of 8 heads"):
        dataclasses.replace(DECODER, channels=6, multipliers=(4, 2), heads=8)


@pytest.mark.parametrize("channels", [1, 4, 6, 9, 18, 48, 50, 64, 100])
def test_any_number_of_channels_is_refused_or_can_be_built(channels):
    try:
        config = dataclasses.replace(DECODER, channels=channels, heads=1)
    except InputError:
        return
    Decoder(config)
