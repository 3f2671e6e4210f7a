"""Search a frozen VQGAN's latents for the picture that a score likes best [VQGAN-CLIP, Crowson et al. 2022].

    z --> nearest codes --> decode --> images --> random cutouts --> score (CLIP's view of the prompts)
    ^                                                                  |
    +------ Adam, then back to where the codes are <--- gradient <-----+

No network is trained: the latents are the parameters. The score sees many random cutouts instead of the
picture, because what raises CLIP's score of one fixed view is mostly noise that no person would see. A change
that helps at any place, size and brightness has to be a thing in the picture.

Departures: cutouts are never mirrored, for a prompt may say left or right. And a small CLIP is pleased by pictures that
show nothing, however they are cut: by choice each cutout comes from a picture of its own, drawn with noise on the latents,
and has more noise on its pixels. What is liked in spite of that is liked for its large traits.
"""

import re
from functools import partial
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Generator, Tensor

from .codebook import straight_through
from .model import VQGAN


class Prompt(NamedTuple):
    """Hold a text to steer towards, or away from."""

    text: str
    weight: float = 1.0  # negative pushes away
    stop: float = float("-inf")  # the distance, times the weight's sign, at which the pulling ends


def parse_prompts(prompts: str) -> list[Prompt]:
    """Split "text | text:weight | text:weight:stop" into prompts. A missing text raises ValueError.

    >>> [prompt[:2] for prompt in parse_prompts("a red circle: 1 | blue: -0.3")]
    [('a red circle', 1.0), ('blue', -0.3)]

    At most two numbers are taken from the end; any other colon is part of the text. A text that ends in
    numbers itself needs both: "a clock at 10:30:1:-inf".
    """
    number = r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*"
    pattern = re.compile(rf"(.*?)(?::{number}(?::(?:{number}|\s*-inf\s*))?)?", re.DOTALL)
    parsed = []
    for part in prompts.split("|"):
        text, weight, stop = pattern.fullmatch(part).groups()
        if not text.strip():
            raise ValueError(f"{part.strip()!r} in the prompts {prompts!r} has no text: write 'text:weight'")
        parsed.append(Prompt(text.strip(), float(weight or 1), float(stop or "-inf")))
    return parsed


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 2·asin(‖a - b‖ / 2)² of a, b (... d) at length 1: half their angle squared, in [0, π²/2]."""
    chord = (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).norm(dim=-1)
    return 2 * (chord / 2).clamp(max=1 - 1e-6).asin().square()  # the slope of asin at 1 is infinite


def prompt_score(embed: Callable[[Tensor], Tensor], targets: Tensor, weights: Tensor,
                 stops: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return score(images (n 3 h w)) -> (n), higher the closer the images are to the targets.

    embed: images -> (n d), as CLIP's encode_image
    targets: (m d), embedded texts or pictures; weights: (m), negative to push away
    stops: (m), where each stops pulling, see Prompt; by default nowhere
    """
    def score(images: Tensor) -> Tensor:
        features = rearrange(embed(images), "n d -> n 1 d")
        distance = weights.sign() * spherical_distance(features, targets)                  # (n m)
        if stops is not None:
            distance = distance.maximum(stops)
        return -(weights.abs() * distance).sum(dim=-1)

    return score


def draw(random: Callable, shape: tuple, generator: Generator | None, device: torch.device) -> Tensor:
    """Return random(shape) on `device`, drawn where the generator is: a CPU seed means the same anywhere."""
    return random(shape, generator=generator, device=generator.device if generator else device).to(device)


def resample(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return matrices (... size side) that scale `length` pixels, from `start` on, out of `side` to `size`.

    start, length: (...), in pixels, not only whole ones. Each new pixel averages old ones under a triangle,
    wide enough that shrinking does not alias. Beyond the edge the last pixel is repeated.
    """
    start, length = rearrange(start, "... -> ... 1 1"), rearrange(length, "... -> ... 1 1")
    new = rearrange(torch.arange(size, device=start.device), "i -> i 1")
    old = torch.arange(side, device=start.device)
    centre = start + (new + 0.5) * length / size - 0.5                                     # (... size 1)
    distance = (centre.clamp(0, side - 1) - old).abs() / (length / size).clamp(min=1)      # (... size side)
    weight = F.relu(1 - distance)
    return weight / weight.sum(dim=-1, keepdim=True)


def random_cutouts(images: Tensor, count: int, size: int, generator: Generator | None = None,
                   smallest: float = 0.5, overhang: float = 0.1, jitter: float = 0.1) -> Tensor:
    """Cut `count` random squares out of each of images (b 3 h w), at size x size  ->  (b·count 3 size size).

    smallest: the least side of a square; the largest is 1, the picture's shorter side
    overhang: how far a square may hang over an edge, as a share of the picture; or else edges are seen less
    jitter: deviation of a cutout's brightness, and the most of its noise's, where pixels are in [-1, 1]
    """
    b, _, h, w = images.shape
    along, per_cutout, device = (b, count), (b, count, 1, 1, 1), images.device
    length = min(h, w) * (smallest + (1 - smallest) * draw(torch.rand, along, generator, device))
    top = draw(torch.rand, along, generator, device) * (h * (1 + 2 * overhang) - length) - h * overhang
    left = draw(torch.rand, along, generator, device) * (w * (1 + 2 * overhang) - length) - w * overhang
    cut = einsum(resample(top, length, h, size), images, "b m i h, b c h w -> b m c i w")
    cut = einsum(cut, resample(left, length, w, size), "b m c i w, b m j w -> b m c i j")
    brightness = jitter * draw(torch.randn, per_cutout, generator, device)
    deviation = jitter * draw(torch.rand, per_cutout, generator, device)
    noise = deviation * draw(torch.randn, tuple(cut.shape), generator, device)
    return rearrange(cut + brightness + noise, "b m c i j -> (b m) c i j")


@torch.no_grad()
def all_codes(vqgan: VQGAN) -> Tensor:
    """Return every vector of the codebook (1 z 1 v)."""
    numbers = torch.arange(vqgan.config.codebook_size, device=next(vqgan.parameters()).device)
    return vqgan.codebook.lookup(rearrange(numbers, "v -> 1 1 v"))


@torch.no_grad()
def starting_latents(vqgan: VQGAN, init: Tensor | None, start: str, batch: int,
                     generator: Generator | None) -> Tensor:
    """Return z (b z g g) of the pictures `init`, or else of random "codes", pixels of "noise" or "blank", the mean code."""
    config, device = vqgan.config, next(vqgan.parameters()).device
    if init is not None:
        return vqgan.codebook.clamp(vqgan.latents(init.to(device)))
    if start == "codes":
        pick = partial(torch.randint, config.codebook_size)
        return vqgan.codebook.lookup(draw(pick, (batch, config.grid, config.grid), generator, device))
    if start == "noise":
        pixels = draw(torch.rand, (batch, 3, config.image_size, config.image_size), generator, device)
        return vqgan.codebook.clamp(vqgan.latents(2 * pixels - 1))
    if start == "blank":
        return vqgan.codebook.clamp(all_codes(vqgan).mean(dim=3, keepdim=True).repeat(batch, 1, config.grid, config.grid))
    raise ValueError(f"start is {start!r}: it must be 'codes', 'noise' or 'blank', or give a picture as init")


def draw_images(vqgan: VQGAN, z: Tensor) -> Tensor:
    """Decode the codes nearest to z (b z g g)  ->  images (b 3 h w) in [-1, 1], differentiable throughout."""
    images = vqgan.decode_latents(vqgan.quantise(z).z_q)
    return straight_through(images, images.clamp(-1, 1))  # after clamp alone no pixel outside could come back


@torch.enable_grad()
def guide(vqgan: VQGAN, score: Callable[[Tensor], Tensor], *, steps: int = 500, cutouts: int = 32,
          cut_size: int = 224, learning_rate: float = 0.1, init: Tensor | None = None, start: str = "codes",
          latent_noise: float = 0.0, jitter: float = 0.1, batch: int = 1,
          generator: Generator | None = None) -> Iterator[Tensor]:
    """Yield, after each of `steps`, the images (b 3 h w) in [-1, 1] on their way to a higher score.

    vqgan: in eval mode; neither it nor what `score` uses is changed
    score: cutouts (b·cutouts 3 cut_size cut_size) -> (b·cutouts), differentiable
    init: images (b 3 h w) to start from; without it `batch` pictures start as random "codes", "noise" or "blank"
    latent_noise: its deviation, in those of the codes; with it each cutout comes from a picture of its own
    jitter: how much cutouts differ in brightness and noise, see random_cutouts
    generator: all that is random is drawn from it, the start included
    """
    if vqgan.training:
        raise ValueError("guide would move the codebook of a VQGAN in training mode: call vqgan.eval() first")
    z = starting_latents(vqgan, init, start, batch, generator).clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=learning_rate)
    images, deviation = draw_images(vqgan, z), all_codes(vqgan).std(dim=3, keepdim=True)    # (1 z 1 1)
    for _ in range(steps):
        if latent_noise:
            many = repeat(z, "b z g1 g2 -> (b m) z g1 g2", m=cutouts)
            noise = latent_noise * deviation * draw(torch.randn, many.shape, generator, z.device)
            views = random_cutouts(draw_images(vqgan, many + noise), 1, cut_size, generator, jitter=jitter)
        else:
            views = random_cutouts(images, cutouts, cut_size, generator, jitter=jitter)
        loss = -score(views).sum() / cutouts  # mean over cutouts, sum over pictures: each goes its own way
        z.grad, = torch.autograd.grad(loss, z)  # backward() would leave gradients in VQGAN and CLIP as well
        optimiser.step()
        with torch.no_grad():
            z.copy_(vqgan.codebook.clamp(z))
        images = draw_images(vqgan, z)
        yield images.detach()
