"""What the training loops share: seeds, the learning rate's schedule, batches, and one training's place in time.

Every step draws its randomness from (seed, model, step) alone. So no generator has to be saved, and a run that was killed
goes on from its last checkpoint to the very weights it would have had.
"""

import copy
import dataclasses
import itertools
import signal
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..run import log
from ..run.errors import InputError, ignore_output
from .settle import Budget
from .distributed import LEADER, WORLD, agree, mean, same_weights
from ..run.runs import Run
from .symptoms import symptoms
from .threads import choose_threads

SAVE_EVERY = 30  # fewest seconds between checkpoints, each with figures of held-out pictures: more where those take long
LOG_EVERY = 10  # steps between lines of the log
HELD_OUT_SHARE = 0.02  # of the time goes to figures of held-out pictures, at the most


def stable_seed(*parts: Any) -> int:
    """Mix anything printable into a seed below 2^63 that is the same on every machine, unlike Python's hash()."""
    return int.from_bytes(sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def set_learning_rate(optimiser: Optimizer, done: float, recipe: Any) -> None:
    """Raise each group's rate along a line to its highest, then lower it along a line to zero [Bergsma et al. 2025].

    done: share of the training that is behind us, in [0, 1]; recipe.warmup: the share during which the rate rises. At the first
    step, when nothing is done, the rate is that of one of recipe.steps: at 0 the step would be wasted.
    """
    factor = min(max(done, 1 / recipe.steps) / recipe.warmup, (1 - done) / max(1 - recipe.warmup, 1e-9))
    for group in optimiser.param_groups:
        group["lr"] = group["rate"] * factor


def random_batch(count: int, batch_size: int, overfit: bool = False) -> Tensor:
    """Draw the indices (b) of a batch, all different while there are enough; always the same ones to overfit."""
    if overfit:
        return torch.arange(min(count, batch_size))
    return torch.randperm(count)[:batch_size] if count >= batch_size else torch.randint(count, (batch_size,))


def shifted(images: Tensor, most: int, generator: torch.Generator | None = None) -> Tensor:
    """Move each image (b 3 h w) by up to `most` pixels both ways, at random; its border is repeated -> (b 3 h w)."""
    if not most:
        return images
    h, w = images.shape[-2:]
    padded = F.pad(images, [most] * 4, mode="replicate")
    corners = torch.randint(2 * most + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + h, x : x + w] for image, (y, x) in zip(padded, corners)])


class Training:
    """One model's training: how far it is, when it ends, its lines in the log, its checkpoint.

    notes: plain values for the checkpoint, such as the tokenizer's fingerprint; a training resumes under equal ones only
    parts: what must be saved to go on, each with a state_dict: the model under that name, optimisers
    """

    def __init__(self, run: Run, name: str, config: Any, recipe: Any, notes: dict[str, Any], **parts: nn.Module | Optimizer):
        self.run, self.name, self.config, self.recipe, self.notes, self.parts = run, name, config, recipe, notes, parts
        self.budget = Budget.of(run, name, recipe)
        self.step, self.seconds, self.saved_step = 0, 0.0, None
        self.asked_to_stop = self.stopped_by = None  # by whom: this process alone; all, which agree after each step
        self.noticed: set[str] = set()  # symptoms that were named: each once
        if run.job.resume and (state := run.state(name)):
            self.restore(state)
        if LEADER:
            log.trim(run.log_path, name, self.step)
        same_weights(parts["model"])
        count = sum(p.numel() for p in parts["model"].parameters())
        begin = f", from step {self.step}" if self.step else ""
        if self.done >= 1:
            begin = f", finished after {self.step} steps; more --steps or --minutes move the end"
        print(f"{name}: {count:,} parameters, {run.device}, {notes['precision']}{begin}", flush=True)

    # ---- Time ---------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> float:
        return self.budget.done(self.step, self.seconds)

    def steps(self) -> Iterator[tuple[int, float]]:
        """Yield (step, share done) until the training is over. Ctrl-C ends it after the step that it interrupts."""
        def stop(*_):
            self.asked_to_stop = KeyboardInterrupt
            if WORLD == 1:  # a second Ctrl-C does not wait; torchrun passes on what the terminal has sent already
                signal.signal(signal.SIGINT, signal.default_int_handler)

        before = signal.signal(signal.SIGINT, stop)
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                part.train()
        self.first_step, self.first_seconds, self.started = self.step, self.seconds, time.monotonic()
        self.shown, self.next_due = self.started, self.started + SAVE_EVERY
        # with --steps alone all threads stay: repeated, such a training ends with the very same weights
        adapt = self.budget.minutes and self.run.device == "cpu" and WORLD == 1
        threads = choose_threads(lambda line: self.print_line(f"{self.name}: {line}", end="\n")) if adapt else itertools.repeat(None)
        try:
            while self.done < 1 and not self.stopped_by:
                next(threads)
                yield self.step, self.done
            self.stopped_by = agree(self.asked_to_stop)  # the others wait here until the leader has saved what they may need next
        finally:
            signal.signal(signal.SIGINT, before)
        if self.stopped_by:
            raise self.stopped_by(f"stopped at step {self.step}, which is saved; to continue: {self.run.resume_command}")

    @property
    def due(self) -> bool:
        """Whether the leader is to save and to evaluate now: at most twice a minute, and after the last step."""
        self.due_since = time.monotonic()
        return LEADER and (self.due_since >= self.next_due or self.done >= 1 or bool(self.stopped_by))

    # ---- The log ------------------------------------------------------------------------------------------------------

    def log(self, loss: Tensor, **parts: Tensor) -> None:
        """Count this step, and log its figures if it is a tenth one. Raises InputError for a figure that is not finite."""
        logged = self.step % LOG_EVERY == 0
        if logged or loss.device.type == "cpu":  # on a GPU seldom: asking makes it wait
            broken = [f"{name} is {value.item()}" for name, value in {"loss": loss, **parts}.items() if not value.isfinite()]
            if broken:
                self.diverged(", ".join(broken))
        self.loss = loss.detach()
        if self.step == 0:
            print(f"{self.name}: first loss {self.loss.item():.3f}", flush=True)
        if logged:
            value, *values = mean(loss, *parts.values())
            if LEADER:
                log.append(self.run.log_path, self.name, self.step, self.seconds, value, dict(zip(parts, values)))
        self.step += 1
        self.seconds, self.stopped_by = agree((self.first_seconds + time.monotonic() - self.started, self.asked_to_stop))
        self.show()

    def log_held_out(self, **figures: float) -> None:
        """Log and print figures of held-out pictures; the next are due after fifty times what these took."""
        took = time.monotonic() - self.due_since
        self.next_due = time.monotonic() + max(SAVE_EVERY, took / HELD_OUT_SHARE)
        log.append(self.run.log_path, self.name, self.step, self.seconds, None, figures)
        line = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
        self.print_line(f"{self.name}: {self.step} steps  held out: {line}", end="\n")
        for entry, seen in symptoms(self.name, log.read(self.run.log_path), self.done, self.run.expected.get(self.name)).items():
            if entry not in self.noticed:
                self.print_line(f"{self.name}: {seen}: docs/failures.md#{entry}", end="\n")
            self.noticed.add(entry)

    def show(self) -> None:
        """Rewrite the progress line on a terminal; elsewhere print it every half minute, and at the end."""
        now, live, over = time.monotonic(), sys.stdout.isatty(), self.done >= 1 or bool(self.stopped_by)
        if not over and now - self.shown < (0.5 if live else 30):
            return
        self.shown = now
        speed = (self.step - self.first_step) / max(self.seconds - self.first_seconds, 1e-9)
        left = f"{self.seconds:.0f} s in all" if over else f"{self.seconds * (1 - self.done) / max(self.done, 1e-9):.0f} s left"
        line = f"{self.name}: {self.step} steps  loss {self.loss.item():.4f}  {speed:.1f} steps/s  {left}"
        self.print_line(line, end="" if live and not over else "\n")

    def print_line(self, line: str, end: str) -> None:
        """Print over the progress line. Nobody may be reading any more (`| head`): then stop as after Ctrl-C."""
        try:
            print(f"\r{line:<79}" if sys.stdout.isatty() else line, end=end, flush=True)
        except BrokenPipeError:
            ignore_output()
            self.asked_to_stop = BrokenPipeError

    # ---- The checkpoint -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, unless a weight is not finite."""
        weights = self.parts["model"].state_dict()
        for name, weight in weights.items():
            if weight.is_floating_point() and not weight.isfinite().all():
                self.diverged(f"{name} is not finite")
        self.run.save(self.name, {
            "config": dataclasses.asdict(self.config), "recipe": dataclasses.asdict(self.recipe), "weights": weights,
            "step": self.step, "seconds": self.seconds, **self.notes,
            "parameters": sum(p.numel() for p in self.parts["model"].parameters()),
            "training": {name: part.state_dict() for name, part in self.parts.items() if name != "model"},
        })
        self.saved_step = self.step

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where a checkpoint ends."""
        path = self.run.path(self.name)
        for name, value in self.notes.items():
            if state.get(name) != value:
                raise InputError(f"{path} was trained with another {name} ({state.get(name)}, now {value}): name another --run")
        self.parts["model"].load_state_dict(state["weights"])
        for name, part in state["training"].items():
            self.parts[name].load_state_dict(copy.deepcopy(part))  # Windows replaces no file that is still mapped
        self.step, self.seconds, self.saved_step = state["step"], state["seconds"], state["step"]

    def diverged(self, what: str) -> None:
        """Raise InputError that says what is not finite, what is kept, and what to lower."""
        path = self.run.path(self.name)
        kept = f"{path} holds step {self.saved_step}" if self.saved_step is not None else "nothing was saved"
        or_else = ", try --precision fp32" if self.notes["precision"] == "bf16" else ""
        raise InputError(f"{self.name}: {what} at step {self.step}; {kept}. Lower --learning-rate (now "
                         f"{self.recipe.learning_rate:g}){or_else}, or look for a term that can be infinite or not a number")
