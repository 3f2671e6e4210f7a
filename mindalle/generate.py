"""Draw images code by code: read the caption once, then one token at a time against cached keys and values.

    prefill   caption (b t), first rows (b r·g) ──> logits of the next code (b v), caches filled
    decode    one code (b 1) ─────────────────────> logits of the next code (b v), caches one longer
    sample    logits (b v) ───────────────────────> code (b 1)

Every branch is on a Python number, so the host never waits for the device to tell it a value.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from einops import rearrange, repeat
from torch import Tensor

from .layers import Cache
from .model import DALLE


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set all but the k highest logits (b v) to -inf. 0 keeps all."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    highest, where = logits.topk(top_k)  # (b top_k)
    return torch.full_like(logits, float("-inf")).scatter(-1, where, highest)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set to -inf all logits (b v) but the fewest that reach probability p [nucleus sampling, sec. 3.1]."""
    if top_p == 1:
        return logits
    ordered, where = logits.sort(descending=True)
    probabilities = ordered.softmax(dim=-1)
    likelier = probabilities.cumsum(dim=-1) - probabilities  # the mass ahead of each; 0 for the first
    ordered = ordered.masked_fill(likelier >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter(-1, where, ordered)


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Go from the prediction without the caption towards, and past, the one with it [CFG eq. 6].

    logits (2b v), first all b with their captions, then all b with the empty one  ->  (b v)
    """
    captioned, uncaptioned = rearrange(logits, "(two b) v -> two b v", two=2)
    return uncaptioned + guidance * (captioned - uncaptioned)


def sample(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Draw a code for each row of logits (b v) from their softmax  ->  (b 1) int64

    A race: each code has a distance drawn from the exponential distribution to run, at the speed of its
    probability p, and is the first to arrive with probability p. torch.multinomial would make the host wait.
    Temperature 0 takes the likeliest.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = keep_top_p(keep_top_k(logits.float() / temperature, top_k), top_p)
    uniform = torch.rand(logits.shape, device=logits.device, generator=generator)  # below 1: distance > 0
    distance = -uniform.log()
    return (logits.softmax(dim=-1) / distance).argmax(dim=-1, keepdim=True)


def prefill(model: DALLE, text: Tensor, codes: Tensor, caches: list[Cache]) -> Tensor:
    """Read captions (b t) and the codes already known (b i), i may be 0  ->  logits of the next code (b v)"""
    x = torch.cat([model.embed_text(text), model.embed_codes(codes)], dim=1)
    return model.image_head(model.hidden(x, caches)[:, -1])


def decode(model: DALLE, code: Tensor, index: int | Tensor, caches: list[Cache]) -> Tensor:
    """Read the code (b 1) that stands at index of the image, a number or a tensor (1,)  ->  logits of the next (b v)"""
    x = model.embed_codes(code, start=index)
    return model.image_head(model.hidden(x, caches, start=model.config.text_length + index)[:, -1])


def recorded(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn a function of tensors into one that a GPU records at its first call and replays, on new inputs, at all others.

    A step of decoding is many small kernels, each launched by the host; a recording is launched as a whole. Every call must
    do the same, with the same shapes. On other devices nothing is recorded.
    """
    inputs, graph, output = [], None, None

    def call(*new: Tensor) -> Tensor:
        nonlocal inputs, graph, output
        if not new[0].is_cuda:
            return step(*new)
        if graph is None:
            inputs, graph = [x.clone() for x in new], torch.cuda.CUDAGraph()
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                step(*inputs)  # what libraries allocate at a first call must not be recorded
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph):
                output = step(*inputs)
        for x, value in zip(inputs, new):
            x.copy_(value)
        graph.replay()
        return output

    return call


@torch.no_grad()
def generate_steps(
    model: DALLE,
    text: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    empty: Tensor | None = None,
    prime: Tensor | None = None,
    generator: torch.Generator | None = None,
    record: bool = False,
) -> Iterator[Tensor]:
    """Draw images for captions (b t), yielding the codes so far (b i) after each code, the prime's included.

    temperature   0 always takes the likeliest code, 1 draws as the model says, more is wilder
    top_k, top_p  draw among the k likeliest codes only (0: all), or the fewest with probability p (1: all)
    guidance      how strongly to follow the caption: 1 is the plain model, more doubles the work
    empty (t,)    tokens of the empty caption, for guidance
    prime (b r g) the first r rows of the images, kept as they are
    generator     on the model's device
    record        launch each step on a GPU as a whole; every query then looks through all positions, the future masked
    """
    b, g, n = len(text), model.config.grid, model.config.image_length
    check(b, g, temperature, top_k, top_p, guidance, empty, prime)
    codes = text.new_empty(b, 0) if prime is None else rearrange(prime, "b r g -> b (r g)")
    halves = 1 if guidance == 1 else 2
    if halves == 2:
        text = torch.cat([text, repeat(empty, "t -> b t", b=b)])                # (2b t)
    caches = [Cache(model.config.length) for _ in model.blocks]
    step, indices = partial(decode, model, caches=caches), range(n)
    if record:
        step, indices = recorded(step), torch.arange(n, device=text.device).split(1)

    logits = prefill(model, text, repeat(codes, "b i -> (halves b) i", halves=halves), caches)
    for index in range(codes.shape[1], n):
        if halves == 2:
            logits = guide(logits, guidance)                                    # (b v)
        code = sample(logits, temperature, top_k, top_p, generator)             # (b 1)
        codes = torch.cat([codes, code], dim=1)                                 # (b index+1)
        yield codes
        if index < n - 1:
            logits = step(repeat(code, "b 1 -> (halves b) 1", halves=halves), indices[index])


def generate(model: DALLE, text: Tensor, **options) -> Tensor:
    """Draw an image for each caption (b t), with the options of generate_steps  ->  codes (b g g) int64"""
    for codes in generate_steps(model, text, **options):
        pass
    return rearrange(codes, "b (g1 g2) -> b g1 g2", g1=model.config.grid)


def check(
    b: int, g: int, temperature: float, top_k: int, top_p: float, guidance: float,
    empty: Tensor | None, prime: Tensor | None,
) -> None:
    """Refuse options of generate_steps that mean nothing with a ValueError."""
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}: make it 0 (greedy) or more")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}: make it 0 (all codes) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: make it more than 0 and at most 1 (all codes)")
    if guidance != 1 and empty is None:
        raise ValueError("guidance compares with the empty caption: pass its tokens as empty")
    if prime is not None and (prime.ndim != 3 or prime.shape[::2] != (b, g) or prime.shape[1] >= g):
        raise ValueError(f"prime is {tuple(prime.shape)}: make it ({b} r {g}) with fewer than {g} rows")


def rerank(images: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Order images (b 3 h w) by score(images) (b,), best first [DALL·E sec. 2.6]  ->  their indices (b,)"""
    return score(images).argsort(descending=True, stable=True)
