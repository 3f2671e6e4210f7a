"""Use what the machine has: the precision in which the model is faster, measured, not guessed by name; its memory; a compiler."""

import ctypes
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .settle import refuse_another
from .distributed import agree
from ..run.runs import Run


def choose_precision(run: Run, name: str, model: nn.Module, loss: Callable[[], Tensor]) -> str:
    """Return "bf16" or "fp32": the checkpoint's, or what was asked for, or the faster of the two.

    loss: computes the model's loss, or any number that its gradients can be taken of, on some batch
    """
    if run.job.resume and (state := run.state(name)):
        if run.job.precision != "auto":
            refuse_another(run.path(name), "precision", state["precision"], run.job.precision)
        return state["precision"]
    if run.job.precision != "auto":
        return run.job.precision
    speedup = agree(bf16_speedup(model, loss))
    chosen = "bf16" if speedup > 1.1 else "fp32"  # below that the coarser rounding is not worth it
    print(f"{name}: bf16 is {speedup:.1f} times as fast as fp32 here: {chosen}")
    return chosen


def bf16_speedup(model: nn.Module, loss: Callable[[], Tensor], seconds: float = 0.3) -> float:
    """Measure how many times as fast the loss and its gradients are in bf16 as in fp32. The model stays as it was."""
    training, device = model.training, next(model.parameters()).device.type
    model.eval()  # no codebook may learn, nor a BatchNorm
    fastest, rounds, end = {False: math.inf, True: math.inf}, 0, time.perf_counter() + 2 * seconds
    while rounds < 2 or time.perf_counter() < end:  # the first round is a warm-up, never the fastest
        rounds += 1
        for bf16 in fastest:  # in turn, since a machine shared with others changes its speed
            start = time.perf_counter()
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                value = loss()
            value.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            fastest[bf16] = min(fastest[bf16], time.perf_counter() - start)
            model.zero_grad()
    model.train(training)
    return fastest[False] / fastest[True]


# ---- Memory -----------------------------------------------------------------------------------------------------------


def keep_freed_memory() -> None:
    """Let malloc keep the memory of large tensors that are freed, for the next ones. A process never holds more than at its peak.

    Otherwise glibc returns it to the kernel, which hands it out again page by page, filled with zeros: a sixth of each step of
    DALL·E. Only glibc can be told so; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for parameter in (-1, -3) if mallopt else ():  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
        mallopt(parameter, 2**30)


# ---- Compiling --------------------------------------------------------------------------------------------------------

def compiled(run: Run, name: str, loss: Callable) -> Callable:
    """Return a loss that torch.compile has fused, if --compile asks for it. Where compiling fails, one line says so.

    It is no default: on two cores of an AMD EPYC a step of DALL·E took as long as before, one of the decoder 0.9 times as long.
    """
    if not run.job.compile:
        return loss
    functions = [torch.compile(loss, dynamic=False), loss]
    print(f"{name}: compiling the loss takes up to a minute", flush=True)

    def first(*inputs: Tensor) -> Any:
        try:
            return functions[0](*inputs)
        except Exception as error:  # no compiler, or one that this code or machine is too new for
            if len(functions) == 1:
                raise  # the loss itself fails
            print(f"{name}: torch.compile failed ({type(error).__name__}), so the loss runs as it is", flush=True)
            del functions[0]
            return loss(*inputs)

    return first
