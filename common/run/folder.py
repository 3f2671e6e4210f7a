"""A run's folder: its checkpoints, its log, and who may write to it.

    runs/NAME/   tokenizer.json  clip.pt  vqgan.pt  dalle.pt  prior.pt  decoder.pt
                 log.csv  scores.json  samples/  report.html

A checkpoint is a plain dict. Beside the weights it holds all that resuming needs, the job included:
what train.py was asked for, in the terms of its flags.
"""

import csv
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch

import data
import minclip.files

from .errors import InputError, file_errors
from .flags import command
from .job import MODELS, Job

# how many processes torchrun started, which one this is, and whether it is the one that writes
WORLD = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0)) if WORLD > 1 else 0
LEADER = RANK == 0
VERSION = 3  # of a checkpoint's layout; earlier ones can be used but not resumed


class Run:
    """A job and its folder."""

    def __init__(self, job: Job):
        self.job, self.folder = job, job.folder
        self.log = Log(self.folder / "log.csv")
        self.datasets: dict[tuple, data.Dataset] = {}  # those that are open, for all models

    @cached_property
    def device(self) -> str:
        return pick_device(self.job.device)

    @property
    def resume_command(self) -> str:
        return command("train.py", "--run", self.folder, "--resume")

    def path(self, model: str) -> Path:
        return self.folder / f"{model}.pt"

    def state(self, model: str) -> dict[str, Any] | None:
        """Read a model's checkpoint, its tensors mapped from the file; None if it has none."""
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

    def save(self, model: str, state: dict[str, Any]) -> None:
        """Write a model's checkpoint."""
        about = {"kind": model, "version": VERSION, "saved_at": time.time(),
                 "job": dataclasses.asdict(self.job)}
        write_whole(self.path(model), lambda file: torch.save(about | state, file))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other trainings; refuse one with files of somebody else's."""
        if not LEADER:
            yield
            return
        with file_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / ".lock", "a+")
        with file:
            if not lock(file):
                raise InputError(f"{self.folder} is being trained by another process: wait for it, or "
                                 "name another --run")
            for path in (self.log.path, self.folder / "scores.json"):
                if path.exists() and not self.log.is_ours():
                    raise InputError(f"{path} was not written by train.py, which would overwrite it: "
                                     "name another --run")
            yield


class Log:
    """Losses every ten steps, and now and then figures of held-out pictures.

        model,step,seconds,loss,parts
        vqgan,420,35.1,0.31254,reconstruction=0.29871 codebook=0.01383
        vqgan,430,35.9,,psnr=29.81234 usage=0.99805
    """

    HEADER = ["model", "step", "seconds", "loss", "parts"]

    def __init__(self, path: Path):
        self.path = path

    def append(self, model: str, step: int, seconds: float, loss: float | None,
               parts: dict[str, float]) -> None:
        """Add a line; the first of a file comes after the header."""
        details = " ".join(f"{name}={value:.5f}" for name, value in parts.items())
        row = [model, step, f"{seconds:.1f}", "" if loss is None else f"{loss:.5f}", details]
        with file_errors(), open(self.path, "a", newline="") as file:
            csv.writer(file).writerows([row] if file.tell() else [self.HEADER, row])

    def rows(self) -> list[dict[str, str]]:
        """Read the lines, without those that a crash cut short; none if there is no log."""
        if not self.path.exists():
            return []
        with file_errors(), open(self.path, newline="", errors="replace") as file:
            rows = list(csv.reader(line.replace("\0", "") for line in file if line.endswith("\n")))
        rows = [row for row in rows if len(row) == len(self.HEADER) and row[1].isdigit()]
        return [dict(zip(self.HEADER, row)) for row in rows]

    def trim(self, model: str, step: int) -> None:
        """Drop a model's lines beyond its first steps, which a killed run left and a resumed repeats."""
        if self.path.exists():
            # a loss at step 10 is that of the eleventh; held-out figures at step 10 come after ten
            kept = [row.values() for row in self.rows()
                    if row["model"] != model or int(row["step"]) + bool(row["loss"]) <= step]
            lines = "".join(",".join(row) + "\r\n" for row in [self.HEADER, *kept])
            write_whole(self.path, lambda file: file.write(lines.encode()))

    def is_ours(self) -> bool:
        """Tell whether the file is such a log, though perhaps a crash left it empty."""
        if not self.path.exists():
            return False
        text = self.path.read_text(errors="replace")
        return not text or text.startswith(",".join(self.HEADER))


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file beside `path`, then rename it: a crash leaves the old one or the new one, whole.

    Raises InputError if it cannot be written, on a full disk say; the old file then remains.
    """
    temporary = path.with_name(f"{path.name}.new")
    try:
        with file_errors():
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, InputError):
            kept = "the file from before is still there" if path.exists() else "nothing was saved"
            raise InputError(f"{path} could not be written ({error}); {kept}") from error
        raise


def lock(file: Any) -> bool:
    """Lock an open file until this process ends, in whatever way; False if another has it locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def pick_device(name: str) -> str:
    """Turn "auto" into the best device of this machine. Raises InputError for one that it lacks."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(),
                 "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        raise InputError(f"--device {name}: torch finds none on this machine; try --device cpu")
    return name
