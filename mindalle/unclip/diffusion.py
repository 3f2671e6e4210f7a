"""Diffusion: learn to remove noise, then turn noise into data a little at a time. It draws embeddings as well as images.

    x(t) = t · x + (1 - t) · noise            the straight path from noise, t = 0, to data, t = 1 [flow matching; minRF]

    learn    denoise(x(t), t) -> x            the mean of all x that could have led to x(t)
    draw     x(t) --> x, noise --> x(t')      t' a little closer to 1: the same path, one step along

One step would end at the mean of all data. A small one goes a little way there, and from its end fewer x are possible: the
next expectation is sharper.

The paths of other papers are this one in other coordinates. DDPM and DDIM mix x and noise by √ᾱ and √(1 - ᾱ), which sum to
more than 1; divided by that sum, their x lies on the straight path, at t = √ᾱ / (√ᾱ + √(1 - ᾱ)). Their steps are the same.

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
    """Draw the times to train at -> (count) in (0, 1), logit-normal: most where shapes are decided [SD3 sec. 3.1; JiT].

    Close to 0 all is noise, close to 1 little is left to remove.
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
    """Leave x(t) as it is; count time in thousandths, 1000 for data, since a network's waves are that long."""
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


# ---- Drawing ----------------------------------------------------------------------------------------------------------


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

    eta: the share of the noise that each step replaces by fresh noise; 0 is Euler's step, DDIM, the same picture for the same
    noise; 1 is DDPM's
    """
    x = noise
    for t, later in zip(times, times[1:]):
        expected = denoise(x, torch.full((len(x),), t, device=x.device))
        noise = (x - t * expected) / (1 - t)                    # what is left if `expected` is right
        if eta and later < 1:
            kept = t * (1 - later) / (later * (1 - t))          # noise to signal afterwards, as a share of that before
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
    """Find the noise (b ...) from which `sample` draws x (b ...), by its steps backwards [DDIM sec. 4.3].

    A step from t to t' took the velocity at x(t). Backwards x(t) is not known yet: that at x(t') stands in for it, which is
    nearly the same if the step is short.
    """
    for t, later in reversed(list(zip(times, times[1:]))):
        expected = denoise(x, torch.full((len(x),), t, device=x.device))
        x = x - (later - t) * (expected - x) / (1 - t)
    return x
