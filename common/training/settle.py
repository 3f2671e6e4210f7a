"""The command line of train.py: what a training is asked for, and what a resumed run takes from its checkpoints.

    typed flags ---+
                   +--> Job: data, seed, minutes ... --> settle: a model's config and recipe
    checkpoints ---+    (with --resume)
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import LAYOUTS

from ..run.errors import InputError
from ..run.flags import Options, Parser, add_fields, command, option, typed_fields
from .recipes import fitting
from ..run.runs import JOBS, MINUTES, MODELS, Run, trained_by

Fields = dict[str, Any]
DATA = ("data", "layout", "class_names")  # the fields of Job that say what the models of a run are trained on


@dataclass(frozen=True)
class Job(Options):
    """What train.py was asked for. Every field but the last two is a flag."""

    data: str = option("shapes", "'shapes', or a folder of captioned images")
    layout: str | None = option(None, f"how the folder is laid out, if it is not recognised: {', '.join(LAYOUTS)}")
    class_names: tuple[str, ...] = option((), "what the numbers of the classes stand for, where the data set does not say", nargs="+")
    run: str | None = option(None, "folder of the run (default: runs/ and the name of the data)")
    minutes: float | None = option(None, "train for this long; with --steps, until the first of both (default: "
                                   f"{MINUTES[None]:g} with no model named, {MINUTES['unclip']:g} for unclip, else the recipe's steps)",
                                   least=0.01)
    resume: bool = option(False, "continue the run from its checkpoints, which know all other settings")
    overfit: bool = option(False, "train on one batch over and over: the loss must fall almost to the lowest possible")
    truncate: bool = option(False, "cut captions that are longer than the models read")
    seed: int = option(0, "seed of everything random")
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda", "mps"])
    precision: str = option("auto", "auto measures in which this machine is faster", choices=["auto", "bf16", "fp32"])
    compile: bool = option(False, "fuse the loss of DALL·E and of the decoder with torch.compile: faster on some machines")
    model: str | None = None                                   # a model, or one of JOBS
    flags: dict[str, Fields] = field(default_factory=dict)     # model -> the fields of its config and recipe that were typed

    @property
    def folder(self) -> Path:
        name = "shapes" if self.data == "shapes" else Path(self.data).name
        return Path(self.run or f"runs/{name}{'-overfit' if self.overfit else ''}")


def parse(argv: list[str] | None, description: str, classes: dict[str, tuple]) -> tuple[str | None, Fields, dict[str, Fields]]:
    """Read the command line -> the model to train, the fields of Job that were typed, those of each model's config and recipe.

    classes: model -> its config, its recipe, and the config fields that are no flags

    Flags of Job may stand before the model's name or after it. Where a job trains several models, a flag of one of them carries
    its name, as in --vqgan.channels; --steps and --image-size are for all.
    """
    shared = Parser(add_help=False)
    add_fields(shared, Job, without=("model", "flags"))
    names = [*classes, *filter(None, JOBS)]
    parser = Parser(prog="python train.py", description=description, parents=[shared],
                    usage=f"python train.py [options] [{' | '.join(names)}] [options]",
                    epilog="To see the options of one model: python train.py clip --help")
    parser.add_argument("--image-size", type=int, help="side of an image in pixels, for all models: patches and levels follow")
    commands = parser.add_subparsers(dest="model", metavar=" | ".join(names), help="what to train; "
                                     f"when left out: {', '.join(JOBS[None])}")
    for job, models in JOBS.items():
        several = commands.add_parser(job, prog=f"python train.py {job}", parents=[shared]) if job else parser
        several.add_argument("--steps", type=int, help="optimiser steps of each model")
        for model in models:
            config, recipe, decided = classes[model]
            add_fields(several, config, f"{model}.", without=(*decided, "image_size"))
            add_fields(several, recipe, f"{model}.")
    for model, (config, recipe, decided) in classes.items():
        alone = commands.add_parser(model, prog=f"python train.py {model}", parents=[shared])
        add_fields(alone, config, without=decided)
        add_fields(alone, recipe, without=("share", "enough"))
    argv = sys.argv[1:] if argv is None else argv
    check_flags(argv, parser, commands.choices)
    args, flags = parser.parse_args(argv), {}
    for model, (config, recipe, decided) in classes.items():
        dotted = typed_fields(args, config, f"{model}.") | typed_fields(args, recipe, f"{model}.")
        plain = typed_fields(args, config) | typed_fields(args, recipe) if model in trained_by(args.model) else {}
        flags[model] = {name: value for name, value in plain.items() if name not in decided} | dotted
    return args.model, {name: value for name, value in typed_fields(args, Job).items() if name != "model"}, flags


def check_flags(argv: list[str], parser: Parser, models: dict[str, Parser]) -> None:
    """Refuse a flag that does not exist, naming those that end alike; argparse would stumble over its value first."""
    takes_value = {flag for flag, action in parser._option_string_actions.items() if action.nargs != 0}
    named = [word for before, word in zip(["", *argv], argv) if word in models and before not in takes_value]
    own = {flag for word in named for flag in models[word]._option_string_actions}
    known = own | set(parser._option_string_actions)
    for flag in (word.split("=")[0] for word in argv if word.startswith("--")):
        name = flag.removeprefix("--").removeprefix("no-").split(".")[-1]
        if named and flag in known - own and "." in flag:
            remedy = "leave it out" if named[0] in JOBS else f"to train {named[0]} alone, leave out the model's name"
            parser.error(f"{flag} is for training {', '.join(JOBS[None])} in turn; {remedy}")
        if flag not in known:
            alike = sorted(other for other in own or known if ("." in other or named)
                           and other.split(".")[-1].removeprefix("--").removeprefix("no-") == name)
            parser.error(f"there is no {flag} here" + (f"; did you mean {' or '.join(alike)}?" if alike else ""))


def open_run(model: str | None, typed: Fields, flags: dict[str, Fields]) -> Run:
    """Settle the job: what was typed, and for the rest what the run's checkpoints say; InputError where they disagree."""
    if "data" in typed:
        typed = {**typed, "data": full_name(typed["data"])}
    job = Job(**typed, model=model, flags=flags)
    states = Run(job).states()
    if job.resume and not states:
        print(f"{job.folder} has nothing to resume: training starts from the beginning")
    if not job.resume or not states:
        steps = any("steps" in fields for fields in flags.values())
        job = dataclasses.replace(job, minutes=job.minutes or (None if steps else MINUTES.get(model)))
    if not states:
        return Run(job)
    own = [states[name] for name in trained_by(model) if name in states] if model else []
    last = max(own or states.values(), key=lambda state: state.get("saved_at", 0.0))
    if job.resume and "job" not in last:
        raise InputError(f"{job.folder} was trained by an earlier version: sample.py can use it, but it cannot be resumed; "
                         "name another --run")
    # a model without a checkpoint is resumed as part of a job of several models, or else begun
    if job.resume and (model is None or own or model in trained_by(last["job"]["model"])):
        saved = Job(**last["job"])
        if model in MODELS:
            return Run(resumed(job, saved, typed), only=model)
        return Run(resumed(job, dataclasses.replace(saved, model=model or saved.model), typed))
    saved = last.get("job", last)  # the models of a run are trained on one data set
    source = {"data": full_name(saved["data"])} | {name: saved[name] for name in DATA[1:] if name in saved}
    for name in source.keys() & typed.keys():
        refuse_another(job.folder, name, source[name], typed[name])
    if source["data"] != job.data:
        print(f"data: {source['data']}, as for the other models of {job.folder}")
    return Run(dataclasses.replace(job, **source, run=str(job.folder)))


def resumed(job: Job, saved: Job, typed: Fields) -> Job:
    """Continue a saved job. A typed setting that differs is refused; only a new end of the training is taken, and printed."""
    for name in (*DATA, "seed", "overfit", "truncate"):
        if name in typed:
            refuse_another(job.folder, name, getattr(saved, name), typed[name])
    flags = {model: saved.flags.get(model, {}) | job.flags.get(model, {}) for model in MODELS}
    minutes = saved.minutes
    if job.minutes or any("steps" in fields for fields in job.flags.values()):
        minutes = job.minutes
        for model, fields in flags.items():
            fields.pop("steps", None)
            fields |= {name: value for name, value in job.flags.get(model, {}).items() if name == "steps"}
        print("training now ends after " + (f"{minutes:g} minutes" if minutes else "the steps that were typed"))
    return dataclasses.replace(saved, run=str(job.folder), resume=True, device=job.device, minutes=minutes, flags=flags,
                               precision=typed.get("precision", saved.precision), compile=job.compile or saved.compile)


def settle(run: Run, model: str, config: type, recipe: type) -> tuple[Any, Any]:
    """Return a model's config and recipe: the checkpoint's when resuming, or else the defaults; then what was typed.

    Raises InputError for a setting that cannot change, or a model that others have learned from.
    """
    values, state = run.job.flags.get(model, {}), run.state(model)
    if "scenes" in values and run.job.data != "shapes":
        raise InputError(f"--scenes is for the shapes world, and {run.job.data} has its own pictures: leave it out")
    if state:
        if not run.job.resume:
            raise InputError(f"{run.path(model)} exists: add --resume to continue it, or name another --run")
        saved = {**state["config"], **state["recipe"]}
        for name in values.keys() - {"steps", "share"}:
            refuse_another(run.path(model), name, saved.get(name, values[name]), values[name])
        values = saved | values
    elif {"patch_size", "multipliers"}.isdisjoint(values):
        clip = run.state("clip") if model == "decoder" else None  # whose images the decoder draws
        side = clip["config"]["image_size"] if clip else values.get("image_size", getattr(config, "image_size", 32))
        values = fitting(model, side) | values
    config, recipe = (cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})
                      for cls in (config, recipe))
    refuse_to_change(run, model, recipe)
    return config, recipe


@dataclass(frozen=True)
class Budget:
    """How long a training may take: in minutes, in steps, or until the first of both is reached."""

    minutes: float | None
    steps: int | None

    @classmethod
    def of(cls, run: Run, model: str, recipe: Any) -> "Budget":
        """Minutes replace the recipe's steps, unless steps were typed too.

        The models of a job divide its minutes. Each may take its share, but no more steps than are enough; what the others left
        is for the last. So a faster machine draws better instead of ending sooner.
        """
        job, minutes, typed = run.job, run.job.minutes, "steps" in run.job.flags.get(model, {})
        models, most = JOBS.get(job.model, (model,)), None
        if minutes and model != models[-1]:
            minutes, most = minutes * recipe.share, recipe.enough
        elif minutes:
            minutes -= sum(state["seconds"] for other in models[:-1] if (state := run.state(other))) / 60
            minutes = max(minutes, job.minutes * recipe.share / 2)  # earlier models may come from a longer job
        return cls(minutes, recipe.steps if typed or not minutes else most)

    def done(self, step: int, seconds: float) -> float:
        """Return the share of the training that is behind us; 1 or more is the end."""
        return max(seconds / (60 * self.minutes) if self.minutes else 0.0, step / self.steps if self.steps else 0.0)


USED_BY = {"clip": ("prior", "decoder"), "vqgan": ("dalle",)}  # model -> those that learn from its output


def refuse_to_change(run: Run, model: str, recipe: Any) -> None:
    """Raise InputError if a model would train on although others have learned from its output, which would then change."""
    state, budget = run.state(model), Budget.of(run, model, recipe)
    if state and not budget.done(state["step"], state["seconds"]) < 1:
        return
    for other in USED_BY.get(model, ()):
        if run.path(other).exists():
            alone = command("train.py", other, "--run", run.folder, "--resume")
            raise InputError(f"{run.path(other)} was trained on the output of {run.path(model)}, which would change: name "
                             f"another --run, or train {other} alone: {alone}")


def refuse_another(where: Path, name: str, was: Any, typed: Any) -> None:
    """Raise InputError if a setting differs from the run's."""
    if was != typed:
        raise InputError(f"{where} was trained with --{name.replace('_', '-')} {was}, not {typed}: leave the flag out, "
                         "or name another --run")


def full_name(source: str) -> str:
    """Name a data set alike from any folder we are in, and with or without a last slash."""
    return source if source == "shapes" else str(Path(source).resolve())
