"""Make common/expected.csv, the range of losses that reports show, from the logs of finished runs.

    python benchmarks/expected.py runs/a runs/b runs/c

The runs must be of the default recipe on the shapes world, with different seeds. For each model and each of 50 shares of the
training the table has the lowest, the median and the highest smoothed loss, of how many runs, and their median of steps.
"""

import argparse
import csv
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import expected
from common.run.errors import InputError, one_line_errors
from common.run.runs import MODELS


def curve_of(folder: Path, model: str) -> tuple[list[float], int] | None:
    """Return a model's smoothed losses and its steps; None if the run has none, or if they are no example, which is printed."""
    history = next((history for history in expected.histories(folder) if history.model == model), None)
    if history is None:
        return None
    if not history.by_recipe:
        print(f"{folder}: {model} is left out: it is not of the default recipe on the shapes world")
    elif None in history.smooth:
        print(f"{folder}: {model} is left out: its training was stopped, or is too short")
    else:
        return history.smooth, history.steps


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/expected.py", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs, of different seeds")
    parser.add_argument("--out", type=Path, default=expected.TABLE, help="the table to write (default: common/expected.csv)")
    args, lines = parser.parse_args(argv), []
    for model in MODELS:
        found = list(filter(None, (curve_of(folder, model) for folder in args.runs)))
        if not found:
            continue
        curves, steps = zip(*found)
        for share, losses in zip(expected.SHARES, zip(*curves)):
            values = (f"{value:.5g}" for value in (min(losses), median(losses), max(losses)))
            lines.append([model, f"{share:.2f}", *values, len(curves), round(median(steps))])
        print(f"{model}: {len(curves)} runs, steps: {', '.join(f'{count:,}' for count in steps)}")
    if not lines:
        raise InputError("none of these runs can serve as an example: name finished runs of `python train.py`")
    with open(args.out, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([expected.HEADER, *lines])
    print(f"wrote {args.out}")


if __name__ == "__main__":
    one_line_errors(main)
