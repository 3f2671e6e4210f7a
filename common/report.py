"""The report of a run: report.html, one file that opens anywhere, pictures and curves inside.

    checkpoints   what was trained on what, how long           scores.json   figures beside their ceilings
    log.csv       curves of losses and held-out figures        samples/      sheets of pictures
    expected.csv  the losses of other runs: is this normal?

It shows what the run has. So it can be written after a single model, an interrupted training, or new scores.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import expected
from .run import log
from .charts import chart
from .run.errors import USER_ERRORS, InputError
from .expected import SHARES, History
from .run.files import write_whole
from .run.flags import command, words
from .training.distributed import LEADER
from .run.pictures import draw_losses
from .page import escape, figure, grid, page, paragraph, picture, scrolling, table
from .run.runs import Run
from .training.symptoms import symptoms

TITLES = {"clip": "CLIP", "vqgan": "VQGAN", "dalle": "DALL·E", "prior": "DALL·E 2's prior", "decoder": "DALL·E 2's decoder"}
SAMPLES = {  # a folder of samples -> its heading; others follow under their own names
    "originals": "Held-out pictures", "reconstruct": "Reconstructions by VQGAN", "dalle": "Drawn by DALL·E",
    "guide": "Guided by CLIP: VQGAN+CLIP", "unclip": "Drawn by DALL·E 2", "vary": "Variations by DALL·E 2",
    "interpolate": "Interpolations by DALL·E 2", "edit": "Edits by DALL·E 2", "explain": "What the models look at"}
MARK = '<meta name="generator" content="train.py">'  # in the files that are ours to overwrite
COLUMNS = ("Model", "Parameters", "Steps", "Minutes", "State", "Flags", "Seed", "Precision", "Device", "torch", "Saved")
MOST_POINTS = 300  # of a curve

# ---- The file ---------------------------------------------------------------------------------------------------------


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Leave losses.png and report.html when the block ends, and print the report's address.

    After Ctrl-C or an error it tells how far the training came. Raises InputError if the folder has a report.html that is not ours.
    """
    path = free(run.folder)
    try:
        yield
    except BaseException:
        with suppress(*USER_ERRORS):  # the first error is the one to show
            write(run.folder)
        raise
    write(run.folder)
    print(f"report: {path.resolve().as_uri()}", flush=True)


def free(folder: Path) -> Path:
    """Return where the report belongs. Raises InputError if another program's is there."""
    path = folder / "report.html"
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path} was not written by train.py, which would overwrite it: name another --run")
    return path


def write(folder: Path) -> None:
    """Draw the losses of a run's folder and write its report, if anything was trained there. Raises InputError as `free` does."""
    histories, name = expected.histories(folder) if LEADER else [], f"Run {folder.resolve().name}"
    if histories:
        draw_losses(log.read(folder / "log.csv"), folder / "losses.png")
        parts = [f"<h1>{escape(name)}</h1>", *about(folder, histories), *normal(histories), *losses(histories), *held_out(histories),
                 *scores("Scores", folder / "scores.json"), *samples(folder / "samples"),
                 *scores("How often explanations are right", folder / "samples" / "explain" / "explain.json")]
        content = page(name, MARK, parts).encode(errors="replace")
        write_whole(free(folder), lambda file: file.write(content))


# ---- What was trained -------------------------------------------------------------------------------------------------


def about(folder: Path, histories: list[History]) -> list[str]:
    """Name the data, and each model's size, settings and end."""
    rows, texts = [], []
    for history in histories:
        state, title = history.state, TITLES[history.model]
        job, facts = state.get("job", state), state.get("facts", {})
        row = {"Model": title, "Steps": f"{history.steps:,}", "State": "stopped before its first checkpoint"}
        if state:
            row |= {"Parameters": f"{state['parameters']:,}" if "parameters" in state else "", "Minutes": f"{state['seconds'] / 60:.1f}",
                    "State": "finished" if history.done >= 1 else f"stopped at {100 * history.done:.0f} %",
                    "Flags": typed(job, history.model) or "all default", "Seed": str(job.get("seed", "")),
                    "Precision": state.get("precision", ""), "Device": facts.get("device", ""), "torch": facts.get("torch", ""),
                    "Saved": time.strftime("%Y-%m-%d %H:%M", time.localtime(state["saved_at"])) if "saved_at" in state else ""}
            texts.append(data_line(state))
        if not state or history.done < 1:
            texts.append(f"{title} is not finished. To continue: {command('train.py', '--run', folder, '--resume')}")
        rows.append(row)
    head = [name for name in COLUMNS if any(row.get(name) for row in rows)]
    return [*map(paragraph, dict.fromkeys(texts)),
            table("What was trained", head, [[row.get(name, "") for name in head] for row in rows])]


def typed(job: dict[str, Any], model: str) -> str:
    """Write the flags of a model's training as they were typed."""
    flags = [f"--{name.replace('_', '-')} {words(value)}" for name, value in job.get("flags", {}).get(model, {}).items()]
    return " ".join(flags + [f"--{name}" for name in ("overfit", "truncate") if job.get(name)])


def data_line(state: dict[str, Any]) -> str:
    """Name the data that a model was trained on, and say how much of it there was."""
    job, facts = state.get("job", state), state.get("facts", {})
    counts = [f"{count:,} pictures {'to train on' if split == 'train' else 'held out'}"
              for split, count in facts.get("pictures", {}).items()]
    source = "the shapes world" if job.get("data") == "shapes" else str(job.get("data", "unknown"))
    return f"Data: {', '.join([source, *filter(None, [facts.get('about')]), *counts])}."


# ---- Curves -----------------------------------------------------------------------------------------------------------


def normal(histories: list[History]) -> list[str]:
    """Answer "is this normal?" for each model: what goes wrong, its first loss, its curve beside the recipe's other runs."""
    known, lines = expected.read(), []
    for history in histories:
        found = symptoms(history.model, history.rows, history.done, history.first_expected)
        verdicts = [(False, f"{seen[0].upper()}{seen[1:]}: see docs/failures.md#{entry}.") for entry, seen in found.items()]
        if history.losses and history.first_expected:
            verdicts.append(expected.judge_first(history.losses[0][1], history.first_expected))
        if history.by_recipe and history.model in known:
            verdicts.append(expected.judge_curve(history, known[history.model]))
        else:
            there = ", ".join(TITLES[model] for model in known)
            verdicts.append((None, "There are no runs to compare its loss with. There are such runs of the default recipe on the "
                                   f"shapes world, for {there}."))
        for good, text in verdicts:
            css = {True: "good", False: "odd", None: "unknown"}[good]
            lines.append(f'<li class="{css}"><strong>{TITLES[history.model]}</strong>: {escape(text)}</li>')
    return ["<h2>Is this normal?</h2>", "<ul>", *lines, "</ul>"]


def losses(histories: list[History]) -> list[str]:
    """Draw the loss of each model, the range of the recipe's other runs behind it."""
    known, figures = expected.read(), []
    for history in filter(lambda history: history.losses, histories):
        points, lines, band = history.losses, {}, None
        smooth = [(at, loss) for at, loss in zip(SHARES, history.smooth) if loss is not None] or points
        if history.by_recipe and history.model in known:
            range_ = known[history.model]
            lines, band = {"median": [*zip(SHARES, range_.median)]}, (SHARES, range_.low, range_.high)
        lines |= {"raw": points[:: 1 + len(points) // MOST_POINTS], "run": smooth}
        text = f"{TITLES[history.model]}: loss from {points[0][1]:.3f} to {smooth[-1][1]:.3f} in {history.steps:,} steps"
        positive = min(loss for _, loss in points) > 0
        figures.append(figure(chart(text, lines, band, history.first_expected, positive), text))
    legend = ('<p class="legend"><span class="run">this run, smoothed</span> <span class="raw">each logged step</span> '
              '<span class="level">first loss to expect</span> <span class="median">other runs of the recipe: median</span> '
              '<span class="band">their range</span> The horizontal axis is the share of the training.</p>')
    return ["<h2>Losses</h2>", legend, grid(figures)] if figures else []


def held_out(histories: list[History]) -> list[str]:
    """Draw the figures of held-out pictures over each training."""
    figures = []
    for history in histories:
        for name, points in history.held_out.items():
            text, last = f"{TITLES[history.model]}: {name}", f"{points[-1][1]:.3g}"
            if len(points) > 1:
                text += f" from {points[0][1]:.3g} to {last}"
                figures.append(figure(chart(text, {"run": points}), text))
            else:
                figures.append(paragraph(f"{text} {last}"))
    return ["<h2>Figures of held-out pictures</h2>", grid(figures)] if figures else []


# ---- Scores and pictures ----------------------------------------------------------------------------------------------


def scores(heading: str, path: Path) -> list[str]:
    """List the figures that `sample.py score` or `explain` wrote, as they were printed, each beside its ceiling or chance."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings, printed = found.pop("settings"), found.pop("printed", {})
    except (OSError, ValueError, LookupError, AttributeError, TypeError):  # there are none, or they are not ours
        return []
    rows = [[name, *printed.get(name, [str(value), ""])] for name, value in found.items()]
    how = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    return [f"<h2>{heading}</h2>", table(f"Settings: {how}", ["Figure", "Value", "Beside it"], rows)]


def samples(folder: Path) -> list[str]:
    """Show the sheets of each folder of samples; their captions are the texts for those who cannot see them."""
    parts, order = [], [*SAMPLES]
    places = sorted((path for path in folder.glob("*") if path.is_dir()), key=lambda path: path.name)
    for place in sorted(places, key=lambda path: order.index(path.name) if path.name in order else len(order)):
        heading, figures = SAMPLES.get(place.name, place.name), []
        for path in sorted(place.glob("*.png"), key=lambda path: (path.name != "sheet.png", path.name)):
            if not path.stem.isdigit():  # a picture alone: the sheet has it
                with suppress(OSError):
                    alt = f"{heading}: {captions(place) or path.stem}"
                    figures.append(figure(scrolling(picture(path, alt), heading), f"samples/{place.name}/{path.name}"))
        parts += [f"<h3>{escape(heading)}</h3>", *figures] if figures else []
    return ["<h2>Pictures</h2>", *parts] if parts else []


def captions(place: Path) -> str:
    """List the captions, or else the files, that the index of a folder of samples names."""
    try:
        entries = [json.loads(line) for line in (place / "index.jsonl").read_text(encoding="utf-8").splitlines()]
        return "; ".join(str(entry.get("caption") or entry.get("original") or entry.get("file")) for entry in entries)
    except (OSError, ValueError, AttributeError):
        return ""
