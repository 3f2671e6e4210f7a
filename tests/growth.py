"""Draw how cost grows with size, and how good the shapes world gets with the minutes spent on it.

    python -m tests.growth cost              a training step of DALL·E against its sizes, into docs/cost.png
    python -m tests.growth minutes RUN...    the scores of finished runs against their minutes, into docs/minutes.png
"""

import argparse
import csv
import json
import math
from collections import defaultdict
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from PIL import Image, ImageDraw, ImageFont

from mindalle import DALLE, DALLEConfig

from . import bench

# ---- Cost ------------------------------------------------------------------------------------------------------------

AXES = {  # what grows -> its values, and the toy and batch with that value
    "width": ([bench.TOY.width * factor // 2 for factor in (1, 2, 4, 8)],
              lambda width: (replace(bench.TOY, width=width, heads=width * bench.TOY.heads // bench.TOY.width), 48)),
    "layers": ((2, 4, 8, 16), lambda layers: (replace(bench.TOY, layers=layers), 48)),
    "image tokens": ((16, 64, 144, 256), lambda tokens: (replace(bench.TOY, grid=math.isqrt(tokens)), 48)),
    "batch": ((12, 24, 48, 96), lambda b: (bench.TOY, b)),
}


def alone(function, *args):
    """Call a function in a new process, whose memory is its own."""
    with get_context("spawn").Pool(1, bench.settle, (bench.DEVICE, torch.get_num_threads())) as pool:
        return pool.apply(function, args)


def cost(config: DALLEConfig, b: int) -> tuple[float, int, dict]:
    """Train for a few steps  ->  seconds of the fastest, bytes that they took, operators of one."""
    before = bench.peak_memory()
    step = bench.our_dalle(DALLE(config).to(bench.DEVICE), *bench.dalle_inputs(config, b))
    seconds = min(bench.clock(step) for _ in range(2 + bench.repeats(step)))
    return seconds, max(1, bench.peak_memory() - before), bench.account(step)  # 1 byte: too few to show


def costs() -> None:
    """Print and draw what a training step costs as the toy grows along each axis, with its operators at each end."""
    matrix_rate, copy_rate = alone(bench.rates)
    curves = {}
    for axis, (values, grown) in AXES.items():
        for value in values:
            seconds, memory, rows = alone(cost, *grown(value))
            floor = sum(row[2] for row in rows.values()) / matrix_rate
            curves.setdefault(axis, []).append((value, 1e3 * seconds, 1e3 * floor, memory / 2**20))
            print("{} {}: {:.1f} ms a step, {:.1f} ms of products at the matrix rate, {:.0f} MiB".format(
                axis, *curves[axis][-1]), flush=True)
            if value in (values[0], values[-1]):
                bench.show(rows, seconds, matrix_rate, copy_rate, top=6)
    draw_costs(curves, "docs/cost.png")


def draw_costs(curves: dict[str, list[tuple]], path: str) -> None:
    """Draw a panel an axis: milliseconds, their floor and memory, on scales of four decades each."""
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

SHOWN = {"zero-shot unseen": "#808080", "kept": "#208040", "match unseen": "#2050c0", "match unseen reranked": "#c05020",
         "match novel": "#a040a0"}


def minutes_of(run: Path) -> float:
    """Read from a run's log how long its models trained."""
    with open(run / "log.csv", newline="") as file:
        last = {row["model"]: float(row["seconds"]) for row in csv.DictReader(file)}
    return sum(last.values()) / 60


def minutes(runs: list[Path]) -> None:
    """Print and draw scores against minutes: a dot for each run, a line through the medians of those of equal length."""
    found = defaultdict(list)
    for run in runs:
        found[round(minutes_of(run))].append(json.loads((run / "scores.json").read_text()))
    print(f"{'minutes':>7} {'runs':>4} " + " ".join(f"{name:>21}" for name in SHOWN))
    for spent, scores in sorted(found.items()):
        print(f"{spent:7} {len(scores):4} " + " ".join(f"{median(s[name] for s in scores):21.1%}" for name in SHOWN))

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
    pen.text((pad, h - 20), "minutes of training, all three models", fill="black", font=font)
    bottom = math.inf  # of the label before: names of curves that end close together stand below each other
    for name, colour in sorted(SHOWN.items(), key=lambda item: median(s[item[0]] for s in found[high])):
        points = {spent: [s[name] for s in scores] for spent, scores in sorted(found.items())}
        line = [at(spent, median(shares)) for spent, shares in points.items()]
        pen.line(line, fill=colour, width=2)
        for spent, shares in points.items():
            for share in shares:
                x, y = at(spent, share)
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        bottom = min(line[-1][1], bottom - 13)
        pen.text((line[-1][0] + 8, bottom), name, fill=colour, font=font, anchor="lm")
    sheet.save("docs/minutes.png")
    print("wrote docs/minutes.png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.growth", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("cost", help="of a training step of DALL·E against its sizes")
    sub.add_argument("--cuda", action="store_true", help="measure on a GPU")
    sub = commands.add_parser("minutes", help="against scores: how good, how soon")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs with a scores.json")
    args = parser.parse_args()
    if args.command == "minutes":
        return minutes(args.runs)
    bench.settle("cuda" if args.cuda else "cpu", torch.get_num_threads())
    costs()


if __name__ == "__main__":
    main()
