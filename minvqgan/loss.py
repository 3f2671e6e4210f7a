"""State what generator (encoder, codebook, decoder) and discriminator want of each other [VQGAN eq. 4 to 7].

One training step moves first the generator, then the discriminator:

    reconstruction, quantised = vqgan(images)
    playing = discriminator if step >= discriminator_start else None
    loss, parts = generator_loss(images, reconstruction, quantised.loss, vqgan.last_weight, playing)
    optimiser_g.zero_grad(); loss.backward(); optimiser_g.step()
    if playing is not None:
        loss = discriminator_loss(playing, images, reconstruction)
        optimiser_d.zero_grad(); loss.backward(); optimiser_d.step()

The generator's backward leaves gradients in the discriminator too: `optimiser_d.zero_grad()` must come after it.
"""

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(images: Tensor, reconstruction: Tensor,
                        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """Measure mean |x - x̂| over images (b 3 h w), plus the mean of perceptual(x, x̂) if given (LPIPS in the paper)."""
    loss = (images - reconstruction).abs().mean()
    return loss if perceptual is None else loss + perceptual(images, reconstruction).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """Return -mean D(x̂): the generator wants the scores of its pictures, of any shape, to rise."""
    return -fake.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return ½ (mean relu(1 - real) + mean relu(1 + fake)): real above 1 and fake below -1 is all it wants."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """Return λ = ‖∇reconstruction‖ / (‖∇adversarial‖ + 1e-4), in [0, 1e4] [VQGAN eq. 7].

    Both losses () are differentiated at the decoder's last convolution. Scaled by λ, the adversarial loss pulls
    there as hard as the reconstruction does, whatever the discriminator's scale; λ itself is a constant.
    """
    wanted, = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
    actual, = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return (wanted.norm() / (actual.norm() + 1e-4)).clamp(0, 1e4).detach()


def generator_loss(images: Tensor, reconstruction: Tensor, codebook_loss: Tensor, last_weight: Tensor,
                   discriminator: Callable[[Tensor], Tensor] | None = None, adversarial_weight: float = 0.8,
                   perceptual: Callable[[Tensor, Tensor], Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum what the generator minimises: reconstruction + codebook + weight · λ · adversarial.

    images, reconstruction: (b 3 h w), the second with its gradient; codebook_loss: (), from Quantised
    last_weight: the decoder's last convolution, for λ
    discriminator: None leaves the adversarial part out: before it starts, or to train without one
    returns: the loss () and its parts by name, detached, for the log
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


def discriminator_loss(discriminator: Callable[[Tensor], Tensor], images: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the hinge loss of telling images from reconstruction, both (b 3 h w).

    The reconstruction is detached: or else this loss would train the generator too, to be told apart more easily.
    """
    return hinge_discriminator(discriminator(images), discriminator(reconstruction.detach()))
