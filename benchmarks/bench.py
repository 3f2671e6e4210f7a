"""Time our models beside the libraries that people would use instead: same shapes, optimiser and, if they fit, weights.

    python -m benchmarks.bench                    every row, on the CPU, each side in its faster precision
    python -m benchmarks.bench --only sampling    rows with this in their names; --profile shows the operators
    python -m benchmarks.bench --cuda             on a GPU in bf16, and the 1.3 B model against the hardware's limits

A ratio is the peer's seconds over ours in the same round: above 1 we are faster. Its median, least and most over
the rounds are printed. Freed memory is kept for both sides (common/precision.py). A row whose peer is not installed
is skipped; this installs all of them:

    pip install transformers diffusers
    pip install --no-deps open_clip_torch ftfy wcwidth dalle-pytorch axial-positional-embedding rotary-embedding-torch
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from common.training.device import keep_freed_memory
from minclip import CLIPConfig
from mindalle import DALLEConfig
from minvqgan import VQGANConfig

from . import peers
from .hardware import against_the_hardware, operator_costs, print_costs, rates
from .ours import TOY_CLIP, TOY_DALLE, in_bf16
from .timing import alternate, clock, spread

B_32 = CLIPConfig.vit_b_32()
ROWS = [  # name, the peer's package, ratio to reach on the CPU, and what builds the pair for a device
    ("CLIP step, toy", "transformers", 1.3, partial(peers.clip_transformers, TOY_CLIP, 128)),
    ("CLIP step, toy", "open_clip_torch", 1.3, partial(peers.clip_open_clip, TOY_CLIP, 128)),
    ("CLIP step, ViT-B/32", "transformers", 1.1, partial(peers.clip_transformers, B_32, 8)),
    ("CLIP step, ViT-B/32", "open_clip_torch", 1.1, partial(peers.clip_open_clip, B_32, 8)),
    ("GPT step, toy", "transformers", 2.0, partial(peers.gpt_step_transformers, TOY_DALLE, 48)),
    ("GPT step, toy", "dalle-pytorch", 5.0, partial(peers.gpt_step_dalle_pytorch, TOY_DALLE, 48)),
    ("sampling 64, toy", "transformers", 3.0, partial(peers.sampling_transformers, TOY_DALLE, 64, 1.0)),
    ("sampling 64, toy", "dalle-pytorch", 5.0, partial(peers.sampling_dalle_pytorch, TOY_DALLE, 64, 1.0)),
    ("sampling 64, guided", "transformers", 3.0, partial(peers.sampling_transformers, TOY_DALLE, 64, 3.0)),
    ("sampling 64, guided", "dalle-pytorch", 5.0, partial(peers.sampling_dalle_pytorch, TOY_DALLE, 64, 3.0)),
    ("VQGAN step, toy", "diffusers", 1.5, partial(peers.vqgan_diffusers, VQGANConfig(), 16)),
]


def verdict(reached: bool, goal: str) -> str:
    return f"goal {goal} {'reached' if reached else 'MISSED'}"


def compare(name: str, package: str, goal: float, build: Callable[[str], peers.Pair], device: str, rounds: int,
            profile: bool) -> None:
    """Print a row, and how far the two sides are the same; with `profile`, our operators too if the goal is missed."""
    torch.manual_seed(0)
    try:
        *calls, agreement = build(device)
    except ImportError as error:
        reason = " ".join(str(error).split())[:80]
        print(f"{name:20} {package:16} skipped ({reason}): see the top of benchmarks/bench.py", flush=True)
        return
    if device == "cpu":  # either side may be faster in bf16: ours fp32, bf16, the peer's fp32, bf16
        timed = alternate([variant for call in calls for variant in (call, in_bf16(call))], rounds)
        faster = [min((0, 1), key=lambda bf16: median(timed[2 * side + bf16])) for side in (0, 1)]
        ours, peer = timed[faster[0]], timed[2 + faster[1]]
        agreement += f"; ours in {('fp32', 'bf16')[faster[0]]}, the peer in {('fp32', 'bf16')[faster[1]]}"
    else:
        ours, peer = alternate(calls, rounds)
    ratios = [theirs / mine for mine, theirs in zip(ours, peer)]
    reached = median(ratios) >= goal
    print(f"{name:20} {package:16} ours {median(ours):7.4f} s   peer {median(peer):7.4f} s   {spread(ratios, 2):>20}   "
          f"{verdict(reached, f'{goal:g}') if device == 'cpu' else ''}\n{'':20} {agreement}", flush=True)
    if profile and not reached:
        print_costs(operator_costs(calls[0]), clock(calls[0]), rates(device))


def imports(rounds: int, goal: float = 50) -> None:
    """Print how long importing our packages takes after torch, each time in a new process."""
    line = ("import time, torch; start = time.perf_counter(); import minclip, minvqgan, mindalle; "
            "print(1000 * (time.perf_counter() - start))")
    took = [float(subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True).stdout)
            for _ in range(1 + rounds)][1:]  # the first may have to compile to bytecode
    print(f"imports after torch: {spread(took)} ms   {verdict(median(took) <= goal, f'{goal:g} ms')}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--cuda", action="store_true", help="run on a GPU under bf16 autocast, and the 1.3 B model too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    parser.add_argument("--only", default="", help="run the rows whose name or peer contains this")
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--profile", action="store_true", help="show our slowest operators in rows that miss their goal")
    args = parser.parse_args()
    device = "cuda" if args.cuda else "cpu"
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if args.cuda else f'{args.threads} threads'}")
    for name, package, goal, build in ROWS:
        if args.only in f"{name} {package}":
            compare(name, package, goal, build, device, args.rounds, args.profile)
    if args.only in "imports":
        imports(args.rounds)
    if args.cuda and args.only in "1.3 B":
        against_the_hardware(DALLEConfig.mindalle_1_3b(), 16, device)


if __name__ == "__main__":
    main()
