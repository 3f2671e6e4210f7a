"""Claims about guiding a picture with minvqgan, each against exact values or a model of known colours."""

import copy
import dataclasses
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from einops import repeat
from small_vqgan import SMALL, redness, seeded
from torch import nn

from minvqgan import STARTS, VQGAN, InputError, guide, parse_prompts, prompt_score, random_cutouts, spherical_distance
from minvqgan.guide import add_up, decode_clamped, octave_grids, resample, starting_latents


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
    z = starting_latents(painter, None, "blank", 1, None)
    mean = painter.codebook.vectors.detach().mean(dim=0)
    assert z.shape == (1, 3, 8, 8) and torch.allclose(z, repeat(mean, "z -> 1 z 8 8"), atol=1e-6)


def test_with_latent_noise_each_cutout_comes_from_a_picture_of_its_own_ever_less_noisy(painter, monkeypatch):
    seen, quantise = [], painter.quantise
    monkeypatch.setattr(painter, "quantise", lambda z: seen.append(z.detach().clone()) or quantise(z))
    gray = torch.zeros(2, 3, 16, 16)
    list(guide(painter, redness, steps=4, cutouts=50, cut_size=8, init=gray, latent_noise=0.5, learning_rate=1e-6,
               generator=seeded()))
    noisy = [z for z in seen if len(z) == 100]
    assert all(len(z) == 2 for z in seen if len(z) != 100)
    spread = painter.codebook.vectors.detach().std(dim=0).mean()
    assert [(z.std() / spread).item() for z in noisy] == pytest.approx([0.5, 0.375, 0.25, 0.125], rel=0.05)


def test_each_octave_adds_its_own_step_to_all_the_latents_that_it_covers(painter, monkeypatch):
    def moved(octaves):
        seen, quantise = [], painter.quantise
        monkeypatch.setattr(painter, "quantise", lambda z: seen.append(z.detach().clone()) or quantise(z))
        list(guide(painter, redness, steps=1, cutouts=50, cut_size=8, init=torch.zeros(1, 3, 16, 16), octaves=octaves,
                   learning_rate=0.01, generator=seeded()))
        monkeypatch.undo()
        return seen[-1] - seen[0]
    for octaves in (1, 3, 9):  # Adam's first step is as long as its learning rate; the grids: 8 x 8, 4 x 4, 2 x 2, 1 x 1 ...
        assert torch.allclose(moved(octaves)[:, 0], torch.tensor(0.01 * octaves), atol=1e-5)


def test_grids_of_all_octaves_add_up_to_the_latents_that_they_started_as():
    z = torch.randn(2, 3, 8, 12, generator=seeded())
    grids = octave_grids(z, 5)
    assert [tuple(grid.shape[2:]) for grid in grids] == [(8, 12), (4, 6), (2, 3), (1, 1), (1, 1)]
    assert torch.equal(add_up(grids), z) and torch.equal(add_up(octave_grids(z, 1)), z)
    grids[2] += 0.5
    assert torch.allclose(add_up(grids), z + 0.5)


@pytest.mark.parametrize("start", ["codes", "noise"])
def test_guide_starts_as_many_pictures_as_asked_each_from_latents_of_its_own(painter, start):
    first = next(guide(painter, redness, steps=1, cutouts=2, cut_size=8, start=start, count=3, generator=seeded()))
    assert first.shape == (3, 3, 16, 16)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


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


@pytest.mark.parametrize("latent_noise", [0.0, 1e-6])
@pytest.mark.parametrize("smallest", [0.5, 0.8])
def test_no_cutout_is_smaller_than_the_smallest(painter, monkeypatch, smallest, latent_noise):
    lengths, module = [], sys.modules["minvqgan.guide"]
    monkeypatch.setattr(module, "resample", lambda start, length, *sides: lengths.append(length) or resample(start, length, *sides))
    list(guide(painter, redness, steps=1, cutouts=200, cut_size=8, smallest=smallest, latent_noise=latent_noise, generator=seeded()))
    shares = torch.cat(lengths).flatten() / 16
    assert smallest <= shares.min() < smallest + 0.02 and 0.98 < shares.max() <= 1


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
