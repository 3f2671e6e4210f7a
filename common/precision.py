"""Choose between fp32 and bf16 by measuring which this machine is faster in, not by guessing from its name."""

import math
import time

import torch
from torch import Tensor, nn

from .jobs import refuse_another
from .runs import Run


def choose_precision(run: Run, model: str, layer: nn.Module, x: Tensor) -> str:
    """Return "bf16" or "fp32": the checkpoint's, or what was asked for, or what a layer of the model's shape is faster in.

    layer, x: such a layer and an input for it, on the CPU
    """
    if run.job.resume and (state := run.state(model)):
        if run.job.precision not in ("auto", state["precision"]):
            refuse_another(run.path(model), "precision", state["precision"], run.job.precision)
        return state["precision"]
    if run.job.precision != "auto":
        return run.job.precision
    speedup = bf16_speedup(layer.to(run.device), x.to(run.device))
    chosen = "bf16" if speedup > 1.1 else "fp32"  # below that the rounding is not worth it
    print(f"{model}: bf16 is {speedup:.1f} times as fast as fp32 here: {chosen}")
    return chosen


def bf16_speedup(layer: nn.Module, x: Tensor, seconds: float = 0.1) -> float:
    """Measure, `seconds` for each, how many times as fast a layer's forward and backward are in bf16 as in fp32."""
    fastest, end = {False: math.inf, True: math.inf}, time.perf_counter() + 2 * seconds
    while time.perf_counter() < end or math.inf in fastest.values():
        for bf16 in fastest:  # in turn, since a machine shared with others changes its speed
            start = time.perf_counter()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                y = layer(x)
            y.float().sum().backward()
            layer.zero_grad()
            if x.is_cuda:
                torch.cuda.synchronize()
            fastest[bf16] = min(fastest[bf16], time.perf_counter() - start)
    return fastest[False] / fastest[True]
