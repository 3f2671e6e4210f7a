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
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # x(t) (b ...), t (b) -> the x that it expects (b ...)


def mix(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Go from noise (b ...) towards x (b ...) by the share t (b) -> x(t) (b ...)"""
    t = append_dims(t, x)
    return t * x + (1 - t) * noise


def append_dims(t: Tensor, x: Tensor) -> Tensor:
    """Append axes of length 1 to t (b), as many as x (b ...) has after the first -> (b 1 ...)"""
    return t.reshape(-1, *[1] * (x.ndim - 1))  # no einops: x has any number of axes, and a pattern names each new one


# ---- Training ---------------------------------------------------------------------------------------------------------

CLOSEST = 0.05  # the loss divides by 1 - t, but by no less than this [JiT sec. 4.3]
LOGIT_MEAN, LOGIT_STD = -0.8, 0.8  # of logit(t), at the times to train at


def random_times(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Choose the times to train at -> (count) in (0, 1), logit-normal, median 0.31 [SD3 sec. 3.1; JiT].

    Near 0 there is nothing to see yet, near 1 little is left to remove. What the image shows is decided in between.
    """
    return torch.sigmoid(LOGIT_MEAN + LOGIT_STD * torch.randn(count, generator=generator))


def denoising_loss(prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Average the squared error of the velocity that a prediction of x implies [JiT eq. 6]: (b ...), (b ...), (b) -> ()

    The network predicts x, which lies on far fewer dimensions than noise does. The velocity is (x - x(t)) / (1 - t), so an
    error of x counts for more the less noise is left.
    """
    return ((prediction.float() - x) / append_dims((1 - t).clamp(min=CLOSEST), x)).square().mean()


def expected_loss(x: Tensor) -> float:
    """Return the loss, at random_times, of predicting 0 for such x (b ...): that of an untrained network.

    With t = σ(n) and n normal, 1 / (1 - t) is 1 + exp(n), whose mean square is known. CLOSEST makes next to no difference.
    """
    weight = 1 + 2 * math.exp(LOGIT_MEAN + LOGIT_STD**2 / 2) + math.exp(2 * LOGIT_MEAN + 2 * LOGIT_STD**2)
    return x.square().mean().item() * weight


def drop_condition(condition: tuple[Tensor, ...], empty: tuple[Tensor, ...], probability: float) -> tuple[Tensor, ...]:
    """Replace the condition of some examples by the empty one, all its parts together [CFG alg. 1].

    condition, parts (b ...); empty, as many parts (...) -> parts (b ...)
    """
    dropped = torch.rand(len(condition[0]), device=condition[0].device) < probability  # (b)
    return tuple(torch.where(append_dims(dropped, part), none, part) for part, none in zip(condition, empty))


# ---- Other coordinates ------------------------------------------------------------------------------------------------


def straight(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Leave x(t) as it is, and count time in thousandths: the frequencies of a time embedding are made for 1000 steps."""
    return x, 1000 * t


def cosine(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Give a network of the cosine schedule what it was trained on: √ᾱ · x + √(1 - ᾱ) · noise, and the step, 999 for noise.

    √ᾱ is t / r, √(1 - ᾱ) is (1 - t) / r. ᾱ falls as cos² over 1000 steps [Improved DDPM eq. 17]; such
    networks saw whole steps only, so round.
    """
    r = torch.sqrt(t**2 + (1 - t) ** 2)
    angle = torch.acos(t / r * math.cos(0.008 / 1.008 * math.pi / 2))
    steps = 1000 * (angle * 2 / math.pi * 1.008 - 0.008) - 1
    return x / append_dims(r, x), steps.round().clamp(min=0)


# schedule -> (x(t), t) -> what a network trained under it reads in their place
SCHEDULES = {"straight": straight, "cosine": cosine}


# ---- Sampling ---------------------------------------------------------------------------------------------------------


def guided(model: Callable[..., Tensor], condition: tuple[Tensor, ...], empty: tuple[Tensor, ...], guidance: float) -> Denoise:
    """Bind a model(x, t, *condition) to its condition -> denoise(x, t), which follows it as strongly as `guidance` says.

    1 is the plain model, in one pass. Any other value takes two, with and without the condition, both of the same noised x:
    the difference is what the condition adds. 0 ignores it. guidance is 1 + w of [CFG eq. 6]. Guiding x or the noise is the
    same: at a fixed x(t) one is an affine function of the other.
    """
    if guidance == 1:
        return lambda x, t: model(x, t, *condition).float()
    both = [torch.cat([part, none.expand_as(part)]) for part, none in zip(condition, empty)]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with_it, without = model(torch.cat([x, x]), torch.cat([t, t]), *both).float().chunk(2)
        return without + guidance * (with_it - without)

    return denoise


def even_times(steps: int) -> list[float]:
    """Return the ends of equal steps from noise to data: 0, 1/steps, ..., 1."""
    return [step / steps for step in range(steps + 1)]


@torch.no_grad()
def sample_steps(denoise: Denoise, noise: Tensor, times: list[float], eta: float = 0.0,
                 generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Turn noise (b ...) into data, from times[0] to times[-1]; yield x after each step [DDIM eq. 12].

    eta: how random the steps are [DDIM eq. 16]. 0 (DDIM) keeps the noise: the steps are those of Euler's method, and the same
    noise gives the same data. 1 (DDPM) renews it; a first step from t = 0 replaces all of it.
    """
    x = noise
    for t, later in pairwise(times):
        expected = denoise(x, torch.full((len(x),), t, device=x.device))
        noise = (x - t * expected) / (1 - t)                    # the noise in x, if `expected` is right
        if eta and later < 1:
            # the ratio of noise to signal after the step, divided by that before; it sets the σ of [DDIM eq. 16]
            ratio = t * (1 - later) / (later * (1 - t))
            fresh = torch.randn(x.shape, device=x.device, generator=generator)
            renewed = eta * math.sqrt(1 - ratio**2)
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
    the smaller the error. The network is asked at t, not t': at t' = 1 the velocity would be 0 / 0.
    """
    for t, later in reversed(list(pairwise(times))):
        expected = denoise(x, torch.full((len(x),), t, device=x.device))
        x = x - (later - t) * (expected - x) / (1 - t)
    return x
