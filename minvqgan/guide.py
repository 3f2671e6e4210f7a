"""Search the latents of a frozen VQGAN for the picture that a score likes best [VQGAN-CLIP, Crowson et al. 2022].

    z ──► nearest codes ──► decode ──► images ──► random cutouts ──► score (CLIP against prompts)
    ▲                                                                   │
    └──────── Adam, then back to where the codes are ◄── gradient ◄─────┘

No network is trained: the picture's latents are the parameters. The score sees many random cutouts instead of the
picture, because what raises CLIP's score on one fixed view is mostly noise that no person would see; a change that
helps at every place, size and brightness must be a thing in the picture.

Cutouts are never mirrored, unlike in the paper: a prompt may say left or right.
"""

import re
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from .codebook import straight_through
from .model import VQGAN


class Prompt(NamedTuple):
    """Hold one thing to steer towards, or away from."""

    text: str
    weight: float = 1.0  # negative pushes away
    stop: float = float("-inf")  # at this distance, signed as the weight, it stops pulling


def parse_prompts(prompts: str) -> list[Prompt]:
    """Split "text:weight:stop | text:weight | text" into prompts.

    >>> parse_prompts("a red circle: 1 | blue: -0.3")
    [Prompt(text='a red circle', weight=1.0, stop=-inf), Prompt(text='blue', weight=-0.3, stop=-inf)]

    Only numbers after a colon at the end are taken, two at most; other colons belong to the text. For a text that
    ends so itself write both: "a clock at 10:30:1:-inf". Raises ValueError where a text is missing.
    """
    number = r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*"
    pattern = re.compile(rf"(?P<text>.*?)(?::{number}(?::(?:{number}|\s*-inf\s*))?)?", re.DOTALL)
    parsed = []
    for part in prompts.split("|"):
        text, weight, stop = pattern.fullmatch(part).groups()
        if not text.strip():
            raise ValueError(f"prompt {part.strip()!r} in {prompts!r} has no text; write 'text', 'text:weight' or "
                             f"'text:weight:stop' between the bars")
        parsed.append(Prompt(text.strip(), float(weight or 1), float(stop or "-inf")))
    return parsed


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 2·asin(‖a - b‖ / 2)² for a, b (... d) scaled to length one: half the squared angle, in [0, π²/2]."""
    chord = (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).norm(dim=-1)
    return 2 * (chord / 2).clamp(max=1 - 1e-6).asin().square()  # at opposite points asin's slope is infinite


def prompt_score(embed: Callable[[Tensor], Tensor], targets: Tensor, weights: Tensor,
                 stops: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return score(images (n 3 h w)) -> (n,), the higher the closer images are to the targets.

    embed: images -> (n d), as CLIP's encode_image; targets: (m d), of texts or of images, in the same space
    weights: (m,), negative to push away; stops: (m,), distances signed as the weights, below which nothing pulls
    """
    stops = torch.full_like(weights, float("-inf")) if stops is None else stops

    def score(images: Tensor) -> Tensor:
        features = rearrange(embed(images), "n d -> n 1 d")
        distance = spherical_distance(features, targets) * weights.sign()          # (n m)
        return -(distance.maximum(stops) * weights.abs()).sum(dim=-1)

    return score


def resample(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return matrices (... size side) that cut [start, start + length) out of `side` pixels and scale it to `size`.

    start, length: (...), in pixels. Each new pixel averages its neighbours under a triangle: bilinear when
    enlarging, wide enough not to alias when shrinking. Beyond the edge, the edge's pixel is repeated.
    """
    start, length = rearrange(start, "... -> ... 1 1"), rearrange(length, "... -> ... 1 1")
    new, old = (torch.arange(n, device=start.device) for n in (size, side))
    centre = start + (rearrange(new, "i -> i 1") + 0.5) * length / size - 0.5
    spread = (length / size).clamp(min=1)
    weight = F.relu(1 - (centre.clamp(0, side - 1) - old).abs() / spread)           # (... size side)
    return weight / weight.sum(dim=-1, keepdim=True)


def random_cutouts(images: Tensor, count: int, size: int, generator: torch.Generator | None = None,
                   smallest: float = 0.5, overhang: float = 0.1, jitter: float = 0.1) -> Tensor:
    """Cut `count` random squares out of each of images (b 3 h w) and scale them  ->  (b·count 3 size size).

    smallest: least side of a square, as a share of the picture's shorter side; the largest is all of it
    overhang: share of the picture by which a square may hang over an edge, so that edges are seen as often
    jitter: deviation of each cutout's brightness, and most of its pixels' noise; pictures are in [-1, 1]
    """
    b, _, h, w = images.shape

    def draw(random: Callable, *shape: int) -> Tensor:
        where = generator.device if generator else images.device
        return random(shape, generator=generator, device=where).to(images.device)

    length = min(h, w) * (smallest + (1 - smallest) * draw(torch.rand, b, count))   # (b m)
    top = draw(torch.rand, b, count) * (h * (1 + 2 * overhang) - length) - h * overhang
    left = draw(torch.rand, b, count) * (w * (1 + 2 * overhang) - length) - w * overhang
    rows, columns = resample(top, length, h, size), resample(left, length, w, size)
    cut = einsum(rows, images, "b m i h, b c h w -> b m c i w")
    cut = einsum(cut, columns, "b m c i w, b m j w -> b m c i j")
    brightness = jitter * draw(torch.randn, b, count, 1, 1, 1)
    noise = jitter * draw(torch.rand, b, count, 1, 1, 1) * draw(torch.randn, *cut.shape)
    return rearrange(cut + brightness + noise, "b m c i j -> (b m) c i j")


@torch.enable_grad()
def guide(vqgan: VQGAN, score: Callable[[Tensor], Tensor], *, steps: int = 500, cutouts: int = 32,
          cut_size: int = 224, learning_rate: float = 0.1, init: Tensor | None = None, start: str = "codes",
          batch: int = 1, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Yield after each of `steps` the images (b 3 h w) in [-1, 1] on their way to a higher score.

    vqgan: in eval mode, left as it is; score: (b·cutouts 3 cut_size cut_size) -> (b·cutouts,), to be raised
    init: images (b 3 h w) to start from, or else `batch` pictures start from "codes" at random or pixel "noise"
    generator: source of everything random, from the first draw on
    """
    if vqgan.training:
        raise ValueError("guide needs a VQGAN in eval mode, or each step would move its codebook: call .eval()")
    z = starting_latents(vqgan, init, start, batch, generator).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=learning_rate)
    images = draw_images(vqgan, z)
    for _ in range(steps):
        scores = score(random_cutouts(images, cutouts, cut_size, generator))        # (b·cutouts)
        loss = -scores.sum() / cutouts  # a mean over cutouts, a sum over pictures: each goes its own way
        z.grad, = torch.autograd.grad(loss, z)  # backward() would fill the gradients of VQGAN and CLIP as well
        optimiser.step()
        with torch.no_grad():
            z.copy_(vqgan.codebook.clamp(z))
        images = draw_images(vqgan, z)
        yield images.detach().clone()


@torch.no_grad()
def starting_latents(vqgan: VQGAN, init: Tensor | None, start: str, batch: int,
                     generator: torch.Generator | None) -> Tensor:
    """Return the z (b z g g) to begin with: of the pictures `init`, of random codes, or of random pixels."""
    config, device = vqgan.config, vqgan.last_weight.device
    where = generator.device if generator else device
    if init is not None:
        z = vqgan.latents(init.to(device))
    elif start == "codes":
        shape = (batch, config.grid, config.grid)
        codes = torch.randint(config.codebook_size, shape, generator=generator, device=where)
        z = vqgan.codebook.lookup(codes.to(device))
    elif start == "noise":
        pixels = torch.rand((batch, 3, config.image_size, config.image_size), generator=generator, device=where)
        z = vqgan.latents(2 * pixels.to(device) - 1)
    else:
        raise ValueError(f"start is {start!r}; it must be 'codes' or 'noise', or give init, a picture")
    return vqgan.codebook.clamp(z).clone()


def draw_images(vqgan: VQGAN, z: Tensor) -> Tensor:
    """Decode the codes nearest to z (b z g g)  ->  images (b 3 h w) in [-1, 1], with the gradient of z throughout."""
    images = vqgan.decode_latents(vqgan.quantise(z).z_q)
    return straight_through(images, images.clamp(-1, 1))  # a plain clamp would leave pixels that overshot for good
