"""Public data sets that install by name, read as they come. Skipped where they are not installed.

    pip install scikit-learn                 its digits
    npm install emoji-datasource-twitter     in the folder that the tests run in

Debian's dataset-fashion-mnist is in test_arrays.py.
"""

import csv
import json
import shutil

import numpy as np
import pytest

import data
from conftest import ROOT, samples, trains

EMOJI = ROOT / "node_modules" / "emoji-datasource-twitter"
TINY = {"clip": "--vision-width 32 --text-width 32 --text-layers 1", "vqgan": "--channels 8 --z-channels 8 --codebook-size 32"}


def test_scikit_learns_digits_are_trained_on_and_scored(tmp_path):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    words = np.array("zero one two three four five six seven eight nine".split())
    np.savez(tmp_path / "digits.npz", images=(digits.images * 15.9).astype(np.uint8), captions=words[digits.target])
    run = tmp_path / "run"
    for model, options in TINY.items():
        trains(model, "--data", tmp_path, "--run", run, "--steps", 2, "--image-size", 28, *options.split())
    samples(run, "score", "--count", 32)
    figures = json.loads((run / "scores.json").read_text())
    assert {"zero-shot", "recall@1 image to text", "psnr", "usage"} <= figures.keys()


@pytest.mark.skipif(not EMOJI.is_dir(), reason="npm's emoji-datasource-twitter is not installed")
def test_emoji_are_read_from_a_table_of_their_names(tmp_path):
    entries = json.loads((EMOJI / "emoji.json").read_text(encoding="utf-8"))[:50]
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "text"), *((entry["image"], entry["name"].lower()) for entry in entries)])
    for entry in entries:
        shutil.copy(EMOJI / "img" / "twitter" / "64" / entry["image"], tmp_path)
    images = data.load(tmp_path, 64)
    assert "hash key" in {caption for captions in images.captions for caption in captions}
    assert images.batch([0]).shape == (1, 3, 64, 64) and not images.skipped
