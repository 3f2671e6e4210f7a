"""Claims about minvqgan, each against exact values, a slow reference or plain autograd."""

import copy
import dataclasses
import math
import os
import sys
from types import ModuleType
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from seeded import fill, ids, image, probe
from torch import nn

import minvqgan.codebook
import minvqgan.pretrained
from minvqgan import (QUANTISERS, STARTS, VQGAN, Codebook, FiniteScalar, GumbelCodebook, InputError, PatchGAN, Quantised,
                      VQGANConfig, adaptive_weight, discriminator_loss, generator_loss, guide, load, parse_prompts,
                      perplexity, prompt_score, psnr, random_cutouts, reconstruction_loss, spherical_distance,
                      straight_through, usage)
from minvqgan.codebook import squared_distances
from minvqgan.guide import decode_clamped, resample, starting_latents
from minvqgan.loss import hinge_discriminator, hinge_generator

SMALL = VQGANConfig(image_size=16, channels=8, multipliers=(1, 2), z_channels=16, codebook_size=32,
                    codebook_dim=4)
GUMBEL = dataclasses.replace(SMALL, quantiser="gumbel")
FSQ = dataclasses.replace(SMALL, quantiser="fsq", levels=(4, 8))


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def pictures(count: int = 4, side: int = 16) -> torch.Tensor:
    """Make flat-coloured images with a square of another colour."""
    colours = torch.rand(count, 2, 3, 1, 1, generator=seeded(7)) * 2 - 1
    images = colours[:, 0].repeat(1, 1, side, side)
    images[:, :, side // 4 : side // 2, side // 4 : side // 2] = colours[:, 1]
    return images


def taught(images: torch.Tensor, steps: int, config: VQGANConfig = SMALL) -> VQGAN:
    """Train a small VQGAN on one batch, without a discriminator."""
    torch.manual_seed(0)
    model = VQGAN(config)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        reconstruction, quantised = model(images)
        loss, _ = generator_loss(images, reconstruction, quantised.loss, model.last_weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def small(config: VQGANConfig = SMALL) -> VQGAN:
    """Build a VQGAN whose codebook has been initialised by one training batch, in eval mode."""
    torch.manual_seed(0)
    model = VQGAN(config)
    model(pictures(8, config.image_size))
    return model.eval()


def codebook(**changes) -> Codebook:
    torch.manual_seed(0)
    return Codebook(VQGANConfig(**(dict(codebook_size=16, codebook_dim=4, rate_weight=0.0, restart_after=3) | changes)))


# ---- the codebook


def test_straight_through_has_the_values_of_z_q_and_the_gradient_of_z():
    z, z_q = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    out = straight_through(z, z_q)
    assert torch.allclose(out, z_q)
    (out * torch.arange(6.0).reshape(2, 3)).sum().backward()
    assert torch.equal(z.grad, torch.arange(6.0).reshape(2, 3)) and z_q.grad is None


def test_straight_through_copies_the_decoder_gradient_to_the_encoder_which_without_it_gets_none(monkeypatch):
    def encoder_gradient() -> float:
        model = small()
        reconstruction, _ = model(pictures())
        reconstruction.abs().sum().backward()  # no codebook loss: only the decoder's word
        grad = model.encoder.conv_in.weight.grad
        return 0.0 if grad is None else grad.abs().sum().item()

    assert encoder_gradient() > 0
    monkeypatch.setattr(minvqgan.codebook, "straight_through", lambda z, z_q: z_q)
    assert encoder_gradient() == 0


def test_beta_scales_the_commitment_gradient_of_the_encoder_and_leaves_the_codes_gradient_alone():
    def gradients(beta: float):
        book = codebook(beta=beta).eval()
        z = torch.randn(2, 4, 3, 3, generator=seeded()).requires_grad_()
        book(z).loss.backward()
        return z.grad, book.vectors.grad

    (z1, codes1), (z2, codes2), (z0, _) = gradients(0.25), gradients(1.0), gradients(0.0)
    assert torch.allclose(4 * z1, z2) and z1.abs().sum() > 0 and z0.abs().sum() == 0
    assert torch.equal(codes1, codes2) and codes1.abs().sum() > 0


def test_codebook_loss_is_one_plus_beta_times_the_mean_squared_distance():
    z = torch.randn(2, 4, 3, 3, generator=seeded())
    out = codebook(beta=0.5).eval()(z)
    assert torch.allclose(out.loss, 1.5 * (z - out.z_q).square().mean())


def test_squared_distances_equal_brute_force():
    rows, vectors = torch.randn(200, 5, generator=seeded()), torch.randn(50, 5, generator=seeded(1))
    assert torch.allclose(squared_distances(rows, vectors), torch.cdist(rows, vectors) ** 2, atol=1e-4)


def test_squared_distances_are_as_exact_under_bf16_autocast():
    rows, vectors = torch.randn(2000, 5, generator=seeded()), torch.randn(500, 5, generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(squared_distances(rows, vectors), torch.cdist(rows, vectors) ** 2, atol=1e-4)


def test_without_a_rate_weight_the_nearest_code_is_chosen_however_rare():
    book, z = codebook().eval(), torch.randn(2, 4, 3, 3, generator=seeded())
    book.share.copy_(torch.rand(16, generator=seeded(1)).clamp(min=1e-5))
    rows = rearrange(z, "b z h w -> (b h w) z")
    assert torch.equal(book(z).codes.flatten(), torch.cdist(rows, book.vectors).argmin(dim=1))


def test_a_rare_code_is_chosen_only_where_it_is_nearer_by_the_price_of_its_length():
    book = codebook(codebook_size=2, codebook_dim=1, rate_weight=0.5).eval()
    with torch.no_grad():
        book.vectors.copy_(torch.tensor([[0.0], [1.0]]))
    book.share.copy_(torch.tensor([0.9, 0.1]))
    border = 0.5 + 0.5 * math.log(9) / 2  # z² - log(0.9) / 2 = (1 - z)² - log(0.1) / 2
    assert book.choose(torch.tensor([[border - 0.01], [border + 0.01]])).tolist() == [0, 1]


def test_training_keeps_account_of_how_often_each_code_is_chosen():
    book, z = codebook().train(), torch.randn(8, 4, 5, 5, generator=seeded())
    for _ in range(500):
        codes = book(z).codes
    assert torch.allclose(book.share, torch.bincount(codes.flatten(), minlength=16) / 200, atol=0.01)


def test_a_dead_code_is_restarted_where_latents_are_badly_served():
    book = codebook(codebook_size=2, codebook_dim=1).train()
    with torch.no_grad():
        book.vectors.copy_(torch.tensor([[0.0], [99.0]]))
    book.idle.copy_(torch.tensor([0, 3]))
    book.restart_dead_codes(torch.tensor([[0.0]] * 99 + [[5.0]]))  # 99 are served perfectly, one is not
    assert book.vectors.tolist() == [[0.0], [5.0]]


def test_a_latent_that_only_a_dead_code_is_near_counts_as_badly_served():
    book = codebook(codebook_size=2, codebook_dim=1).train()
    with torch.no_grad():
        book.vectors.copy_(torch.tensor([[0.0], [5.0]]))
    book.idle.copy_(torch.tensor([0, 3]))
    book.restart_dead_codes(torch.tensor([[0.0]] * 99 + [[5.0]]))  # taken for alive, the second would go anywhere
    assert book.vectors.tolist() == [[0.0], [5.0]]


def test_a_restarted_code_has_a_full_term_in_which_to_be_chosen():
    book = codebook(codebook_size=2, codebook_dim=1, restart_after=3).train()
    book.idle.copy_(torch.tensor([0, 3]))
    book.restart_dead_codes(torch.tensor([[5.0]]))
    assert book.idle.tolist() == [0, 0]


def test_a_restarted_code_is_priced_as_an_average_one():
    book = codebook(codebook_size=4, codebook_dim=1).train()
    book.idle.copy_(torch.tensor([0, 0, 0, 3]))
    book.share.copy_(torch.tensor([0.5, 0.4, 0.1, 1e-5]))
    book.restart_dead_codes(torch.tensor([[0.0], [5.0]]))
    assert torch.allclose(book.share, torch.tensor([0.5, 0.4, 0.1, 0.25]))


def test_however_rare_a_code_its_price_stays_within_reach():
    book = codebook(codebook_size=2, codebook_dim=1)
    for _ in range(2000):
        book.count(torch.zeros(10, dtype=torch.int64))
    assert book.share[1].item() == pytest.approx(1e-5)


@pytest.mark.parametrize("l2_normalised", [False, True])
def test_lookup_of_the_codes_gives_the_quantised_vectors(l2_normalised):
    book = codebook(l2_normalised=l2_normalised).eval()
    out = book(torch.randn(2, 4, 3, 5, generator=seeded()))
    assert out.codes.shape == (2, 3, 5) and out.codes.dtype == torch.int64
    assert torch.allclose(book.lookup(out.codes), out.z_q, atol=1e-6)


def test_first_training_batch_initialises_every_code_with_an_encoder_output():
    book, z = codebook(), torch.randn(2, 4, 5, 5, generator=seeded())
    book.train()(z)
    rows = rearrange(z, "b z h w -> (b h w) z").tolist()
    assert all(vector in rows for vector in book.vectors.tolist())


def test_a_used_code_is_never_moved_and_a_code_unused_for_restart_after_batches_comes_alive():
    book = codebook(codebook_size=4, restart_after=3)
    book.train()(torch.randn(1, 4, 4, 4, generator=seeded()))
    with torch.no_grad():
        book.vectors.copy_(repeat(torch.tensor([0.0, 50.0, 60.0, 70.0]), "v -> v z", z=4))
    book.idle.zero_()
    before = book.vectors.detach().clone()
    z = torch.randn(1, 4, 4, 4, generator=seeded(1))
    for _ in range(3):
        assert (book(z).codes == 0).all() and torch.equal(book.vectors, before)
    assert torch.equal(book.idle, torch.tensor([0, 3, 3, 3]))
    assert book(z).codes.unique().numel() > 1
    assert torch.equal(book.vectors[0], before[0]) and (book.vectors[1:].abs() < 10).all()


def test_usage_and_perplexity_are_exact():
    assert usage(torch.tensor([5, 0, 1, 0])) == 0.5
    assert perplexity(torch.tensor([7, 7, 7, 7])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([9, 0, 0, 0])).item() == pytest.approx(1)
    assert perplexity(torch.tensor([3, 1])).item() == pytest.approx(4 / 3**0.75)


def test_l2_normalised_codes_and_latents_have_unit_length_and_directions_alone_decide():
    book = codebook(l2_normalised=True).eval()
    z = torch.randn(2, 4, 3, 3, generator=seeded())
    out = book(z)
    assert torch.allclose(out.z_q.norm(dim=1), torch.ones(2, 3, 3))
    assert torch.equal(book(100 * z).codes, out.codes)
    assert torch.allclose(book.clamp(5 * z).norm(dim=1), torch.ones(2, 3, 3))


def test_clamp_brings_latents_into_each_channels_range():
    book = codebook()
    low, high = book.vectors.min(dim=0).values, book.vectors.max(dim=0).values
    clamped = book.clamp(repeat(torch.tensor([-99.0, 99.0]), "b -> b z 1 1", z=4))
    assert torch.equal(rearrange(clamped, "b z 1 1 -> b z"), torch.stack([low, high]))


def test_eval_mode_changes_no_weight_and_no_buffer():
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.codebook.idle.fill_(model.codebook.restart_after)
    before["codebook.idle"] = model.codebook.idle.clone()
    model(pictures()), model.encode(pictures())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("config", [dataclasses.replace(SMALL, restart_after=2), GUMBEL, FSQ])
def test_a_run_resumed_from_its_state_is_bit_for_bit_the_run_that_went_on(config):
    def steps(model, optimiser, count):
        for _ in range(count):
            images = pictures() + 0.1 * torch.randn(4, 3, 16, 16)
            reconstruction, quantised = model(images)
            loss = reconstruction_loss(images, reconstruction) + quantised.loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    torch.manual_seed(0)
    model = VQGAN(config)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    steps(model, optimiser, 3)
    resumed = VQGAN(config)
    resumed.load_state_dict(model.state_dict())
    optimiser2 = torch.optim.Adam(resumed.parameters(), 1e-3)
    optimiser2.load_state_dict(copy.deepcopy(optimiser.state_dict()))  # or else they share their moments
    for each, its_optimiser in ((model, optimiser), (resumed, optimiser2)):
        torch.manual_seed(1)
        steps(each, its_optimiser, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values()))


# ---- the Gumbel codebook


def gumbel(**changes) -> GumbelCodebook:
    torch.manual_seed(0)
    return GumbelCodebook(VQGANConfig(**(dict(codebook_size=16, codebook_dim=4, quantiser="gumbel") | changes)))


def test_a_gumbel_codebook_takes_the_likeliest_code_in_eval_mode_and_uses_no_random_number():
    book, z = gumbel().eval(), torch.randn(2, 4, 3, 5, generator=seeded())
    before = torch.get_rng_state()
    out = book(z)
    assert torch.equal(out.codes, F.conv2d(z, book.proj.weight, book.proj.bias).argmax(dim=1))
    assert torch.equal(out.z_q, book.lookup(out.codes)) and torch.equal(torch.get_rng_state(), before)


def test_a_gumbel_codebook_samples_each_code_as_often_as_its_softmax_says():
    book = gumbel(codebook_size=3, codebook_dim=1).train()
    with torch.no_grad():
        book.proj.bias.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    drawn = torch.bincount(book(torch.zeros(1, 1, 200, 200)).codes.flatten()) / 200**2
    assert torch.allclose(drawn, torch.tensor([0.2, 0.5, 0.3]), atol=0.01)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_values_and_gradients_of_a_gumbel_codebook_are_those_of_torchs_straight_through_gumbel_softmax(temperature):
    book = gumbel().train()
    book.temperature = temperature
    z, weight = torch.randn(2, 4, 3, 3, generator=seeded()), torch.randn(2, 4, 3, 3, generator=seeded(1))
    inputs = (z.requires_grad_(), book.vectors, book.proj.weight, book.proj.bias)
    torch.manual_seed(5)
    ours = book(z).z_q
    torch.manual_seed(5)
    chosen = F.gumbel_softmax(book.proj(z), tau=temperature, hard=True, dim=1)
    theirs = torch.einsum("bvhw,vz->bzhw", chosen, book.vectors)
    assert torch.allclose(ours, theirs, atol=1e-6)
    gradients = (torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, theirs))
    for a, b in zip(*gradients):
        assert torch.allclose(a, b, atol=1e-5) and a.abs().sum() > 0


def test_a_gumbel_codebooks_loss_is_its_weight_times_the_kl_to_equal_use():
    book = gumbel(codebook_size=4, codebook_dim=1)
    book.kl_weight = 0.1
    for logits, expected in (([1.0, 1, 1, 1], 0.0), ([0.0, 99, 0, 0], math.log(4)), ([50.0, 50, 0, 0], math.log(2))):
        with torch.no_grad():
            book.proj.bias.copy_(torch.tensor(logits))
        assert book(torch.zeros(1, 1, 2, 2)).loss.item() == pytest.approx(0.1 * expected, abs=1e-6)
    z = torch.randn(1, 1, 2, 2, generator=seeded()).requires_grad_()
    gumbel(codebook_size=4, codebook_dim=1)(z).loss.backward()
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("config", [GUMBEL, FSQ])
def test_a_vqgan_with_another_quantiser_learns_one_batch_and_moves_towards_a_score(config):
    untaught, model = taught(pictures(), 0, config).eval(), taught(pictures(), 60, config).eval()
    before, after = (reconstruction_loss(pictures(), each(pictures())[0]).item() for each in (untaught, model))
    assert after < before / 3
    first, *_, last = guide(model, redness, steps=30, cutouts=4, cut_size=8, generator=seeded())
    assert redness(last).item() > redness(first).item() + 0.3


# ---- finite scalar quantisation


def fsq(*levels: int) -> FiniteScalar:
    """Build a quantiser whose 1x1 convolutions change nothing: z are the scalars, and z_q the points of the grid."""
    size = math.prod(levels)
    book = FiniteScalar(VQGANConfig(quantiser="fsq", levels=levels, codebook_size=size, codebook_dim=len(levels)))
    for conv in (book.project_in, book.project_out):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    return book


LEVELS = [(8, 8, 8), (8, 5, 5, 5), (2, 3), (7,)]


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_of_fsq_is_one_point_of_the_grid_and_is_reached_from_some_z(levels):
    book, codes = fsq(*levels), rearrange(torch.arange(math.prod(levels)), "v -> v 1 1")
    points = book.lookup(codes)
    sides = [torch.arange(-(count // 2), (count + 1) // 2) / (count // 2) for count in levels]
    grid = rearrange(torch.stack(torch.meshgrid(*sides[::-1], indexing="ij")), "s ... -> (...) s").flip(1)  # first runs fastest
    assert torch.equal(rearrange(points, "v s 1 1 -> v s"), grid)
    half = (book.levels - 1) / 2
    offset = half % 1
    inside = (points * (book.levels // 2) + offset) / half * 0.99  # bounded by tanh; inverted, 1 would be infinite
    out = book(inside.atanh() - (offset / half).tan())
    assert torch.equal(out.codes, codes) and torch.allclose(out.z_q, points, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_computes_what_the_code_in_its_papers_appendix_does(levels):
    z = 2 * torch.randn(5, len(levels), 4, 4, generator=seeded())
    out = fsq(*levels)(z)
    count = torch.tensor(levels)  # below, its names: bound, quantize, codes_to_indexes, with eps 0
    zhat = rearrange(z, "b s h w -> b h w s")
    half_l, offset = (count - 1) / 2, torch.where(count % 2 == 1, 0.0, 0.5)
    zhat = (torch.tanh(zhat + torch.tan(offset / half_l)) * half_l - offset).round() / (count // 2)
    basis = torch.tensor([1, *levels[:-1]]).cumprod(dim=0)
    assert torch.allclose(rearrange(out.z_q, "b s h w -> b h w s"), zhat, atol=1e-6)
    assert torch.equal(out.codes, ((zhat * (count // 2) + count // 2) * basis).sum(dim=-1).round().long())


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_keeps_any_z_on_the_grid_and_a_z_of_zero_on_a_level_of_its_own(levels):
    book = fsq(*levels)
    for far in (-1e9, -9.0, 9.0, 1e9):
        codes = book(torch.full((1, len(levels), 2, 2), far)).codes
        assert (codes == (0 if far < 0 else math.prod(levels) - 1)).all()
    assert book.bound(torch.zeros(1, len(levels), 1, 1)).abs().max() < 0.05  # not halfway between two


def test_fsq_has_a_gradient_that_without_straight_through_is_zero(monkeypatch):
    def gradient() -> float:
        z = torch.randn(2, 3, 4, 4, generator=seeded()).requires_grad_()
        fsq(8, 8, 8)(z).z_q.sum().backward()
        return 0.0 if z.grad is None else z.grad.abs().sum().item()

    assert gradient() > 0
    monkeypatch.setattr(minvqgan.codebook, "straight_through", lambda z, z_q: z_q)
    assert gradient() == 0


def test_the_straight_through_gradient_of_fsq_is_that_of_tanh():
    z = torch.randn(2, 2, 3, 3, generator=seeded()).requires_grad_()
    fsq(5, 7)(z).z_q.sum().backward()
    assert torch.allclose(z.grad, 1 - z.tanh().square(), atol=1e-6)  # half the levels, divided by the same


def test_fsq_adds_nothing_to_the_loss():
    loss = fsq(8, 8, 8)(torch.randn(2, 3, 4, 4)).loss
    assert loss == 0 and not loss.requires_grad


@pytest.mark.parametrize("changes, remedy", [
    (dict(levels=(8, 8, 4)), r"levels \(8, 8, 4\) make 256 codes.*set codebook_size to 256.*product is 512"),
    (dict(codebook_size=1024), "make 512 codes, codebook_size is 1024.*set codebook_size to 512.*product is 1024"),
    (dict(levels=(512, 1)), "at least 2"), (dict(levels=(), codebook_size=1), "at least 2"),
])
def test_levels_that_do_not_make_the_codebook_size_are_refused_where_they_matter(changes, remedy):
    with pytest.raises(InputError, match=remedy):
        VQGANConfig(quantiser="fsq", **changes)
    VQGANConfig(quantiser="nearest", **changes)


# ---- what every quantiser must do: whoever adds one to QUANTISERS has these tests for nothing


every_quantiser = pytest.mark.parametrize("name", sorted(QUANTISERS))


def built(name: str) -> VQGAN:
    """Build a small VQGAN in training mode, of the default codebook_size and codebook_dim, which suit any quantiser."""
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(quantiser=name, image_size=16, channels=8, multipliers=(1, 2), z_channels=16))


def settled(name: str) -> VQGAN:
    """Build the same, with one training batch behind it and in eval mode."""
    model = built(name)
    model(pictures(8))
    return model.eval()


@every_quantiser
def test_codes_are_int64_in_the_range_of_the_codebook_one_for_each_position(name):
    for model in (built(name), settled(name)):
        codes = model(pictures())[1].codes
        assert codes.shape == (4, 8, 8) and codes.dtype == torch.int64
        assert 0 <= codes.min() and codes.max() < model.config.codebook_size


@every_quantiser
def test_decoding_the_codes_gives_the_reconstruction_of_eval_mode(name):
    model = settled(name)
    reconstruction, quantised = model(pictures())
    codes = model.encode(pictures())
    assert torch.equal(codes, quantised.codes) and len(codes.unique()) > 1
    assert torch.allclose(model.codebook.lookup(codes), quantised.z_q, atol=1e-6)
    assert torch.allclose(model.decode(codes), reconstruction, atol=1e-5)


@every_quantiser
@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_the_reconstruction_reaches_the_latents(name, training):
    model = settled(name).train(training)
    z = model.latents(pictures()).detach().requires_grad_()
    model.decode_latents(model.quantise(z).z_q).square().sum().backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0


@every_quantiser
def test_clamped_latents_keep_their_shape_and_can_be_quantised(name):
    model = settled(name)
    z = 100 * torch.randn(2, model.config.codebook_dim, 8, 5, generator=seeded())
    clamped = model.codebook.clamp(z)
    assert clamped.shape == z.shape and clamped.isfinite().all() and model.quantise(clamped).codes.shape == (2, 8, 5)


@every_quantiser
def test_eval_mode_changes_no_weight_and_no_buffer_of_any_quantiser(name):
    model = settled(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model(pictures()), model.encode(pictures()), model.decode(model.encode(pictures()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@every_quantiser
def test_a_saved_model_of_any_quantiser_loads_with_the_same_codes_and_images(name, tmp_path):
    model = settled(name)
    save(tmp_path / "vqgan.pt", model)
    again = load(tmp_path / "vqgan.pt")
    codes = model.encode(pictures())
    assert again.config == model.config and torch.equal(again.encode(pictures()), codes)
    assert torch.equal(again.decode(codes), model.decode(codes))


@every_quantiser
def test_one_training_step_changes_the_encoder(name):
    model = built(name)
    before = {key: p.detach().clone() for key, p in model.encoder.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    reconstruction, quantised = model(pictures())
    generator_loss(pictures(), reconstruction, quantised.loss, model.last_weight)[0].backward()
    optimiser.step()
    assert not any(torch.equal(p, before[key]) for key, p in model.encoder.named_parameters())


@every_quantiser
def test_under_bf16_autocast_the_loss_of_any_quantiser_is_finite_and_float32(name):
    model = built(name)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, quantised = model(pictures())
        loss, _ = generator_loss(pictures(), reconstruction.float(), quantised.loss, model.last_weight)
    loss.backward()
    assert quantised.loss.dtype == loss.dtype == quantised.z_q.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_quantiser
def test_bf16_autocast_changes_no_code_of_the_same_latents(name):
    model = settled(name)
    z = model.latents(pictures(16)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        codes, z_q = model.quantise(z).codes, model.codebook.lookup(model.quantise(z).codes)
    assert torch.equal(codes, model.quantise(z).codes) and torch.equal(z_q, model.codebook.lookup(codes))


@every_quantiser
@pytest.mark.parametrize("start", STARTS)
def test_guide_optimises_the_latents_of_any_quantiser(name, start):
    first, second = guide(settled(name), redness, steps=2, cutouts=2, cut_size=8, start=start, learning_rate=1.0,
                          generator=seeded())
    assert first.shape == (1, 3, 16, 16) and first.isfinite().all() and not torch.equal(first, second)


class Signs(nn.Module):
    """Quantise each channel to -1 or 1: another quantiser, with the three methods that codebook.py asks for."""

    def __init__(self, config):
        super().__init__()
        self.register_buffer("places", 2 ** torch.arange(config.codebook_dim))

    def forward(self, z):
        codes = torch.einsum("bzhw,z->bhw", (z > 0).long(), self.places)
        return Quantised(straight_through(z, self.lookup(codes)), codes, z.new_zeros(()))

    def lookup(self, codes):
        bits = rearrange(codes, "b h w -> b 1 h w") & rearrange(self.places, "z -> z 1 1")
        return (bits > 0).float() * 2 - 1

    def clamp(self, z):
        return z.clamp(-1, 1)


def test_another_quantiser_takes_the_codebooks_place_by_one_line_in_the_table(monkeypatch):
    with pytest.raises(InputError, match="one of nearest, gumbel, fsq"):
        VQGANConfig(quantiser="astrology")
    monkeypatch.setitem(QUANTISERS, "signs", Signs)
    model = VQGAN(dataclasses.replace(SMALL, quantiser="signs"))
    reconstruction, quantised = model(pictures())
    (reconstruction.sum() + quantised.loss).backward()
    assert isinstance(model.codebook, Signs) and model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert torch.allclose(model.decode(model.encode(pictures())), reconstruction, atol=1e-5)
    list(guide(model.eval(), lambda x: x.mean(dim=(1, 2, 3)), steps=1, cutouts=2, cut_size=8))


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
    with pytest.raises(ValueError, match="divide by 2") as error:
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
    (dict(image_size=30), "does not divide by 4"), (dict(multipliers=()), "at least 1"),
    (dict(attention_resolutions=(7,)), "sides are"), (dict(channels=0), "at least 1"),
    (dict(beta=-1.0), "beta is -1.0: it must not be negative"), (dict(rate_weight=-0.1), "rate_weight is -0.1"),
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


# ---- guiding


def redness(images: torch.Tensor) -> torch.Tensor:
    return (images[:, 0] - images[:, 1] - images[:, 2]).mean(dim=(1, 2))


@pytest.fixture(scope="module")
def painter() -> VQGAN:
    """Build a VQGAN of 64 colours in the place of networks: a code paints 2 x 2 pixels in its own."""
    model = VQGAN(dataclasses.replace(SMALL, codebook_size=64, codebook_dim=3, l2_normalised=False))
    model.encoder, model.decoder = nn.AvgPool2d(2), nn.Upsample(scale_factor=2)
    model.to_codebook, model.from_codebook = nn.Identity(), nn.Identity()
    level = torch.linspace(-1, 1, 4)
    model.codebook.vectors.data = torch.cartesian_prod(level, level, level)
    return model.eval()


@pytest.mark.parametrize("latent_noise", [0.0, 1.0])
@pytest.mark.parametrize("start", STARTS)
def test_guide_raises_its_score_far_above_the_start(painter, start, latent_noise):
    walk = list(guide(painter, redness, steps=40, cutouts=4, cut_size=8, start=start, latent_noise=latent_noise, generator=seeded()))
    assert len(walk) == 40 and walk[0].shape == (1, 3, 16, 16) and walk[-1].abs().max() <= 1
    assert redness(walk[-1]).item() > redness(walk[0]).item() + 2


def test_guide_starts_from_the_picture_it_is_given(painter):
    blue = repeat(torch.tensor([-1.0, -1.0, 1.0]), "c -> 2 c h w", h=16, w=16)
    first = next(guide(painter, redness, steps=1, cutouts=2, cut_size=8, init=blue))
    assert torch.equal(first, blue)  # one step is too small to change a code


def test_a_blank_start_is_the_mean_of_all_codes_everywhere(painter):
    z = starting_latents(painter, None, "blank", None)
    mean = painter.codebook.vectors.detach().mean(dim=0)
    assert z.shape == (1, 3, 8, 8) and torch.allclose(z, repeat(mean, "z -> 1 z 8 8"), atol=1e-6)


def test_with_latent_noise_each_cutout_comes_from_a_picture_of_its_own(painter, monkeypatch):
    seen, quantise = [], painter.quantise
    monkeypatch.setattr(painter, "quantise", lambda z: seen.append(z.detach().clone()) or quantise(z))
    gray = torch.zeros(2, 3, 16, 16)
    list(guide(painter, redness, steps=4, cutouts=50, cut_size=8, init=gray, latent_noise=0.5, learning_rate=1e-6,
               generator=seeded()))
    noisy = [z for z in seen if len(z) == 100]
    assert len(noisy) == 4 and all(len(z) == 2 for z in seen if len(z) != 100)
    spread = painter.codebook.vectors.detach().std(dim=0).mean()
    assert all(abs(z.std() / (0.5 * spread) - 1) < 0.05 for z in noisy)


@pytest.mark.parametrize("latent_noise", [0.0, 1e-6])
def test_with_jitter_guide_scores_cutouts_with_noise_on_their_pixels(painter, latent_noise):
    def roughness(jitter):
        seen = []
        gray = repeat(torch.tensor(1 / 3), "-> 1 3 h w", h=16, w=16)
        list(guide(painter, lambda images: seen.append(images.detach()) or redness(images), steps=1, cutouts=50, cut_size=8,
                   init=gray, latent_noise=latent_noise, jitter=jitter, generator=seeded()))
        return seen[0].std(dim=(2, 3)).mean().item()
    assert roughness(0.0) < 1e-3 and roughness(0.6) == pytest.approx(0.3, abs=0.05)


def test_latents_are_brought_back_to_the_codes_range_after_each_step(painter, monkeypatch):
    seen, quantise = [], painter.quantise
    monkeypatch.setattr(painter, "quantise", lambda z: seen.append(z.detach().abs().max().item()) or quantise(z))
    list(guide(painter, redness, steps=30, cutouts=2, cut_size=8))
    assert len(seen) == 31 and max(seen) == 1


def test_pixels_that_overshoot_are_clamped_and_keep_their_gradient(painter):
    bright = copy.deepcopy(painter)
    bright.codebook.vectors.data *= 2
    z = torch.full((1, 3, 4, 4), 2.0, requires_grad=True)
    images = decode_clamped(bright, z)
    images.sum().backward()
    assert (images == 1).all() and (z.grad > 0).all()


def test_the_same_generator_seed_gives_the_same_images_whatever_the_global_seed(painter):
    def walk(seed, start, latent_noise=0.0):
        torch.manual_seed(torch.seed() % 1000)
        return torch.stack(list(guide(painter, redness, steps=3, cutouts=4, cut_size=8, start=start,
                                      latent_noise=latent_noise, generator=seeded(seed))))
    for options in (("codes",), ("noise",), ("codes", 1.0)):
        assert torch.equal(walk(0, *options), walk(0, *options))
        assert not torch.equal(walk(0, *options)[0], walk(1, *options)[0])


def test_guide_trains_nothing_and_works_under_no_grad(painter):
    before = {name: tensor.clone() for name, tensor in painter.state_dict().items()}
    painter.zero_grad(set_to_none=True)
    with torch.no_grad():
        for _ in guide(painter, redness, steps=2, cutouts=2, cut_size=8, generator=seeded()):
            assert not torch.is_grad_enabled()
    assert all(torch.equal(tensor, before[name]) for name, tensor in painter.state_dict().items())
    assert all(p.grad is None for p in painter.parameters())


def test_guide_refuses_a_model_in_training_mode_and_an_unknown_start(painter):
    with pytest.raises(ValueError, match="eval"):
        next(guide(VQGAN(SMALL), redness, steps=1))
    with pytest.raises(InputError, match="'gradient': it must be one of codes, noise, blank"):
        next(guide(painter, redness, steps=1, start="gradient"))


def test_the_score_sees_all_cutouts_in_one_call(painter):
    seen = []

    def score(images):
        seen.append(tuple(images.shape))
        return redness(images)

    list(guide(painter, score, steps=2, cutouts=5, cut_size=12, init=torch.zeros(3, 3, 16, 16)))
    assert seen == [(15, 3, 12, 12)] * 2


def test_negative_weights_push_away_from_their_target(painter):
    embed = lambda images: images.mean(dim=(2, 3)) + 1.5  # a stand-in for CLIP: the mean colour
    red = torch.tensor([[2.5, 0.5, 0.5]])

    def distance_after(weight):
        score = prompt_score(embed, red, torch.tensor([weight]))
        *_, last = guide(painter, score, steps=30, cutouts=4, cut_size=8, generator=seeded())
        return spherical_distance(embed(last), red).item()

    assert distance_after(1.0) < 0.02 < 0.3 < distance_after(-1.0)


def test_prompt_score_is_the_weighted_sum_of_distances_by_hand():
    targets, weights = torch.eye(3)[:2], torch.tensor([2.0, -0.5])
    features = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    quarter = math.pi**2 / 8  # half the square of a right angle
    score = prompt_score(lambda x: x, targets, weights)(features)
    assert torch.allclose(score, torch.tensor([0.5 * quarter, -2 * quarter, -1.5 * quarter]), atol=1e-4)


def test_a_prompt_stops_pulling_at_its_stop():
    def gradient(stop):
        x = torch.tensor([[1.0, 0.2]], requires_grad=True)
        score = prompt_score(lambda x: x, torch.tensor([[1.0, 0.0]]), torch.ones(1), torch.tensor([stop]))
        score(x).sum().backward()
        return x.grad.abs().sum().item()

    assert gradient(0.5) == 0 and gradient(0.0) > 0


def test_spherical_distance_is_half_the_squared_angle_with_a_finite_gradient_at_both_ends():
    a = torch.tensor([[1.0, 0.0]] * 4, requires_grad=True)
    b = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-1.0, 0.0]])
    distance = spherical_distance(a, b)
    angles = torch.tensor([0, math.pi / 2, math.pi / 4, math.pi])
    assert torch.allclose(distance, angles.square() / 2, atol=1e-2)
    distance.sum().backward()
    assert a.grad.isfinite().all()


def test_resampling_the_whole_picture_is_torchs_antialiased_resize():
    image = torch.rand(1, 1, 12, 12, generator=seeded())
    for size in (12, 24, 5):
        rows = resample(torch.zeros(()), torch.tensor(12.0), 12, size)
        expected = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
        assert torch.allclose(rows @ image[0, 0] @ rows.T, expected[0, 0], atol=1e-5)


def test_a_cutout_without_jitter_is_a_crop_of_the_picture():
    rows = resample(torch.tensor(3.0), torch.tensor(4.0), 12, 4)
    assert torch.allclose(rows @ torch.arange(12.0), torch.arange(3.0, 7.0))


@pytest.mark.parametrize("side, size", [(32, 32), (64, 48)])
def test_cutouts_have_many_sizes_and_places_and_every_pixel_is_seen(side, size):
    ramp = repeat(torch.linspace(-1, 1, side), "w -> 2 c h w", c=3, h=side).clone().requires_grad_()
    cut = random_cutouts(ramp, 64, size, seeded(), jitter=0.0)
    assert cut.shape == (2 * 64, 3, size, size)
    widths = (cut[:, 0, 0, -1] - cut[:, 0, 0, 0]) / 2  # the share of the ramp in each
    assert widths.min() < 0.55 and widths.max() > 0.9 and widths.std() > 0.08
    cut.sum().backward()
    assert (ramp.grad > 0).all()


def test_cutouts_of_one_picture_hold_nothing_of_another():
    images = torch.stack([torch.ones(3, 16, 16), -torch.ones(3, 16, 16)])
    cut = random_cutouts(images, 5, 8, seeded(), jitter=0.0)
    assert torch.allclose(cut[:5], torch.tensor(1.0)) and torch.allclose(cut[5:], torch.tensor(-1.0))


def test_jitter_changes_brightness_and_adds_noise():
    cut = random_cutouts(torch.zeros(1, 3, 16, 16), 50, 16, seeded(), jitter=0.1)
    assert 0.05 < cut.mean(dim=(1, 2, 3)).std() < 0.2 and 0.02 < cut.std(dim=(1, 2, 3)).mean() < 0.1


@pytest.mark.parametrize("prompts, expected", [
    ("a red circle: 1 | blue: -0.3", [("a red circle", 1.0), ("blue", -0.3)]),
    ("a red circle", [("a red circle", 1.0)]),
    ("a sign that says: stop", [("a sign that says: stop", 1.0)]),
    ("title: subtitle: 2", [("title: subtitle", 2.0)]),
    ("a grandmother: nan", [("a grandmother: nan", 1.0)]),
    ("x:.5", [("x", 0.5)]),
])
def test_prompts_are_split_into_texts_and_weights(prompts, expected):
    assert [(p.text, p.weight) for p in parse_prompts(prompts)] == expected
    assert all(p.stop == float("-inf") for p in parse_prompts(prompts))


def test_prompts_take_a_stop_and_a_time_of_day_needs_both_numbers():
    assert parse_prompts("a cat:0.5:0.1") == [("a cat", 0.5, 0.1)]
    assert parse_prompts("a clock at 10:30:1:-inf") == [("a clock at 10:30", 1.0, float("-inf"))]


@pytest.mark.parametrize("prompts", ["", "red | ", ": 2", "red || blue"])
def test_a_prompt_without_text_is_refused(prompts):
    with pytest.raises(InputError, match="no text"):
        parse_prompts(prompts)


# ---- files


def save(path, model: VQGAN, kind: str = "vqgan"):
    config = dataclasses.asdict(model.config)
    torch.save({"kind": kind, "config": config, "weights": model.state_dict()}, path)


def test_a_saved_model_loads_as_it_was_in_eval_mode(tmp_path):
    model = small()
    save(tmp_path / "vqgan.pt", model)
    again = load(tmp_path / "vqgan.pt")
    assert again.config == model.config and not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_saved_model_is_found_in_its_run_and_loads_in_single_precision_if_saved_in_half(tmp_path):
    model = small()
    save(tmp_path / "vqgan.pt", copy.deepcopy(model).half())
    again = load(tmp_path)
    for ours, loaded in zip(model.state_dict().values(), again.state_dict().values()):
        assert loaded.dtype == ours.dtype and torch.allclose(ours.float(), loaded.float(), rtol=1e-3, atol=1e-4)


def test_a_saved_model_with_a_tensor_missing_or_a_config_of_another_version_is_refused(tmp_path):
    model = small()
    torch.save({"kind": "vqgan", "config": dataclasses.asdict(SMALL), "weights": {}}, tmp_path / "a.pt")
    torch.save({"kind": "vqgan", "config": {"sides": 1}, "weights": model.state_dict()}, tmp_path / "b.pt")
    for name, reason in (("a.pt", "encoder.conv_in.weight is missing"), ("b.pt", "sides")):
        with pytest.raises(InputError, match=f"{name} looks like a vqgan.pt .* but does not fit: .*{reason}"):
            load(tmp_path / name)


def test_a_checkpoint_from_before_there_were_levels_loads_and_they_are_the_default(tmp_path):
    model = small()
    config = dataclasses.asdict(model.config)
    del config["levels"]
    torch.save({"kind": "vqgan", "config": config, "weights": model.state_dict()}, tmp_path / "vqgan.pt")
    again = load(tmp_path)
    assert again.config == model.config and torch.equal(again.encode(pictures()), model.encode(pictures()))


def test_a_bug_in_building_the_model_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    class Buggy(nn.Module):
        def __init__(self, config):
            raise KeyError("my own bug")

    save(tmp_path / "vqgan.pt", small())
    monkeypatch.setitem(QUANTISERS, "nearest", Buggy)
    with pytest.raises(KeyError, match="my own bug"):
        load(tmp_path)


def test_files_of_another_kind_are_refused_in_one_line_that_names_file_kind_and_layouts(tmp_path):
    save(tmp_path / "clip.pt", small(), kind="clip")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name, found in (("clip.pt", "kind 'clip'"), ("list.pt", "a list"), ("text.pt", "plain tensors")):
        with pytest.raises(InputError) as error:
            load(tmp_path / name)
        message = str(error.value)
        assert name in message and found in message and "a vqgan.pt of" in message and "\n" not in message


def test_a_file_that_would_run_code_does_not_run_it(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"kind": "vqgan", "config": {}, "weights": Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="bad.pt asks to run posix.mkdir|bad.pt asks to run nt.mkdir"):
        load(tmp_path / "bad.pt")
    assert not (tmp_path / "owned").exists()


# ---- published weights


def taming_shapes(ch, ch_mult, blocks, attend, z_channels, codes, dim, gumbel=False) -> dict[str, tuple[int, ...]]:
    """List the tensors of taming-transformers' autoencoder; attend: the levels that have attention, 0 the picture's."""
    shapes = {}

    def conv(name, c_in, c_out, side):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (c_out, c_in, side, side), (c_out,)

    def norm(name, c):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (c,), (c,)

    def block(name, c_in, c_out):
        norm(f"{name}.norm1", c_in), conv(f"{name}.conv1", c_in, c_out, 3)
        norm(f"{name}.norm2", c_out), conv(f"{name}.conv2", c_out, c_out, 3)
        if c_in != c_out:
            conv(f"{name}.nin_shortcut", c_in, c_out, 1)

    def attention(name, c):
        norm(f"{name}.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", c, c, 1)

    def middle(name, c):
        block(f"{name}.block_1", c, c), attention(f"{name}.attn_1", c), block(f"{name}.block_2", c, c)

    def level(name, c_in, c_out, count, attends):
        for j in range(count):
            block(f"{name}.block.{j}", c_out if j else c_in, c_out)
            if attends:
                attention(f"{name}.attn.{j}", c_out)

    width, widths = ch, [ch * m for m in ch_mult]
    conv("encoder.conv_in", 3, ch, 3)
    for i, wider in enumerate(widths):
        level(f"encoder.down.{i}", width, wider, blocks, i in attend)
        width = wider
        if i < len(widths) - 1:
            conv(f"encoder.down.{i}.downsample.conv", width, width, 3)
    middle("encoder.mid", width), norm("encoder.norm_out", width), conv("encoder.conv_out", width, z_channels, 3)
    conv("decoder.conv_in", z_channels, width, 3), middle("decoder.mid", width)
    for i, narrower in reversed(list(enumerate(widths))):
        level(f"decoder.up.{i}", width, narrower, blocks + 1, i in attend)
        width = narrower
        if i:
            conv(f"decoder.up.{i}.upsample.conv", width, width, 3)
    norm("decoder.norm_out", width), conv("decoder.conv_out", width, 3, 3)
    conv("quant_conv", z_channels, dim, 1), conv("post_quant_conv", dim, z_channels, 1)
    if gumbel:
        conv("quantize.proj", dim, codes, 1)
    shapes[f"quantize.{'embed' if gumbel else 'embedding'}.weight"] = (codes, dim)
    return shapes


# Small, but 128 wide: below that the originals' groups hold fewer than four channels, and ours do not. The symmetric
# (1, 2, 1) with attention in the middle has the same shapes from either end.
STATES = {"vq": taming_shapes(128, (1, 2, 1), 1, (1,), 24, 96, 8),
          "gumbel": taming_shapes(128, (1, 1), 2, (1,), 16, 64, 16, gumbel=True)}
CONFIGS = {
    "vq": VQGANConfig(image_size=256, channels=128, multipliers=(1, 2, 1), residual_blocks=1, z_channels=24,
                      attention_resolutions=(128,), codebook_size=96, codebook_dim=8, rate_weight=0.0),
    "gumbel": VQGANConfig(image_size=256, channels=128, multipliers=(1, 1), residual_blocks=2, z_channels=16,
                          attention_resolutions=(128,), codebook_size=64, codebook_dim=16, quantiser="gumbel",
                          rate_weight=0.0)}

# What CompVis/taming-transformers@3ba01b241669f5ade541ce990f7650a3b8f65318 computes with weights by tests/seeded.py,
# its own key names and resolution 16. z, codes, pixels: of image(3, 2, 16); wide: of image(4, 1, 24); decoded: pixels of
# ids(5, ...). Four first and last values and the probe; of codes the first 16 and the sum. Its Gumbel model with the
# argmax of its logits. kakaobrain/minDALL-E@e5480076b9634e9dc097e1892157ed2cf15a2f86 has "vq" the same.
THEIRS = {
    "vq": {
        "z": [-0.207867, -0.155903, -0.202236, -0.012538, -1.020323, -0.316109, -0.12456, -0.463465, -0.404325],
        "codes": [6, 76, 11, 44, 94, 86, 42, 1, 42, 3, 81, 44, 94, 42, 44, 83, 1465],
        "pixels": [0.046452, 0.079384, -0.030293, 0.2989, -0.352457, -0.191524, -0.212364, -0.130634, 0.571139],
        "wide z": [-0.279241, -0.679148, -0.055, -0.432718, -0.897187, -1.025354, -0.956082, -0.662347, 0.096695],
        "wide codes": [20, 27, 40, 76, 83, 6, 6, 20, 18, 36, 6, 11, 11, 4, 4, 86, 1303],
        "wide pixels": [0.215107, 0.206087, 0.196087, 0.228353, -0.027384, 0.120798, -0.0117, -0.139273, 0.627649],
        "decoded": [0.282464, 0.546702, 0.138437, 0.238254, -0.947793, -0.613373, -0.419375, -0.294771, 0.843694],
    },
    "gumbel": {
        "z": [-0.514102, -0.792218, -0.816828, -0.462445, 0.768421, 0.319554, 0.203893, -0.347626, -0.061604],
        "codes": [45, 43, 22, 55, 22, 43, 43, 55, 45, 34, 33, 34, 43, 33, 22, 27, 5007],
        "pixels": [0.336139, 0.507569, 0.381598, 0.169809, -0.285763, 0.150671, 0.123024, 0.168621, 0.305198],
        "wide z": [0.289656, -0.672806, -0.578212, -0.449941, -0.364999, -0.266665, -0.274552, -0.212763, 0.748321],
        "wide codes": [34, 22, 34, 45, 45, 45, 55, 55, 22, 45, 55, 45, 33, 43, 43, 45, 5889],
        "wide pixels": [-0.001353, 0.218942, 0.576148, 0.450927, 0.04751, 0.141321, 0.283763, 0.257835, -0.1568],
        "decoded": [0.026402, 0.471765, 0.382742, 0.261563, 0.024993, 0.009991, 0.030738, 0.438345, 0.104358],
    },
}


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    return {name: {key: fill(key, shape) for key, shape in shapes.items()} for name, shapes in STATES.items()}


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
        save_by_lightning(state | {"loss.discriminator.main.0.weight": torch.ones(2)}, folder / f"{name}.ckpt")
    return folder


def agrees(tensor: torch.Tensor, theirs: list[float], atol: float) -> bool:
    flat = tensor.detach().flatten()
    if not tensor.is_floating_point():
        return [*flat[:16].tolist(), flat.sum().item()] == theirs
    return [*flat[:4].tolist(), *flat[-4:].tolist(), probe(flat)] == pytest.approx(theirs, rel=0, abs=atol)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("prefix, images", [("", image(3, 2, 16)), ("wide ", image(4, 1, 24))])
def test_latents_codes_and_pixels_of_published_weights_are_the_originals(files, name, prefix, images):
    model, theirs = load(files / f"{name}.ckpt"), THEIRS[name]
    assert model.config == CONFIGS[name] and not model.training
    with torch.no_grad():
        reconstruction, quantised = model(images)
        # 2e-6 apart; eps 1e-5 instead of 1e-6 in GroupNorm would be 3e-5
        assert agrees(model.latents(images), theirs[f"{prefix}z"], atol=6e-6)
    assert agrees(quantised.codes, theirs[f"{prefix}codes"], 0) and torch.equal(model.encode(images), quantised.codes)
    assert agrees(reconstruction, theirs[f"{prefix}pixels"], atol=1e-5)


@pytest.mark.parametrize("name, side", [("vq", 4), ("gumbel", 8)])
def test_published_weights_decode_codes_as_the_originals_do(files, name, side):
    model = load(files / f"{name}.ckpt")
    codes = rearrange(ids(5, 2, side**2, model.config.codebook_size), "b (h w) -> b h w", h=side)
    assert agrees(model.decode(codes), THEIRS[name]["decoded"], atol=1e-5)


@pytest.mark.parametrize("preset, arguments", [
    (VQGANConfig.f16_1024(), (128, (1, 1, 2, 2, 4), 2, (4,), 256, 1024, 256)),
    (VQGANConfig.f16_16384(), (128, (1, 1, 2, 2, 4), 2, (4,), 256, 16384, 256)),
    (VQGANConfig.f8_gumbel(), (128, (1, 1, 2, 4), 2, (3,), 256, 8192, 256, True)),
])
def test_the_published_sizes_are_inferred_from_the_tensors_and_every_one_has_its_place(preset, arguments, tmp_path):
    state = {key: torch.empty(shape, device="meta") for key, shape in taming_shapes(*arguments).items()}
    assert len(state) == (301 if preset.quantiser == "gumbel" else 343)
    config, weights = minvqgan.pretrained.from_taming({"state_dict": state}, tmp_path / "last.ckpt")
    with torch.device("meta"):
        model = VQGAN(config)
    assert config == preset
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("file", ["last.ckpt", "checkpoints/last.ckpt", "ckpts/last.ckpt", "stage1_last.ckpt"])
def test_a_published_folder_is_loaded_from_where_it_keeps_its_weights_and_its_resolution(file, states, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "model.yaml").write_text("# resolution: 8\nimage_resolution: 9\n  resolution: 16\n"
                                                     "  attn_resolutions: [8]\n")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    torch.save(states["vq"], tmp_path / file)  # a bare state dict
    model = load(tmp_path)
    assert model.config == dataclasses.replace(CONFIGS["vq"], image_size=16, attention_resolutions=(8,))
    assert agrees(model.encode(image(4, 1, 24)), THEIRS["vq"]["wide codes"], 0)  # whatever the side


def test_a_file_from_before_torchs_zip_format_loads_too(files, states, tmp_path):
    save_by_lightning(states["gumbel"], tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    model, again = load(files / "gumbel.ckpt"), load(tmp_path / "old.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_config_beside_published_weights_that_cannot_be_read_is_an_input_error(states, tmp_path):
    (tmp_path / "model.yaml").mkdir()
    assert "model.yaml" in refusal(states["vq"], tmp_path / "last.ckpt")


def test_training_on_from_published_weights_starts_with_every_code_where_it_was(files):
    model = load(files / "vq.ckpt").train()
    before = model.codebook.vectors.detach().clone()
    assert not model.codebook.idle.any() and torch.equal(model.codebook.share, torch.full((96,), 1 / 96))
    model(image(3, 2, 16))
    assert torch.equal(model.codebook.vectors, before)


def test_loading_copies_no_page_of_the_file_and_training_writes_none(files, states):
    before = (files / "gumbel.ckpt").read_bytes()
    with torch.device("meta"):
        model = VQGAN(CONFIGS["gumbel"])
    _, weights = minvqgan.pretrained.from_taming(states["gumbel"], files / "gumbel.ckpt")
    minvqgan.pretrained.fit(model, weights)
    assert all(value.data_ptr() == weights[name].data_ptr() for name, value in model.state_dict().items())
    random = torch.get_rng_state()
    model = load(files / "gumbel.ckpt")
    assert torch.equal(torch.get_rng_state(), random)  # nor draws weights, to throw them away
    assert all(p.requires_grad for p in model.parameters())
    model(image(3, 2, 16))[0].sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert (files / "gumbel.ckpt").read_bytes() == before


def test_a_loaded_model_outlives_the_replacement_of_its_file(files, tmp_path):
    (tmp_path / "last.ckpt").write_bytes((files / "gumbel.ckpt").read_bytes())
    model = load(tmp_path)
    (tmp_path / "new").write_bytes((files / "vq.ckpt").read_bytes())
    os.replace(tmp_path / "new", tmp_path / "last.ckpt")
    assert agrees(model.encode(image(3, 2, 16)), THEIRS["gumbel"]["codes"], 0)


def refusal(checkpoint, path) -> str:
    """Save a checkpoint that must be refused, and return the one line that does it."""
    torch.save(checkpoint, path)
    with pytest.raises(InputError) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_published_file_with_a_tensor_missing_surplus_or_misshapen_is_refused_by_the_tensors_name(states, tmp_path):
    whole, path = states["vq"], tmp_path / "last.ckpt"
    less = {key: value for key, value in whole.items() if "decoder.up.0.block.1.conv2" not in key}
    assert "decoder.levels.2.blocks.1.conv2.weight is missing, as are 1 more" in refusal(less, path)
    less = {key: value for key, value in whole.items() if key != "encoder.conv_in.weight"}
    assert "encoder.conv_in.weight is missing" in refusal(less, path)
    assert "quantize.counts is one too many" in refusal(whole | {"quantize.counts": torch.ones(96)}, path)
    bent = whole | {"decoder.mid.attn_1.q.bias": torch.zeros(127)}
    assert "decoder.middle.1.query.bias has another shape" in refusal(bent, path)
    assert "does not fit" in refusal(whole | {"decoder.norm_out.bias": "no tensor"}, path)


def test_layers_that_would_be_normalised_in_other_groups_are_refused(tmp_path):
    for ch in (32, 64, 192):  # 192: the original has 32 groups of six, ours 16 of twelve
        shapes = taming_shapes(ch, (1,), 1, (), 4, 8, 4)
        message = refusal({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "last.ckpt")
        assert f"{ch} wide" in message and "32 groups" in message


def test_a_decoder_alone_and_flax_weights_are_refused_with_what_to_load_instead(states, tmp_path):
    state = {key.replace("quantize.", ""): value for key, value in states["vq"].items()}
    half = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    message = refusal(half, tmp_path / "detoker.pt")
    assert "only a decoder" in message and "f16 with 16384 codes" in message
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x83\xa7decoder")
    with pytest.raises(InputError, match="Flax.*f16 with 16384 codes"):
        load(tmp_path / "flax_model.msgpack")


def test_a_missing_file_and_a_folder_without_weights_are_named(tmp_path):
    with pytest.raises(InputError, match="absent.ckpt: No such file or directory$"):
        load(tmp_path / "absent.ckpt")
    with pytest.raises(InputError, match="holds no vqgan.pt, .*name the file"):
        load(tmp_path)
