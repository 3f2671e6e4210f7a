"""Guiding a picture, against exact values or a model of known colours."""

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

from minvqgan import (VQGAN, InputError, guide, parse_prompts, prompt_score, random_cutouts,
                      spherical_distance)
from minvqgan.guide import add_up, decode_clamped, octave_grids, resample


@pytest.fixture(scope="module")
def painter() -> VQGAN:
    """Build a VQGAN of 64 colours in the place of networks: a code paints 2 x 2 pixels."""
    model = VQGAN(dataclasses.replace(SMALL, codebook_size=64, codebook_dim=3))
    model.encoder, model.decoder = nn.AvgPool2d(2), nn.Upsample(scale_factor=2)
    model.to_codebook, model.from_codebook = nn.Identity(), nn.Identity()
    level = torch.linspace(-1, 1, 4)
    model.codebook.vectors.data = torch.cartesian_prod(level, level, level)
    return model.eval()


@pytest.fixture
def seen(painter, monkeypatch) -> list[torch.Tensor]:
    """Record the latents that the codebook is asked to quantise."""
    latents, forward = [], painter.codebook.forward
    monkeypatch.setattr(painter.codebook, "forward",
                        lambda z: latents.append(z.detach().clone()) or forward(z))
    return latents


def guided(painter: VQGAN, score=redness, seed: int = 0, **options) -> list[torch.Tensor]:
    options = dict(steps=1, cutouts=2, cut_size=8) | options
    return list(guide(painter, score, generator=seeded(seed), **options))


@pytest.mark.parametrize("latent_noise", [0.0, 1.0])
def test_guide_raises_its_score_far_above_the_start(painter, latent_noise):
    walk = guided(painter, steps=40, cutouts=4, latent_noise=latent_noise)
    assert len(walk) == 40 and walk[0].shape == (1, 3, 16, 16) and walk[-1].abs().max() <= 1
    assert redness(walk[-1]).item() > redness(walk[0]).item() + 2


def test_guide_starts_from_the_picture_it_is_given(painter):
    blue = repeat(torch.tensor([-1.0, -1.0, 1.0]), "c -> 2 c h w", h=16, w=16)
    first, = guided(painter, init=blue)
    assert torch.equal(first, blue)  # one step is too small to change a code


def test_guide_starts_as_many_pictures_as_asked_each_from_its_own_codes(painter):
    first, = guided(painter, count=3)
    assert first.shape == (3, 3, 16, 16)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


def test_latent_noise_gives_each_cutout_its_own_picture_ever_less_noisy(painter, seen):
    guided(painter, steps=4, cutouts=50, init=torch.zeros(2, 3, 16, 16), latent_noise=0.5,
           learning_rate=1e-6)
    assert all(len(z) in (2, 100) for z in seen)
    spread = painter.codebook.vectors.detach().std(dim=0).mean()
    stds = [(z.std() / spread).item() for z in seen if len(z) == 100]
    assert stds == pytest.approx([0.5, 0.375, 0.25, 0.125], rel=0.05)


@pytest.mark.parametrize("octaves", [1, 3, 9])  # grids of 8 x 8, 4 x 4, 2 x 2, 1 x 1 ...
def test_each_octave_adds_its_own_step_to_the_latents(painter, seen, octaves):
    guided(painter, cutouts=50, init=torch.zeros(1, 3, 16, 16), octaves=octaves, learning_rate=0.01)
    moved = (seen[-1] - seen[0])[:, 0]  # Adam's first step is as long as its learning rate
    assert torch.allclose(moved, torch.tensor(0.01 * octaves), atol=1e-5)


def test_grids_of_all_octaves_add_up_to_the_latents_they_started_as():
    z = torch.randn(2, 3, 8, 12, generator=seeded())
    grids = octave_grids(z, 5)
    sides = [tuple(grid.shape[2:]) for grid in grids]
    assert sides == [(8, 12), (4, 6), (2, 3), (1, 1), (1, 1)]
    assert torch.equal(add_up(grids), z) and torch.equal(add_up(octave_grids(z, 1)), z)
    grids[2] += 0.5
    assert torch.allclose(add_up(grids), z + 0.5)


@pytest.mark.parametrize("latent_noise", [0.0, 1e-6])
@pytest.mark.parametrize("jitter, expected", [(0.0, 0.0), (0.6, 0.3)])
def test_jitter_adds_noise_to_the_pixels_that_are_scored(painter, latent_noise, jitter, expected):
    scored, gray = [], repeat(torch.tensor(1 / 3), "-> 1 3 h w", h=16, w=16)
    guided(painter, lambda images: scored.append(images.detach()) or redness(images), cutouts=50,
           init=gray, latent_noise=latent_noise, jitter=jitter)
    assert scored[0].std(dim=(2, 3)).mean().item() == pytest.approx(expected, abs=0.05)


def test_latents_are_brought_back_to_the_codes_range_after_each_step(painter, seen):
    guided(painter, steps=30)
    assert len(seen) == 31 and max(z.abs().max() for z in seen) == 1


def test_pixels_that_overshoot_are_clamped_and_keep_their_gradient(painter):
    bright, z = copy.deepcopy(painter), torch.full((1, 3, 4, 4), 2.0, requires_grad=True)
    bright.codebook.vectors.data *= 2
    images = decode_clamped(bright, z)
    images.sum().backward()
    assert (images == 1).all() and (z.grad > 0).all()


@pytest.mark.parametrize("latent_noise", [0.0, 1.0])
def test_the_generators_seed_alone_decides_the_images(painter, latent_noise):
    def walk(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.seed() % 1000)
        return torch.stack(guided(painter, seed=seed, steps=3, latent_noise=latent_noise))

    assert torch.equal(walk(0), walk(0)) and not torch.equal(walk(0)[0], walk(1)[0])


def test_guide_trains_nothing_and_works_under_no_grad(painter):
    before = {name: tensor.clone() for name, tensor in painter.state_dict().items()}
    painter.zero_grad(set_to_none=True)
    with torch.no_grad():
        for _ in guide(painter, redness, steps=2, cutouts=2, cut_size=8):
            assert not torch.is_grad_enabled()
    assert all(torch.equal(tensor, before[name]) for name, tensor in painter.state_dict().items())
    assert all(p.grad is None for p in painter.parameters())


def test_guide_refuses_a_model_in_training_mode():
    with pytest.raises(ValueError, match="eval"):
        next(guide(VQGAN(SMALL), redness, steps=1))


def test_the_score_sees_all_cutouts_in_one_call(painter):
    shapes = []
    guided(painter, lambda images: shapes.append(tuple(images.shape)) or redness(images), steps=2,
           cutouts=5, cut_size=12, init=torch.zeros(3, 3, 16, 16))
    assert shapes == [(15, 3, 12, 12)] * 2


def test_negative_weights_push_away_from_their_target(painter):
    embed = lambda images: images.mean(dim=(2, 3)) + 1.5  # a stand-in for CLIP: the mean colour
    red = torch.tensor([[2.5, 0.5, 0.5]])

    def distance_after(weight: float) -> float:
        score = prompt_score(embed, red, torch.tensor([weight]))
        last = guided(painter, score, steps=30, cutouts=4)[-1]
        return spherical_distance(embed(last), red).item()

    assert distance_after(1.0) < 0.02 < 0.3 < distance_after(-1.0)


def test_prompt_score_is_the_weighted_sum_of_distances_by_hand():
    targets, weights = torch.eye(3)[:2], torch.tensor([2.0, -0.5])
    features = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    quarter = math.pi**2 / 8  # half the square of a right angle
    score = prompt_score(lambda x: x, targets, weights)(features)
    assert torch.allclose(score, quarter * torch.tensor([0.5, -2, -1.5]), atol=1e-4)


def test_spherical_distance_is_half_the_squared_angle_with_a_finite_gradient():
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
def test_cutouts_have_many_sizes_and_every_pixel_is_seen(side, size):
    ramp = repeat(torch.linspace(-1, 1, side), "w -> 2 c h w", c=3, h=side).clone()
    cut = random_cutouts(ramp.requires_grad_(), 64, size, seeded(), jitter=0.0)
    assert cut.shape == (2 * 64, 3, size, size)
    widths = (cut[:, 0, 0, -1] - cut[:, 0, 0, 0]) / 2  # the fraction of the ramp in each
    assert widths.min() < 0.55 and widths.max() > 0.9 and widths.std() > 0.08
    cut.sum().backward()
    assert (ramp.grad > 0).all()


@pytest.mark.parametrize("smallest, latent_noise", [(0.5, 0.0), (0.8, 0.0), (0.8, 1e-6)])
def test_no_cutout_is_smaller_than_the_smallest(painter, monkeypatch, smallest, latent_noise):
    lengths = []
    monkeypatch.setattr(sys.modules["minvqgan.guide"], "resample", lambda start, length, *sides:
                        lengths.append(length) or resample(start, length, *sides))
    guided(painter, cutouts=200, smallest=smallest, latent_noise=latent_noise)
    fractions = torch.cat(lengths).flatten() / 16
    assert smallest <= fractions.min() < smallest + 0.02 and 0.98 < fractions.max() <= 1


def test_cutouts_of_one_picture_hold_nothing_of_another():
    images = torch.stack([torch.ones(3, 16, 16), -torch.ones(3, 16, 16)])
    cut = random_cutouts(images, 5, 8, seeded(), jitter=0.0)
    assert torch.allclose(cut[:5], images[0].mean()) and torch.allclose(cut[5:], images[1].mean())


def test_jitter_changes_brightness_and_adds_noise():
    cut = random_cutouts(torch.zeros(1, 3, 16, 16), 50, 16, seeded(), jitter=0.1)
    assert 0.05 < cut.mean(dim=(1, 2, 3)).std() < 0.2 and 0.02 < cut.std(dim=(1, 2, 3)).mean() < 0.1


@pytest.mark.parametrize("prompts, expected", [
    ("a red circle: 1 | blue: -0.3", [("a red circle", 1.0), ("blue", -0.3)]),
    ("a red circle", [("a red circle", 1.0)]),
    ("a sign that says: stop", [("a sign that says: stop", 1.0)]),
    ("title: subtitle: 2", [("title: subtitle", 2.0)]),
    ("a grandmother: nan", [("a grandmother: nan", 1.0)]),
    ("a clock at 10:30:1", [("a clock at 10:30", 1.0)]), ("x:.5", [("x", 0.5)]),
])
def test_prompts_are_split_into_texts_and_weights(prompts, expected):
    assert parse_prompts(prompts) == expected


@pytest.mark.parametrize("prompts", ["", "red | ", ": 2", "red || blue"])
def test_a_prompt_without_text_is_refused(prompts):
    with pytest.raises(InputError, match="no text"):
        parse_prompts(prompts)
