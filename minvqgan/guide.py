"""Optimise a frozen VQGAN's latents for a score of their image [VQGAN-CLIP, Crowson et al. 2022].

    z --> nearest codes --> decode --> images --> random cutouts --> score (CLIP's similarity)
    ^                                                                  |
    +------ Adam, then clamp to where the codes are <--- gradient <----+

No network is trained: the latents are the parameters. The score sees many random cutouts instead
of the image, because what raises CLIP's score of one fixed view is mostly noise that no person
would see. A change that helps at any position, size and brightness has to be an object.

Departures: cutouts are never mirrored, for a prompt may say left or right. And a small CLIP still
scores highest on images that no person would recognise. Three options work against this. `jitter`
adds noise to the pixels of a cutout. `latent_noise` decodes each cutout from a noisy copy of the
latents, less noisy with every step, so that large features come first. With several `octaves` the
latents are a sum of grids, each half as fine as the one before: a whole background can then change
at once, not one code at a time.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Generator, Tensor

from .codebook import straight_through
from .errors import InputError
from .model import VQGAN

OVERHANG = 0.1  # cutouts reach this fraction of the image beyond an edge, or edges are seen less


class Prompt(NamedTuple):
    """Hold a text to move towards, or away from."""

    text: str
    weight: float = 1.0  # negative moves away


def parse_prompts(prompts: str) -> list[Prompt]:
    """Split "text | text:weight" into prompts. A missing text raises InputError.

    >>> [tuple(prompt) for prompt in parse_prompts("a red circle: 1 | blue: -0.3")]
    [('a red circle', 1.0), ('blue', -0.3)]

    A number after the last colon is the weight; any other colon is part of the text. A text that
    itself ends in one needs a weight: "a clock at 10:30:1".
    """
    pattern = re.compile(r"(.*?)(?::\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*)?", re.DOTALL)
    parsed = []
    for part in prompts.split("|"):
        text, weight = pattern.fullmatch(part).groups()
        if not text.strip():
            raise InputError(f"{part.strip()!r} in the prompts {prompts!r} has no text: write "
                             "'text:weight'")
        parsed.append(Prompt(text.strip(), float(weight or 1)))
    return parsed


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 2·asin(‖a - b‖ / 2)² of a, b (... e) at length 1: half the square of their angle."""
    chord = (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).norm(dim=-1)
    return 2 * (chord / 2).clamp(max=1 - 1e-6).asin().square()  # the slope of asin at 1 is infinite


def prompt_score(embed: Callable[[Tensor], Tensor], targets: Tensor,
                 weights: Tensor) -> Callable[[Tensor], Tensor]:
    """Return score(images (b 3 h w)) -> (b), higher the closer the images are to the targets.

    embed: images -> (b e), as CLIP's encode_image
    targets: (m e), embedded texts or images; weights: (m), negative to move away
    """
    def score(images: Tensor) -> Tensor:
        features = rearrange(embed(images), "b e -> b 1 e")
        return -(weights * spherical_distance(features, targets)).sum(dim=-1)

    return score


def random_tensor(random: Callable, shape: tuple, generator: Generator | None,
                  device: torch.device) -> Tensor:
    """Return random(shape) on `device`, drawn where the generator is: a seed acts alike on all."""
    source = generator.device if generator else device
    return random(shape, generator=generator, device=source).to(device)


def resample(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return matrices (... size side) scaling `length` of `side` pixels, from `start`, to `size`.

    start, length: (...), in pixels, not only whole ones. Each new pixel averages old ones with
    triangular weights, wide enough that shrinking does not alias. Beyond the edge the last pixel is
    repeated.
    """
    start, length = rearrange(start, "... -> ... 1 1"), rearrange(length, "... -> ... 1 1")
    new = rearrange(torch.arange(size, device=start.device), "size -> size 1")
    old = torch.arange(side, device=start.device)
    centre = start + (new + 0.5) * length / size - 0.5                            # (... size 1)
    offset = (centre.clamp(0, side - 1) - old).abs()                              # (... size side)
    weight = F.relu(1 - offset / (length / size).clamp(min=1))
    return weight / weight.sum(dim=-1, keepdim=True)


def random_cutouts(images: Tensor, count: int, size: int, generator: Generator | None = None,
                   jitter: float = 0.1, smallest: float = 0.5) -> Tensor:
    """Cut `count` random squares out of each of images (b 3 h w) -> (b·count 3 size size).

    jitter: std of a cutout's brightness, and the largest std of its pixel noise
    smallest: side of the smallest cutout, as a fraction of the image's shorter side; the largest
              is 1
    """
    b, _, h, w = images.shape

    def draw(random: Callable, *shape: int) -> Tensor:
        return random_tensor(random, (b, count, *shape), generator, images.device)

    length = min(h, w) * (smallest + (1 - smallest) * draw(torch.rand))           # (b cut)
    top = draw(torch.rand) * (h * (1 + 2 * OVERHANG) - length) - h * OVERHANG
    left = draw(torch.rand) * (w * (1 + 2 * OVERHANG) - length) - w * OVERHANG
    rows, columns = resample(top, length, h, size), resample(left, length, w, size)
    cut = einsum(rows, images, "b cut h2 h, b c h w -> b cut c h2 w")
    cut = einsum(cut, columns, "b cut c h2 w, b cut w2 w -> b cut c h2 w2")
    brightness = jitter * draw(torch.randn, 1, 1, 1)
    noise = jitter * draw(torch.rand, 1, 1, 1) * draw(torch.randn, *cut.shape[2:])
    return rearrange(cut + brightness + noise, "b cut c h2 w2 -> (b cut) c h2 w2")


@torch.no_grad()
def codebook_std(vqgan: VQGAN) -> Tensor:
    """Return the standard deviation of each channel over all codes (1 z 1 1)."""
    device = next(vqgan.parameters()).device
    codes = torch.arange(vqgan.config.codebook_size, device=device)
    return vqgan.codebook.lookup(rearrange(codes, "v -> 1 1 v")).std(dim=3, keepdim=True)


@torch.no_grad()
def starting_latents(vqgan: VQGAN, init: Tensor | None, count: int,
                     generator: Generator | None) -> Tensor:
    """Return z (b z g g) of the images `init` (b 3 h w), or of `count` grids of random codes."""
    device = next(vqgan.parameters()).device
    if init is not None:
        return vqgan.codebook.clamp(vqgan.latents(init.to(device)))
    side, pick = vqgan.config.grid, partial(torch.randint, vqgan.config.codebook_size)
    codes = random_tensor(pick, (count, side, side), generator, device)
    return vqgan.codebook.lookup(codes)


def decode_clamped(vqgan: VQGAN, z: Tensor) -> Tensor:
    """Quantise and decode z (b z g g) -> images (b 3 h w) in [-1, 1], both with a gradient."""
    images = vqgan.decode_latents(vqgan.codebook(z).z_q)
    return straight_through(images, images.clamp(-1, 1))  # clamp alone would stop the gradient


def octave_grids(z: Tensor, octaves: int) -> list[Tensor]:
    """Return z (b z g g), then zeros (b z g/2 g/2), (b z g/4 g/4) ..., one grid an octave."""
    sides = [[max(1, side >> octave) for side in z.shape[2:]] for octave in range(1, octaves)]
    return [z, *(z.new_zeros(*z.shape[:2], *side) for side in sides)]


def add_up(grids: list[Tensor]) -> Tensor:
    """Enlarge the coarser grids smoothly and add them to the finest (b z g g) -> (b z g g)."""
    finest, *others = grids
    return finest + sum(F.interpolate(grid, finest.shape[2:], mode="bilinear") for grid in others)


@torch.enable_grad()
def guide(
    vqgan: VQGAN, score: Callable[[Tensor], Tensor], *, steps: int = 500, cutouts: int = 32,
    cut_size: int = 224, learning_rate: float = 0.1, init: Tensor | None = None, count: int = 1,
    octaves: int = 1, latent_noise: float = 0.0, jitter: float = 0.1, smallest: float = 0.5,
    generator: Generator | None = None,
) -> Iterator[Tensor]:
    """Yield, after each of `steps`, the images (b 3 h w) in [-1, 1], whose score rises on the way.

    vqgan: in eval mode; neither it nor what `score` uses is changed
    score: cutouts (b·cutouts 3 cut_size cut_size) -> (b·cutouts), differentiable
    init: images (b 3 h w) to start from; None starts `count` images from random codes
    octaves: grids that move and are added up, each half as fine as the one before
    latent_noise: std of the noise on each cutout's latents at first, in codebook stds; it falls to
                  0 on the way. 0 cuts all from the same image
    jitter, smallest: brightness, noise and size of the cutouts, see random_cutouts
    generator: source of all randomness, the start's included
    """
    if vqgan.training:
        raise ValueError("guide would move the codebook of a VQGAN in training mode: call "
                         "vqgan.eval() first")
    grids = octave_grids(starting_latents(vqgan, init, count, generator).clone(), octaves)
    optimiser = torch.optim.Adam([grid.requires_grad_() for grid in grids], lr=learning_rate)
    z = add_up(grids)                                                             # (b z g g)
    images = decode_clamped(vqgan, z)
    std = codebook_std(vqgan)                                                     # (1 z 1 1)
    for step in range(steps):
        if latent_noise:
            many = repeat(z, "b z g1 g2 -> (b cut) z g1 g2", cut=cutouts)
            noise = std * random_tensor(torch.randn, many.shape, generator, z.device)
            noisy = decode_clamped(vqgan, many + (1 - step / steps) * latent_noise * noise)
            views = random_cutouts(noisy, 1, cut_size, generator, jitter, smallest)
        else:
            views = random_cutouts(images, cutouts, cut_size, generator, jitter, smallest)
        loss = -score(views).sum() / cutouts  # a mean over cutouts, a sum over independent images
        # backward() would leave gradients in VQGAN and CLIP as well
        for grid, gradient in zip(grids, torch.autograd.grad(loss, grids)):
            grid.grad = gradient
        optimiser.step()
        with torch.no_grad():  # bring the sum back to where codes are, by way of the finest grid
            z = add_up(grids)
            grids[0] += vqgan.codebook.clamp(z) - z
        z = add_up(grids)
        images = decode_clamped(vqgan, z)
        yield images.detach()
