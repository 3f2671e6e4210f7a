"""Settle what is trained and how: the command line, a resumed run's checkpoints, the budget.

    typed flags --parse--+
                         +--open_run--> Run, its Job --settle--> each model's config and recipe
    checkpoints ---------+                           --Budget--> when its training ends
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..run.errors import InputError
from ..run.flags import Parser, add_fields, command, typed_fields
from ..run.folder import VERSION, Run
from ..run.job import DATA, JOBS, MINUTES, MODELS, Job, trained_by

Fields = dict[str, Any]
USED_BY = {"clip": ("prior", "decoder"), "vqgan": ("dalle",)}  # model -> those that learn from it

# ---- The command line ---------------------------------------------------------------------------


def parse(argv: list[str] | None, description: str, classes: dict[str, tuple]) \
        -> tuple[str | None, Fields, dict[str, Fields]]:
    """Read the command line -> what to train, the fields of Job and of each model that were typed.

    classes: model -> its config, its recipe, and the config fields that are no flags

    Where a job trains several models, a flag of one of them carries its name, as in
    --vqgan.channels; --steps and --image-size are for all.
    """
    argv = sys.argv[1:] if argv is None else argv
    names = [*classes, *filter(None, JOBS)]
    switches = {f"--{field.name}" for field in dataclasses.fields(Job) if field.default is False}
    name = next((word for before, word in zip(["", *argv], argv)
                 if word in names and (before in switches or not before.startswith("-"))), None)

    several = " | ".join(names)
    parser = Parser(prog="python train.py", description=description,
                    usage=f"python train.py [{several}] [options]",
                    epilog="To see the options of one model: python train.py clip --help")
    parser.add_argument("model", nargs="?", choices=names, metavar=several, default=None,
                        help=f"what to train; when left out: {', '.join(JOBS[None])}")
    add_fields(parser, Job, without=("model", "flags"))
    if name in JOBS:
        parser.add_argument("--steps", type=int, help="optimiser steps of each model")
    if name is None:
        parser.add_argument("--image-size", type=int, help="side of an image in pixels, for all")
    for model in trained_by(name):
        config, recipe, decided = classes[model]
        prefix = f"{model}." if name in JOBS else ""
        add_fields(parser, config, prefix, (*decided, "image_size") if name in JOBS else decided)
        add_fields(parser, recipe, prefix)
    refuse_unknown(argv, parser)

    args, flags = parser.parse_args(argv), {}
    for model in trained_by(name):
        config, recipe, decided = classes[model]
        prefixes = (f"{model}.", "") if name in JOBS else ("",)
        values = {}
        for prefix in reversed(prefixes):  # --vqgan.steps wins over --steps
            values |= typed_fields(args, config, prefix) | typed_fields(args, recipe, prefix)
        flags[model] = {key: value for key, value in values.items() if key not in decided}
    typed = {key: value for key, value in typed_fields(args, Job).items() if key != "model"}
    return name, typed, flags


def refuse_unknown(argv: list[str], parser: Parser) -> None:
    """Refuse a flag that does not exist, naming those that end alike."""
    def bare(flag: str) -> str:
        return flag.removeprefix("--").removeprefix("no-").split(".")[-1]

    known = parser._option_string_actions
    for flag in (word.split("=")[0] for word in argv if word.startswith("--")):
        if flag not in known:
            similar = sorted(other for other in known if bare(other) == bare(flag))
            hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
            parser.error(f"there is no {flag} here{hint}")


# ---- The run ------------------------------------------------------------------------------------


def open_run(name: str | None, typed: Fields,
             flags: dict[str, Fields]) -> tuple[Run, tuple[str, ...]]:
    """Open the run -> it, the models to train: as typed, and for the rest as its checkpoints say.

    Raises InputError where the two disagree.
    """
    if "data" in typed:
        typed = {**typed, "data": full_name(typed["data"])}
    job = Job(**typed, model=name, flags=flags)
    states = Run(job).states()
    if not states:
        if job.resume:
            print(f"{job.folder} has nothing to resume: training starts from the beginning")
        return Run(with_end(job)), trained_by(name)
    own = [states[model] for model in trained_by(name) if model in states] if name else []
    last = max(own or states.values(), key=lambda state: state.get("saved_at", 0.0))
    saved = last.get("job", last)  # the first version had its fields beside the weights
    if job.resume and last.get("version", 1) != VERSION:
        raise InputError(f"{job.folder} was trained by an earlier version: sample.py can use it, "
                         "but it cannot be resumed; name another --run")
    # a model without a checkpoint is resumed as part of a job of several models, or else begun
    if job.resume and (name is None or own or name in trained_by(saved["model"])):
        saved = Job(**saved)
        if name in MODELS:
            return Run(resumed(job, saved, typed)), (name,)
        saved = dataclasses.replace(saved, model=name or saved.model)
        return Run(resumed(job, saved, typed)), trained_by(saved.model)
    # all models of a run are trained on one data set
    source = {key: saved[key] for key in DATA if key in saved}
    source["data"] = full_name(source["data"])
    for key in source.keys() & typed.keys():
        refuse_another(job.folder, key, source[key], typed[key])
    if source["data"] != job.data:
        print(f"data: {source['data']}, as for the other models of {job.folder}")
    return Run(with_end(dataclasses.replace(job, **source, run=str(job.folder)))), trained_by(name)


def with_end(job: Job) -> Job:
    """Give a job its usual minutes unless minutes or steps were typed."""
    steps = any("steps" in fields for fields in job.flags.values())
    minutes = job.minutes or (None if steps else MINUTES.get(job.model))
    return dataclasses.replace(job, minutes=minutes)


def resumed(job: Job, saved: Job, typed: Fields) -> Job:
    """Continue a saved job; refuse a typed setting that differs, but take a new end and print it."""
    for key in (*DATA, "seed", "overfit", "truncate"):
        if key in typed:
            refuse_another(job.folder, key, getattr(saved, key), typed[key])
    flags = {model: saved.flags.get(model, {}) | job.flags.get(model, {}) for model in MODELS}
    minutes = saved.minutes
    if job.minutes or any("steps" in fields for fields in job.flags.values()):
        minutes = job.minutes
        for model, fields in flags.items():
            fields.pop("steps", None)
            if "steps" in job.flags.get(model, {}):
                fields["steps"] = job.flags[model]["steps"]
        end = f"{minutes:g} minutes" if minutes else "the steps that were typed"
        print(f"training now ends after {end}")
    return dataclasses.replace(
        saved, run=str(job.folder), resume=True, device=job.device, minutes=minutes, flags=flags,
        precision=typed.get("precision", saved.precision))


def settle(run: Run, model: str, config: type, recipe: type) -> tuple[Any, Any]:
    """Return a model's config and recipe: the checkpoint's or the defaults, then what was typed.

    Raises InputError for a setting that cannot change, or a model that others have learned from.
    """
    values, state, path = run.job.flags.get(model, {}), run.state(model), run.path(model)
    if "scenes" in values and run.job.data != "shapes":
        raise InputError(f"--scenes is for the shapes world, and {run.job.data} has its own "
                         "pictures: leave it out")
    if state:
        if not run.job.resume:
            raise InputError(f"{path} exists: add --resume to continue it, or name another --run")
        saved = {**state["config"], **state["recipe"]}
        for key in values.keys() - {"steps"}:
            refuse_another(path, key, saved.get(key, values[key]), values[key])
        if run.job.precision != "auto":
            refuse_another(path, "precision", state["precision"], run.job.precision)
        values = saved | values
    elif {"patch_size", "multipliers"}.isdisjoint(values):
        clip = run.state("clip") if model == "decoder" else None  # whose images the decoder draws
        default = getattr(config, "image_size", 32)
        side = clip["config"]["image_size"] if clip else values.get("image_size", default)
        values = fitting(model, side) | values
    def make(cls: type) -> Any:
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in names})

    config, recipe = make(config), make(recipe)
    if not state or Budget.of(run, model, recipe).done(state["step"], state["seconds"]) < 1:
        refuse_to_change(run, model)
    return config, recipe


def refuse_to_change(run: Run, model: str) -> None:
    """Raise InputError if other models have learned from this one's output, which would change."""
    for other in USED_BY.get(model, ()):
        if run.path(other).exists():
            alone = command("train.py", other, "--run", run.folder, "--resume")
            raise InputError(f"{run.path(other)} was trained on the output of {run.path(model)}, "
                             "which would change: name another --run, or train "
                             f"{other} alone: {alone}")


def refuse_another(where: Path, name: str, was: Any, typed: Any) -> None:
    """Raise InputError if a setting differs from the run's."""
    if was != typed:
        raise InputError(f"{where} was trained with --{name.replace('_', '-')} {was}, not {typed}: "
                         "leave the flag out, or name another --run")


def full_name(source: str) -> str:
    """Name a data set alike from any folder we are in, and with or without a last slash."""
    return source if source == "shapes" else str(Path(source).resolve())


def fitting(model: str, side: int) -> Fields:
    """Return the config fields that follow from the side of the images in pixels.

    side                                   28    32    40    48    56    64    80    96
    CLIP's patches a side                   7     4     5     6     7     4     5     6
    VQGAN's codes a side                    7     8    10    12    14    16    10    12
    VQGAN's channels at full resolution    16    16    16    16     8     8     8     8
    places a side in DALL·E 2's decoder    14    16    20    24    14    16    20    24

    Raises InputError for a side that cannot be halved often enough.
    """
    halvings = next(n for n in range(2, 99) if side <= 16 * 2**n)
    if side % 2**halvings:
        lower = side // 2**halvings * 2**halvings
        raise InputError(f"image_size {side} cannot be halved {halvings} times: "
                         f"choose {lower} or {lower + 2**halvings}")
    patch_size = max(2**n for n in range(1, 7) if side % 2**n == 0 and (n == 1 or side >= 4 * 2**n))
    large = side > 48  # where layers at full resolution take most of the time
    return {
        "clip": {"patch_size": patch_size},
        "vqgan": {"channels": 8 if large else 16,
                  "multipliers": (1, 2, *[4] * (halvings - 2), 8 if large else 4)},
        "decoder": {"patch_size": 2 ** (((side - 1) // 48).bit_length() + 1),
                    "channels": 64 if large else 48},
    }.get(model, {})


# ---- The budget ---------------------------------------------------------------------------------

# each model's fraction of a job's minutes, and its most steps; the last one gets what is left
TIME = {"clip": 0.13, "vqgan": 0.2, "dalle": 0.67, "prior": 0.15, "decoder": 0.85}
MAX_STEPS = {"clip": 3000, "vqgan": 4000, "prior": 3000}


@dataclass(frozen=True)
class Budget:
    """How long a training may take: in minutes, in steps, or until the first of both is reached."""

    minutes: float | None
    steps: int | None

    @classmethod
    def of(cls, run: Run, model: str, recipe: Any) -> "Budget":
        """Divide the job's minutes among its models; they replace steps that were not typed."""
        job, typed = run.job, "steps" in run.job.flags.get(model, {})
        if not job.minutes:
            return cls(None, recipe.steps)
        models = JOBS.get(job.model, (model,))
        if model != models[-1]:
            return cls(job.minutes * TIME[model], recipe.steps if typed else MAX_STEPS[model])
        earlier = sum(state["seconds"] for name in models[:-1] if (state := run.state(name))) / 60
        # at least half of its own fraction: earlier models may come from a longer job
        least = job.minutes * TIME[model] / 2 if len(models) > 1 else 0.0
        return cls(max(job.minutes - earlier, least), recipe.steps if typed else None)

    def done(self, step: int, seconds: float) -> float:
        """Return the fraction of the training that is completed; 1 or more is the end."""
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return max(by_time, step / self.steps if self.steps else 0.0)
