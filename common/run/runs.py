"""A run's folder: its checkpoints and who may write to it.

    runs/NAME/   tokenizer.json  clip.pt  vqgan.pt  dalle.pt  prior.pt  decoder.pt
                 log.csv  losses.png  scores.json  samples/  report.html

A checkpoint is a plain dict. Beside the weights it holds all that resuming needs, the job included: what train.py was asked
for, in the terms of its flags. So `train.py --run runs/NAME --resume` needs no other flag.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import data
import minclip.files

from . import log
from .errors import InputError, file_errors
from .files import lock, write_whole
from .flags import command
from ..training.distributed import LEADER

if TYPE_CHECKING:  # jobs.py imports this file
    from ..training.settle import Job

VERSION = 2  # of a checkpoint's layout; those without a number, the first, can be used but not resumed
MODELS = ("clip", "vqgan", "dalle", "prior", "decoder")
JOBS = {None: ("clip", "vqgan", "dalle"), "unclip": ("prior", "decoder")}  # what train.py trains in turn; None: with no name

MINUTES = {None: 8.9, "unclip": 20.0}  # that a job takes, unless minutes or steps are typed


def trained_by(job: str | None) -> tuple[str, ...]:
    """List the models of a job: those of JOBS, or the one that it names."""
    return JOBS.get(job) or (job,)


class Run:
    """Own the folder of one run. only: the one of the job's models that is to be trained now."""

    def __init__(self, job: "Job", only: str | None = None):
        self.job, self.folder = job, job.folder
        self.opened: dict[tuple, data.Dataset] = {}
        self.expected: dict[str, float] = {}  # model -> its first loss
        self.named: set[str] = set()  # pictures that were skipped, with the reason: each is named once
        self.models = [only] if only else list(trained_by(job.model))
        self.log_path = self.folder / "log.csv"

    @cached_property
    def device(self) -> str:
        return pick_device(self.job.device)

    @property
    def resume_command(self) -> str:
        return command("train.py", "--run", self.folder, "--resume")

    def path(self, model: str) -> Path:
        return self.folder / f"{model}.pt"

    def state(self, model: str) -> dict[str, Any] | None:
        """Read a model's checkpoint, its tensors mapped from the file; None if there is none."""
        path = self.path(model)
        if not path.exists():
            return None
        try:
            state = minclip.files.read(path)
        except minclip.InputError as error:
            raise InputError(f"{error}; delete it to train {model} from the beginning") from error
        if not isinstance(state, dict) or state.get("kind") != model:
            raise InputError(f"{path} is no checkpoint of {model}: name another --run")
        return state

    def states(self) -> dict[str, dict[str, Any]]:
        return {model: state for model in MODELS if (state := self.state(model))}

    def settled(self, model: str, name: str) -> Any:
        """Return a field of a model's config if it was typed, or if the checkpoint to resume has it; else None."""
        typed, state = self.job.flags.get(model, {}).get(name), self.state(model) if self.job.resume else None
        return state["config"][name] if typed is None and state else typed

    def expect(self, model: str, of: str, first: float, lowest: float | None = None) -> None:
        """Print the first loss to expect, that of a model which knows nothing, and the lowest there can be; note it for the report."""
        self.expected[model] = first
        print(f"{model}: expect a first loss of about {first:.3f}, that of {of}"
              + ("" if lowest is None else f"; the lowest there can be: {lowest:.3f}"))

    def facts(self, model: str) -> dict[str, Any]:
        """Collect what a report tells of a training beside its settings."""
        return {"device": self.device, "torch": str(torch.__version__), "expected": self.expected.get(model),
                "about": next((images.about for images in self.opened.values()), ""),
                "pictures": {split: len(images) for (_, _, split), images in self.opened.items()}}

    def save(self, model: str, state: dict[str, Any]) -> None:
        """Write a model's checkpoint; only the leader does."""
        if not LEADER:
            return
        state = {"kind": model, "version": VERSION, "saved_at": time.time(), "job": dataclasses.asdict(self.job),
                 "facts": self.facts(model), **state}
        write_whole(self.path(model), lambda file: torch.save(state, file))

    @contextmanager
    def locked(self) -> Iterator["Run"]:
        """Lock the folder against other trainings, and refuse it if it has files that we would overwrite but did not write."""
        if not LEADER:  # who alone writes
            yield self
            return
        with file_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / ".lock", "a+")
        with file:
            if not lock(file):
                raise InputError(f"{self.folder} is being trained by another process: wait for it, or name another --run")
            for name in ("log.csv", "losses.png", "scores.json"):
                if (self.folder / name).exists() and not log.is_ours(self.log_path):
                    raise InputError(f"{self.folder / name} was not written by train.py, which would overwrite it: "
                                     "name another --run")
            yield self


def pick_device(name: str) -> str:
    """Turn "auto" into the best device there is; refuse one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there[name]:
        raise InputError(f"--device {name}: torch finds none on this machine; try --device cpu")
    return name
