"""Write a run's report.html: what the run's folder holds, as JSON inside a page that shows it.

    checkpoints   what was trained, how long         scores.json   figures with what they mean
    log.csv       losses and held-out figures        samples/      sheets of pictures

The page shows what there is. So it can be written after one model, an interrupted training, or new
scores. It needs no network and no server: report.html, the template, holds its script.
"""

import io
import json
import os
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from common.run.errors import USER_ERRORS, InputError
from common.run.flags import words
from common.run.folder import LEADER, Run, write_whole
from common.run.job import MODELS, Job
from common.run.symptoms import symptoms

TEMPLATE = Path(__file__).with_name("report.html")
MARK = '<meta name="generator" content="train.py">'  # in the files that are ours to overwrite
MOST_POINTS = 300  # of a curve
HEAVY, WIDEST = 80_000, 1100  # bytes, pixels: larger pictures get fewer colours and pixels


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Leave report.html when the block ends, after Ctrl-C or an error too, and print its address.

    Raises InputError if the folder has a report.html that is not ours.
    """
    path = own_file(folder)
    try:
        yield
    except BaseException:
        with suppress(*USER_ERRORS):  # the first error is the one to show
            write(folder)
        raise
    write(folder)
    if path.exists() and LEADER:
        print(f"report: {path.resolve().as_uri()}", flush=True)


def own_file(folder: Path) -> Path:
    """Return where the report belongs. Raises InputError if another program's file is there."""
    path = folder / "report.html"
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path} was not written by train.py, which would overwrite it: "
                         "name another --run")
    return path


def write(folder: Path) -> None:
    """Write the report of a run's folder, if anything was trained there."""
    content = collect(folder) if LEADER else {"models": []}
    if content["models"]:
        embedded = json.dumps(content).replace("</", "<\\/")  # no text may end the script
        page = TEMPLATE.read_text(encoding="utf-8").replace("/* RUN */ null", embedded)
        write_whole(own_file(folder), lambda file: file.write(page.encode(errors="replace")))


def collect(folder: Path) -> dict[str, Any]:
    """Gather what the page shows -> plain values."""
    run = Run(Job(run=str(folder)))
    rows, states = run.log.rows(), run.states()
    models = [describe(name, [row for row in rows if row["model"] == name], states.get(name, {}))
              for name in MODELS if any(row["model"] == name for row in rows)]
    explained = folder / "samples" / "explain" / "explain.json"
    return {"name": folder.resolve().name, "models": models,
            "scores": [scores("Scores", folder / "scores.json"),
                       scores("How often explanations are right", explained)],
            "samples": samples(folder / "samples")}


def describe(name: str, rows: list[dict[str, str]], state: dict[str, Any]) -> dict[str, Any]:
    """Describe one training: its settings, its curves, and whether they are normal."""
    job, facts = state.get("job", {}), state.get("facts", {})
    done, expected = state.get("done", 1.0), facts.get("expected")
    flags = [f"--{key.replace('_', '-')} {words(value)}"
             for key, value in job.get("flags", {}).get(name, {}).items()]
    saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(state["saved_at"])) if state else ""
    curves = {"loss": [(int(row["step"]), float(row["loss"])) for row in rows if row["loss"]]}
    for row in rows:
        for part in row["parts"].split() if not row["loss"] else ():
            key, value = part.split("=", 1)
            curves.setdefault(key.replace("_", " "), []).append((int(row["step"]), float(value)))
    curves = {key: points[:: 1 + len(points) // MOST_POINTS] for key, points in curves.items()}
    return {
        "name": name, "expected": expected, "curves": curves,
        "symptoms": symptoms(name, rows, done, expected),
        "facts": {"Data": job.get("data", ""), "Recognised": facts.get("about", ""),
                  "Pictures": facts.get("pictures", {}).get("train", ""),
                  "Parameters": state.get("parameters", ""), "Steps": state.get("step", ""),
                  "Minutes": round(state.get("seconds", 0) / 60, 1),
                  "State": "finished" if done >= 1 else f"stopped at {done:.0%}; to be resumed",
                  "Flags": " ".join(flags), "Seed": job.get("seed", ""),
                  "Precision": state.get("precision", ""), "Device": facts.get("device", ""),
                  "torch": facts.get("torch", ""), "Saved": saved}}


def scores(title: str, path: Path) -> dict[str, Any]:
    """Read figures that `sample.py` wrote, as they were printed; none if they are missing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        printed, settings = found["printed"], found["settings"]
        rows = [[name, *printed[name]] for name in found if name in printed]
    except (OSError, ValueError, LookupError, TypeError):
        rows, settings = [], {}
    return {"title": title, "settings": settings, "rows": rows}


def samples(folder: Path) -> list[dict[str, str]]:
    """Read the sheets of each folder of samples, with captions for those who cannot see them."""
    found = []
    for path in sorted(folder.glob("*/*.png"), key=lambda path: (path.parent.name, path.name)):
        if not path.stem.isdigit():  # a single picture: the sheet has it
            with suppress(OSError):
                found.append({"title": f"{path.parent.name}/{path.name}", "alt": captions(path.parent),
                              "source": picture(path)})
    return found


def captions(folder: Path) -> str:
    """List the captions, or else the files, that the index of a folder of samples names."""
    try:
        lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        return "; ".join(str(entry.get("caption") or entry.get("file")) for entry in entries)
    except (OSError, ValueError, AttributeError):
        return folder.name


def picture(path: Path) -> str:
    """Return a PNG as a data address, a large one with fewer colours and pixels."""
    content = path.read_bytes()
    if len(content) > HEAVY:
        with Image.open(io.BytesIO(content)) as image:
            small, buffer = image.convert("RGB"), io.BytesIO()
        small.thumbnail((WIDEST, 8 * WIDEST))
        small.quantize(256).save(buffer, "PNG", optimize=True)
        content = min(content, buffer.getvalue(), key=len)
    return f"data:image/png;base64,{b64encode(content).decode()}"
