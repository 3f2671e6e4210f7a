"""Say what generator (encoder, codebook, decoder) and discriminator want of each other [VQGAN eq. 4-7].

A training step moves the generator, then the discriminator, which is None until its first step, or for good:

    reconstruction, quantised = vqgan(images)
    loss, parts = generator_loss(images, reconstruction, quantised.loss, vqgan.last_weight, discriminator)
    generator_optimiser.zero_grad(); loss.backward(); generator_optimiser.step()

    if discriminator is not None:
        loss = discriminator_loss(discriminator, images, reconstruction)
        discriminator_optimiser.zero_grad(); loss.backward(); discriminator_optimiser.step()

The generator's backward leaves gradients in the discriminator too: its `zero_grad` must come between the two.
"""

from typing import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Pair = Callable[[Tensor, Tensor], Tensor]  # two batches of images (b 3 h w) -> how far apart, any shape


def reconstruction_loss(images: Tensor, reconstruction: Tensor, perceptual: Pair | None = None) -> Tensor:
    """Return mean |x - x̂| + (x - x̂)² · (1 + 0.3 / (variance + 0.01)) of images (b 3 h w), plus mean perceptual(x, x̂).

    The paper writes the square [VQGAN eq. 4], its code takes the absolute value. Its
    gradient is no larger for a shape that is missing than for a faint haze: alone it taught the toy far more slowly.
    The 0.3 asks how much is wrong of what there is to see, a picture's variance: without it a small star on gray weighs
    next to nothing beside a large heart on white, and stays a blob. 0.01 keeps blank pictures from outweighing all.

    perceptual: LPIPS or the like; None leaves its part out
    """
    difference = images - reconstruction
    variance = images.var(dim=(2, 3), correction=0).mean(dim=1) + 0.01                       # (b)
    weight = rearrange(1 + 0.3 / variance, "b -> b 1 1 1")
    loss = (difference.abs() + weight * difference.square()).mean()
    return loss if perceptual is None else loss + perceptual(images, reconstruction).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """Return -mean D(x̂), given scores of any shape: the generator wants its pictures' scores to rise."""
    return -fake.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return ½ (mean relu(1 - real) + mean relu(1 + fake)): scores past 1 and -1 are good enough."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """Return λ = ‖∇reconstruction‖ / (‖∇adversarial‖ + 1e-4), a constant () in [0, 1e4] [VQGAN eq. 7].

    Both gradients are those of a loss () at the decoder's last convolution. Multiplied by λ, the adversarial
    loss pulls there as hard as the reconstruction does, whatever the scale of the discriminator's scores.
    """
    wanted, = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
    actual, = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return (wanted.norm() / (actual.norm() + 1e-4)).clamp(0, 1e4)


def generator_loss(images: Tensor, reconstruction: Tensor, codebook_loss: Tensor, last_weight: Tensor,
                   discriminator: nn.Module | None = None, adversarial_weight: float = 0.8,
                   perceptual: Pair | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what the generator lowers, reconstruction + codebook + weight · λ · adversarial, and its parts.

    images, reconstruction: (b 3 h w) in [-1, 1]
    codebook_loss, last_weight: Quantised.loss, and where λ is measured
    discriminator: None leaves the adversarial part out
    returns: the loss () and a dict of its parts, detached, for the log
    """
    pixels = reconstruction_loss(images, reconstruction, perceptual)
    loss = pixels + codebook_loss
    parts = {"reconstruction": pixels.detach(), "codebook": codebook_loss.detach()}
    if discriminator is not None:
        adversarial = hinge_generator(discriminator(reconstruction))
        weight = adversarial_weight * adaptive_weight(pixels, adversarial, last_weight)
        loss = loss + weight * adversarial
        parts |= {"adversarial": adversarial.detach(), "adversarial_weight": weight}
    return loss, parts


def discriminator_loss(discriminator: nn.Module, images: Tensor, reconstruction: Tensor) -> Tensor:
    """Return what the discriminator lowers, the hinge loss of telling images from reconstruction (b 3 h w).

    The reconstruction is detached: this loss would teach the generator to be found out.
    """
    return hinge_discriminator(discriminator(images), discriminator(reconstruction.detach()))
