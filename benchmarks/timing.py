"""Time two sides in alternating rounds, and measure the memory in use.

A machine that others share changes its speed. So each round times every side, one after the other, for about half a
second each, and only seconds of the same round are compared.
"""

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

ROUND_SECONDS = 0.5  # for which one side is timed in a round

Call = Callable[[], Any]


def synchronise() -> None:
    """Wait until the GPU, if one is in use, has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def clock(call: Call, times: int = 1) -> float:
    """Return the mean seconds of `times` calls."""
    synchronise()
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronise()
    return (time.perf_counter() - start) / times


def repeats(call: Call) -> int:
    """Warm up with one call, and return how many fill a round."""
    call()
    return max(1, round(ROUND_SECONDS / clock(call)))


def alternate(calls: Sequence[Call], rounds: int) -> list[tuple[float, ...]]:
    """Time all calls in every round -> for each call, its mean seconds in each round."""
    counts = [repeats(call) for call in calls]
    return list(zip(*([clock(call, count) for call, count in zip(calls, counts)] for _ in range(rounds))))


def spread(numbers: Sequence[float], decimals: int = 0) -> str:
    """Write the median of some numbers, with the least and the most."""
    middle, least, most = (f"{f(numbers):.{decimals}f}" for f in (median, min, max))
    return f"{middle} ({least} .. {most})"


def peak_memory(device: str) -> int:
    """Return the most bytes that this process has had in use at once, on the GPU or the CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
