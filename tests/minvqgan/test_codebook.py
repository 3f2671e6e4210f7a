"""The codebook of the nearest code, against exact values and slow references."""

import math

import pytest
import torch
from einops import rearrange, repeat
from small_vqgan import pictures, seeded, small

import minvqgan.codebook
from minvqgan import Codebook, GumbelCodebook, perplexity, straight_through, usage
from minvqgan.codebook import squared_distances


def codebook(**changes) -> Codebook:
    torch.manual_seed(0)
    sizes = dict(size=16, dim=4, beta=0.25, rate_weight=0.0, restart_after=3)
    return Codebook(**(sizes | changes))


def of_two(first: float, second: float, **changes) -> Codebook:
    """Build a codebook in training mode with two codes of width one."""
    book = codebook(size=2, dim=1, **changes).train()
    book.vectors.data.copy_(torch.tensor([[first], [second]]))
    return book


def test_straight_through_has_values_of_z_q_and_gradient_of_z():
    z, z_q = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    out = straight_through(z, z_q)
    assert torch.allclose(out, z_q)
    (out * torch.arange(6.0).reshape(2, 3)).sum().backward()
    assert torch.equal(z.grad, torch.arange(6.0).reshape(2, 3)) and z_q.grad is None


def test_without_straight_through_the_decoder_tells_the_encoder_nothing(monkeypatch):
    def encoder_gradient() -> float:
        model = small()
        reconstruction, _ = model(pictures())
        reconstruction.abs().sum().backward()  # no codebook loss: only the decoder's word
        grad = model.encoder.conv_in.weight.grad
        return 0.0 if grad is None else grad.abs().sum().item()

    assert encoder_gradient() > 0
    monkeypatch.setattr(minvqgan.codebook, "straight_through", lambda z, z_q: z_q)
    assert encoder_gradient() == 0


def test_beta_scales_the_gradient_of_the_encoder_and_not_of_the_codes():
    def gradients(beta: float) -> tuple[torch.Tensor, torch.Tensor]:
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


@pytest.mark.parametrize("autocast", [False, True])
def test_squared_distances_equal_brute_force_even_under_bf16_autocast(autocast):
    rows = torch.randn(2000, 5, generator=seeded())
    vectors = torch.randn(500, 5, generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        distances = squared_distances(rows, vectors)
    assert torch.allclose(distances, torch.cdist(rows, vectors) ** 2, atol=1e-4)


def test_without_a_rate_weight_the_nearest_code_is_chosen_however_rare():
    book, z = codebook().eval(), torch.randn(2, 4, 3, 3, generator=seeded())
    book.share.copy_(torch.rand(16, generator=seeded(1)).clamp(min=1e-5))
    rows = rearrange(z, "b z h w -> (b h w) z")
    assert torch.equal(book(z).codes.flatten(), torch.cdist(rows, book.vectors).argmin(dim=1))


def test_a_rare_code_is_chosen_only_if_nearer_by_its_price():
    book = of_two(0.0, 1.0, rate_weight=0.5)
    book.share.copy_(torch.tensor([0.9, 0.1]))
    border = 0.5 + 0.5 * math.log(9) / 2  # z² - log(0.9) / 2 = (1 - z)² - log(0.1) / 2
    assert book.choose(torch.tensor([[border - 0.01], [border + 0.01]])).tolist() == [0, 1]


def test_training_keeps_account_of_how_often_each_code_is_chosen():
    book, z = codebook().train(), torch.randn(8, 4, 5, 5, generator=seeded())
    for _ in range(500):
        codes = book(z).codes
    frequency = torch.bincount(codes.flatten(), minlength=16) / 200
    assert torch.allclose(book.share, frequency, atol=0.01)


def test_however_rare_a_code_its_price_stays_within_reach():
    book = of_two(0.0, 1.0)
    for _ in range(2000):
        book.count(torch.zeros(10, dtype=torch.int64))
    assert book.share[1].item() == pytest.approx(1e-5)


@pytest.mark.parametrize("dead", [99.0, 5.0])  # a latent near a dead code alone is badly served
def test_a_dead_code_is_restarted_where_latents_are_badly_served(dead):
    book = of_two(0.0, dead)
    book.idle.copy_(torch.tensor([0, 3]))
    book.restart_dead_codes(torch.tensor([[0.0]] * 99 + [[5.0]]))  # 99 are served perfectly
    assert book.vectors.tolist() == [[0.0], [5.0]] and book.idle.tolist() == [0, 0]


def test_a_restarted_code_is_priced_as_an_average_one():
    book = codebook(size=4, dim=1).train()
    book.idle.copy_(torch.tensor([0, 0, 0, 3]))
    book.share.copy_(torch.tensor([0.5, 0.4, 0.1, 1e-5]))
    book.restart_dead_codes(torch.tensor([[0.0], [5.0]]))
    assert torch.allclose(book.share, torch.tensor([0.5, 0.4, 0.1, 0.25]))


def test_the_first_training_batch_initialises_every_code():
    book, z = codebook(), torch.randn(2, 4, 5, 5, generator=seeded())
    book.train()(z)
    rows = rearrange(z, "b z h w -> (b h w) z").tolist()
    assert all(vector in rows for vector in book.vectors.tolist())


def test_unused_codes_come_alive_after_restart_after_batches_and_used_ones_stay():
    book = codebook(size=4).train()
    book(torch.randn(1, 4, 4, 4, generator=seeded()))
    book.vectors.data.copy_(repeat(torch.tensor([0.0, 50.0, 60.0, 70.0]), "v -> v z", z=4))
    book.idle.zero_()
    before, z = book.vectors.detach().clone(), torch.randn(1, 4, 4, 4, generator=seeded(1))
    for _ in range(3):
        assert (book(z).codes == 0).all() and torch.equal(book.vectors, before)
    assert torch.equal(book.idle, torch.tensor([0, 3, 3, 3]))
    assert book(z).codes.unique().numel() > 1
    assert torch.equal(book.vectors[0], before[0]) and (book.vectors[1:].abs() < 10).all()


def test_clamp_brings_latents_into_each_channels_range():
    book = codebook()
    clamped = book.clamp(repeat(torch.tensor([-99.0, 99.0]), "b -> b z 1 1", z=4))
    assert torch.equal(clamped[:, :, 0, 0], torch.stack(book.vectors.aminmax(dim=0)))


def test_in_eval_mode_dead_codes_stay():
    book = codebook().eval()
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    book(torch.randn(2, 4, 3, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in book.state_dict().items())


def test_usage_and_perplexity_are_exact():
    assert usage(torch.tensor([5, 0, 1, 0])) == 0.5
    assert perplexity(torch.tensor([7, 7, 7, 7])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([9, 0, 0, 0])).item() == pytest.approx(1)
    assert perplexity(torch.tensor([3, 1])).item() == pytest.approx(4 / 3**0.75)


# ---- Gumbel -------------------------------------------------------------------------------------


def gumbel() -> GumbelCodebook:
    torch.manual_seed(0)
    return GumbelCodebook(16, 4)


def test_gumbels_temperature_falls_from_1_to_a_sixteenth_and_stays():
    book, temperatures = gumbel(), []
    for done in (0, 0.4, 0.8, 1):
        book.anneal(done)
        temperatures.append(book.temperature)
    assert temperatures == pytest.approx([1, (1 + 1 / 16) / 2, 1 / 16, 1 / 16])


def test_gumbels_choices_are_random_when_hot_and_certain_when_cold():
    book, z = gumbel(), torch.randn(4, 4, 8, 8, generator=seeded())
    likeliest = book.eval()(z).codes
    agreement = []
    for done in (0, 1):
        book.train().anneal(done)
        agreement.append((book(z).codes == likeliest).float().mean().item())
    assert agreement[0] < 0.4 and agreement[1] > 0.7


def test_gumbels_mixture_nears_the_chosen_codes_vector_as_it_cools():
    book, z = gumbel(), torch.randn(4, 4, 8, 8, generator=seeded())
    away = []
    for done in (0, 1):
        book.train().anneal(done)
        quantised = book(z)
        away.append((quantised.z_q - book.lookup(quantised.codes)).square().mean().item())
    assert away[1] < 0.3 * away[0]


def test_gumbels_loss_is_0_only_if_all_codes_are_used_alike():
    book = gumbel().eval()
    with torch.no_grad():
        book.proj.weight.zero_(), book.proj.bias.zero_()
    assert book(torch.zeros(1, 4, 2, 2)).loss.item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        book.proj.bias[3] = 1e3
    loss = book(torch.zeros(1, 4, 2, 2)).loss
    assert loss.item() == pytest.approx(book.BALANCE * math.log(16))
    loss.backward()
    assert book.proj.bias.grad.isfinite().all()
