"""Diffusion: train a network to remove noise, then turn noise into data in small steps. Embeddings or images, all alike.

    x(t) = t · x + (1 - t) · noise         a straight path from noise, t = 0, to data, t = 1 [flow matching; minRF]

    train     denoise(x(t), t) -> x        the best answer is the mean of all x that could have led to x(t)
    sample    x(t) -> x and the noise that goes with it -> x(t'), a little closer to 1

A single step from noise would end at the mean of all data. After a small step fewer x are possible, so the next answer is
sharper.

Other papers walk the same path in other coordinates. DDPM and DDIM mix x and noise by √ᾱ and √(1 - ᾱ), which sum to more
than 1. Divided by that sum, their x(t) lies on the straight path, at t = √ᾱ / (√ᾱ + √(1 - ᾱ)), and their steps are ours.

All functions are pure. x is (b ...), of any shape; t is (b).
"""

import math
from collections.abc import Callable, Iterator

import torch
from einops import repeat
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # x(t) (b ...), t (b) -> the x that it expects (b ...)


def mix(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Go from noise (b ...) towards x (b ...) by the share t (b) -> x(t) (b ...)"""
    t = like(t, x)
    return t * x + (1 - t) * noise


def like(t: Tensor, x: Tensor) -> Tensor:
    """Give t (b) as many dimensions as x (b ...) has -> (b 1 ...)"""
    return t.reshape(-1, *[1] * (x.ndim - 1))


# ---- Training ---------------------------------------------------------------------------------------------------------

CLOSEST = 0.05  # the loss divides by 1 - t, but by no less than this [JiT sec. 4.3]


def random_times(count: int, mean: float = -0.8, std: float = 0.8, generator: torch.Generator | None = None) -> Tensor:
    """Choose the times to train at -> (count) in (0, 1), logit-normal, median 0.31 [SD3 sec. 3.1; JiT].

    Near 0 there is nothing to see yet, near 1 little is left to remove. What the image shows is decided in between.
    """
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator))


def denoising_loss(prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Average the squared error of the velocity that a prediction of x implies [JiT eq. 6]: (b ...), (b ...), (b) -> ()

    The network predicts x, which lies on far fewer dimensions than noise does. The velocity is (x - x(t)) / (1 - t), so an
    error of x counts for more the less noise is left.
    """
    return ((prediction.float() - x) / like((1 - t).clamp(min=CLOSEST), x)).square().mean()


def expected_loss(x: Tensor, mean: float = -0.8, std: float = 0.8) -> float:
    """Return the loss, at random_times, of predicting 0 for such x (b ...): that of an untrained network.

    With t = σ(n) and n normal, 1 / (1 - t) is 1 + exp(n), whose mean square is known. CLOSEST changes nothing that shows.
    """
    return x.square().mean().item() * (1 + 2 * math.exp(mean + std**2 / 2) + math.exp(2 * mean + 2 * std**2))


def drop(condition: tuple[Tensor, ...], empty: tuple[Tensor, ...], probability: float) -> tuple[Tensor, ...]:
    """Replace the condition of some examples by the empty one, all its parts together [CFG alg. 1].

    condition, parts (b ...); empty, as many parts (...) -> parts (b ...)
    """
    dropped = torch.rand(len(condition[0]), device=condition[0].device) < probability  # (b)
    return tuple(torch.where(like(dropped, part), none, part) for part, none in zip(condition, empty))


# ---- Other coordinates ------------------------------------------------------------------------------------------------


def straight(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Leave x(t) as it is, and count time in thousandths: a time embedding's waves are made for 1000 steps."""
    return x, 1000 * t


def cosine(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Give a network of the cosine schedule what it was trained on: √ᾱ · x + √(1 - ᾱ) · noise, and the step, 999 for noise.

    √ᾱ is t / r, √(1 - ᾱ) is (1 - t) / r. ᾱ falls as cos² over 1000 steps [Improved DDPM eq. 17], trained at whole ones.
    """
    r = torch.sqrt(t**2 + (1 - t) ** 2)
    angle = torch.acos(t / r * math.cos(0.008 / 1.008 * math.pi / 2))
    steps = 1000 * (angle * 2 / math.pi * 1.008 - 0.008) - 1
    return x / like(r, x), steps.round().clamp(min=0)


# schedule -> (x(t), t) -> what a network trained under it reads in their place
SCHEDULES = {"straight": straight, "cosine": cosine}


# ---- Sampling ---------------------------------------------------------------------------------------------------------


def guided(model: Callable[..., Tensor], condition: tuple[Tensor, ...], empty: tuple[Tensor, ...], guidance: float) -> Denoise:
    """Bind a model(x, t, *condition) to its condition -> denoise(x, t), which follows it as strongly as `guidance` says.

    1 is the plain model, in one pass. Any other value takes two, with and without the condition, both of the same noised x:
    the difference is what the condition adds [CFG eq. 6]. 0 ignores it.
    """
    if guidance == 1:
        return lambda x, t: model(x, t, *condition).float()
    both = [torch.cat([part, none.expand_as(part)]) for part, none in zip(condition, empty)]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with_it, without = model(repeat(x, "b ... -> (two b) ...", two=2), repeat(t, "b -> (two b)", two=2), *both).float().chunk(2)
        return without + guidance * (with_it - without)

    return denoise


def even_times(steps: int) -> list[float]:
    """Return the ends of equal steps from noise to data: 0, 1/steps, ..., 1."""
    return [step / steps for step in range(steps + 1)]


@torch.no_grad()
def sample_steps(denoise: Denoise, noise: Tensor, times: list[float], eta: float = 0.0,
                 generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Turn noise (b ...) into data, from times[0] to times[-1]; yield x after each step [DDIM eq. 12].

    eta: how much of the noise each step replaces by fresh noise. 0 is Euler's method and DDIM: the same noise gives the same
    data. 1 is DDPM.
    """
    x = noise
    for t, later in zip(times, times[1:]):
        expected = denoise(x, torch.full((len(x),), t, device=x.device))
        noise = (x - t * expected) / (1 - t)                    # the noise in x, if `expected` is right
        if eta and later < 1:
            kept = t * (1 - later) / (later * (1 - t))          # by how much the step lowers the ratio of noise to signal
            fresh = torch.randn(x.shape, device=x.device, generator=generator)
            renewed = eta * math.sqrt(1 - kept**2)
            noise = math.sqrt(1 - renewed**2) * noise + renewed * fresh
        x = later * expected + (1 - later) * noise
        yield x


def sample(denoise: Denoise, noise: Tensor, times: list[float], eta: float = 0.0,
           generator: torch.Generator | None = None) -> Tensor:
    """Turn noise (b ...) into data (b ...), with the arguments of sample_steps."""
    for x in sample_steps(denoise, noise, times, eta, generator):
        pass
    return x


@torch.no_grad()
def invert(denoise: Denoise, x: Tensor, times: list[float]) -> Tensor:
    """Find the noise (b ...) that `sample` turns into x (b ...), by its steps in reverse [DDIM sec. 4.3].

    The step from t to t' started at x(t), which is not known on the way back. x(t') stands in for it: the shorter the steps,
    the smaller the error.
    """
    for t, later in reversed(list(zip(times, times[1:]))):
        expected = denoise(x, torch.full((len(x),), t, device=x.device))
        x = x - (later - t) * (expected - x) / (1 - t)
    return x
