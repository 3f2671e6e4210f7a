"""Use what the machine has: the faster precision, as many threads as help, its memory."""

import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor, nn

from .distributed import agree

# ---- Precision ----------------------------------------------------------------------------------


def faster_precision(name: str, model: nn.Module, probe: tuple[Tensor, ...]) -> str:
    """Return "bf16" or "fp32", whichever trains the model faster on this machine, and print it.

    probe: the model's inputs, a batch
    """
    speedup = agree(bf16_speedup(model, probe))
    chosen = "bf16" if speedup > 1.1 else "fp32"  # below that the coarser rounding is not worth it
    print(f"{name}: bf16 is {speedup:.1f} times as fast as fp32 here: {chosen}")
    return chosen


def bf16_speedup(model: nn.Module, probe: tuple[Tensor, ...], seconds: float = 0.3) -> float:
    """Measure how much faster forward and backward passes are in bf16; leave the model as it was."""
    training, device = model.training, next(model.parameters()).device.type
    model.eval()  # no codebook may learn, nor a BatchNorm
    fastest, rounds, end = {False: math.inf, True: math.inf}, 0, time.perf_counter() + 2 * seconds
    while rounds < 2 or time.perf_counter() < end:  # the first round is a warm-up
        rounds += 1
        for bf16 in fastest:  # in turn, since a machine shared with others changes its speed
            start = time.perf_counter()
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                outputs = model(*probe)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            sum(x.float().square().mean() for x in outputs if isinstance(x, Tensor)).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            fastest[bf16] = min(fastest[bf16], time.perf_counter() - start)
            model.zero_grad()
    model.train(training)
    return fastest[False] / fastest[True]


# ---- Threads ------------------------------------------------------------------------------------

MOST = torch.get_num_threads()  # as many as there are cores, or OMP_NUM_THREADS
TRIED = 5  # steps with each number of threads; their median passes over what disturbs a single one
EVERY = 60  # seconds from one choice to the next


def choose_threads(say: Callable[[str], None]) -> Iterator[None]:
    """Choose the number of threads by the speed of a training's own steps; call next() before each.

    The threads of torch share every operation and wait for the slowest in a loop that keeps its core
    busy. Where another process has one of two cores, a step takes twice as long with two threads as
    with one. The number of threads decides how sums are rounded, so this is not for a training that
    is to be repeated exactly.

    say: is told, in a line, whenever the number changes
    """
    chosen, numbers = MOST, [MOST >> halvings for halvings in range(MOST.bit_length())]
    try:
        while True:
            seconds = {number: [] for number in numbers}
            for number in TRIED * numbers:  # in turn, so that a disturbance slows each number alike
                torch.set_num_threads(number)
                start = time.perf_counter()
                yield
                seconds[number].append(time.perf_counter() - start)
            took = {number: 1000 * median(seconds[number]) for number in numbers}
            before, chosen = chosen, min(took, key=took.get)
            torch.set_num_threads(chosen)
            if chosen != before:
                say(f"{chosen} of {MOST} threads from here on: {took[chosen]:.0f} ms a step "
                    f"instead of {took[before]:.0f}")
            end = time.monotonic() + EVERY
            while time.monotonic() < end:
                yield
    finally:
        torch.set_num_threads(chosen)  # the training may have ended while it tried


# ---- Memory -------------------------------------------------------------------------------------


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next large tensors.

    glibc would return it to the kernel, which hands it out again page by page, filled with zeros: a
    sixth of each step of DALL·E. Only glibc can be told so; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for parameter in (-1, -3) if mallopt else ():  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
        mallopt(parameter, 2**30)
