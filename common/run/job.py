"""What train.py was asked for: the job. Each checkpoint holds it, so that --resume needs no other flag."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import LAYOUTS

from .flags import Options, option

MODELS = ("clip", "vqgan", "dalle", "prior", "decoder")
JOBS = {None: ("clip", "vqgan", "dalle"), "unclip": ("prior", "decoder")}  # what train.py trains in turn; None: no name
MINUTES = {None: 8.9, "unclip": 20.0}  # that a job takes, unless minutes or steps are typed
DATA = ("data", "layout", "class_names")  # the fields of Job that say what the models of a run are trained on


@dataclass(frozen=True)
class Job(Options):
    """What train.py was asked for. Every field but the last two is a flag."""

    data: str = option("shapes", "'shapes', or a folder of captioned images")
    layout: str | None = option(None, f"how the folder is laid out, if not recognised: {', '.join(LAYOUTS)}")
    class_names: tuple[str, ...] = option((), "what class numbers stand for, if the data set does not say", nargs="+")
    run: str | None = option(None, "folder of the run (default: runs/ and the name of the data)")
    minutes: float | None = option(
        None, f"train for this long; with --steps, until the first of both (default: {MINUTES[None]:g} with no model "
        f"named, {MINUTES['unclip']:g} for unclip, else the recipe's steps)", least=0.01)
    resume: bool = option(False, "continue the run from its checkpoints, which know all other settings")
    overfit: bool = option(False, "train on one batch over and over: the loss must fall almost to the lowest possible")
    truncate: bool = option(False, "cut captions that are longer than the models read")
    seed: int = option(0, "seed of everything random")
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda", "mps"])
    precision: str = option("auto", "auto takes bf16 where it is faster, as measured", choices=["auto", "bf16", "fp32"])
    compile: bool = option(False, "torch.compile DALL·E and the decoder: faster on some machines")
    model: str | None = None                                           # one of MODELS or JOBS
    flags: dict[str, dict[str, Any]] = field(default_factory=dict)     # model -> config and recipe fields that were typed

    @property
    def folder(self) -> Path:
        name = "shapes" if self.data == "shapes" else Path(self.data).name
        return Path(self.run or f"runs/{name}{'-overfit' if self.overfit else ''}")


def trained_by(job: str | None) -> tuple[str, ...]:
    """List the models that a job trains: those of JOBS, or the one that it names."""
    return JOBS.get(job) or (job,)
