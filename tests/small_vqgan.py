"""A small VQGAN for the tests of minvqgan: config, pictures, training, a score, its file."""

import dataclasses

import torch

from minvqgan import VQGAN, VQGANConfig, generator_loss

SMALL = VQGANConfig(image_size=16, channels=8, multipliers=(1, 2), z_channels=16, codebook_size=32,
                    codebook_dim=4)
GUMBEL = dataclasses.replace(SMALL, quantiser="gumbel")
FSQ = dataclasses.replace(SMALL, quantiser="fsq", levels=(4, 8))


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def pictures(count: int = 4, side: int = 16) -> torch.Tensor:
    """Make flat-coloured images with a square of another colour."""
    colours = torch.rand(count, 2, 3, 1, 1, generator=seeded(7)) * 2 - 1
    images = colours[:, 0].repeat(1, 1, side, side)
    images[:, :, side // 4 : side // 2, side // 4 : side // 2] = colours[:, 1]
    return images


def step(model: VQGAN, optimiser: torch.optim.Optimizer, images: torch.Tensor) -> None:
    """Take one training step without a discriminator."""
    reconstruction, quantised = model(images)
    loss, _ = generator_loss(images, reconstruction, quantised.loss, model.last_weight)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def trained(steps: int, config: VQGANConfig = SMALL) -> VQGAN:
    """Train a small VQGAN on one batch, and return it in eval mode."""
    torch.manual_seed(0)
    model = VQGAN(config)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        step(model, optimiser, pictures())
    return model.eval()


def small(config: VQGANConfig = SMALL) -> VQGAN:
    """Build a VQGAN whose codebook one training batch has initialised, in eval mode."""
    torch.manual_seed(0)
    model = VQGAN(config)
    model(pictures(8, config.image_size))
    return model.eval()


def redness(images: torch.Tensor) -> torch.Tensor:
    return (images[:, 0] - images[:, 1] - images[:, 2]).mean(dim=(1, 2))


def save(path, model: VQGAN, kind: str = "vqgan", **config) -> None:
    config = dataclasses.asdict(model.config) | config
    torch.save({"kind": kind, "config": config, "weights": model.state_dict()}, path)
