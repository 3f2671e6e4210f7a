"""The losses of generator and discriminator, and PSNR, each by hand."""

import math

import pytest
import torch
from einops import rearrange
from small_vqgan import pictures, small

from minvqgan import (PatchGAN, adaptive_weight, discriminator_loss, generator_loss, psnr,
                      reconstruction_loss)


def test_reconstruction_loss_is_exact():
    blank, contrasty = torch.full((3, 2, 2), 0.5), torch.tensor([-1.0, 1.0]).expand(3, 2, 2)
    images = torch.stack([blank, contrasty])
    change = rearrange(torch.tensor([0.1, -0.2]), "b -> b 1 1 1")
    # the square counts more where the picture is blank
    expected = (0.1 + (1 + 0.3 / 0.01) * 0.1**2 + 0.2 + (1 + 0.3 / 1.01) * 0.2**2) / 2
    assert reconstruction_loss(images, images + change).item() == pytest.approx(expected)


def test_the_hinge_loss_of_the_discriminator_is_exact():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    loss = discriminator_loss(torch.nn.Identity(), real, fake)
    assert loss.item() == pytest.approx(0.5 * ((0.5 + 2) / 3 + (1 + 2) / 3))


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
    loss, parts = generator_loss(images, reconstruction, quantised.loss, model.last_weight,
                                 discriminator, adversarial_weight=0.5)
    pixels, adversarial = (reconstruction_loss(images, reconstruction),
                           -discriminator(reconstruction).mean())
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


def test_psnr_is_ten_decibels_per_factor_of_ten_and_at_most_106():
    images = torch.zeros(4, 3, 2, 2)
    changed = images.clone()
    changed[0] = 0.2          # 4 / 0.04 = 100
    changed[1, 0, 0, 0] = 1   # 4 / (1 / 12) = 48
    changed[2] = 2            # the whole range
    expected = [20, 10 * math.log10(48), 0, 10 * math.log10(4e10)]
    assert psnr(images, changed).tolist() == pytest.approx(expected, abs=1e-4)
