"""Diffusion: train a network to remove noise, then turn noise into data in small steps.

    x(t) = t · x + (1 - t) · noise     a straight path from noise, t = 0, to data, t = 1
                                       [flow matching; minRF]

    train     denoise(x(t), t) -> x    the best answer is the mean of all x that could have led here
    sample    x(t) -> x and its noise -> x(t'), a little closer to 1

A single step from noise would end at the mean of all data. After a small step fewer x are possible,
so the next answer is sharper.

Other papers walk the same path in other coordinates. DDPM and DDIM mix x and noise by √ᾱ and
√(1 - ᾱ), which sum to more than 1. Divided by that sum, their x(t) lies on the straight path, at
t = √ᾱ / (√ᾱ + √(1 - ᾱ)), and their steps are ours.

x is (b ...), embeddings or images; t is (b).
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

Condition = tuple[Tensor, ...]  # the parts of what a network reads beside x(t) and t, each (b ...)
Denoise = Callable[[Tensor, Tensor], Tensor]  # x(t) (b ...), t (b) -> the x that it expects (b ...)


def mix(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Go from noise (b ...) towards x (b ...) by the fraction t (b) -> x(t) (b ...)"""
    t = append_dims(t, x)
    return t * x + (1 - t) * noise


def append_dims(t: Tensor, x: Tensor) -> Tensor:
    """Append axes of length 1 to t (b), as many as x (b ...) has after the first -> (b 1 ...)"""
    return t.reshape(-1, *[1] * (x.ndim - 1))  # no einops: x has any number of axes


# ---- Training ----------------------------------------------------------------------------------

CLOSEST = 0.05  # the loss divides by 1 - t, but by no less than this [JiT sec. 4.3]
LOGIT_MEAN, LOGIT_STD = -0.8, 0.8  # of logit(t), at the times to train at


def diffusion_step(
    model: Callable[..., Tensor], x: Tensor, condition: Condition, empty: Condition, dropout: float
) -> Tensor:
    """Noise each x (b ...) to a random time, let the model predict it, and return the loss ()

    model    model(x(t), t, *condition) -> x
    empty    the condition that stands for none, parts (...); it replaces a fraction `dropout`, so
             that the model learns to do without, which guidance needs

    The loss is in float32, under autocast too.
    """
    condition = drop_condition(condition, empty, dropout)
    t, noise = random_times(len(x)).to(x.device), torch.randn_like(x)   # (b), (b ...)
    prediction = model(mix(x, noise, t), t, *condition)                 # (b ...)
    return denoising_loss(prediction, x, t)


def drop_condition(condition: Condition, empty: Condition, probability: float) -> Condition:
    """Replace the condition of random examples, all its parts together, by `empty` [CFG alg. 1]."""
    dropped = torch.rand(len(condition[0]), device=condition[0].device) < probability  # (b)
    return tuple(torch.where(append_dims(dropped, part), none, part)
                 for part, none in zip(condition, empty))


def random_times(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Choose the times to train at -> (count) in (0, 1), logit-normal, median 0.31 [SD3 sec. 3.1].

    Near 0 there is nothing to see yet, near 1 little is left to remove. What the image shows is
    decided in between.
    """
    return torch.sigmoid(LOGIT_MEAN + LOGIT_STD * torch.randn(count, generator=generator))


def denoising_loss(prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Average the squared error of the velocity that a prediction of x (b ...) implies -> ()

    The network predicts x, which lies on far fewer dimensions than noise does [JiT eq. 6]. The
    velocity is (x - x(t)) / (1 - t): an error of x counts for more the less noise is left.
    """
    left = append_dims((1 - t).clamp(min=CLOSEST), x)
    return ((prediction.float() - x) / left).square().mean()


def expected_loss(x: Tensor) -> float:
    """Return the loss, at random_times, of predicting 0 for x (b ...), as an untrained network does.

    With t = σ(n) and n normal, 1 / (1 - t) is 1 + exp(n), whose mean square is known. CLOSEST makes
    next to no difference.
    """
    mean = math.exp(LOGIT_MEAN + LOGIT_STD**2 / 2)                                  # of exp(n)
    mean_square = math.exp(2 * LOGIT_MEAN + 2 * LOGIT_STD**2)
    return x.square().mean().item() * (1 + 2 * mean + mean_square)


# ---- Other coordinates -------------------------------------------------------------------------


def straight(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Leave x(t), and count time in thousandths: time embeddings are made for 1000 steps."""
    return x, 1000 * t


def cosine(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Give a network of the cosine schedule what it was trained on: DDPM's x(t) and its step.

    x(t) is √ᾱ · x + √(1 - ᾱ) · noise; √ᾱ is t / r, √(1 - ᾱ) is (1 - t) / r. The step is 999 for
    noise. ᾱ falls as cos² over 1000 steps [Improved DDPM eq. 17]; networks saw whole steps only.
    """
    r = torch.sqrt(t**2 + (1 - t) ** 2)
    angle = torch.acos(t / r * math.cos(0.008 / 1.008 * math.pi / 2))
    steps = 1000 * (angle * 2 / math.pi * 1.008 - 0.008) - 1
    return x / append_dims(r, x), steps.round().clamp(min=0)


# schedule -> (x(t), t) -> what a network trained under it reads in their place
SCHEDULES = {"straight": straight, "cosine": cosine}


# ---- Sampling ----------------------------------------------------------------------------------


def guided(
    model: Callable[..., Tensor], condition: Condition, empty: Condition, guidance: float
) -> Denoise:
    """Bind model(x, t, *condition) to its condition -> denoise(x, t), led by it by `guidance`.

    1 is the plain model, in one pass. Any other value takes two, with and without the condition,
    both of the same noised x; the difference is what the condition adds, and 0 ignores it. guidance
    is 1 + w of [CFG eq. 6]. Guiding x or the noise is the same: at a fixed x(t) one is an affine
    function of the other.
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

    eta: how random the steps are [DDIM eq. 16]. 0 (DDIM) keeps the noise: the steps are Euler's, and
    the same noise gives the same data. 1 (DDPM) renews it; a first step from t = 0 replaces all.
    """
    x = noise
    for t, later in pairwise(times):
        expected = denoise(x, torch.full((len(x),), t, device=x.device))
        noise = (x - t * expected) / (1 - t)                    # the noise in x, if that is right
        if eta and later < 1:
            # ratio of noise to signal after the step, divided by that before: σ of [DDIM eq. 16]
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
    """Find the noise (b ...) that `sample` turns into x (b ...), by its steps in reverse.

    A step from t to t' started at x(t), which is not known on the way back. x(t') stands in for it
    [DDIM sec. 4.3]: the shorter the steps, the smaller the error. The network is asked at t, not t':
    at t' = 1 the velocity would be 0 / 0.
    """
    for t, later in reversed(list(pairwise(times))):
        expected = denoise(x, torch.full((len(x),), t, device=x.device))
        x = x - (later - t) * (expected - x) / (1 - t)
    return x
