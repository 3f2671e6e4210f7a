"""What the tests of the two scripts share: a folder of pictures, a run trained on it, and ways to call the scripts."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: models so small are slower with more

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import sample
import seeded
import train
from common.run.errors import one_line_errors

TINY = {
    "clip": "--vision-width 32 --vision-layers 1 --text-width 32 --text-layers 1 --batch-size 16",
    "vqgan": "--channels 8 --z-channels 8 --codebook-size 32 --batch-size 8",
    "dalle": "--width 32 --layers 1 --heads 2 --batch-size 8",
}
TINY_UNCLIP = {
    "prior": "--width 32 --layers 1 --heads 2 --batch-size 8",
    "decoder": "--channels 8 --condition-width 16 --heads 2 --batch-size 8 --learning-rate 0.01",
}
TINY_ALL = TINY | TINY_UNCLIP
NEEDS = {"dalle": ("tokenizer.json", "vqgan.pt"), "prior": ("tokenizer.json", "clip.pt"), "decoder": ("clip.pt",)}  # to be trained


def dotted(options: dict[str, str]) -> str:
    """Write the flags of several models as a job of all of them takes them."""
    return " ".join(flag.replace("--", f"--{model}.") for model, flags in options.items() for flag in flags.split())


TINY_JOB, TINY_UNCLIP_JOB = dotted(TINY), dotted(TINY_UNCLIP)


def run(script: str, *words, ok: bool = True) -> subprocess.CompletedProcess:
    """Run a script as a user does."""
    result = subprocess.run([sys.executable, str(ROOT / f"{script}.py"), *map(str, words)], capture_output=True, text=True)
    if ok:
        assert result.returncode == 0, result.stderr
    return result


def refused(script: str, *words) -> str:
    """Run a command that must be refused, as the script itself would, and return its one line."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as exit:
        one_line_errors(lambda: {"train": train, "sample": sample}[script].main([*map(str, words)]))
    lines = errors.getvalue().strip().splitlines()
    assert exit.value.code == 2 and len(lines) == 1, (exit.value.code, lines)
    return lines[0]


def copy_needs(model: str, source: Path, place: Path) -> None:
    """Copy from a run into a folder what training this model needs."""
    place.mkdir(exist_ok=True)
    for name in NEEDS.get(model, ()):
        (place / name).write_bytes((source / name).read_bytes())


def trains(*words) -> None:
    train.main([*map(str, words), "--device", "cpu", "--precision", "fp32"])


def samples(run: Path, *words) -> None:
    sample.main([*map(str, words), "--run", str(run), "--device", "cpu"])


@pytest.fixture(autouse=True)
def without_page(request, monkeypatch):
    """Leave out report.html, which takes longer than tiny models do, but for the tests about it."""
    if "page" not in request.path.parts:
        monkeypatch.setattr(train, "reported", lambda folder: contextlib.nullcontext())


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A folder of captioned pictures of any size."""
    place, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(24):
        size = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"picture number {i % 5}")
    return place


@pytest.fixture(scope="session")
def trained(folder, tmp_path_factory) -> Path:
    """A run of five tiny models, each trained for four steps."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "reported", lambda folder: contextlib.nullcontext())
        for model, options in TINY_ALL.items():
            trains(model, "--data", folder, "--run", place, "--steps", 4, *options.split())
    return place


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Small models in the published layouts: a folder of Hugging Face's, and minDALL-E's with its VQGAN and tokenizer."""
    import published_clip, published_dalle, published_vqgan  # noqa: E401 - here: few tests need them

    place = tmp_path_factory.mktemp("published")
    clip, dalle = place / "clip", place / "1.3B"
    clip.mkdir()
    dalle.mkdir()
    (clip / "merges.txt").write_text("\n".join(["#version: 0.2", *published_clip.FIRST_MERGES]))
    (clip / "config.json").write_text(json.dumps(published_clip.hugging_face_config(vocab_size=524)))
    torch.save(published_clip.filled(published_clip.hugging_face_shapes(vocab=524)), clip / "pytorch_model.bin")

    sizes = dict(text_vocab=len(published_dalle.TOKENS), image_vocab=96, text_length=8, grid=4, width=64, layers=2)
    published_dalle.publish_tokenizer(dalle / "tokenizer")
    weights = {name: seeded.fill(name, shape) for name, shape in published_dalle.published_shapes(**sizes).items()}
    torch.save({"state_dict": weights}, dalle / "stage2_last.ckpt")
    yaml = published_dalle.published_yaml(**sizes, heads=1).replace("n_heads: 3", "resolution: 16")
    (dalle / "config.yaml").write_text(yaml)
    stage1 = {name: seeded.fill(name, shape) for name, shape in published_vqgan.STATES["vq"].items()}
    torch.save({"state_dict": stage1}, dalle / "stage1_last.ckpt")
    return place
