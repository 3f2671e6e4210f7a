"""What variations, interpolations and edits by DALL·E 2 promise, against a denoiser in closed form."""

import math

import pytest
import torch
import torch.nn.functional as F

from mindalle import InputError
from mindalle.unclip import edit, even_times, interpolate, slerp, variations
from small_unclip import STD, TIMES_64, ClosedForm, centre, images_and_embeddings, normal, rng


@pytest.mark.parametrize("shape", [(6,), (3, 4, 4)], ids=str)
def test_equal_steps_of_slerp_are_equal_angles_at_unit_length(shape):
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


def test_between_noises_of_different_length_the_middle_is_no_shorter():
    a, b = normal(3, 16, 16), 1.1 * normal(3, 16, 16, seed=1)
    first, middle, last = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(first, a), torch.testing.assert_close(last, b)
    assert a.norm() < middle.norm() < b.norm() and torch.lerp(a, b, 0.5).norm() < 0.8 * a.norm()


@pytest.mark.parametrize("apart", [0.0, 1e-5, 1e-4, 3e-3])
def test_between_nearly_equal_vectors_nothing_is_divided_by_0(apart):
    a, shares = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.25, 1.0])
    b = F.normalize(a + torch.tensor([0.0, apart, 0.0]), dim=0)
    torch.testing.assert_close(slerp(a, b, shares), a + shares[:, None] * (b - a), rtol=0, atol=1e-6)


def test_between_a_vector_and_itself_lies_that_vector():
    for a in normal(200, 48):
        torch.testing.assert_close(slerp(a, a, torch.tensor([0.0, 0.5, 1.0])), a.expand(3, 48))


def test_opposite_vectors_are_refused():
    a = normal(6)
    with pytest.raises(InputError, match="the two are opposite"):
        slerp(a, -2 * a, torch.tensor([0.5]))
    assert slerp(a, -a + 0.1 * normal(6, seed=1), torch.tensor([0.5])).isfinite().all()


def test_variations_without_eta_are_the_image_itself():
    image, z, _ = images_and_embeddings(1)
    errors = [(variations(ClosedForm(), image, z, 3, even_times(n), eta=0) - image).abs().max().item() for n in (16, 64, 256)]
    assert all(later < error / 3 for error, later in zip(errors, errors[1:])) and errors[-1] < 0.02


def test_variations_keep_the_embedding_and_differ_from_each_other():
    image, z, noise = images_and_embeddings(1)
    denoiser = ClosedForm()
    drawn = variations(denoiser, image, z, 40, TIMES_64, generator=rng())
    assert drawn.shape == (40, 3, 4, 4) and all(used.equal(z.expand_as(used)) for used in denoiser.embeddings)
    remainder = (drawn - centre(z)) / STD  # all that z does not determine: noise again, independent in each
    assert remainder.std().item() == pytest.approx(1, abs=0.1) and remainder.mean().abs() < 0.1
    correlations = torch.corrcoef(torch.cat([noise, remainder]).flatten(1))
    assert (correlations - torch.eye(41)).abs().max() < 0.7 and (correlations - torch.eye(41)).abs().mean() < 0.2


def test_the_higher_eta_the_less_of_the_image_is_left():
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


def test_an_edit_adds_the_captions_difference_and_keeps_unit_length():
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


def test_an_edit_of_strength_0_gives_the_image_back():
    image, z, _ = images_and_embeddings(1)
    denoiser = ClosedForm()
    drawn = edit(denoiser, image, z, normal(6, seed=33), normal(6, seed=34), torch.tensor([0.0, 0.25, 0.5]), even_times(256))
    torch.testing.assert_close(drawn[:1], image, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn - image, centre(denoiser.embeddings[1] - z), rtol=0, atol=0.03)


def test_an_edit_between_captions_of_the_same_embedding_is_refused():
    image, z, _ = images_and_embeddings(1)
    with pytest.raises(InputError, match="the two captions have the same embedding"):
        edit(ClosedForm(), image, z, normal(6), normal(6), torch.tensor([0.5]), TIMES_64)
