"""Draw images code by code: read the caption once, then one token at a time against a cache.

    prefill       caption (b t), known codes (b i) --> logits of the next code (b v)
    decode        one code (b 1) ------------------> logits of the next code (b v)
    sample_code   logits (b v) --------------------> code (b 1)

No branch depends on the value of a tensor, so the host never waits for the device.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange, repeat
from torch import Tensor

from .errors import InputError
from .layers import Cache
from .model import DALLE


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set all but the k highest logits (b v) to -inf. 0 keeps all."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    highest, indices = logits.topk(top_k)  # (b top_k)
    return torch.full_like(logits, float("-inf")).scatter(-1, indices, highest)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest logits (b v) whose probabilities add up to p [nucleus sampling, sec. 3.1].

    All others become -inf.
    """
    if top_p == 1:
        return logits
    ordered, indices = logits.sort(descending=True)
    probabilities = ordered.softmax(dim=-1)
    likelier = probabilities.cumsum(dim=-1) - probabilities  # of all codes before each: 0 at first
    ordered = ordered.masked_fill(likelier >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter(-1, indices, ordered)


def apply_guidance(logits: Tensor, guidance: float) -> Tensor:
    """Go from the prediction without the caption to the one with it, past it if > 1 [CFG eq. 6].

    logits (2b v): first all b with their captions, then all b with the empty one -> (b v)
    """
    captioned, uncaptioned = rearrange(logits, "(two b) v -> two b v", two=2)
    return uncaptioned + guidance * (captioned - uncaptioned)


def sample_code(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Draw a code for each row of logits (b v) from their softmax -> (b 1) int64

    Temperature 0 takes the likeliest code. Otherwise it is an exponential race: divide each
    probability by its own draw from Exp(1) and take the largest; a code of probability p wins with
    probability p. torch.multinomial would make the host wait for the device.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = keep_top_p(keep_top_k(logits.float() / temperature, top_k), top_p)
    uniform = torch.rand(logits.shape, device=logits.device, generator=generator)
    exponential = -uniform.log()  # above 0, since uniform is below 1
    return (logits.softmax(dim=-1) / exponential).argmax(dim=-1, keepdim=True)


def prefill(model: DALLE, text: Tensor, codes: Tensor, caches: list[Cache]) -> Tensor:
    """Read captions (b t) and the codes already known (b i) -> logits of the next code (b v)"""
    x = torch.cat([model.embed_text(text), model.embed_codes(codes)], dim=1)
    return model.image_head(model.transform(x, caches)[:, -1])


def decode(model: DALLE, code: Tensor, caches: list[Cache]) -> Tensor:
    """Read one more code (b 1) -> logits of the next code (b v)"""
    x = model.embed_codes(code, start=caches[0].filled - model.config.text_length)
    return model.image_head(model.transform(x, caches)[:, -1])


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
) -> Iterator[Tensor]:
    """Draw images for captions (b t); after each code, yield all so far (b i), prime included.

    temperature   0 takes the likeliest code, 1 samples from the model's distribution
    top_k, top_p  sample among the k likeliest codes (0: all), the fewest of total probability p
    guidance      how strongly to follow the caption: 1 is the plain model; others double the work
    empty (t)     tokens of the empty caption, for guidance
    prime (b r g) the first r rows of the images, kept as they are
    generator     on the model's device
    """
    b, g, n = len(text), model.config.grid, model.config.image_length
    if temperature < 0:
        raise InputError(f"temperature is {temperature}: make it 0 (greedy) or more")
    if top_k < 0:
        raise InputError(f"top_k is {top_k}: make it 0 (all codes) or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}: make it more than 0 and at most 1 (all codes)")
    if guidance != 1 and empty is None:
        raise InputError("guidance compares with the empty caption: pass its tokens as empty")
    if prime is None:
        prime = text.new_empty(b, 0, g)
    if prime.ndim != 3 or prime.shape[::2] != (b, g) or prime.shape[1] >= g:
        raise InputError(
            f"prime is {tuple(prime.shape)}: make it ({b} r {g}) with fewer than {g} rows")

    codes = rearrange(prime, "b r g -> b (r g)")
    copies = 1 if guidance == 1 else 2  # guidance reads each image with its caption and without
    if copies == 2:
        text = torch.cat([text, repeat(empty, "t -> b t", b=b)])                # (2b t)
    caches = [Cache(model.config.length) for _ in model.blocks]

    logits = prefill(model, text, repeat(codes, "b i -> (copies b) i", copies=copies), caches)
    for step in range(codes.shape[1], n):
        if copies == 2:
            logits = apply_guidance(logits, guidance)                           # (b v)
        code = sample_code(logits, temperature, top_k, top_p, generator)        # (b 1)
        codes = torch.cat([codes, code], dim=1)                                 # (b step+1)
        yield codes
        if step < n - 1:
            logits = decode(model, repeat(code, "b 1 -> (copies b) 1", copies=copies), caches)


def generate(model: DALLE, text: Tensor, **options) -> Tensor:
    """Draw an image per caption (b t), with the options of generate_steps -> codes (b g g) int64"""
    for codes in generate_steps(model, text, **options):
        pass
    return rearrange(codes, "b (g1 g2) -> b g1 g2", g1=model.config.grid)


def rerank(images: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Order images (b 3 h w) by score(images) (b), best first [DALL·E sec. 2.6] -> indices (b)"""
    return score(images).argsort(descending=True, stable=True)
