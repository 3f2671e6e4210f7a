"""What diffusion in mindalle.unclip promises: every name is a claim, and each can fail."""

import math

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mindalle.unclip import (
    denoising_loss, diffusion_step, draw_embeddings, drop_condition, even_times, expected_loss,
    guided, invert, mix, random_times, sample, sample_steps,
)
from mindalle.unclip.diffusion import CLOSEST, LOGIT_MEAN, LOGIT_STD, SCHEDULES, append_dims
from small_unclip import Recorder, captions, gaussian, new_decoder, new_prior, no_caption, normal, perturbed, rng

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
each_eta = pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])


def finite(points: Tensor):
    """Return the ideal denoiser of the points (n d), all equally likely: their mean, weighted by how likely each led to x(t)."""
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        apart = (rearrange(x, "b d -> b 1 d") - append_dims(t, points[None]) * points).square().sum(dim=-1)      # (b n)
        return torch.softmax(-apart / (2 * (1 - append_dims(t, x)) ** 2), dim=1) @ points

    return denoise


# ----------------------------------------------------------------------------- diffusion: the step, against DDIM and DDPM

# DDPM's schedule of 1000 steps, with data, ᾱ = 1, in front: ALPHA_BAR[step], 0 for data, 1000 for noise
ALPHA = 1 - torch.cat([torch.zeros(1, dtype=torch.float64), torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)])
ALPHA_BAR = ALPHA.cumprod(dim=0)
SIZES = ALPHA_BAR.sqrt() + (1 - ALPHA_BAR).sqrt()  # DDPM's x is this many times ours
TIMES = ALPHA_BAR.sqrt() / SIZES
WEIGHTS = normal(5, 5, dtype=torch.float64)


def network(y: Tensor, step: int) -> Tensor:
    """Predict x0 from DDPM's x, at a step of its: an arbitrary smooth function."""
    return torch.tanh(y @ WEIGHTS + step / 1000)


def in_our_coordinates(x: Tensor, t: Tensor) -> Tensor:
    step = (TIMES - t[0]).abs().argmin().item()
    return network(x * SIZES[step], step)


def ddim(y: Tensor, steps: list[int], eta: float, generator: torch.Generator):
    """Take DDIM's steps as the paper writes them [eq. 12, 16]; yield its x after each."""
    for step, later in zip(steps, steps[1:]):
        x0 = network(y, step)
        epsilon = (y - ALPHA_BAR[step].sqrt() * x0) / (1 - ALPHA_BAR[step]).sqrt()
        sigma = (eta * ((1 - ALPHA_BAR[later]) / (1 - ALPHA_BAR[step])).sqrt()
                 * (1 - ALPHA_BAR[step] / ALPHA_BAR[later]).sqrt())
        y = ALPHA_BAR[later].sqrt() * x0 + (1 - ALPHA_BAR[later] - sigma**2).sqrt() * epsilon
        if sigma > 0:
            y = y + sigma * torch.randn(y.shape, generator=generator)
        yield y


@each_eta
def test_every_step_is_ddims_in_other_coordinates(eta):
    steps, y = [1000, 800, 790, 400, 30, 1, 0], normal(3, 5, dtype=torch.float64)
    ours = sample_steps(in_our_coordinates, y / SIZES[1000], TIMES[steps].tolist(), eta, rng(1))
    for x, expected, step in zip(ours, ddim(y, steps, eta, rng(1)), steps[1:], strict=True):
        torch.testing.assert_close(x * SIZES[step], expected, rtol=0, atol=1e-6)


def test_with_eta_1_a_step_draws_from_ddpms_posterior():
    y = normal(3, 5, dtype=torch.float64)
    for step in (2, 10, 300, 999):
        alpha_bar, before, alpha = ALPHA_BAR[step], ALPHA_BAR[step - 1], ALPHA[step]
        mean = (before.sqrt() * (1 - alpha) * network(y, step) + alpha.sqrt() * (1 - before) * y) / (1 - alpha_bar)
        std = ((1 - before) / (1 - alpha_bar) * (1 - alpha)).sqrt()  # [DDPM eq. 7]
        x = sample(in_our_coordinates, y / SIZES[step], TIMES[[step, step - 1]].tolist(), eta=1, generator=rng(1))
        expected = mean + std * torch.randn(y.shape, generator=rng(1))
        torch.testing.assert_close(x * SIZES[step - 1], expected, rtol=0, atol=1e-6)


def test_ddims_coordinates_are_ours_divided_by_their_sum():
    x, noise = normal(2, 1001, 3, dtype=torch.float64)
    y = ALPHA_BAR.sqrt()[:, None] * x + (1 - ALPHA_BAR).sqrt()[:, None] * noise
    torch.testing.assert_close(mix(x, noise, TIMES) * SIZES[:, None], y)


# ------------------------------------------------------------------------------------- diffusion: drawing and inverting


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_ideal_denoiser_of_points_draws_one_of_them(eta):
    points, noise = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [-1.0, -1.5]]), normal(512, 2)
    errors = []
    for steps in (1, 2, 3, 4, 6, 16):
        x = sample(finite(points), noise, even_times(steps), eta, rng(1))
        errors.append(torch.cdist(x, points).amin(dim=1).mean().item())
    assert all(later < 0.8 * error for error, later in zip(errors, errors[1:])) and errors[-1] < 1e-4
    assert len(torch.cdist(x, points).argmin(dim=1).unique()) == 3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_each_point_is_drawn_as_often_as_the_data_has_it(eta):
    points = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    x = sample(finite(points), normal(4000, 1), even_times(50), eta, rng(1))
    assert (x > 0).float().mean().item() == pytest.approx(0.75, abs=0.03)  # 4 deviations of a count of 4000


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_ideal_denoiser_of_a_gaussian_draws_that_gaussian(eta):
    x = sample(gaussian(3.0, 0.5), normal(4000, 1), even_times(100), eta, rng(1))
    assert x.mean().item() == pytest.approx(3, abs=0.03) and x.std().item() == pytest.approx(0.5, abs=0.03)


def test_one_step_ends_at_what_the_denoiser_expects_of_noise():
    noise = normal(4, 2)
    seen = []
    x = sample(lambda x, t: seen.append((x, t)) or x.square(), noise, even_times(1), eta=1)
    assert x.equal(noise.square()) and seen[0][0].equal(noise) and seen[0][1].equal(torch.zeros(4))


@each_eta
def test_the_last_step_adds_no_noise(eta):
    *_, before, last = sample_steps(gaussian(0.0, 1.0), normal(4, 2), even_times(5), eta, rng(1))
    torch.testing.assert_close(last, gaussian(0.0, 1.0)(before, torch.full((4,), 0.8)))


def test_without_eta_the_noise_decides_and_the_generator_does_not():
    draw = lambda eta, seed: sample(finite(normal(4, 2)), normal(8, 2, seed=1), even_times(8), eta, rng(seed))  # noqa: E731
    assert draw(0.0, 1).equal(draw(0.0, 2)) and not draw(0.5, 1).allclose(draw(0.5, 2))


def test_there_is_one_image_after_each_step_and_sample_returns_the_last():
    steps = list(sample_steps(gaussian(0.0, 0.5), normal(4, 2), even_times(7)))
    assert len(steps) == 7 and steps[-1].equal(sample(gaussian(0.0, 0.5), normal(4, 2), even_times(7)))


def test_drawing_may_stop_and_go_on_where_it_stopped():
    noise, times, denoise = normal(4, 2), even_times(8), finite(normal(3, 2, seed=1))
    middle = sample(denoise, noise, times[:4])
    assert sample(denoise, middle, times[3:]).equal(sample(denoise, noise, times))


def test_even_times_lead_from_noise_to_data_in_equal_steps():
    assert even_times(4) == [0, 0.25, 0.5, 0.75, 1] and even_times(1) == [0, 1]


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.25, 0.75), (0.0, 0.5), (0.5, 1.0)], ids=str)
def test_inversion_gives_the_noise_back_with_an_error_of_first_order(times):
    start, end = times
    noise = normal(16, 3, dtype=torch.float64)
    spread = lambda t: math.sqrt((0.5 * t) ** 2 + (1 - t) ** 2)  # noqa: E731  of x(t), where the mean has the share t
    before, after = (2.0 * t + spread(t) * noise for t in times)
    errors = []
    for steps in (16, 32, 64, 128):
        inner = [start + (end - start) * share for share in even_times(steps)]
        errors.append((invert(gaussian(2.0, 0.5), after, inner) - before).abs().max().item())
        forwards = (sample(gaussian(2.0, 0.5), before, inner) - after).abs().max().item()
    assert all(1.7 < error / later < 2.3 for error, later in zip(errors, errors[1:])) and max(errors[-1], forwards) < 0.03


def test_what_is_drawn_from_inverted_noise_is_the_original_ever_more_exactly():
    points = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [-1.0, -1.5]])
    wide = lambda x, t: 0.9 * finite(points)(x, t) + 0.1 * gaussian(0.0, 1.0)(x, t)  # noqa: E731  not linear, but smooth
    x = sample(wide, normal(32, 2), even_times(400))
    errors = []
    for times in map(even_times, (10, 40, 160, 640)):
        errors.append((sample(wide, invert(wide, x, times), times) - x).norm(dim=1).mean().item())
    assert all(later < error / 2 for error, later in zip(errors, errors[1:])) and errors[-1] < 0.01


def test_drawing_and_inverting_build_no_graph_and_leave_the_callers_mode_alone():
    layer = nn.Linear(2, 2)
    denoise = lambda x, t: layer(x)  # noqa: E731
    for x in sample_steps(denoise, normal(4, 2), even_times(3)):
        assert not x.requires_grad and torch.is_grad_enabled()
    assert not invert(denoise, x, even_times(3)).requires_grad and torch.is_grad_enabled()


# ----------------------------------------------------------------------------------------------------------- guidance


def guidance_inputs() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Make x (b c), t (b), a condition of two parts, z and mask (b c), and the empty one (c)."""
    condition = normal(3, 2, seed=1), torch.tensor([[True, True], [False, True], [True, False]])
    return normal(3, 2), torch.tensor([0.1, 0.5, 0.9]), condition, (normal(2, seed=2), torch.tensor([True, False]))


def test_guidance_1_is_a_single_pass_of_the_plain_model():
    x, t, condition, empty = guidance_inputs()
    model = Recorder()
    assert guided(model, condition, empty, 1)(x, t).equal(Recorder()(x, t, *condition))
    assert [len(call[0]) for call in model.calls] == [3]


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0, -1.0])
def test_guidance_in_one_pass_equals_two_passes_combined(guidance):
    x, t, condition, empty = guidance_inputs()
    model = Recorder()
    prediction = guided(model, condition, empty, guidance)(x, t)
    with_it, without = Recorder()(x, t, *condition), Recorder()(x, t, *(part.expand(3, 2) for part in empty))
    torch.testing.assert_close(prediction, (1 - guidance) * without + guidance * with_it)
    assert [len(call[0]) for call in model.calls] == [6]


def test_guidance_0_ignores_the_condition():
    x, t, condition, empty = guidance_inputs()
    other = (normal(3, 2, seed=7), ~condition[1])
    assert guided(Recorder(), condition, empty, 0)(x, t).equal(guided(Recorder(), other, empty, 0)(x, t))


def test_the_empty_condition_replaces_the_condition_and_nothing_else():
    x, t, condition, empty = guidance_inputs()
    model = Recorder()
    guided(model, condition, empty, 2.0)(x, t)
    seen = model.calls[0]
    assert all(part.equal(torch.cat([ours, ours])) for part, ours in zip(seen, (x, t)))
    assert all(part.equal(torch.stack([*ours, none, none, none])) for part, ours, none in zip(seen[2:], condition, empty))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_model_in_bf16_still_takes_steps_in_fp32(guidance):
    x, t, condition, empty = guidance_inputs()
    model = lambda *inputs: Recorder()(*inputs).bfloat16()  # noqa: E731
    assert guided(model, condition, empty, guidance)(x, t).dtype == torch.float32


def test_conditions_are_dropped_each_with_all_its_parts():
    b = 2000
    condition = (torch.ones(b, 3, 2), torch.ones(b, 3, dtype=torch.bool), torch.ones(b, dtype=torch.int64))
    empty = (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), torch.tensor(0))
    torch.manual_seed(0)
    parts = drop_condition(condition, empty, 0.3)
    assert [(part.dtype, part.shape) for part in parts] == [(part.dtype, part.shape) for part in condition]
    dropped = parts[2] == 0
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert parts[0].equal(repeat((~dropped).float(), "b -> b 3 2")) and parts[1].equal(repeat(~dropped, "b -> b 3"))


def test_what_is_dropped_becomes_the_empty_condition_and_the_rest_stays():
    condition, empty = captions(64), no_caption()
    torch.manual_seed(0)
    parts = drop_condition(condition, empty, 0.5)
    kept = [all(part[i].equal(ours[i]) for part, ours in zip(parts, condition)) for i in range(64)]
    emptied = [all(part[i].equal(none) for part, none in zip(parts, empty)) for i in range(64)]
    assert all(k != e for k, e in zip(kept, emptied)) and any(kept) and any(emptied)


def test_probability_1_drops_all_and_0_drops_none():
    condition, empty = captions(64), no_caption()
    assert all(part.equal(none.expand_as(part)) for part, none in zip(drop_condition(condition, empty, 1.0), empty))
    assert all(part.equal(ours) for part, ours in zip(drop_condition(condition, empty, 0.0), condition))


# ----------------------------------------------------------------------------------------------------------- training


def test_a_mixture_is_noise_at_0_and_data_at_1():
    x, noise, t = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1), torch.tensor([0.0, 1.0, 0.25, 0.5])
    mixed = mix(x, noise, t)
    assert mixed[0].equal(noise[0]) and mixed[1].equal(x[1])
    torch.testing.assert_close(mixed[2:], torch.stack([0.25 * x[2] + 0.75 * noise[2], (x[3] + noise[3]) / 2]))


def test_the_loss_is_the_mean_squared_error_of_the_velocity():
    (x, noise, prediction), t = normal(3, 4, 3, 2, 2), torch.rand(4, generator=rng())
    losses = []
    for i in range(4):
        at = t[i] * x[i] + (1 - t[i]) * noise[i]
        velocity, predicted = x[i] - noise[i], (prediction[i] - at) / (1 - t[i])
        losses.append((predicted - velocity).square().mean())
    torch.testing.assert_close(denoising_loss(prediction, x, t), torch.stack(losses).mean())


def test_the_loss_of_a_perfect_prediction_is_0_everywhere():
    x, t = normal(3, 2), torch.tensor([0.0, 0.5, 1.0])
    assert denoising_loss(x, x, t) == 0
    torch.testing.assert_close(denoising_loss(x + 1, x, torch.ones(3)).item(), CLOSEST**-2)


def test_the_loss_of_a_prediction_in_bf16_is_taken_in_fp32():
    x, t = normal(64, 8), torch.rand(64, generator=rng())
    loss = denoising_loss(torch.zeros(64, 8, dtype=torch.bfloat16), x, t)
    assert loss.dtype == torch.float32 and loss == denoising_loss(torch.zeros(64, 8), x, t)


def test_times_are_logit_normal():
    t = random_times(100_000, generator=rng())
    assert t.min() > 0 and t.max() < 1 and t.shape == (100_000,)
    for deviations, share in ((-1, 0.1587), (0, 0.5), (1, 0.8413)):
        below = 1 / (1 + math.exp(-(LOGIT_MEAN + deviations * LOGIT_STD)))
        assert (t < below).float().mean().item() == pytest.approx(share, abs=0.006)


def test_the_median_time_is_031():
    assert random_times(100_000, generator=rng()).median().item() == pytest.approx(0.31, abs=0.005)


def test_the_expected_loss_is_that_of_predicting_0_at_random_times():
    x = 3 * normal(1000, 4) + 1
    t = random_times(1_000_000, generator=rng())
    measured = denoising_loss(torch.zeros(1000, 4), x, t[:1000]).item() / ((1 - t[:1000]) ** -2).mean().item()  # about E[x²]
    assert measured == pytest.approx(x.square().mean().item(), rel=0.1)
    weight = denoising_loss(torch.zeros(len(t)), torch.ones(len(t)), t).item()
    assert expected_loss(x) == pytest.approx(x.square().mean().item() * weight, rel=0.02)


@pytest.mark.parametrize("model, shape, condition", [
    (new_prior, (64, 6), captions(64)), (new_decoder, (64, 3, 16, 16), (normal(64, 6),)),
], ids=["prior", "decoder"])
def test_the_first_loss_of_a_new_model_is_that_of_predicting_0(model, shape, condition):
    x, noise, t = normal(*shape), normal(*shape, seed=1), random_times(64, generator=rng())
    prediction = model()(mix(x, noise, t), t, *condition)
    assert prediction.shape == shape
    torch.testing.assert_close(denoising_loss(prediction, x, t), (x / append_dims(1 - t, x)).square().mean(), rtol=0.03, atol=0)


# ---------------------------------------------------------------------------------------------------------- schedules


@each_schedule
def test_every_schedule_scales_and_times_each_example_by_its_t(schedule):
    x, t = normal(6, 3, 2), torch.tensor([1.0, 0.0, 0.2, 0.5, 0.8, 0.99])
    scaled, steps = SCHEDULES[schedule](x, t)
    torch.testing.assert_close(scaled[0], x[0])
    assert scaled.shape == x.shape and steps.shape == t.shape
    factors = scaled / x
    torch.testing.assert_close(factors, repeat(factors[:, 0, 0], "b -> b 3 2"))
    for i in range(6):
        one, step = SCHEDULES[schedule](x[i : i + 1], t[i : i + 1])
        assert one.equal(scaled[i : i + 1]) and step.equal(steps[i : i + 1])


@each_schedule
def test_every_schedules_steps_go_one_way_within_the_time_embedding(schedule):
    _, steps = SCHEDULES[schedule](normal(1001, 2), torch.linspace(0, 1, 1001))
    rises = steps.diff()
    assert (rises >= 0).all() or (rises <= 0).all()
    assert steps.min() >= 0 and steps.max() <= 1000 and abs(steps[0] - steps[-1]) > 900


@each_schedule
def test_in_every_schedule_a_prior_depends_on_time(schedule):
    prior, near = perturbed(new_prior(schedule=schedule)), torch.logspace(-6, 0, 30)
    t = torch.cat([torch.zeros(1), near, 1 - near])
    x = normal(1, 6).expand(len(t), 6)
    z = prior(x, t, *(part.expand(len(t), *part.shape[1:]) for part in captions(1)))
    assert z.isfinite().all()
    assert torch.cdist(z[:1], z).max() > 0.05
    assert draw_embeddings(prior, captions(2), no_caption(), steps=5, generator=rng()).isfinite().all()


@each_schedule
def test_a_prior_reads_x_and_the_time_as_its_schedule_gives_them(schedule):
    prior, x, t, read = new_prior(schedule=schedule), normal(3, 6), torch.tensor([0.1, 0.5, 0.9]), []
    for part in (prior.image_in, prior.time_in):
        part.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    prior(x, t, *captions(3))
    expected, steps = SCHEDULES[schedule](x, t)
    assert len(read) == 2 and any(part.equal(expected) for part in read) and any(part.equal(steps) for part in read)


def test_the_straight_path_is_read_as_it_is_with_time_in_thousandths():
    x, steps = SCHEDULES["straight"](normal(3, 2), torch.tensor([0.0, 0.25, 1.0]))
    assert x.equal(normal(3, 2)) and steps.tolist() == [0, 250, 1000]


def test_the_cosine_schedule_is_that_of_improved_ddpm():
    f = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2).square()
    alpha_bar = (f / f[0])[1:]  # [eq. 17]; its step 0 already holds a little noise
    x, noise = normal(2, 1000, 3, dtype=torch.float64)
    root, rest = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    read, steps = SCHEDULES["cosine"](mix(x, noise, root / (root + rest)), root / (root + rest))
    torch.testing.assert_close(read, root[:, None] * x + rest[:, None] * noise)
    assert steps.equal(torch.arange(1000, dtype=torch.float64))


def test_a_diffusion_step_is_the_loss_of_its_parts():
    x, z, none = torch.randn(6, 3, 4, 4), torch.randn(6, 5), torch.zeros(5)
    seen = []

    def model(noisy, t, z):
        seen.append((noisy, t, z))
        return noisy / 2

    torch.manual_seed(0)
    loss = diffusion_step(model, x, (z,), (none,), 0.5)
    torch.manual_seed(0)
    (condition,) = drop_condition((z,), (none,), 0.5)
    t = random_times(6)
    noisy = mix(x, torch.randn_like(x), t)
    assert all(a.equal(b) for a, b in zip(seen[0], (noisy, t, condition)))
    assert loss == denoising_loss(noisy / 2, x, t) and 0 < condition.eq(0).all(dim=1).sum() < 6
