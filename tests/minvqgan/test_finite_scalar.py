"""Finite scalar quantisation, against its paper."""

import math

import pytest
import torch
from einops import rearrange
from small_vqgan import seeded
from torch import nn

import minvqgan.codebook
from minvqgan import FiniteScalar, InputError, VQGANConfig

every_levels = pytest.mark.parametrize("levels", [(8, 8, 8), (8, 5, 5, 5), (2, 3), (7,)])


def fsq(*levels: int) -> FiniteScalar:
    """Build one whose convolutions change nothing: z are the scalars, z_q points of the grid."""
    book = FiniteScalar(len(levels), levels)
    for conv in (book.project_in, book.project_out):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    return book


@every_levels
def test_every_code_is_one_point_of_the_grid_and_can_be_reached(levels):
    book, codes = fsq(*levels), rearrange(torch.arange(math.prod(levels)), "v -> v 1 1")
    points = book.lookup(codes)
    sides = [torch.arange(-(count // 2), (count + 1) // 2) / (count // 2) for count in levels]
    grid = torch.stack(torch.meshgrid(*sides[::-1], indexing="ij"))  # the first runs fastest
    grid = rearrange(grid, "s ... -> (...) s").flip(1)
    assert torch.equal(rearrange(points, "v s 1 1 -> v s"), grid)
    half = (book.levels - 1) / 2
    offset = half % 1
    inside = (points * (book.levels // 2) + offset) / half * 0.99  # tanh never reaches 1
    out = book(inside.atanh() - (offset / half).tan())
    assert torch.equal(out.codes, codes) and torch.allclose(out.z_q, points, atol=1e-6)


@every_levels
def test_fsq_computes_what_the_code_in_its_papers_appendix_does(levels):
    z = 2 * torch.randn(5, len(levels), 4, 4, generator=seeded())
    out, count = fsq(*levels)(z), torch.tensor(levels)
    zhat = rearrange(z, "b s h w -> b h w s")
    half_l, offset = (count - 1) / 2, torch.where(count % 2 == 1, 0.0, 0.5)
    zhat = torch.tanh(zhat + torch.tan(offset / half_l)) * half_l - offset
    digits, basis = zhat.round(), torch.tensor([1, *levels[:-1]]).cumprod(dim=0)
    expected = digits / (count // 2)
    assert torch.allclose(rearrange(out.z_q, "b s h w -> b h w s"), expected, atol=1e-6)
    assert torch.equal(out.codes, ((digits + count // 2) * basis).sum(dim=-1).round().long())


@every_levels
def test_any_z_stays_on_the_grid_and_zero_is_not_between_levels(levels):
    book = fsq(*levels)
    for far in (-1e9, -9.0, 9.0, 1e9):
        codes = book(torch.full((1, len(levels), 2, 2), far)).codes
        assert (codes == (0 if far < 0 else math.prod(levels) - 1)).all()
    assert book.bound(torch.zeros(1, len(levels), 1, 1)).abs().max() < 0.05


def test_fsq_has_the_gradient_of_tanh_and_none_without_straight_through(monkeypatch):
    z = torch.randn(2, 2, 3, 3, generator=seeded()).requires_grad_()
    fsq(5, 7)(z).z_q.sum().backward()  # half the levels, divided by the same
    assert torch.allclose(z.grad, 1 - z.tanh().square(), atol=1e-6)
    monkeypatch.setattr(minvqgan.codebook, "straight_through", lambda z, z_q: z_q)
    z.grad = None
    fsq(5, 7)(z).z_q.sum().backward()
    assert z.grad is None or z.grad.abs().sum() == 0


def test_fsq_adds_nothing_to_the_loss():
    loss = fsq(8, 8, 8)(torch.randn(2, 3, 4, 4)).loss
    assert loss == 0 and not loss.requires_grad


@pytest.mark.parametrize("changes, remedy", [
    (dict(levels=(8, 8, 4)), r"\(8, 8, 4\) make 256 codes.*codebook_size to 256.*product is 512"),
    (dict(codebook_size=1024), "make 512 codes.*codebook_size to 512.*product is 1024"),
    (dict(levels=(512, 1)), "at least 2"), (dict(levels=(), codebook_size=1), "at least 2"),
])
def test_levels_that_do_not_make_the_codebook_size_are_refused(changes, remedy):
    with pytest.raises(InputError, match=remedy):
        VQGANConfig(quantiser="fsq", **changes)
    VQGANConfig(quantiser="nearest", **changes)
