"""Draw images code by code: read the caption once, then one token at a time against cached keys and values.

    prefill       caption (b t), known codes (b i) --> logits of the next code (b v); the caches are filled
    decode        one code (b 1) ------------------> logits of the next code (b v); the caches hold one token more
    sample_code   logits (b v) --------------------> code (b 1)

No branch depends on the value of a tensor, so the host never waits for the device.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange, repeat
from torch import Tensor

from .errors import InputError
from .layers import Cache
from .model import DALLE, DALLEConfig


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set all but the k highest logits (b v) to -inf. 0 keeps all."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    highest, indices = logits.topk(top_k)  # (b top_k)
    return torch.full_like(logits, float("-inf")).scatter(-1, indices, highest)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set to -inf all logits (b v) but the fewest whose probabilities add up to p [nucleus sampling, sec. 3.1]."""
    if top_p == 1:
        return logits
    ordered, indices = logits.sort(descending=True)
    probabilities = ordered.softmax(dim=-1)
    likelier = probabilities.cumsum(dim=-1) - probabilities  # probability of all codes before each; 0 for the first
    ordered = ordered.masked_fill(likelier >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter(-1, indices, ordered)


def apply_guidance(logits: Tensor, guidance: float) -> Tensor:
    """Go from the prediction without the caption towards the one with it, and past it if guidance > 1 [CFG eq. 6].

    logits (2b v): first all b with their captions, then all b with the empty one -> (b v)
    """
    captioned, uncaptioned = rearrange(logits, "(two b) v -> two b v", two=2)
    return uncaptioned + guidance * (captioned - uncaptioned)


def sample_code(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Draw a code for each row of logits (b v) from their softmax -> (b 1) int64

    An exponential race: divide each probability by its own draw from Exp(1) and take the code with the largest quotient. A
    code of probability p wins with probability p. torch.multinomial would make the host wait for the device. Temperature 0 takes
    the likeliest code.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = keep_top_p(keep_top_k(logits.float() / temperature, top_k), top_p)
    uniform = torch.rand(logits.shape, device=logits.device, generator=generator)
    exponential = -uniform.log()  # above 0, since uniform is below 1
    return (logits.softmax(dim=-1) / exponential).argmax(dim=-1, keepdim=True)


def prefill(model: DALLE, text: Tensor, codes: Tensor, caches: list[Cache]) -> Tensor:
    """Read captions (b t) and the codes already known (b i), i may be 0 -> logits of the next code (b v)"""
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
    """Draw images for captions (b t); after each code, yield the codes so far (b i), those of the prime included.

    They are in the order of decoding: DALLE.to_grid puts the last (b n) in their places.

    temperature   0 always takes the likeliest code, 1 samples from the model's distribution, more varies more
    top_k, top_p  sample from the k likeliest codes only (0: all), or the fewest with total probability p (1: all)
    guidance      how strongly to follow the caption: 1 is the plain model; any other value doubles the work
    empty (t)     tokens of the empty caption, for guidance
    prime (b r g) the first r rows of the images, kept as they are; for order row_major only
    generator     on the model's device
    """
    b, n = len(text), model.config.image_length
    check_options(model.config, b, temperature, top_k, top_p, guidance, empty, prime)
    codes = text.new_empty(b, 0) if prime is None else rearrange(prime, "b r g -> b (r g)")
    copies = 1 if guidance == 1 else 2  # guidance runs each image twice: with its caption and with the empty one
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
    """Draw an image for each caption (b t), with the options of generate_steps -> codes (b g g) int64, in reading order"""
    for codes in generate_steps(model, text, **options):
        pass
    return model.to_grid(codes)


def check_options(
    config: DALLEConfig, b: int, temperature: float, top_k: int, top_p: float, guidance: float,
    empty: Tensor | None, prime: Tensor | None,
) -> None:
    """Raise InputError for options of generate_steps that make no sense."""
    g = config.grid
    if temperature < 0:
        raise InputError(f"temperature is {temperature}: make it 0 (greedy) or more")
    if top_k < 0:
        raise InputError(f"top_k is {top_k}: make it 0 (all codes) or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}: make it more than 0 and at most 1 (all codes)")
    if guidance != 1 and empty is None:
        raise InputError("guidance compares with the empty caption: pass its tokens as empty")
    if prime is not None and config.order != "row_major":
        raise InputError(f"prime keeps the first rows, which order {config.order} does not draw first: use row_major")
    if prime is not None and (prime.ndim != 3 or prime.shape[::2] != (b, g) or prime.shape[1] >= g):
        raise InputError(f"prime is {tuple(prime.shape)}: make it ({b} r {g}) with fewer than {g} rows")


def rerank(images: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Order images (b 3 h w) by score(images) (b), best first [DALL·E sec. 2.6] -> their indices (b)"""
    return score(images).argsort(descending=True, stable=True)
