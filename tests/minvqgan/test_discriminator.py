"""The patch discriminator."""

import pytest
import torch
from small_vqgan import pictures
from torch import nn

from minvqgan import InputError, PatchGAN, discriminator_loss


def test_patchgan_sees_70_pixels_at_three_layers_and_fits_32_pixels():
    net, images = PatchGAN(channels=4, layers=3).eval(), torch.randn(1, 3, 128, 128)
    scores = net(images.requires_grad_())
    assert scores.shape == (1, 1, 14, 14)
    scores[0, 0, 7, 7].backward()
    seen = images.grad[0].abs().sum(dim=0).nonzero()
    assert (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist() == [70, 70]
    assert PatchGAN(channels=4, layers=2)(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 6, 6)


def test_too_small_a_picture_and_too_few_layers_are_refused():
    with pytest.raises(InputError, match="fewer layers"):
        PatchGAN(channels=4)(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="0 layers: both must be at least 1"):
        PatchGAN(layers=0)


def test_patchgan_at_its_defaults_has_the_published_layers():
    parts = list(PatchGAN().modules())
    shapes = [tuple(part.weight.shape) for part in parts if isinstance(part, nn.Conv2d)]
    assert shapes == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4),
                      (1, 512, 4, 4)]
    assert [part.negative_slope for part in parts if isinstance(part, nn.LeakyReLU)] == 4 * [0.2]
    assert sum(isinstance(part, nn.BatchNorm2d) for part in parts) == 3


def test_forty_steps_of_the_discriminator_halve_its_loss():
    torch.manual_seed(0)
    discriminator, images = PatchGAN(channels=8, layers=1), pictures()
    fakes, losses = images + 0.3 * torch.randn_like(images), []
    optimiser = torch.optim.Adam(discriminator.parameters(), 2e-3)
    for _ in range(40):
        loss = discriminator_loss(discriminator, images, fakes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
