"""What the training loops share: seeds, the schedule, progress, the log, checkpoints, Ctrl-C.

Every step draws its randomness from (seed, model, step) alone. So no generator has to be saved, and
a run that was killed goes on from its last checkpoint to the very weights it would have had.
"""

import copy
import dataclasses
import itertools
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..run.errors import InputError, ignore_output
from ..run.folder import LEADER, WORLD, Run
from ..run.symptoms import symptoms
from .bounds import Expected
from .device import choose_threads, faster_precision
from .distributed import agree, mean
from .settle import Budget
from .sources import Images

SAVE_EVERY = 30  # fewest seconds between checkpoints, each with figures of held-out pictures
LOG_EVERY = 10  # steps between lines of the log
HELD_OUT_FRACTION = 0.02  # of the time goes to figures of held-out pictures, at the most


def stable_seed(*parts: Any) -> int:
    """Mix anything printable into a seed below 2^63, the same on every machine, unlike hash()."""
    return int.from_bytes(sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def set_learning_rate(optimiser: Optimizer, done: float, recipe: Any) -> None:
    """Set each group's rate: it rises linearly, then falls linearly to zero [Bergsma et al. 2025].

    done: fraction completed, in [0, 1]; recipe.warmup: the fraction during which the rate rises.
    The first step takes the rate due one step later: its own would be 0, and the step wasted.
    """
    rise = max(done, 1 / recipe.steps) / recipe.warmup
    fall = (1 - done) / max(1 - recipe.warmup, 1e-9)
    for group in optimiser.param_groups:
        group["lr"] = group["rate"] * min(rise, fall)


class Training:
    """One model's training: how far it is, when it ends, its lines in the log, its checkpoint.

    parts: what is saved to go on, each with a state_dict: the model under that name, optimisers
    """

    def __init__(self, run: Run, name: str, config: Any, recipe: Any, source: Images,
                 expected: Expected, **parts: nn.Module | Optimizer):
        self.run, self.name, self.config, self.recipe = run, name, config, recipe
        self.source, self.expected, self.parts = source, expected, parts
        self.budget = Budget.of(run, name, recipe)
        self.step, self.seconds, self.saved_step = 0, 0.0, None
        # why to stop: as this process knows, and as all agree after each step
        self.asked_to_stop = self.stopped_by = None
        self.noticed: set[str] = set()  # symptoms that were named
        print(f"{name}: {expected}")
        state, model = run.state(name) if run.job.resume else None, parts["model"]
        if state:
            self.restore(state)
        elif run.job.precision == "auto":
            self.precision = faster_precision(name, model, source.probe)
        else:
            self.precision = run.job.precision
        if LEADER:
            run.log.trim(name, self.step)
        self.parameters = sum(p.numel() for p in model.parameters())
        begin = f", from step {self.step}" if self.step else ""
        if self.done >= 1:
            begin = f", finished after {self.step} steps; more --steps or --minutes move the end"
        print(f"{name}: {self.parameters:,} parameters, {run.device}, {self.precision}{begin}",
              flush=True)

    # ---- Time -----------------------------------------------------------------------------------

    @property
    def done(self) -> float:
        """The fraction completed; 1 or more is the end."""
        return self.budget.done(self.step, self.seconds)

    def steps(self) -> Iterator[Tensor]:
        """Seed, set the learning rate and draw a batch for each step -> its indices (b)."""
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                part.train()
        self.first_step, self.first_seconds = self.step, self.seconds
        self.started = self.shown = time.monotonic()
        self.next_due = self.started + SAVE_EVERY
        # with --steps alone all threads stay, so that such a training can be repeated exactly
        threads = itertools.repeat(None)
        if self.budget.minutes and self.run.device == "cpu" and WORLD == 1:
            threads = choose_threads(lambda line: self.print_line(f"{self.name}: {line}", "\n"))
        with self.interruptible():
            while self.done < 1 and not self.stopped_by:
                next(threads)
                torch.manual_seed(stable_seed(self.run.job.seed, self.name, self.step))
                for part in self.parts.values():
                    if isinstance(part, Optimizer):
                        set_learning_rate(part, self.done, self.recipe)
                yield self.source.draw(self.recipe.batch_size, self.done)
            # the other processes wait here until the leader has saved what they may need next
            self.stopped_by = agree(self.asked_to_stop)
        if self.stopped_by:
            raise self.stopped_by(f"stopped at step {self.step}, which is saved; to continue: "
                                  f"{self.run.resume_command}")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C end the training after the step that it interrupts, a second one at once."""
        def stop(*_):
            self.asked_to_stop = KeyboardInterrupt
            if WORLD == 1:  # torchrun passes on what the terminal has sent already
                signal.signal(signal.SIGINT, signal.default_int_handler)

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def autocast(self) -> torch.autocast:
        """Compute in the training's precision."""
        return torch.autocast(self.run.device, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def due(self) -> bool:
        """Whether to save and to evaluate now: at most twice a minute, and after the last step."""
        self.due_since = time.monotonic()
        over = self.done >= 1 or bool(self.stopped_by)
        return LEADER and (over or self.due_since >= self.next_due)

    # ---- The log --------------------------------------------------------------------------------

    def log(self, loss: Tensor, **parts: Tensor) -> None:
        """Count this step, and log every tenth. Raises InputError for what is not finite."""
        logged = self.step % LOG_EVERY == 0
        if logged or loss.device.type == "cpu":  # on a GPU seldom: asking makes it wait
            broken = [f"{name} is {value.item()}" for name, value in {"loss": loss, **parts}.items()
                      if not value.isfinite()]
            if broken:
                self.diverged(", ".join(broken))
        self.loss = loss.detach()
        if self.step == 0:
            print(f"{self.name}: first loss {self.loss.item():.3f}", flush=True)
        if logged:
            value, *values = mean(loss, *parts.values())
            if LEADER:
                figures = dict(zip(parts, values))
                self.run.log.append(self.name, self.step, self.seconds, value, figures)
        self.step += 1
        seconds = self.first_seconds + time.monotonic() - self.started
        self.seconds, self.stopped_by = agree((seconds, self.asked_to_stop))
        self.show()

    def log_held_out(self, **figures: float) -> None:
        """Log and print figures of held-out pictures; the next come after fifty times their time."""
        now = time.monotonic()
        self.next_due = now + max(SAVE_EVERY, (now - self.due_since) / HELD_OUT_FRACTION)
        self.run.log.append(self.name, self.step, self.seconds, None, figures)
        line = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
        self.print_line(f"{self.name}: {self.step} steps  held out: {line}", "\n")
        found = symptoms(self.name, self.run.log.rows(), self.done, self.expected.first)
        for entry in found.keys() - self.noticed:
            self.print_line(f"{self.name}: {found[entry]}: docs/failures.md#{entry}", "\n")
        self.noticed |= found.keys()

    def show(self) -> None:
        """Rewrite the progress line on a terminal; elsewhere print it every half minute, and last."""
        now, live = time.monotonic(), sys.stdout.isatty()
        over = self.done >= 1 or bool(self.stopped_by)
        if not over and now - self.shown < (0.5 if live else 30):
            return
        self.shown = now
        speed = (self.step - self.first_step) / max(self.seconds - self.first_seconds, 1e-9)
        left = self.seconds * (1 - self.done) / max(self.done, 1e-9)
        seconds = f"{self.seconds:.0f} s in all" if over else f"{left:.0f} s left"
        line = (f"{self.name}: {self.step} steps  loss {self.loss.item():.4f}  {speed:.1f} steps/s  "
                f"{seconds}")
        self.print_line(line, "" if live and not over else "\n")

    def print_line(self, line: str, end: str) -> None:
        """Print over the progress line. If nobody reads on (`| head`), stop as after Ctrl-C."""
        try:
            print(f"\r{line:<79}" if sys.stdout.isatty() else line, end=end, flush=True)
        except BrokenPipeError:
            ignore_output()
            self.asked_to_stop = BrokenPipeError

    # ---- The checkpoint -------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, unless a weight is not finite."""
        weights, source = self.parts["model"].state_dict(), self.source
        for name, weight in weights.items():
            if weight.is_floating_point() and not weight.isfinite().all():
                self.diverged(f"{name} is not finite")
        self.run.save(self.name, {
            "config": dataclasses.asdict(self.config), "recipe": dataclasses.asdict(self.recipe),
            "weights": weights, "parameters": self.parameters, "precision": self.precision,
            "step": self.step, "seconds": self.seconds, "done": self.done, **source.notes,
            "training": {name: part.state_dict() for name, part in self.parts.items()
                         if name != "model"},
            "facts": {"device": self.run.device, "torch": str(torch.__version__),
                      "expected": self.expected.first, "about": source.train.about,
                      "pictures": {"train": len(source.train), "held-out": len(source.held_out)}},
        })
        self.saved_step = self.step

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where a checkpoint ends. Raises InputError if the source has changed since."""
        for name, value in self.source.notes.items():
            if state.get(name) != value:
                raise InputError(f"{self.run.path(self.name)} was trained with another {name} "
                                 f"({state.get(name)}, now {value}): name another --run")
        self.parts["model"].load_state_dict(state["weights"])
        for name, part in state["training"].items():
            self.parts[name].load_state_dict(copy.deepcopy(part))  # Windows replaces no mapped file
        self.precision, self.saved_step = state["precision"], state["step"]
        self.step, self.seconds = state["step"], state["seconds"]

    def diverged(self, what: str) -> None:
        """Raise InputError that says what is not finite, what is kept, and what to lower."""
        kept = "nothing was saved"
        if self.saved_step is not None:
            kept = f"{self.run.path(self.name)} holds step {self.saved_step}"
        hint = ", try --precision fp32" if self.precision == "bf16" else ""
        raise InputError(f"{self.name}: {what} at step {self.step}; {kept}. Lower --learning-rate "
                         f"(now {self.recipe.learning_rate:g}){hint}, or look for a term that can be "
                         "infinite or not a number")
