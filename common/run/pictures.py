"""Pictures for people: reading them, contact sheets, progress, and the folder a command writes."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageFont, ImageDraw
from torch import Tensor

import data

from .errors import USER_ERRORS, InputError, file_errors


class Progress:
    """Show the progress of long work: a line rewritten on a terminal, else one every half minute."""

    def __init__(self, what: str):
        self.what, self.shown = what, time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now, line = time.monotonic(), f"{self.what}: {done} of {total}  {note}"
        if sys.stdout.isatty():
            print(f"\r{'' if done >= total else line:<79}\r", end="", flush=True)
        elif now - self.shown > 30:
            print(line, flush=True)
            self.shown = now


def read_images(paths: Iterable[str | Path], side: int,
                read: Callable[[str | Path], Tensor] | None = None) -> tuple[list[str], Tensor]:
    """Read pictures, skipping those that cannot be read -> names, images (b 3 side side).

    read: path -> (3 side side) in [-1, 1]; by default as train.py reads them. Raises InputError if
    none can be read.
    """
    if read is None:
        read = lambda path: data.to_tensor([data.read_image(path, data.DETAIL * side)], side)[0]
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


def shifted(images: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Move each image (b 3 h w) at random by up to so many pixels, its border repeated."""
    if not pixels:
        return images
    h, w = images.shape[-2:]
    padded = F.pad(images, [pixels] * 4, mode="replicate")
    corners = torch.randint(2 * pixels + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + h, x : x + w] for image, (y, x) in zip(padded, corners)])


# ---- Sheets -------------------------------------------------------------------------------------


def contact_sheet(pictures: list[Image.Image], captions: list[str], columns: int,
                  cell: int = 128) -> Image.Image:
    """Lay pictures out in rows with captions underneath, small ones enlarged without blurring."""
    font, line = ImageFont.load_default(11), 14
    wrapped = [wrap(caption, font, cell) for caption in captions]
    below = line * max((len(lines) for lines in wrapped), default=0)
    rows, gap = math.ceil(len(pictures) / columns), 8
    size = gap + columns * (cell + gap), gap + rows * (cell + below + gap)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, wrapped)):
        x, y = gap + i % columns * (cell + gap), gap + i // columns * (cell + below + gap)
        scale = cell / max(picture.size)
        size = [max(1, round(side * scale)) for side in picture.size]
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        sheet.paste(picture.resize(size, method), (x, y))
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


def reconstruction_sheet(originals: Tensor, redrawn: Tensor, names: list[str],
                         psnr: list[float]) -> Image.Image:
    """Lay out originals over their reconstructions, both (b 3 h w), eight to a row."""
    columns, pictures, labels = min(8, len(originals)), [], []
    for start in range(0, len(originals), columns):
        row = slice(start, start + columns)
        above, below = to_pil(originals[row]), to_pil(redrawn[row])
        missing = columns - len(above)
        blank = [Image.new("RGB", above[0].size, "white")] * missing
        pictures += above + blank + below + blank
        figures = [f"{value:.1f} dB" for value in psnr[row]]
        labels += names[row] + [""] * missing + figures + [""] * missing
    return contact_sheet(pictures, labels, columns)


# ---- What a command writes ----------------------------------------------------------------------

# commands that number their pictures, and what they write beside sheet.png and index.jsonl
NUMBERED = {"reconstruct": (), "dalle": (), "guide": ("filmstrip.png", "guide.gif"),
            "unclip": ("unclip.gif",), "vary": (), "interpolate": (), "edit": (),
            "explain": ("explain.gif",), "originals": ()}


class Output:
    """The folder that a command writes: pictures, a sheet, and index.jsonl with a line for each.

    A later command replaces the files that an index.jsonl of ours lists. If any other file is in
    the way, the command is refused before its work begins. No other file is ever deleted.
    count: the most numbered pictures to be written.
    """

    def __init__(self, folder: str | Path, command: str, count: int = 0):
        self.folder, self.command = Path(folder), command
        numbers = [f"{i:04d}.png" for i in range(count)]
        ours = self.written()
        for name in [*numbers, "sheet.png", "index.jsonl", *NUMBERED.get(command, ())]:
            if (self.folder / name).exists() and name not in ours:
                raise InputError(f"{self.folder / name} was not written by sample.py, which would "
                                 "overwrite it: name another --out")

    def written(self) -> set[str]:
        """Name the files here that we wrote, by the index; none if it is missing or not ours."""
        try:
            lines = (self.folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
            entries = [json.loads(line) for line in lines]
            commands = {entry["made_by"] for entry in entries}
            names = {Path(entry["file"]).name for entry in entries if entry["made_by"] in NUMBERED}
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        if not commands:
            return set()
        extras = (NUMBERED.get(command, ()) for command in commands)
        return names.union({"sheet.png", "index.jsonl"}, *extras)

    def write(self, pictures: list[Image.Image], entries: list[dict], columns: int = 8,
              labels: list[str] | None = None, sheet: Image.Image | None = None) -> None:
        """Write the pictures, numbered where the command's are, a sheet, and an entry for each."""
        labels = labels or [entry.get("caption", "") for entry in entries]
        numbered = self.command in NUMBERED
        if numbered:
            entries = [{"file": f"{i:04d}.png", **entry} for i, entry in enumerate(entries)]
        lines = [json.dumps(entry | {"made_by": self.command}, ensure_ascii=False) + "\n"
                 for entry in entries]
        with file_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self.written() - {"index.jsonl"}:  # a longer run's pictures must not stay
                (self.folder / name).unlink(missing_ok=True)
            # first: what follows is ours from now on. A file's name need not be text
            with open(self.folder / "index.jsonl", "w", encoding="utf-8",
                      errors="backslashreplace") as file:
                file.writelines(lines)
            if numbered:
                for entry, picture in zip(entries, pictures):
                    picture.save(self.folder / entry["file"])
            sheet = sheet or contact_sheet(pictures, labels, min(columns, len(pictures)))
            sheet.save(self.folder / "sheet.png")
        print(f"wrote {self.folder}/sheet.png")

    def write_gif(self, name: str, frames: list[Image.Image]) -> None:
        """Write frames as an animation that starts over and over."""
        with file_errors():
            frames[0].save(self.folder / name, save_all=True, append_images=frames[1:],
                           duration=80, loop=0)
