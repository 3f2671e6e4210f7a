"""Is a loss normal? Compare its curve with those of finished runs of the same recipe.

    log.csv of finished runs --benchmarks/expected.py--> expected.csv: the range of their losses
    log.csv of this run ------------------------------------> within that range, or where not

A faster machine takes more steps in the same minutes. So curves are compared at equal shares of the training.
"""

import csv
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

from .run import log
from .training.settle import USED_BY, Budget, Job
from .run.runs import MODELS, Run

TABLE = Path(__file__).with_name("expected.csv")
HEADER = ["model", "share", "low", "median", "high", "runs", "steps"]
SHARES = [(i + 0.5) / 50 for i in range(50)]  # of the training, where curves are compared
WINDOW = 0.02  # a loss is averaged over this share of the training before and after
TOLERANCE = 1.25  # few runs do not show the whole range: two seeds differ by a quarter
FIRST_TOLERANCE = 1.5  # a decoder's first loss is 26 % above that of a gray image
FEW = 10  # points of a curve are too few to judge it

Points = list[tuple[float, float]]  # (share of the training done, loss or another figure)
Verdict = tuple[bool | None, str]  # normal? None: unknown; and why

# ---- How a training went ----------------------------------------------------------------------------------------------


@dataclass
class History:
    """The training of one model, from the run's log and its checkpoint ({} if there is none)."""

    model: str
    state: dict[str, Any]
    by_recipe: bool  # is it of the default recipe?
    steps: int = 0
    done: float = 0.0  # share of the training
    rows: list[dict[str, str]] = field(default_factory=list)  # its lines in the log
    losses: Points = field(default_factory=list)
    held_out: dict[str, Points] = field(default_factory=dict)  # figure -> its values

    @property
    def smooth(self) -> list[float | None]:
        """Average the losses around each of SHARES; None where the log has none."""
        near = ([loss for share, loss in self.losses if abs(share - at) <= WINDOW] for at in SHARES)
        return [mean(losses) if losses else None for losses in near]

    @property
    def first_expected(self) -> float | None:
        """The first loss to expect, as train.py printed it; None in checkpoints of earlier versions."""
        return self.state.get("facts", {}).get("expected")


def histories(folder: Path) -> list[History]:
    """Read how the models of a run's folder were trained, in their order; those without a line in the log are left out."""
    run = Run(Job(run=str(folder)))
    rows, states, found = log.read(run.log_path), run.states(), []
    for model in MODELS:
        own, state = [row for row in rows if row["model"] == model], states.get(model, {})
        if not own:
            continue
        steps = state.get("step", max(int(row["step"]) for row in own))
        share = progress(folder, model, state, steps)
        history = History(model, state, follows_recipe(states, model), steps, share(steps, state.get("seconds", 0.0)), own)
        for row in own:
            at = share(int(row["step"]), float(row["seconds"]))
            if row["loss"]:
                history.losses.append((at, float(row["loss"])))
            for name, value in re.findall(r"(\S+)=(\S+)", row["parts"] if not row["loss"] else ""):
                if math.isfinite(float(value)):
                    history.held_out.setdefault(name.replace("_", " "), []).append((at, float(value)))
        found.append(history)
    return found


def progress(folder: Path, model: str, state: dict[str, Any], steps: int) -> Callable[[int, float], float]:
    """Return share(step, seconds): how much of a training was done then, by the end that its job sets.

    A training without a checkpoint, or with one of an earlier version, is taken to have ended after so many steps.
    """
    if "job" not in state:
        return lambda step, seconds: min(1.0, step / max(steps, 1))
    recipe = SimpleNamespace(**{"enough": None} | state["recipe"])  # which earlier versions did not have
    budget = Budget.of(Run(Job(**state["job"] | {"run": str(folder)})), model, recipe)
    return lambda step, seconds: min(1.0, budget.done(step, seconds))


def follows_recipe(states: dict[str, dict[str, Any]], model: str) -> bool:
    """Tell whether a model was trained on the shapes world with no flag but its length, and so was the one it learned from."""
    for name in (model, *(used for used, users in USED_BY.items() if model in users)):
        job = states.get(name, {}).get("job")
        if not job or job["data"] != "shapes" or job["overfit"] or job["flags"].get(name, {}).keys() - {"steps", "share"}:
            return False
    return True


# ---- Is it normal? ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """The losses of a recipe's finished runs at SHARES: lowest, median and highest of so many runs, of about so many steps."""

    low: list[float]
    median: list[float]
    high: list[float]
    runs: int
    steps: int


def read(path: Path = TABLE) -> dict[str, Range]:
    """Read the table -> the range of each model in it."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {model: [row for row in rows if row["model"] == model] for model in dict.fromkeys(row["model"] for row in rows)}
    return {model: Range(*([float(row[name]) for row in own] for name in ("low", "median", "high")),
                         int(own[0]["runs"]), int(own[0]["steps"])) for model, own in columns.items()}


def judge_first(loss: float, expected: float) -> Verdict:
    """Say whether the first loss is about that of a model that knows nothing."""
    near = expected / FIRST_TOLERANCE <= loss <= expected * FIRST_TOLERANCE
    return near, f"The first loss was {loss:.3f}, {'close to' if near else 'far from'} the expected {expected:.3f}."


def judge_curve(history: History, known: Range) -> Verdict:
    """Say whether the loss stays within the range of the recipe's runs, and if not, where it leaves it.

    A twentieth of the points may lie outside.
    """
    curve = [(at, loss, low, high) for at, loss, low, high in zip(SHARES, history.smooth, known.low, known.high) if loss is not None]
    outside = {"above": [at for at, loss, _, high in curve if loss > high * TOLERANCE],
               "below": [at for at, loss, low, _ in curve if loss < low / TOLERANCE]}
    runs = f"the range of {known.runs} run{'s' * (known.runs > 1)} of this recipe"
    if len(curve) < FEW:
        return None, f"The log has too few lines to compare the loss with {runs}."
    if sum(map(len, outside.values())) <= len(curve) / 20:
        return True, f"The loss lies within {runs}."
    parts = " and ".join(f"{side} it {between(shares)}" for side, shares in outside.items() if shares)
    text = f"The loss leaves {runs}: it lies {parts} of the training."
    ratio = history.steps / known.steps
    if ratio < 0.8 and not outside["below"] or ratio > 1.25 and not outside["above"]:
        effect = "fewer steps leave a higher loss" if ratio < 1 else "more steps reach a lower one"
        return None, f"{text} It took {history.steps:,} steps, those runs about {known.steps:,}, and {effect}."
    return False, text


def between(shares: list[float]) -> str:
    first, last = (f"{100 * share:.0f} %" for share in (shares[0], shares[-1]))
    return f"at {first}" if first == last else f"from {first} to {last}"
