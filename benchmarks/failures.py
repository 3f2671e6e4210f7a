"""Make the failures of docs/failures.md happen: break one thing, train the healthy and the broken model, and draw both.

    python -m benchmarks.failures NAME...            train both for the same steps, into docs/failure_NAME.png
    python -m benchmarks.failures NAME... --guards   run the test that guards it: it must pass, and fail once the code is broken

The lines of FAILURES are replaced in a copy of the sources, never in yours. Those that need a run start from `--run`.
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image, ImageDraw, ImageFont

import data
from common.run import log
from common.drawing.dalle import Drawing, generate_images
from common.run.errors import InputError, one_line_errors
from common.run.models import Models, reconstruct
from common.run.pictures import contact_sheet, to_pil
from common.scoring.shapes import first_captions

ROOT = Path(__file__).parent.parent
SOURCES = ("train.py", "sample.py", "pyproject.toml", "common", "data", "minclip", "minvqgan", "mindalle", "benchmarks", "tests")


@dataclass(frozen=True)
class Failure:
    """Describe one failure: what is trained, with which flags, and what is broken.

    model, flags: arguments of train.py, for the healthy and the broken training
    broken: more of them for the broken one alone
    changes: (file, line, what stands there instead), each line once in its file
    guard: the test that fails under the changes
    curves: columns of the log to draw
    top: highest value that is drawn
    """

    model: str
    flags: str
    steps: int
    guard: str = ""
    broken: str = ""
    changes: tuple[tuple[str, str, str], ...] = ()
    curves: tuple[str, ...] = ("loss",)
    top: float = float("inf")


CLIP = "--batch-size 64 --look-alikes 1 --scenes 1000"  # without look-alikes, whose start makes the loss jump
VQGAN, DALLE = "--batch-size 8 --scenes 1000", "--batch-size 16 --scenes 1000"
FAILURES = {
    "features_not_normalised": Failure(
        "clip", CLIP, 150, "test_minclip.py::test_forward_normalises_what_encode_does_not", changes=(
            ("minclip/model.py", "F.normalize(self.encode_image(images).float(), dim=-1)", "self.encode_image(images).float()"),
            ("minclip/model.py", "F.normalize(self.encode_text(ids).float(), dim=-1)", "self.encode_text(ids).float()"))),
    "equal_captions": Failure(
        "clip", "--loss sigmoid --batch-size 64 --look-alikes 1", 150, top=12, guard=
        "test_training.py::test_a_caption_of_another_image_that_is_right_for_this_one_too_counts_as_right", changes=(
            ("train.py", "same_caption(ids) | images.right(indices, captions)", "torch.eye(len(ids), dtype=torch.bool)"),)),
    "unclamped_scale": Failure(
        "clip", CLIP, 150,
        "test_clip_losses.py::test_the_scale_never_counts_for_more_than_a_hundred", changes=(
            ("minclip/model.py", "MAX_LOGIT_SCALE = math.log(100)", "MAX_LOGIT_SCALE = 80.0"),
            # by itself the scale needs thousands of steps to get beyond 100: begin there
            ("minclip/loss.py", "softmax_loss, logit_scale=math.log(1 / 0.07)", "softmax_loss, logit_scale=math.log(1000)"))),
    "learning_rate": Failure(
        "clip", CLIP, 150, "test_symptoms.py::test_a_loss_that_is_no_better_than_a_guess_is_noticed", broken="--learning-rate 1"),
    "codebook_collapse": Failure(
        "vqgan", f"{VQGAN} --codebook-dim 64", 150,
        "test_codebook.py::test_a_used_code_is_never_moved_and_a_code_unused_for_restart_after_batches_comes_alive",
        changes=(("minvqgan/codebook.py", "if self.training:\n            self.restart",
                  "if False:\n            self.restart"),)),
    "fakes_not_detached": Failure(
        "vqgan", f"{VQGAN} --discriminator --discriminator-start 0.3", 150,
        "test_minvqgan.py::test_the_discriminators_loss_leaves_no_gradient_in_the_generator",
        curves=("reconstruction", "discriminator"), changes=(
            ("minvqgan/loss.py", "discriminator(reconstruction.detach())", "discriminator(reconstruction)"),
            # PyTorch refuses a second backward pass through a graph that is gone, so the graph is kept and the step taken later
            ("train.py", "recipe.adversarial_weight)\n        optimiser.zero_grad()\n        loss.backward()\n",
             "recipe.adversarial_weight)\n        optimiser.zero_grad()\n        loss.backward(retain_graph=True)\n"),
            ("train.py", "must not undo many\n        optimiser.step()\n",
             "must not undo many\n        if adversary is None:\n            optimiser.step()\n"),
            ("train.py", "            optimiser_d.step()\n", "            optimiser_d.step()\n            optimiser.step()\n"))),
    "discriminator_first": Failure(
        "vqgan", f"{VQGAN} --discriminator", 150,
        "test_training.py::test_the_discriminator_takes_part_after_its_share_of_the_training",
        broken="--discriminator-start 0", curves=("reconstruction", "discriminator")),
    "no_straight_through": Failure(
        "vqgan", VQGAN, 150, "test_codebook.py::test_straight_through_has_the_values_of_z_q_and_the_gradient_of_z",
        changes=(("minvqgan/codebook.py", "return z + (z_q - z).detach()", "return z_q"),)),
    "no_causal_mask": Failure(
        "dalle", f"{DALLE} --layers 2", 300, "test_mindalle.py::test_without_the_mask_the_future_leaks",
        changes=(("mindalle/layers.py", "    return mask\n", "    return torch.ones_like(mask)\n"),)),
    "by_heart": Failure(
        "dalle", "--batch-size 16 --scenes 3000 --layers 2", 300,
        "test_symptoms.py::test_held_out_figures_that_get_worse_while_the_loss_falls_are_noticed",
        broken="--scenes 100", curves=("image",)),
}
DRAWINGS = {  # how often each caption is drawn, and the settings, the first of which is the toy's own
    "guidance": (1, [Drawing(guidance=value) for value in (1.5, 1.0, 4.0, 10.0)]),
    "low_temperature": (6, [Drawing(), *(Drawing(temperature=value) for value in (0.5, 0.2, 0.0))]),
}


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)


def broken_files(failure: Failure) -> dict[str, str]:
    """Read the files that a failure changes, and break them. Raises InputError if a line to replace is not there once."""
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file, *_ in failure.changes}
    for file, line, instead in failure.changes:
        if texts[file].count(line) != 1:
            raise InputError(f"{file} holds {line!r} {texts[file].count(line)} times: write it into FAILURES as it is now")
        texts[file] = texts[file].replace(line, instead)
    return texts


def copy_sources(folder: Path, failure: Failure) -> Path:
    """Copy the sources into a new folder, and break the copy."""
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    for file, text in broken_files(failure).items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder


def class_folders(folder: Path) -> None:
    """Write 64 pictures of each of the eight colours into a folder that bears the colour's name: eight captions in all."""
    images, captions, _ = first_captions(data.load("shapes", 32, "train", 2048, seed=0), 2048)
    scenes = [data.parse(caption) for caption in captions]
    for colour in data.COLOURS:
        (folder / colour).mkdir(parents=True)
        chosen = [i for i, scene in enumerate(scenes) if len(scene.objects) == 1 and scene.objects[0].colour == colour][:64]
        for i in chosen:
            to_pil(images[i : i + 1])[0].save(folder / colour / f"{i:04d}.png")


def train(sources: Path, place: Path, failure: Failure, more: str, args: argparse.Namespace) -> list[dict]:
    """Train in a folder of its own -> the rows of the log. Prints what train.py said of itself at the end."""
    place.mkdir()
    if failure.model == "dalle":
        for name in ("tokenizer.json", "vqgan.pt"):
            if not (Path(args.run) / name).exists():
                raise InputError(f"{args.run} has no {name}: run train.py first, or name a --run")
            shutil.copy(Path(args.run) / name, place)
    words = ["train.py", failure.model, *failure.flags.split(), *more.split(), "--run", str(place), "--precision", "fp32",
             "--device", "cpu", "--seed", str(args.seed), "--steps", str(args.steps or failure.steps)]
    result = run(words, sources)
    for line in result.stdout.splitlines():
        if "held out" in line or "docs/failures" in line:
            print("   ", line)
    if result.returncode:
        print("   ", result.stderr.strip().splitlines()[-1])
    return [row for row in log.read(place / "log.csv") if row["loss"]]


def points(rows: list[dict], key: str) -> list[tuple[int, float]]:
    """Read a column of the log: steps and values."""
    found = []
    for row in rows:
        values = {"loss": row["loss"], **dict(part.split("=") for part in row["parts"].split())}
        if key in values:
            found.append((int(row["step"]), float(values[key])))
    return found


def draw_curves(runs: list[list[dict]], key: str, top: float) -> Image.Image:
    """Draw a column of both logs over the steps, the healthy run's in blue, the broken one's in red."""
    w, h, pad, font = 320, 220, 28, ImageFont.load_default(11)
    sheet = Image.new("RGB", (w, h), "white")
    pen, curves = ImageDraw.Draw(sheet), [points(rows, key) for rows in runs]
    last = max((step for curve in curves for step, _ in curve), default=0) or 1
    values = [value for curve in curves for _, value in curve]
    high = min(max(values), 2 * max((value for _, value in curves[0]), default=max(values)), top)  # cut off what explodes
    low = min(0.0, *values)
    pen.rectangle((pad, pad, w - 8, h - pad), outline="#cccccc")
    for curve, colour in zip(curves, ("#2050c0", "#d03020")):
        line = [(pad + (w - 8 - pad) * step / last, h - pad - (h - 2 * pad) * (min(value, high) - low) / ((high - low) or 1))
                for step, value in curve]
        if len(line) > 1:
            pen.line(line, fill=colour, width=2)
    pen.text((pad, 8), key, fill="black", font=font)
    pen.text((w - 110, 8), "healthy", fill="#2050c0", font=font)
    pen.text((w - 60, 8), "broken", fill="#d03020", font=font)
    pen.text((2, pad), f"{high:.3g}", fill="#666666", font=font)
    pen.text((2, h - pad - 12), f"{low:.2g}", fill="#666666", font=font)
    pen.text((pad, h - 20), f"step 0 to {last}", fill="#666666", font=font)
    return sheet


@torch.no_grad()
def pictures(place: Path, failure: Failure, seed: int) -> list[Image.Image]:
    """Show four held-out scenes as a run makes them: reconstructed by VQGAN, drawn by DALL·E, nothing for CLIP."""
    models = Models(place, "cpu")
    if failure.model == "clip" or not models.has(failure.model):
        return []
    images, captions, _ = first_captions(data.load("shapes", 32, "unseen", 64, seed=seed + 1), 4)
    if failure.model == "vqgan":
        return to_pil(images) + to_pil(reconstruct(models.get("vqgan"), images)[0])
    return to_pil(generate_images(models, captions, Drawing(), seed)[0])


def beside(parts: list[Image.Image]) -> Image.Image:
    """Put pictures side by side."""
    sheet = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)), "white")
    x = 0
    for part in parts:
        sheet.paste(part, (x, 0))
        x += part.width
    return sheet


def show_training(name: str, failure: Failure, args: argparse.Namespace) -> Image.Image:
    """Train both, print their curves' ends -> the curves beside the pictures."""
    logs, shown = [], []
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        sources = {"healthy": ROOT, "broken": copy_sources(folder / "broken", failure)}
        if name == "equal_captions":
            class_folders(folder / "pictures")
        for kind, more in (("healthy", ""), ("broken", failure.broken)):
            print(f"{name}, {kind}:", flush=True)
            extra = f"{more} --data {folder / 'pictures'}" if name == "equal_captions" else more
            rows = train(sources[kind], folder / f"run_{kind}", failure, extra, args)
            logs.append(rows)
            for key in failure.curves:
                values = [value for _, value in points(rows, key)]
                if values:
                    last = sum(values[-3:]) / len(values[-3:])
                    print(f"    {key}: first {values[0]:.3f}, lowest {min(values):.3f}, mean of the last three {last:.3f}")
            made = pictures(folder / f"run_{kind}", failure, args.seed)
            shown += [made[-4:]] if shown else [made[i : i + 4] for i in range(0, len(made), 4)]
    parts = [draw_curves(logs, key, failure.top) for key in failure.curves]
    if any(shown):
        flat, last = [picture for row in shown for picture in row], len(shown)
        labels = ["true", "healthy", "broken"][-last:]
        parts.append(contact_sheet(flat, [label for label, row in zip(labels, shown) for _ in row], 4, cell=48))
    return beside(parts)


def show_drawings(name: str, args: argparse.Namespace, count: int = 96) -> Image.Image:
    """Draw held-out captions at each setting -> six pictures of each. Prints how many show what the caption says, and differ."""
    models, drawn, labels, (copies, settings) = Models(args.run, "cpu"), [], [], DRAWINGS[name]
    captions = first_captions(data.load("shapes", 32, "unseen", 512, seed=args.seed + 1), count // copies)[1]
    captions = [caption for caption in captions for _ in range(copies)]
    for how in settings:
        images, codes = generate_images(models, captions, how, args.seed)
        right = sum(data.matches(picture, caption) for picture, caption in zip(data.to_pictures(images), captions)) / count
        said = f"temperature {how.temperature:g}, guidance {how.guidance:g}"
        print(f"{said}: match {right:.1%} of {count}, {len(codes.unique(dim=0))} different pictures", flush=True)
        drawn += to_pil(images[:6])
        labels += [f"guidance {how.guidance:g}" if name == "guidance" else f"temperature {how.temperature:g}", *[""] * 5]
    return contact_sheet(drawn, labels, 6, cell=64)


def guards(name: str, failure: Failure | None) -> None:
    """Run the guarding test on the sources as they are and broken. Raises InputError if it does not pass, then fail."""
    if failure is None or not failure.changes:
        print(f"{name}: a flag is to blame, no line of code")
        return
    with TemporaryDirectory() as folder:
        test = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{failure.guard}"]
        before, after = run(test, ROOT).returncode, run(test, copy_sources(Path(folder) / "broken", failure)).returncode
    if (before, after) != (0, 1):
        raise InputError(f"{name}: {failure.guard} ends with {before} on healthy and {after} on broken sources, not with 0 and 1")
    print(f"{name}: {failure.guard} passes, and fails once the code is broken", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [*FAILURES, *DRAWINGS]
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--run", default="runs/shapes", help="a finished run of the main job (%(default)s)")
    parser.add_argument("--steps", type=int, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "docs"), help="folder for failure_NAME.png")
    parser.add_argument("--guards", action="store_true", help="run the guarding tests instead")
    args = parser.parse_args(argv)
    for name in args.names:
        if args.guards:
            guards(name, FAILURES.get(name))
            continue
        sheet = show_drawings(name, args) if name in DRAWINGS else show_training(name, FAILURES[name], args)
        path = Path(args.out) / f"failure_{name}.png"
        sheet.save(path, optimize=True)
        print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    one_line_errors(main)
