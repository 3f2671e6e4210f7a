"""Draw how the cost of a training step grows with size, and how the scores grow with the minutes of training.

    python -m benchmarks.growth cost              a training step of DALL·E against its sizes, into docs/cost.png
    python -m benchmarks.growth minutes RUN...    the scores of finished runs against their minutes, into docs/minutes.png
"""

import argparse
import json
import math
from collections import defaultdict
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from PIL import Image, ImageDraw, ImageFont

from common.run import log
from common.run.errors import InputError, file_errors, one_line_errors
from mindalle import DALLE, DALLEConfig

from .hardware import Cost, operator_costs, print_costs, rates
from .ours import TOY_DALLE, dalle_inputs, dalle_step
from .timing import clock, peak_memory, repeats

# ---- Cost ------------------------------------------------------------------------------------------------------------

AXES = {  # what grows -> its values, and the toy and its batch size at a value
    "width": ([TOY_DALLE.width * factor // 2 for factor in (1, 2, 4, 8)],
              lambda width: (replace(TOY_DALLE, width=width, heads=width * TOY_DALLE.heads // TOY_DALLE.width), 48)),
    "layers": ((2, 4, 8, 16), lambda layers: (replace(TOY_DALLE, layers=layers), 48)),
    "image tokens": ((16, 64, 144, 256), lambda tokens: (replace(TOY_DALLE, grid=math.isqrt(tokens)), 48)),
    "batch": ((12, 24, 48, 96), lambda b: (TOY_DALLE, b)),
}


def in_new_process(function, *args):
    """Call a function in a process of its own, so that its peak memory is its own too."""
    with get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.apply(function, args)


def cost(config: DALLEConfig, b: int, device: str) -> tuple[float, int, dict[str, Cost]]:
    """Train for a few steps -> seconds of the fastest, bytes of memory that they took, operators of one."""
    before = peak_memory(device)
    step = dalle_step(DALLE(config).to(device), *dalle_inputs(config, b, device))
    seconds = min(clock(step) for _ in range(2 + repeats(step)))
    return seconds, max(1, peak_memory(device) - before), operator_costs(step)  # at least 1 byte, for the logarithm


def costs(device: str) -> None:
    """Print and draw what a training step costs as the toy grows along each axis, with its operators at both ends."""
    machine = in_new_process(rates, device)
    curves = defaultdict(list)
    for axis, (values, toy_at) in AXES.items():
        for value in values:
            seconds, memory, operators = in_new_process(cost, *toy_at(value), device)
            floor = sum(operator.operations for operator in operators.values()) / machine.operations
            curves[axis].append((value, 1e3 * seconds, 1e3 * floor, memory / 2**20))
            print("{} {}: {:.1f} ms a step, {:.1f} ms of products at the matrix rate, {:.0f} MiB".format(
                axis, *curves[axis][-1]), flush=True)
            if value in (values[0], values[-1]):
                print_costs(operators, seconds, machine, top=6)
    draw_costs(curves, "docs/cost.png")


def draw_costs(curves: dict[str, list[tuple]], path: str) -> None:
    """Draw a panel per axis: milliseconds, their floor and memory, on logarithmic scales of four decades each."""
    w, h, pad = 300, 260, 40
    sheet, font = Image.new("RGB", (w * len(curves), h), "white"), ImageFont.load_default(11)
    pen = ImageDraw.Draw(sheet)
    for panel, (axis, points) in enumerate(curves.items()):
        values, *series = zip(*points)
        left, right, bottom = w * panel + pad, w * (panel + 1) - pad, h - pad
        pen.rectangle((left, pad, right, bottom), outline="#cccccc")
        pen.text((left, 8), f"a training step against {axis}", fill="black", font=font)
        lows = series[1][0] / 2, series[1][0] / 2, series[2][0] / 300  # memory well above the milliseconds
        looks = ("#2050c0", "{:.0f} ms", "b"), ("#80a0e0", "floor {:.0f} ms", "a"), ("#c05020", "{:.0f} MiB", "b")
        for numbers, low, (colour, label, side) in zip(series, lows, looks):
            line = [(left + (right - left) * math.log(value / values[0], values[-1] / values[0]),
                     bottom - (bottom - pad) * math.log(number / low, 10000)) for value, number in zip(values, numbers)]
            pen.line(line, fill=colour, width=2)
            pen.text(line[0], label.format(numbers[0]), fill=colour, font=font, anchor=f"l{side}")
            pen.text(line[-1], label.format(numbers[-1]), fill=colour, font=font, anchor=f"r{side}")
        pen.text((left, bottom + 4), str(values[0]), fill="#666666", font=font)
        pen.text((right, bottom + 4), str(values[-1]), fill="#666666", font=font, anchor="ra")
    sheet.save(path)
    print(f"wrote {path}")


# ---- Quality ---------------------------------------------------------------------------------------------------------

COLOURS = {"zero-shot unseen": "#808080", "kept": "#208040", "match unseen": "#2050c0",
           "match unseen reranked": "#c05020", "match novel": "#a040a0"}  # of the curves: one per score


def minutes_of(run: Path) -> float:
    """Add up how long each of a run's models trained: the seconds of its last line in log.csv, with a loss or without."""
    last = {row["model"]: float(row["seconds"]) for row in log.read(run / "log.csv")}
    if not last:
        raise InputError(f"{run / 'log.csv'} has no training: name the folder of a finished run")
    return sum(last.values()) / 60


def scores_of(run: Path) -> dict[str, float]:
    with file_errors():
        scores = json.loads((run / "scores.json").read_text())
    if missing := [name for name in COLOURS if name not in scores]:
        raise InputError(f"{run / 'scores.json'} lacks {', '.join(missing)}: score a run that has all models")
    return scores


def minutes(runs: list[Path], path: str = "docs/minutes.png") -> None:
    """Print and draw scores against minutes: a dot for each run, a line through the medians of runs of equal length."""
    found = defaultdict(list)  # whole minutes, at least 1 -> the scores of each run
    for run in runs:
        found[max(1, round(minutes_of(run)))].append(scores_of(run))
    print(f"{'minutes':>7} {'runs':>4} " + " ".join(f"{name:>21}" for name in COLOURS))
    for spent, scores in sorted(found.items()):
        print(f"{spent:7} {len(scores):4} " + " ".join(f"{median(s[name] for s in scores):21.1%}" for name in COLOURS))

    w, h, pad, low, high = 560, 320, 50, min(found), max(found)
    sheet, font = Image.new("RGB", (w, h), "white"), ImageFont.load_default(11)
    pen = ImageDraw.Draw(sheet)

    def at(spent: float, share: float) -> tuple[float, float]:
        return pad + (w - 4 * pad) * math.log(spent / low) / (math.log(high / low) or 1), h - pad - (h - 2 * pad) * share

    for share in (0, 0.25, 0.5, 0.75, 1):
        pen.line([at(low, share), at(high, share)], fill="#dddddd")
        pen.text((pad - 6, at(low, share)[1]), f"{share:.0%}", fill="#666666", font=font, anchor="rm")
    for spent in found:
        pen.text((at(spent, 0)[0], h - pad + 6), f"{spent}", fill="#666666", font=font, anchor="ma")
    pen.text((pad, h - 20), "minutes of training, all models", fill="black", font=font)
    bottom = math.inf  # of the label before: where curves end close together, their names go below each other
    for name, colour in sorted(COLOURS.items(), key=lambda item: median(s[item[0]] for s in found[high])):
        points = {spent: [s[name] for s in scores] for spent, scores in sorted(found.items())}
        line = [at(spent, median(shares)) for spent, shares in points.items()]
        pen.line(line, fill=colour, width=2)
        for spent, shares in points.items():
            for share in shares:
                x, y = at(spent, share)
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        bottom = min(line[-1][1], bottom - 13)
        pen.text((line[-1][0] + 8, bottom), name, fill=colour, font=font, anchor="lm")
    sheet.save(path)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("cost", help="of a training step of DALL·E against its sizes")
    sub.add_argument("--cuda", action="store_true", help="measure on a GPU")
    sub = commands.add_parser("minutes", help="against scores: how good, how soon")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs, with their scores.json")
    args = parser.parse_args()
    if args.command == "minutes":
        minutes(args.runs)
    else:
        costs("cuda" if args.cuda else "cpu")


if __name__ == "__main__":
    one_line_errors(main)
