"""Losses of the generator (encoder, codebook, decoder) and the discriminator [VQGAN eq. 4-7].

A training step updates the generator, then the discriminator, which is None until its training
starts, or where there is none:

    reconstruction, quantised = vqgan(images)
    loss, parts = generator_loss(images, reconstruction, quantised.loss, vqgan.last_weight,
                                 discriminator)
    generator_optimiser.zero_grad(); loss.backward(); generator_optimiser.step()

    if discriminator is not None:
        loss = discriminator_loss(discriminator, images, reconstruction)
        discriminator_optimiser.zero_grad(); loss.backward(); discriminator_optimiser.step()

The generator's backward leaves gradients in the discriminator too: its `zero_grad` must come
between the two.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def reconstruction_loss(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the loss of x, images, and x̂, reconstruction (b 3 h w), over pixels.

    It is the mean of |x - x̂| + (x - x̂)² · (1 + 0.3 / (variance of x + 0.01)). The paper writes
    the square [VQGAN eq. 4], its code the absolute value. The gradient of the absolute value is no
    larger for a missing shape than for a faint haze: alone it trained the toy far more slowly.
    The term with 0.3 measures the error relative to how much the image shows, its variance: without
    it a small star on gray counts next to nothing beside a large heart on white, and stays a blob.
    The 0.01 keeps blank images from outweighing all others.
    """
    difference = images - reconstruction
    variance = images.var(dim=(2, 3), correction=0).mean(dim=1) + 0.01            # (b)
    weight = rearrange(1 + 0.3 / variance, "b -> b 1 1 1")
    return (difference.abs() + weight * difference.square()).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """Return λ = ‖∇reconstruction‖ / (‖∇adversarial‖ + 1e-4), at most 1e4 [VQGAN eq. 7].

    Both gradients are those of a loss () at the decoder's last convolution. Multiplied by λ, the
    adversarial loss has as large a gradient there as the reconstruction loss, whatever the scale of
    the discriminator's scores. The bound and 1e-4 are from the authors' code; the paper has 1e-6
    and no bound.
    """
    def gradient_norm(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, last_weight, retain_graph=True)[0].norm()

    return (gradient_norm(reconstruction) / (gradient_norm(adversarial) + 1e-4)).clamp(0, 1e4)


def generator_loss(
    images: Tensor, reconstruction: Tensor, codebook_loss: Tensor, last_weight: Tensor,
    discriminator: nn.Module | None = None, adversarial_weight: float = 0.8,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return reconstruction + codebook + adversarial_weight · λ · adversarial loss, and its parts.

    images, reconstruction: (b 3 h w) in [-1, 1]
    codebook_loss, last_weight: Quantised.loss, and the weight at which λ is measured
    discriminator: None leaves the adversarial term out
    returns: the loss () and a dict of its parts, detached, for the log
    """
    pixels = reconstruction_loss(images, reconstruction)
    loss = pixels + codebook_loss
    parts = {"reconstruction": pixels.detach(), "codebook": codebook_loss.detach()}
    if discriminator is not None:
        adversarial = -discriminator(reconstruction).mean()  # raises reconstructions' scores
        weight = adversarial_weight * adaptive_weight(pixels, adversarial, last_weight)
        loss = loss + weight * adversarial
        parts |= {"adversarial": adversarial.detach(), "adversarial_weight": weight}
    return loss, parts


def discriminator_loss(discriminator: nn.Module, images: Tensor, reconstruction: Tensor) -> Tensor:
    """Return ½ (mean relu(1 - D(x)) + mean relu(1 + D(x̂))), the hinge loss of x, images, and x̂.

    Scores past 1 and -1 have no gradient. The reconstruction (b 3 h w) is detached: this loss must
    not train the generator to be recognised.
    """
    real, fake = discriminator(images), discriminator(reconstruction.detach())
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Compare images (b 3 h w) in [-1, 1] -> (b) in decibels; the peak-to-peak range is 2."""
    squares = rearrange((images - others).square(), "b c h w -> b (c h w)")
    return 10 * torch.log10(4 / squares.mean(dim=1).clamp(min=1e-10))
