"""A run's log.csv: a line every ten steps with the losses, and one now and then with figures of held-out pictures.

    model,step,seconds,loss,parts
    vqgan,420,35.1,0.31254,reconstruction=0.29871 codebook=0.01383
    vqgan,430,35.9,,psnr=29.81234 usage=0.99805
"""

import csv
from pathlib import Path

from .errors import file_errors
from .files import write_whole

HEADER = ["model", "step", "seconds", "loss", "parts"]


def append(path: Path, model: str, step: int, seconds: float, loss: float | None, parts: dict[str, float]) -> None:
    """Add a line; the first of a file comes after the header."""
    details = " ".join(f"{name}={value:.5f}" for name, value in parts.items())
    row = [model, step, f"{seconds:.1f}", "" if loss is None else f"{loss:.5f}", details]
    with file_errors(), open(path, "a", newline="") as file:
        csv.writer(file).writerows([row] if file.tell() else [HEADER, row])


def read(path: Path) -> list[dict[str, str]]:
    """Read the lines, without those that a crash cut short; none if there is no log."""
    if not path.exists():
        return []
    with file_errors(), open(path, newline="", errors="replace") as file:
        rows = list(csv.reader(line.replace("\0", "") for line in file if line.endswith("\n")))
    return [dict(zip(HEADER, row)) for row in rows if len(row) == len(HEADER) and row[1].isdigit()]


def trim(path: Path, model: str, step: int) -> None:
    """Drop a model's lines beyond its first `step` steps: a killed run left them, and the resumed one writes them again."""
    if path.exists():
        # the loss at step 10 is that of the eleventh; held-out figures at step 10 come after ten
        kept = [row.values() for row in read(path) if row["model"] != model or int(row["step"]) + bool(row["loss"]) <= step]
        write_whole(path, lambda file: file.write("".join(",".join(row) + "\r\n" for row in [HEADER, *kept]).encode()))


def is_ours(path: Path) -> bool:
    """Tell whether a file is such a log, though perhaps a crash left it empty."""
    return path.exists() and (path.stat().st_size == 0 or path.read_text(errors="replace").startswith(",".join(HEADER)))
