"""Use as many threads as help, on a machine that others use too.

The threads of torch share every operation, and each waits for the slowest. It waits in a loop that keeps its core busy. Where
another process has one of the cores, all of them wait for it: on two cores, a step of DALL·E then takes four times as long as
on a quiet machine, and twice as long as with one thread.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

MOST = torch.get_num_threads()  # that torch may use: as many as there are cores, or OMP_NUM_THREADS
TRIED = 5  # steps with each number of threads; their median passes over those in which torch settles, or something disturbs it
EVERY = 60  # seconds from one choice to the next


def choose_threads(say: Callable[[str], None]) -> Iterator[None]:
    """Choose the number of threads by a training's own steps, one of which is to follow each next(): try all, half of them, ..., one.

    The number of threads decides how sums are rounded, so this is not for a training that is to be repeated exactly.
    say: is told, in a line, whenever the number changes
    """
    chosen, numbers = MOST, [MOST >> halvings for halvings in range(MOST.bit_length())]
    try:
        while True:
            seconds = {number: [] for number in numbers}
            for number in TRIED * numbers:  # in turn, so that what disturbs a few steps disturbs each number alike
                torch.set_num_threads(number)
                start = time.perf_counter()
                yield
                seconds[number].append(time.perf_counter() - start)
            took = {number: 1000 * median(seconds[number]) for number in numbers}
            before, chosen = chosen, min(took, key=took.get)
            torch.set_num_threads(chosen)
            if chosen != before:
                say(f"{chosen} of {MOST} threads from here on: {took[chosen]:.0f} ms a step instead of {took[before]:.0f}")
            end = time.monotonic() + EVERY
            while time.monotonic() < end:
                yield
    finally:
        torch.set_num_threads(chosen)  # the training may have ended while it tried
