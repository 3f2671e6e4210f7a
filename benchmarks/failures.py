"""Make the failures of docs/failures.md happen: break one thing, train with it and without.

    python -m benchmarks.failures NAME...    the names are those of FAILURES

Both trainings take the same steps, in runs/failures/NAME/healthy and .../broken: sample.py shows
what the models make (--run), report.html their curves. Both curves go into docs/failure_NAME.png.
Lines are replaced in a copy of the sources, never in yours.
"""

import argparse
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import data
from common.drawing.dalle import Drawing, generate_images
from common.run.errors import InputError, one_line_errors
from common.run.folder import Log
from common.run.models import Models, reconstruct
from common.run.pictures import contact_sheet, to_pil
from common.run.symptoms import Points, column
from common.scoring.shapes import first_captions

ROOT = Path(__file__).parent.parent
COLOURS = ROOT / "runs" / "failures" / "colours"  # pictures in folders named after their colour
SOURCES = ("common", "data", "docs", "minclip", "mindalle", "minvqgan", "page", "train.py")


@dataclass(frozen=True)
class Failure:
    """Describe a failure: what is trained, and what is broken.

    model, flags: arguments of train.py, for the healthy and the broken training
    broken: more of them for the broken one alone
    changes: (file, lines, what stands there instead); the lines stand in their file once
    curves: figures of the log to draw
    """

    model: str
    flags: str
    broken: str = ""
    changes: tuple[tuple[str, str, str], ...] = ()
    curves: tuple[str, ...] = ("loss",)


# without look-alikes, which make the loss jump
ANY_CLIP = "--steps 150 --batch-size 64 --look-alikes 1"
CLIP = f"{ANY_CLIP} --scenes 1000"
VQGAN = "--steps 150 --scenes 1000 --batch-size 8"
DALLE = "--steps 300 --batch-size 16 --layers 2 --scenes"
FAILURES = {
    "features_not_normalised": Failure("clip", CLIP, changes=(
        ("minclip/model.py", "F.normalize(self.encode_image(images).float(), dim=-1)",
         "self.encode_image(images).float()"),
        ("minclip/model.py", "F.normalize(self.encode_text(ids).float(), dim=-1)",
         "self.encode_text(ids).float()"))),
    "equal_captions": Failure(
        "clip", f"{ANY_CLIP} --loss sigmoid --data {COLOURS}", changes=(
        ("common/training/sources.py", "same_caption(ids) | self.train.right(indices, captions)",
         "torch.eye(len(ids), dtype=torch.bool)"),)),
    "unclamped_scale": Failure("clip", CLIP, changes=(
        ("minclip/model.py", "MAX_LOGIT_SCALE = math.log(100)", "MAX_LOGIT_SCALE = 80.0"),
        # by itself the scale needs thousands of steps to get beyond 100: begin there
        ("minclip/loss.py", "math.log(1 / 0.07)", "math.log(1000)"))),
    "learning_rate": Failure("clip", CLIP, "--learning-rate 1"),
    "codebook_collapse": Failure("vqgan", f"{VQGAN} --codebook-dim 64", changes=(
        ("minvqgan/codebook.py", "self.restart_dead_codes(self.gather(rows))", "pass"),)),
    "fakes_not_detached": Failure(
        "vqgan", f"{VQGAN} --discriminator --discriminator-start 0.3",
        curves=("reconstruction", "discriminator"), changes=(
            ("minvqgan/loss.py", "reconstruction.detach()", "reconstruction"),
            # PyTorch refuses a second backward pass through a graph that is gone: the graph is
            # kept, and the generator's step taken last
            ("train.py", "        loss.backward()\n        # one odd",
             "        loss.backward(retain_graph=True)\n        # one odd"),
            ("train.py", "        optimiser.step()\n\n        if adversary:\n",
             "        if not adversary:\n            optimiser.step()\n\n        if adversary:\n"),
            ("train.py", "            optimiser_d.step()\n",
             "            optimiser_d.step()\n            optimiser.step()\n"))),
    "discriminator_first": Failure(
        "vqgan", f"{VQGAN} --discriminator", "--discriminator-start 0",
        curves=("reconstruction", "discriminator")),
    "no_straight_through": Failure("vqgan", VQGAN, changes=(
        ("minvqgan/codebook.py", "return z + (z_q - z).detach()", "return z_q"),)),
    "no_causal_mask": Failure("dalle", f"{DALLE} 1000", changes=(
        ("mindalle/layers.py", "    return mask\n", "    return torch.ones_like(mask)\n"),)),
    "by_heart": Failure("dalle", f"{DALLE} 3000", "--scenes 100", curves=("image",)),
}


def break_sources(folder: Path, failure: Failure) -> None:
    """Copy the sources into a folder and break the copy. Raises InputError for a stale line."""
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for file, lines, instead in failure.changes:
        text = (folder / file).read_text(encoding="utf-8")
        if text.count(lines) != 1:
            raise InputError(f"{file} holds {lines!r} {text.count(lines)} times: write it into "
                             "FAILURES as it is now")
        (folder / file).write_text(text.replace(lines, instead), encoding="utf-8")


def write_colours() -> None:
    """Write pictures of one object each into eight folders: eight captions in all."""
    images, captions, _ = first_captions(data.load("shapes", 32, "train", 2048, seed=0), 2048)
    for i, (picture, caption) in enumerate(zip(to_pil(images), captions)):
        first, *more = data.parse(caption).objects
        if not more:
            (COLOURS / first.colour).mkdir(parents=True, exist_ok=True)
            picture.save(COLOURS / first.colour / f"{i:04d}.png")


def train(sources: Path, run: Path, model: str, flags: str, needs: Path) -> None:
    """Train into a new run, DALL·E on the tokenizer and the VQGAN of the run `needs`."""
    run.mkdir(parents=True)
    for name in ("tokenizer.json", "vqgan.pt") if model == "dalle" else ():
        if not (needs / name).exists():
            raise InputError(f"{needs} has no {name}: run train.py first, or name a --run")
        shutil.copy(needs / name, run)
    subprocess.run([sys.executable, "train.py", model, *flags.split(), "--run", run.absolute(),
                    "--precision", "fp32", "--device", "cpu"], cwd=sources, check=False)
    if not (run / "log.csv").exists():  # a broken training may fail later
        raise InputError(f"{run}: the training ended before its first step")


def draw_curves(curves: list[Points], title: str) -> Image.Image:
    """Draw a figure over the steps, on a logarithmic scale: healthy in blue, broken in red."""
    w, h, pad, font = 320, 220, 28, ImageFont.load_default(11)
    sheet = Image.new("RGB", (w, h), "white")
    pen, points = ImageDraw.Draw(sheet), [point for curve in curves for point in curve]
    last, high = max(step for step, _ in points), max(value for _, value in points)
    low = max(min(value for _, value in points), high / 1000)
    pen.rectangle((pad, pad, w - 8, h - pad), outline="#cccccc")
    for curve, colour in zip(curves, ("#2050c0", "#d03020")):
        line = [(pad + (w - 8 - pad) * step / last,
                 h - pad - (h - 2 * pad) * math.log(max(value, low) / low, high / low))
                for step, value in curve]
        pen.line(line, fill=colour, width=2)
    pen.text((pad, 8), f"{title}, {low:.3g} to {high:.3g}", fill="black", font=font)
    pen.text((pad, h - 20), f"step 0 to {last}; healthy blue, broken red", fill="black", font=font)
    return sheet


@torch.no_grad()
def pictures(runs: list[Path], model: str) -> list[Image.Image]:
    """Lay out four held-out scenes as each run reconstructs or draws them; none for CLIP."""
    if model == "clip":
        return []
    images, captions, _ = first_captions(data.load("shapes", 32, "unseen", 64, seed=1), 4)
    made = to_pil(images)
    for run in runs:
        models = Models(run, "cpu")
        if model == "vqgan":
            made += to_pil(reconstruct(models.get("vqgan"), images)[0])
        else:
            made += to_pil(generate_images(models, captions, Drawing(), seed=0)[0])
    names = [name for name in ("true", "healthy", "broken") for _ in range(4)]
    return [contact_sheet(made, names, 4, cell=48)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=FAILURES, metavar="NAME",
                        help=", ".join(FAILURES))
    parser.add_argument("--run", type=Path, default="runs/shapes",
                        help="a run of the main job, whose VQGAN DALL·E uses (%(default)s)")
    args = parser.parse_args()
    for name in args.names:
        failure, folder = FAILURES[name], ROOT / "runs" / "failures" / name
        shutil.rmtree(folder, ignore_errors=True)
        healthy, broken, sources = folder / "healthy", folder / "broken", folder / "sources"
        sources.mkdir(parents=True)
        if str(COLOURS) in failure.flags:
            write_colours()
        break_sources(sources, failure)
        train(ROOT, healthy, failure.model, failure.flags, args.run)
        train(sources, broken, failure.model, f"{failure.flags} {failure.broken}", args.run)
        logs = [Log(run / "log.csv").rows() for run in (healthy, broken)]
        parts = [draw_curves([column(rows, curve) for rows in logs], curve)
                 for curve in failure.curves] + pictures([healthy, broken], failure.model)
        sheet = Image.new("RGB", (sum(part.width for part in parts),
                                  max(part.height for part in parts)), "white")
        for i, part in enumerate(parts):
            sheet.paste(part, (sum(left.width for left in parts[:i]), 0))
        sheet.save(ROOT / "docs" / f"failure_{name}.png", optimize=True)


if __name__ == "__main__":
    one_line_errors(main)
