"""Pictures for people: reading them, contact sheets, the curves of the losses, and the folder that a command writes."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import data

from .errors import USER_ERRORS, InputError, file_errors


class Progress:
    """Show the progress of long work: on a terminal in a line that is rewritten, elsewhere every half minute."""

    def __init__(self, what: str):
        self.what, self.shown = what, time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now, live = time.monotonic(), sys.stdout.isatty()
        if live:
            print(f"\r{'' if done >= total else f'{self.what}: {done} of {total}  {note}':<79}\r", end="", flush=True)
        elif now - self.shown > 30:
            print(f"{self.what}: {done} of {total}  {note}", flush=True)
            self.shown = now


def read_images(paths: Iterable[str | Path], side: int,
                read: Callable[[str | Path], Tensor] | None = None) -> tuple[list[str], Tensor]:
    """Read pictures, naming and skipping those that cannot be read -> their names, images (b 3 side side).

    read: path -> (3 side side) in [-1, 1]; without it as train.py reads them. Raises InputError if none can be read.
    """
    read = read or (lambda path: data.to_tensor([data.read_image(path, data.DETAIL * side)], side)[0])
    names, pictures, skipped = [], [], []
    for path in paths:
        try:
            pictures.append(read(path))
            names.append(str(path))
        except (*USER_ERRORS, OSError) as error:
            skipped.append(" ".join(str(error).split()))
    if not pictures:
        raise InputError(f"no image could be read; the first: {skipped[0]}")
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped)} of {len(skipped) + len(names)} images", file=sys.stderr)
    return names, torch.stack(pictures)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Turn images (b 3 h w) in [-1, 1] into Pillow's."""
    return [Image.fromarray(picture) for picture in data.to_pictures(images)]


def contact_sheet(pictures: list[Image.Image], captions: list[str], columns: int, cell: int = 128) -> Image.Image:
    """Lay pictures out in rows with their captions underneath, small ones enlarged without blurring."""
    font, line = ImageFont.load_default(11), 14
    wrapped = [wrap(caption, font, cell) for caption in captions]
    below = line * max((len(lines) for lines in wrapped), default=0)
    rows, gap = math.ceil(len(pictures) / columns), 8
    sheet = Image.new("RGB", (gap + columns * (cell + gap), gap + rows * (cell + below + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, wrapped)):
        x, y = gap + i % columns * (cell + gap), gap + i // columns * (cell + below + gap)
        scale = cell / max(picture.size)
        size = [max(1, round(s * scale)) for s in picture.size]
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS), (x, y))
        for row, text in enumerate(lines):
            pen.text((x, y + cell + 1 + row * line), text, fill="black", font=font)
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return lines


def reconstruction_sheet(originals: list[Image.Image], redrawn: list[Image.Image], names: list[str],
                         psnr: list[float]) -> Image.Image:
    """Lay out originals over their reconstructions, eight to a row."""
    columns, pictures, labels = min(8, len(originals)), [], []
    for start in range(0, len(originals), columns):
        row = slice(start, start + columns)
        blank = [Image.new("RGB", originals[0].size, "white")] * (columns - len(originals[row]))
        pictures += originals[row] + blank + redrawn[row] + blank
        labels += names[row] + [""] * len(blank) + [f"{value:.1f} dB" for value in psnr[row]] + [""] * len(blank)
    return contact_sheet(pictures, labels, columns)


def draw_losses(rows: list[dict[str, str]], path: Path) -> None:
    """Draw the losses of a log's rows over steps, one panel per model."""
    points = [(row["model"], int(row["step"]), float(row["loss"])) for row in rows if row["loss"]]
    models = list(dict.fromkeys(model for model, *_ in points))
    w, h, pad, font = 360, 220, 30, ImageFont.load_default(11)
    sheet = Image.new("RGB", (w * max(1, len(models)), h), "white")
    pen = ImageDraw.Draw(sheet)
    for x, model in zip(range(0, sheet.width, w), models):
        steps, losses = zip(*((step, loss) for name, step, loss in points if name == model))
        last, low, high = max(steps) or 1, min(losses), max(losses)
        pen.rectangle((x + pad, pad, x + w - pad, h - pad), outline="#cccccc")
        pen.line([(x + pad + (w - 2 * pad) * step / last, pad + (h - 2 * pad) * (high - loss) / ((high - low) or 1))
                  for step, loss in zip(steps, losses)], fill="#2050c0", width=2)
        pen.text((x + pad, 8), f"{model}: loss from {losses[0]:.3f} to {losses[-1]:.3f}", fill="black", font=font)
        pen.text((x + pad, h - 22), f"step 0 to {last}; lowest {low:.3f}, highest {high:.3f}", fill="#666666", font=font)
    with file_errors():
        sheet.save(path)


class Output:
    """The folder that a command writes: numbered pictures, a sheet, and index.jsonl with a line about each picture.

    A later command replaces the files that an index.jsonl of ours lists. If any other file is in the way, it is named and the
    command refused before its work begins. No other file is ever deleted. count: the most numbered pictures to be written.
    """

    # the commands whose index lists pictures in the folder itself
    NUMBERED = ("reconstruct", "dalle", "guide", "unclip", "vary", "interpolate", "edit", "explain", "originals")
    # beside sheet.png and index.jsonl
    OTHERS = {"guide": ("filmstrip.png", "guide.gif"), "unclip": ("unclip.gif",), "explain": ("explain.gif",)}

    def __init__(self, folder: str | Path, command: str, count: int = 0):
        self.folder, self.command = Path(folder), command
        ours = self.written()
        for name in [*(f"{i:04d}.png" for i in range(count)), "sheet.png", "index.jsonl", *self.OTHERS.get(command, ())]:
            if (self.folder / name).exists() and name not in ours:
                raise InputError(f"{self.folder / name} was not written by sample.py, which would overwrite it: "
                                 "name another --out")

    def written(self) -> set[str]:
        """Return the names of the files here that we wrote, read from the index; none if it is missing or not ours."""
        try:
            entries = [json.loads(line) for line in (self.folder / "index.jsonl").read_text(encoding="utf-8").splitlines()]
            commands = {entry["made_by"] for entry in entries}
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        if not commands:
            return set()
        names = {Path(entry["file"]).name for entry in entries if entry["made_by"] in self.NUMBERED}
        return names.union({"sheet.png", "index.jsonl"}, *(self.OTHERS.get(command, ()) for command in commands))

    def write(self, pictures: list[Image.Image], entries: list[dict], columns: int = 8, labels: list[str] | None = None,
              sheet: Image.Image | None = None) -> None:
        """Write the pictures, numbered where the command's are, their sheet, and an index of the entries, one a picture."""
        numbered = self.command in self.NUMBERED
        labels = labels or [entry.get("caption", "") for entry in entries]
        if numbered:
            entries = [{"file": f"{i:04d}.png", **entry} for i, entry in enumerate(entries)]
        entries = [{**entry, "made_by": self.command} for entry in entries]
        with file_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self.written() - {"index.jsonl"}:  # a longer run's pictures must not stay among a shorter one's
                (self.folder / name).unlink(missing_ok=True)
            # first: what follows is ours from now on. The name of a file need not be text: json reads \udce9 back
            with open(self.folder / "index.jsonl", "w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            if numbered:
                for entry, picture in zip(entries, pictures):
                    picture.save(self.folder / entry["file"])
            (sheet or contact_sheet(pictures, labels, min(columns, len(pictures)))).save(self.folder / "sheet.png")
        print(f"wrote {self.folder}/sheet.png")

    def write_gif(self, name: str, frames: list[Image.Image]) -> None:
        """Write the way to a picture as an animation that starts over and over."""
        with file_errors():
            frames[0].save(self.folder / name, save_all=True, append_images=frames[1:], duration=80, loop=0)

