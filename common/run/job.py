"""What train.py was asked for. Each checkpoint holds it, so that --resume needs no other flag."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import LAYOUTS

from .flags import Options, option

MODELS = ("clip", "vqgan", "dalle", "prior", "decoder")
# what train.py trains in turn; None: with no name
JOBS = {None: ("clip", "vqgan", "dalle"), "unclip": ("prior", "decoder")}
MINUTES = {None: 8.9, "unclip": 20.0}  # that a job takes, unless minutes or steps are typed
DATA = ("data", "layout", "class_names")  # the fields of Job that say what a run is trained on


@dataclass(frozen=True)
class Job(Options):
    """What train.py was asked for. Every field but the last two is a flag."""

    data: str = option("shapes", "'shapes', or a folder of captioned images")
    layout: str | None = option(None, "how the folder is laid out, if that is not recognised: "
                                f"{', '.join(LAYOUTS)}")
    class_names: tuple[str, ...] = option((), "what the numbers of classes stand for, where the data "
                                          "set does not say", nargs="+")
    run: str | None = option(None, "folder of the run (default: runs/ and the name of the data)")
    minutes: float | None = option(
        None, "train for this long; with --steps, until the first of both (default: "
        f"{MINUTES[None]:g} with no model named, {MINUTES['unclip']:g} for unclip, else the recipe's "
        "steps)", least=0.01)
    resume: bool = option(False, "continue the run: its checkpoints know all other settings")
    overfit: bool = option(False, "train on one batch over and over: the loss must fall almost to the "
                           "lowest possible")
    truncate: bool = option(False, "cut captions that are longer than the models read")
    seed: int = option(0, "seed of everything random")
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda", "mps"])
    precision: str = option("auto", "auto takes bf16 where it is faster, as measured",
                            choices=["auto", "bf16", "fp32"])
    model: str | None = None  # one of MODELS or JOBS
    # model -> the fields of its config and recipe that were typed
    flags: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        name = "shapes" if self.data == "shapes" else Path(self.data).name
        return Path(self.run or f"runs/{name}{'-overfit' if self.overfit else ''}")


def trained_by(job: str | None) -> tuple[str, ...]:
    """List the models that a job trains: those of JOBS, or the one that it names."""
    return JOBS.get(job) or (job,)
