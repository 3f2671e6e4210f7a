"""Measure what the hardware can do, and how close each operator of a call comes to it.

An operator's floor is the time that it would take at the machine's rates: its multiplications and additions at the rate
of a large matrix product, or its bytes at the rate of a large copy, whichever takes longer.
"""

import time
from collections import defaultdict
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mindalle import DALLE, DALLEConfig, generate

from .ours import dalle_inputs, dalle_step
from .timing import Call, clock, peak_memory, repeats, synchronise


class Rates(NamedTuple):
    """What a machine does per second."""

    operations: float  # of a large matrix product
    bytes: float       # read and written by a large copy


class Cost(NamedTuple):
    """What all calls of an operator took."""

    calls: int = 0
    seconds: float = 0.0
    operations: int = 0  # of matrix products and convolutions; 0 for all other operators
    bytes: int = 0       # read and written


def total(costs: list[Cost]) -> Cost:
    return Cost(*map(sum, zip(*costs)))


def rates(device: str) -> Rates:
    """Measure this machine: bf16 products on a GPU, fp32 on a CPU."""
    side, dtype, floats = (8192, torch.bfloat16, 2**28) if device == "cuda" else (1536, torch.float32, 2**25)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    source, target = torch.randn(2, floats, device=device)
    product, copy = (min(clock(call, 4) for _ in range(5)) for call in (lambda: a @ b, lambda: target.copy_(source)))
    return Rates(2 * side**3 / product, 2 * source.nbytes / copy)


class OperatorCosts(TorchDispatchMode):
    """Add up the costs of every operator that runs in this context, by its name."""

    def __init__(self):
        super().__init__()
        self.costs = defaultdict(Cost)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        packet, kwargs = operator.overloadpacket, kwargs or {}
        synchronise()
        start = time.perf_counter()
        out = operator(*args, **kwargs)
        synchronise()
        seconds = time.perf_counter() - start
        operations = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor) and not operator.is_view]
        cost = Cost(1, seconds, operations, sum(x.nbytes for x in tensors))
        self.costs[packet.__name__] = total([self.costs[packet.__name__], cost])
        return out


def operator_costs(call: Call) -> dict[str, Cost]:
    """Call once, waiting for each operator to finish -> the costs by operator."""
    with OperatorCosts() as watched:
        call()
    return dict(watched.costs)


def print_costs(costs: dict[str, Cost], seconds: float, machine: Rates, top: int = 8) -> None:
    """Print the operators that take longest beside their floors; `seconds`: of a call that is not watched."""
    everything = total(list(costs.values()))
    print(f"      operator{'':26} calls       ms   share   floor, ms "
          f"({machine.operations / 1e9:.0f} G operations/s, {machine.bytes / 1e9:.1f} GB/s)")
    for name in sorted(costs, key=lambda name: -costs[name].seconds)[:top]:
        cost = costs[name]
        floor = max(cost.operations / machine.operations, cost.bytes / machine.bytes)
        share = cost.seconds / everything.seconds
        print(f"      {name:34} {cost.calls:5} {1e3 * cost.seconds:8.2f} {share:7.1%} {1e3 * floor:8.2f}")
    products = 1e3 * everything.operations / machine.operations
    print(f"      {'all, one at a time':40} {1e3 * everything.seconds:8.2f}         {products:8.2f} of products; "
          f"not watched {1e3 * seconds:.2f}", flush=True)


def against_the_hardware(config: DALLEConfig, b: int, device: str) -> None:
    """Print what share of the machine's rates DALL·E reaches: of its products in training, of its bytes in sampling.

    Sampling must read every weight once per token, so the time of reading them is its floor, whatever the batch.
    """
    machine = rates(device)
    print(f"{machine.operations / 1e12:.3g} T operations/s in a matrix product, {machine.bytes / 1e9:.0f} GB/s in a copy")
    model = DALLE(config).to(device)
    count, tokens = sum(p.numel() for p in model.parameters()), b * config.length
    # of attention: two products, each once forward and twice backward; a multiplication and an addition each
    attention = 12 * config.layers * config.width * config.length * tokens
    step = dalle_step(model, *dalle_inputs(config, b, device))
    seconds = min(clock(step) for _ in range(1 + repeats(step)))
    share = (6 * count * tokens + attention) / seconds / machine.operations
    print(f"training step, {count:,} parameters, batch {b}: {seconds:.3f} s, {share:.1%} of the matrix rate, "
          f"{peak_memory(device) / 2**30:.1f} GiB")
    print_costs(operator_costs(step), seconds, machine)

    del step  # and with it the optimiser's state
    model.zero_grad()
    model = model.requires_grad_(False).bfloat16().eval()  # half the bytes to read
    weight_bytes = sum(p.nbytes for part in (model.blocks, model.image_head) for p in part.parameters())
    floor = config.image_length * weight_bytes / machine.bytes
    for images, guidance in ((1, 1.0), (1, 3.0), (16, 1.0), (16, 3.0)):
        text, _ = dalle_inputs(config, images, device)
        draw = partial(generate, model, text, guidance=guidance, empty=torch.zeros_like(text[0]))
        seconds = min(clock(draw) for _ in range(1 + repeats(draw)))
        print(f"sampling {images} of {config.image_length} tokens, guidance {guidance:g}: {seconds:.3f} s, "
              f"{seconds / floor:.2f} times the floor of {floor:.3f} s", flush=True)
