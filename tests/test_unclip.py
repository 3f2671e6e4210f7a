"""What mindalle.unclip's models and edits promise: every name is a claim, and each can fail."""

import copy
import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce, repeat
from torch import Tensor, nn

from mindalle import InputError
from mindalle.unclip import (
    Decoder, DecoderConfig, Prior, PriorConfig, denoising_loss, draw_embeddings, drop_condition, edit, even_times, guided,
    interpolate, invert, mix, random_times, sample, slerp, variations,
)
from mindalle.unclip.decoder import AttentionBlock, Modulation, ResidualBlock, group_norm
from mindalle.unclip.diffusion import SCHEDULES, append_dims
from mindalle.unclip.layers import Standardise, TimeEmbedding, sinusoids
from small_unclip import DECODER, Recorder, captions, gaussian, new_decoder, new_prior, no_caption, normal, perturbed, rng


def kept(x: Tensor, t: Tensor) -> Tensor:
    """Return what the skip connection takes over from x(t) (b 3 h w): all in the end, half where the noise is as large as SKIP_STD."""
    return x * append_dims(0.01**2 / (0.01**2 + (1 - t) ** 2), x)


# ------------------------------------------------------------------------------------------------------------- layers


def test_a_time_is_described_by_cosines_and_sines_of_ever_lower_frequencies():
    steps = torch.tensor([0.0, 1.0, 250.0, 1000.0])
    expected = [[wave(step * 10_000 ** (-i / 4)) for wave in (math.cos, math.sin) for i in range(4)] for step in steps.tolist()]
    torch.testing.assert_close(sinusoids(steps, 8), torch.tensor(expected), rtol=0, atol=1e-4)


def test_a_time_embedding_tells_a_thousand_times_apart():
    torch.manual_seed(0)
    vectors = TimeEmbedding(16)(torch.arange(1001.0))
    assert vectors.shape == (1001, 16) and torch.pdist(vectors).min() > 0


def test_a_time_embedding_is_an_mlp_over_sinusoids():
    torch.manual_seed(0)
    embedding, steps = TimeEmbedding(16), torch.tensor([0.0, 3.5, 999.0])
    (first, _, second), waves = embedding, sinusoids(steps, 16)
    torch.testing.assert_close(embedding(steps), second(F.silu(first(waves))))


def test_standardising_gives_mean_0_and_standard_deviation_1_and_its_inverse_gives_the_embeddings_back():
    z, standardise = 0.1 * normal(500, 6) * torch.arange(1, 7) + torch.arange(6), Standardise(6)
    assert standardise(z).equal(z)  # before it has seen any
    standardise.fit(z)
    standardised = standardise(z)
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(standardised.std(dim=0, correction=0), torch.ones(6))
    torch.testing.assert_close(standardise.inverse(standardised), z)


def test_standardising_does_not_scale_a_dimension_that_never_changes():
    standardise, z, other = Standardise(2), normal(50, 2), normal(50, 2, seed=1)
    z[:, 1] = 0.25
    standardise.fit(z)
    torch.testing.assert_close(standardise(other)[:, 1], other[:, 1] - 0.25)
    assert standardise(z).isfinite().all() and standardise(z)[:, 0].std(correction=0).item() == pytest.approx(1)
    torch.testing.assert_close(standardise.inverse(standardise(z)), z)


def test_standardising_survives_a_data_set_of_one_image():
    standardise = Standardise(2)
    standardise.fit(normal(1, 2))
    assert standardise(normal(1, 2)).isfinite().all()


@pytest.mark.parametrize("new, names", [(new_prior, ("standardise_image", "standardise_text")), (new_decoder, ("standardise",))])
def test_the_means_and_standard_deviations_are_saved_with_a_model_and_are_not_trained(new, names):
    model, other = new(), new()
    for name in names:
        getattr(model, name).fit(normal(20, 6, seed=3) + 4)
    other.load_state_dict(model.state_dict())
    assert all(getattr(other, name)(normal(2, 6)).equal(getattr(model, name)(normal(2, 6))) for name in names)
    assert not any("standardise" in name for name, _ in model.named_parameters())


# -------------------------------------------------------------------------------------------------------------- prior


def test_what_stands_in_the_padding_never_matters():
    prior, (features, mask, z_t), x, t = perturbed(new_prior()), captions(3), normal(3, 6), torch.tensor([0.1, 0.5, 0.9])
    other = torch.where(rearrange(mask, "b t -> b t 1"), features, 100 * normal(3, 4, 5, seed=8))
    assert not other.equal(features)
    torch.testing.assert_close(prior(x, t, other, mask, z_t), prior(x, t, features, mask, z_t))
    longest = prior(x, t, other, torch.ones_like(mask), z_t)
    assert not longest[0].allclose(prior(x, t, features, mask, z_t)[0])  # the mask is what hides it


def test_how_long_the_padding_is_never_matters():
    prior, (features, mask, z_t), x, t = perturbed(new_prior()), captions(3), normal(3, 6), torch.tensor([0.1, 0.5, 0.9])
    longer, weights = new_prior(text_length=7), prior.state_dict()
    weights["positions"] = torch.cat([weights["positions"][:4], normal(3, 16, seed=8), weights["positions"][4:]])
    longer.load_state_dict(weights)
    padded = longer(x, t, torch.cat([features, normal(3, 3, 5, seed=8)], dim=1), F.pad(mask, (0, 3)), z_t)
    torch.testing.assert_close(padded, prior(x, t, features, mask, z_t))


def test_the_query_reads_tokens_caption_time_and_noised_embedding():
    prior, x, t = perturbed(new_prior()), normal(3, 6).requires_grad_(), torch.tensor([0.1, 0.5, 0.9], requires_grad=True)
    features, mask, z_t = captions(3)
    features.requires_grad_(), z_t.requires_grad_()
    prior(x, t, features, mask, z_t).square().sum().backward()
    assert all(inputs.grad.flatten(1).norm(dim=1).min() > 1e-4 for inputs in (x, z_t)) and t.grad.abs().min() > 1e-6
    assert ((features.grad.norm(dim=2) > 1e-5) == mask).all()
    assert all(parameter.grad.norm() > 1e-4 for parameter in prior.parameters())  # the query itself is one


@pytest.mark.parametrize("model, inputs", [
    (new_prior, (normal(4, 6), torch.rand(4, generator=rng()), *captions(4))),
    (new_decoder, (normal(4, 3, 16, 16), torch.rand(4, generator=rng()), normal(4, 6, seed=1))),
], ids=["prior", "decoder"])
def test_each_example_is_denoised_at_its_own_time_under_its_own_condition(model, inputs):
    model = perturbed(model())
    alone = torch.cat([model(*(part[i : i + 1] for part in inputs)) for i in range(4)])
    torch.testing.assert_close(model(*inputs), alone)


def test_no_token_of_the_prior_sees_a_later_one():
    prior, kept = perturbed(new_prior()), []
    prior.blocks[-1].register_forward_hook(lambda module, inputs, tokens: kept.append(tokens))
    features, _, z_t = (part.requires_grad_(part.is_floating_point()) for part in captions(1))
    x, t = normal(1, 6).requires_grad_(), torch.tensor([0.5], requires_grad=True)
    prior(x, t, features, torch.ones(1, 4, dtype=torch.bool), z_t)
    for i in range(8):  # four tokens, caption, time, noised embedding, query
        token = kept[0][0, i].square().sum()
        gradients = torch.autograd.grad(token, (features, z_t, t, x), retain_graph=True, materialize_grads=True)
        seen = [*(gradients[0][0].norm(dim=1) > 0).tolist(), *(bool(gradient.any()) for gradient in gradients[1:])]
        assert seen == [j <= i for j in range(7)]


def test_the_prior_reads_the_order_of_the_tokens():
    prior, (features, _, z_t), x, t = perturbed(new_prior()), captions(2), normal(2, 6), torch.rand(2, generator=rng())
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert not prior(x, t, features[:, [1, 0, 2, 3]], mask, z_t).allclose(prior(x, t, features, mask, z_t), atol=1e-3)


def test_every_token_of_the_prior_has_a_position_of_its_own():
    prior, inputs = perturbed(new_prior()), (normal(2, 6), torch.rand(2, generator=rng()), *captions(2))
    before = prior(*inputs)
    for place in (0, 1, 4, 5, 6, 7):  # the first two tokens, which all captions have, then what follows the padding
        changed = copy.deepcopy(prior)
        changed.positions.data[place] += 1 + torch.arange(16) % 3
        assert not changed(*inputs).allclose(before, atol=1e-3)


def test_the_prior_standardises_the_caption_and_scales_back_what_it_draws():
    prior, other, (features, mask, z_t) = perturbed(new_prior()), perturbed(new_prior()), captions(3)
    mean, std = normal(6, seed=4), 0.5 + torch.rand(6, generator=rng())
    other.standardise_text.mean.copy_(mean), other.standardise_text.std.copy_(std)
    x, t = normal(3, 6), torch.rand(3, generator=rng())
    torch.testing.assert_close(other(x, t, features, mask, z_t * std + mean), prior(x, t, features, mask, z_t))

    draw = functools.partial(draw_embeddings, condition=(features, mask, z_t), empty=no_caption(), steps=4, candidates=1)
    standardised = draw(prior, generator=rng())
    prior.standardise_image.mean.copy_(mean), prior.standardise_image.std.copy_(std)
    torch.testing.assert_close(draw(prior, generator=rng()), standardised * std + mean)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("b", [1, 3])
def test_of_the_candidates_the_one_closest_to_the_caption_is_kept(b, guidance):
    prior, condition, empty = perturbed(new_prior()), captions(b), no_caption()
    prior.standardise_image.fit(normal(20, 6, seed=3) + 0.3)
    drawn = draw_embeddings(prior, condition, empty, steps=6, guidance=guidance, candidates=5, generator=rng())
    many, generator = [torch.repeat_interleave(part, 5, dim=0) for part in condition], rng()
    noise = torch.randn(5 * b, 6, generator=generator)
    z = prior.standardise_image.inverse(sample(guided(prior, many, empty, guidance), noise, even_times(6), 1.0, generator))
    choices = []
    for i in range(b):
        cosines = [F.cosine_similarity(z[5 * i + k], condition[2][i], dim=0).item() for k in range(5)]
        choices.append(cosines.index(max(cosines)))
        assert max(cosines) - sorted(cosines)[-2] > 1e-4  # no tie that rounding decides
        torch.testing.assert_close(drawn[i], z[5 * i + choices[-1]])
    assert b == 1 or len(set(choices)) > 1


def test_embeddings_are_bounded_where_guidance_leads_further():
    prior = new_prior()
    prior.out.bias.data.copy_(torch.tensor([99.0, -99, 9, 0, 10, 11]))
    z = draw_embeddings(prior, captions(2), no_caption(), steps=3, generator=rng())
    torch.testing.assert_close(z, torch.tensor([10.0, -10, 9, 0, 10, 10]).expand(2, 6))


def test_embeddings_are_drawn_in_25_steps_of_ddpm_without_guidance_of_two_candidates():
    prior, condition, empty = perturbed(new_prior()), captions(2), no_caption()
    spelled = draw_embeddings(prior, condition, empty, steps=25, eta=1.0, guidance=1.0, candidates=2, generator=rng())
    assert draw_embeddings(prior, condition, empty, generator=rng()).equal(spelled) and not spelled.requires_grad
    for change in (dict(steps=24), dict(eta=0.5), dict(guidance=1.5), dict(candidates=3)):
        assert not draw_embeddings(prior, condition, empty, **change, generator=rng()).allclose(spelled, atol=1e-4)


@functools.cache
def taught() -> tuple[Prior, tuple[Tensor, Tensor, Tensor], Tensor]:
    """Train a prior for which either of two captions fits two opposite embeddings -> it, the captions, embeddings (2 2 e)."""
    torch.manual_seed(0)
    prior = Prior(PriorConfig(embed_dim=2, token_width=2, text_length=1, width=32, layers=1, heads=2))
    embeddings = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    features, mask, z_t = torch.eye(2)[:, None], torch.ones(2, 1, dtype=torch.bool), torch.tensor([[1.0, 0.1], [0.1, -1.0]])
    prior.standardise_image.fit(embeddings.flatten(0, 1))
    optimiser = torch.optim.Adam(prior.parameters(), 5e-3)
    for step in range(300):
        which, either = torch.randint(2, (2, 128))
        x = prior.standardise_image(embeddings[which, either])
        t = random_times(128)
        loss = denoising_loss(prior(mix(x, torch.randn_like(x), t), t, features[which], mask[which], z_t[which]), x, t)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return prior, (features, mask, z_t), embeddings


def test_where_two_embeddings_fit_a_caption_the_prior_learns_to_draw_either_and_not_their_mean():
    prior, condition, embeddings = taught()
    many = tuple(torch.repeat_interleave(part, 100, dim=0) for part in condition)
    z = draw_embeddings(prior, many, tuple(part[0] for part in condition), candidates=1, generator=rng())
    for caption, drawn in enumerate(z.chunk(2)):
        apart = torch.cdist(drawn, embeddings[caption])                                      # (100 2)
        assert (apart.amin(dim=1) < 0.3).float().mean() > 0.9                                # their mean is 1 from both
        assert 0.3 < apart.argmin(dim=1).float().mean() < 0.7


def test_of_many_candidates_the_caption_keeps_the_embedding_that_it_is_close_to():
    prior, condition, embeddings = taught()
    z = draw_embeddings(prior, condition, tuple(part[0] for part in condition), candidates=16, generator=rng())
    torch.testing.assert_close(z, torch.stack([embeddings[0, 0], embeddings[1, 1]]), rtol=0, atol=0.3)


@pytest.mark.parametrize("name", ["embed_dim", "token_width", "text_length", "width", "layers", "heads"])
@pytest.mark.parametrize("value", [0, -2, 1.5, "4"])
def test_a_size_of_a_prior_that_is_no_whole_number_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"^{name} is {value!r}: make it"):
        PriorConfig(**{name: value})


@pytest.mark.parametrize("nonsense, message", [
    (dict(width=130), "width is 130.* 4 heads"), (dict(width=15, heads=5), "width is 15: make it even"),
    (dict(schedule="sine"), "schedule 'sine'"),
])
def test_a_prior_that_cannot_be_built_is_refused_by_name(nonsense, message):
    with pytest.raises(InputError, match=message):
        PriorConfig(**nonsense)


# ------------------------------------------------------------------------------------------------------------ decoder

SHAPES = [dict(multipliers=(1,)), dict(multipliers=(1, 2)), dict(multipliers=(1, 2, 2)), dict(patch_size=1), dict(patch_size=4),
          dict(image_size=32), dict(image_size=64, patch_size=4, multipliers=(1, 2, 4)), dict(blocks=2), dict(image_size=12)]
each_shape = pytest.mark.parametrize("changes", SHAPES, ids=str)


@each_shape
def test_every_decoder_starts_with_what_it_keeps_and_then_depends_on_image_time_and_embedding_with_all_its_weights(changes):
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
def test_a_change_of_the_image_changes_the_prediction_most_at_the_same_place(changes):
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


def test_the_less_noise_is_left_the_more_the_decoder_keeps_of_what_it_sees():
    decoder, x = perturbed(new_decoder()), normal(3, 3, 16, 16)
    apart = [(decoder(x, torch.full((3,), t), normal(3, 6)) - x).square().mean().sqrt().item() for t in (0.5, 0.99, 0.998, 1.0)]
    assert apart == sorted(apart, reverse=True) and apart[1] / apart[0] == pytest.approx(0.5, rel=0.15) and apart[-1] < 1e-6


def test_the_more_steps_the_more_exactly_the_decoder_draws_an_inverted_image_again():
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
def test_a_size_of_a_decoder_that_is_no_whole_number_is_refused_by_name(name, value):
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
def test_a_group_norm_has_32_groups_at_the_most_of_four_channels_or_more(channels, groups):
    assert group_norm(channels).num_groups == groups and (channels // groups >= 4 or channels < 4)


def test_the_heads_need_divide_no_other_level_than_the_coarsest():
    config = dataclasses.replace(DECODER, channels=6, multipliers=(1, 2), heads=4)
    assert Decoder(config)(normal(1, 3, 16, 16), torch.rand(1, generator=rng()), normal(1, 6)).shape == (1, 3, 16, 16)
    with pytest.raises(InputError, match="the coarsest level has 12 channels, no multiple of 8 heads"):
        dataclasses.replace(DECODER, channels=6, multipliers=(4, 2), heads=8)


@pytest.mark.parametrize("channels", [1, 4, 6, 9, 18, 48, 50, 64, 100])
def test_a_decoder_of_any_number_of_channels_either_is_refused_or_can_be_built(channels):
    try:
        config = dataclasses.replace(DECODER, channels=channels, heads=1)
    except InputError:
        return
    Decoder(config)


# ----------------------------------------------------------------------------------------------- dropped conditions


def test_a_dropped_caption_changes_nothing():
    prior, x, t = perturbed(new_prior()), normal(3, 6), torch.tensor([0.1, 0.5, 0.9])
    one, other = (drop_condition(captions(3, seed=seed), no_caption(), 1.0) for seed in (5, 20))
    assert prior(x, t, *one).equal(prior(x, t, *other))
    assert not prior(x, t, *captions(3, seed=5)).allclose(prior(x, t, *one), atol=1e-3)


def test_a_dropped_embedding_changes_nothing():
    decoder, x, t = perturbed(new_decoder()), normal(3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9])
    one, other = (drop_condition((normal(3, 6, seed=seed),), (decoder.empty,), 1.0) for seed in (5, 20))
    assert decoder(x, t, *one).equal(decoder(x, t, *other))
    assert not decoder(x, t, normal(3, 6, seed=5)).allclose(decoder(x, t, *one), atol=1e-3)


# --------------------------------------------------------------------------------------------------------------- edit


@pytest.mark.parametrize("shape", [(6,), (3, 4, 4)], ids=str)
def test_equal_shares_of_a_great_circle_are_equal_angles_between_vectors_of_unit_length(shape):
    a, b = (x / x.norm() for x in normal(2, *shape, dtype=torch.float64))
    path = slerp(a, b, torch.linspace(0, 1, 6, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(path.norm(dim=1), torch.ones(6, dtype=torch.float64))
    angles = torch.acos((path[1:] * path[:-1]).sum(dim=1))
    torch.testing.assert_close(angles, torch.acos((a * b).sum()).expand(5) / 5)
    torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]).flatten(1))


@pytest.mark.parametrize("angle", [2e-3, 0.1, 0.5, 2.0, 3.1])
def test_a_share_of_the_great_circle_is_that_share_of_the_angle(angle):
    at = lambda angle: torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)  # noqa: E731
    shares = [0.0, 0.3, 0.5, 1.0]
    torch.testing.assert_close(slerp(at(0.2), at(0.2 + angle), torch.tensor(shares, dtype=torch.float64)),
                               torch.stack([at(0.2 + share * angle) for share in shares]), rtol=0, atol=1e-7)


def test_between_noises_of_different_length_the_ends_are_right_and_the_middle_is_no_shorter():
    a, b = normal(3, 16, 16), 1.1 * normal(3, 16, 16, seed=1)
    first, middle, last = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(first, a), torch.testing.assert_close(last, b)
    assert a.norm() < middle.norm() < b.norm() and torch.lerp(a, b, 0.5).norm() < 0.8 * a.norm()


@pytest.mark.parametrize("apart", [0.0, 1e-5, 1e-4, 3e-3])
def test_between_vectors_that_are_as_good_as_equal_nothing_is_divided_by_0(apart):
    a, shares = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.25, 1.0])
    b = F.normalize(a + torch.tensor([0.0, apart, 0.0]), dim=0)
    torch.testing.assert_close(slerp(a, b, shares), a + shares[:, None] * (b - a), rtol=0, atol=1e-6)


def test_between_a_vector_and_itself_lies_that_vector_however_its_cosine_is_rounded():
    for a in normal(200, 48):
        torch.testing.assert_close(slerp(a, a, torch.tensor([0.0, 0.5, 1.0])), a.expand(3, 48))


def test_opposite_vectors_are_refused():
    a = normal(6)
    with pytest.raises(InputError, match="the two are opposite"):
        slerp(a, -2 * a, torch.tensor([0.5]))
    assert slerp(a, -a + 0.1 * normal(6, seed=1), torch.tensor([0.5])).isfinite().all()


STD, PROJECTION = 0.5, normal(6, 3, 4, 4, seed=30)
TIMES_64 = even_times(64)


class ClosedForm:
    """A denoiser in closed form: the images of an embedding are a Gaussian around `centre(z)`. Keeps the embeddings."""

    def __init__(self):
        self.embeddings = []

    def __call__(self, z: Tensor):
        self.embeddings.append(z)
        return gaussian(centre(z), STD)


def centre(z: Tensor) -> Tensor:
    return einsum(z, PROJECTION, "b e, e c h w -> b c h w")


def images_and_embeddings(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make embeddings (n e), unit vectors, noise (n 3 4 4), and the images (n 3 4 4) of both -> images, embeddings, noise"""
    z, noise = F.normalize(normal(count, 6, seed=31), dim=1), normal(count, 3, 4, 4, seed=32)
    return centre(z) + STD * noise, z, noise


def test_variations_without_eta_are_the_image_itself():
    image, z, _ = images_and_embeddings(1)
    errors = [(variations(ClosedForm(), image, z, 3, even_times(n), eta=0) - image).abs().max().item() for n in (16, 64, 256)]
    assert all(later < error / 3 for error, later in zip(errors, errors[1:])) and errors[-1] < 0.02


def test_variations_have_the_embedding_of_the_image_and_differ_from_it_and_from_each_other():
    image, z, noise = images_and_embeddings(1)
    denoiser = ClosedForm()
    drawn = variations(denoiser, image, z, 40, TIMES_64, generator=rng())
    assert drawn.shape == (40, 3, 4, 4) and all(used.equal(z.expand_as(used)) for used in denoiser.embeddings)
    remainder = (drawn - centre(z)) / STD  # all that z does not determine: noise again, independent in each
    assert remainder.std().item() == pytest.approx(1, abs=0.1) and remainder.mean().abs() < 0.1
    correlations = torch.corrcoef(torch.cat([noise, remainder]).flatten(1))
    assert (correlations - torch.eye(41)).abs().max() < 0.7 and (correlations - torch.eye(41)).abs().mean() < 0.2


def test_the_higher_eta_the_less_of_the_image_is_left_in_its_variations():
    image, z, _ = images_and_embeddings(1)
    apart = [(variations(ClosedForm(), image, z, 8, TIMES_64, eta, rng()) - image).square().mean().item()
             for eta in (0, 0.2, 0.5, 1)]
    assert all(a < 0.8 * b for a, b in zip(apart, apart[1:]))


@pytest.mark.parametrize("steps", [2, 8])
def test_with_eta_1_nothing_but_the_embedding_is_left_of_the_image(steps):
    images, z, _ = images_and_embeddings(2)
    z, caption, times = z[:1], normal(6, seed=33), even_times(steps)
    for draw in (lambda x, eta: variations(ClosedForm(), x, z, 3, times, eta, rng()),
                 lambda x, eta: edit(ClosedForm(), x, z, caption, -caption, torch.tensor([0.5]), times, eta, rng())):
        assert draw(images[:1], 1.0).equal(draw(images[1:], 1.0))
        assert not draw(images[:1], 0.5).allclose(draw(images[1:], 0.5), atol=1e-3)


def test_the_way_from_one_image_to_another_begins_and_ends_with_them():
    images, z, noise = images_and_embeddings(2)
    denoiser = ClosedForm()
    way = interpolate(denoiser, images, z, 5, even_times(256))
    assert way.shape == (5, 3, 4, 4)
    torch.testing.assert_close(way[[0, -1]], images, rtol=0, atol=0.02)
    shares = torch.linspace(0, 1, 5)
    torch.testing.assert_close(denoiser.embeddings[-1], slerp(*z, shares))
    torch.testing.assert_close(way, centre(slerp(*z, shares)) + STD * slerp(*noise, shares), rtol=0, atol=0.05)


def test_an_edit_adds_to_the_embedding_the_difference_of_two_captions_and_stays_at_unit_length():
    image, z, _ = images_and_embeddings(1)
    denoiser, old, new, strengths = ClosedForm(), normal(6, seed=33), normal(6, seed=34), torch.tensor([0.0, 0.25, 1.0])
    edit(denoiser, image, z, old, new, strengths, TIMES_64)
    assert denoiser.embeddings[0].equal(z)
    for strength, edited in zip(strengths, denoiser.embeddings[1]):
        sum_ = z[0] + strength * (new - old)
        torch.testing.assert_close(edited, sum_ / sum_.norm())


def test_an_edit_with_eta_makes_the_noise_anew_from_its_own_generator():
    image, z, _ = images_and_embeddings(1)
    old, new, strengths = normal(6, seed=33), normal(6, seed=34), torch.tensor([0.5])
    one, same, other = (edit(ClosedForm(), image, z, old, new, strengths, TIMES_64, 0.5, rng(seed)) for seed in (0, 0, 1))
    assert one.equal(same) and not one.equal(other)


def test_an_edit_keeps_the_noise_so_that_strength_0_gives_the_image_back():
    image, z, _ = images_and_embeddings(1)
    denoiser = ClosedForm()
    drawn = edit(denoiser, image, z, normal(6, seed=33), normal(6, seed=34), torch.tensor([0.0, 0.25, 0.5]), even_times(256))
    torch.testing.assert_close(drawn[:1], image, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn - image, centre(denoiser.embeddings[1] - z), rtol=0, atol=0.03)


def test_an_edit_between_captions_of_the_same_embedding_is_refused():
    image, z, _ = images_and_embeddings(1)
    with pytest.raises(InputError, match="the two captions have the same embedding"):
        edit(ClosedForm(), image, z, normal(6), normal(6), torch.tensor([0.5]), TIMES_64)


# -------------------------------------------------------------------------------------------------------------- purity

IMAGES, Z, NOISE = images_and_embeddings(2)
T = torch.tensor([0.2, 0.7])
CALLS = {
    "mix": lambda g, *args: mix(*args), "denoising_loss": lambda g, *args: denoising_loss(*args),
    "drop_condition": lambda g, *args: torch.cat([part.flatten(1).float() for part in drop_condition(*args)], dim=1),
    "guided": lambda g, *args: guided(Recorder(), args[2:4], args[4:], 2.0)(*args[:2]),
    "sample": lambda g, *args: sample(gaussian(1.0, 0.5), *args, 0.5, g), "invert": lambda g, *args: invert(gaussian(1.0, 0.5), *args),
    "slerp": lambda g, *args: slerp(*args), "variations": lambda g, *args: variations(ClosedForm(), *args, generator=g),
    "interpolate": lambda g, *args: interpolate(ClosedForm(), *args), "edit": lambda g, *args: edit(ClosedForm(), *args),
    "prior": lambda g, *args: perturbed(new_prior())(*args), "decoder": lambda g, *args: perturbed(new_decoder())(*args),
    "draw_embeddings": lambda g, *args: draw_embeddings(perturbed(new_prior()), *args, steps=3, guidance=2.0, generator=g),
    **{schedule: lambda g, *args, schedule=schedule: SCHEDULES[schedule](*args)[0] for schedule in SCHEDULES},
}
ARGUMENTS = {
    "mix": (IMAGES, NOISE, T), "denoising_loss": (IMAGES, NOISE, T), "drop_condition": (captions(2), no_caption(), 0.5),
    "guided": (normal(2, 6), T, normal(2, 6), normal(2, 6) > 0, normal(6), normal(6) > 0),
    "sample": (NOISE, TIMES_64), "invert": (IMAGES, TIMES_64), "slerp": (Z[0], Z[1], T), "variations": (IMAGES[:1], Z[:1], 3, TIMES_64),
    "interpolate": (IMAGES, Z, 3, TIMES_64), "edit": (IMAGES[:1], Z[:1], normal(6), normal(6, seed=1), T, TIMES_64),
    "prior": (normal(2, 6), T, *captions(2)), "decoder": (normal(2, 3, 16, 16), T, normal(2, 6)),
    "draw_embeddings": (captions(2), no_caption()), **{schedule: (IMAGES, T) for schedule in SCHEDULES},
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_seed_gives_the_same_result_and_no_argument_is_changed(name):
    arguments = copy.deepcopy(ARGUMENTS[name])
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(CALLS[name](rng(3), *arguments))
    assert results[0].equal(results[1])
    torch.testing.assert_close(arguments, ARGUMENTS[name], rtol=0, atol=0)


def test_a_generator_of_its_own_leaves_the_global_one_alone():
    prior, before = perturbed(new_prior()), torch.random.get_rng_state()
    random_times(3, generator=rng())
    sample(gaussian(0.0, 1.0), normal(2, 2), even_times(3), 1.0, rng())
    variations(ClosedForm(), IMAGES[:1], Z[:1], 2, even_times(3), generator=rng())
    draw_embeddings(prior, captions(2), no_caption(), steps=2, generator=rng())
    assert torch.random.get_rng_state().equal(before)


# ------------------------------------------------------------------------------------------------------------ both parts


def trained_on(model, x, condition, empty, steps):
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        indices = torch.randint(len(x), (64,))
        t, noise = random_times(64), torch.randn_like(x[indices])
        given = drop_condition(tuple(part[indices] for part in condition), empty, 0.1)
        loss = denoising_loss(model(mix(x[indices], noise, t), t, *given), x[indices], t)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def test_the_priors_embeddings_draw_better_than_z_t_and_z_t_better_than_anothers_as_in_the_paper():
    """A world of four captions: each a direction in which its images' embeddings scatter, with a colour of its own.

    Text has a direction that images lack, as in CLIP, where the two kinds of embeddings lie apart.
    """
    torch.manual_seed(0)
    caption = torch.arange(1024) % 4
    classes, gap = F.normalize(torch.randn(4, 16), dim=-1), F.normalize(torch.randn(16), dim=-1)
    z = F.normalize(classes[caption] + 0.15 * torch.randn(1024, 16), dim=-1)
    z_t = F.normalize(classes + 1.5 * gap, dim=-1)[caption]
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
    images = repeat(colours[caption], "b c -> b c h w", h=4, w=4) + 0.05 * torch.randn(1024, 3, 4, 4)
    features, mask = torch.eye(4)[caption].unsqueeze(1), torch.ones(1024, 1, dtype=torch.bool)

    prior = Prior(PriorConfig(embed_dim=16, token_width=4, text_length=1, width=32, layers=1, heads=2))
    prior.standardise_image.fit(z)
    read, empty = (features, mask, z_t), (torch.zeros(1, 4), mask[0], torch.zeros(16))
    trained_on(prior, prior.standardise_image(z), read, empty, 300)
    decoder = Decoder(DecoderConfig(image_size=4, embed_dim=16, channels=16, multipliers=(1,), heads=2, condition_width=32))
    decoder.standardise.fit(z)
    trained_on(decoder, images, (z,), (decoder.empty,), 300)

    def right(z):
        drawn = sample(guided(decoder, (z,), (decoder.empty,), 1), torch.randn(len(z), 3, 4, 4), even_times(8))
        error = (reduce(drawn, "b c h w -> b 1 c", "mean") - colours).square().sum(-1)       # (b 4)
        return ((error.argmin(1) == caption[: len(z)]) & (error.amin(1) < 0.1)).float().mean().item()

    with torch.no_grad():
        by_prior = right(draw_embeddings(prior, tuple(part[:128] for part in read), empty, steps=16))
        by_text, by_another = right(z_t[:128]), right(z[:128].roll(1, 0))
    assert right(z[:128]) > 0.95 and by_prior > 0.9 and by_prior > by_text + 0.1 > by_another + 0.2, (by_prior, by_text, by_another)
