"""Claims about minvqgan's quantisers, each against exact values, a slow reference or plain autograd."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from small_vqgan import FSQ, GUMBEL, SMALL, pictures, redness, save, seeded, small, taught
from torch import nn

import minvqgan.codebook
from minvqgan import (QUANTISERS, STARTS, VQGAN, Codebook, FiniteScalar, GumbelCodebook, InputError, Quantised,
                      VQGANConfig, generator_loss, guide, load, perplexity, reconstruction_loss, straight_through,
                      usage)
from minvqgan.codebook import squared_distances


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
