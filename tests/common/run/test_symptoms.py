"""What train.py notices of a training that goes wrong, on rows made up for it."""

import math
import re

import pytest
from conftest import ROOT, TINY, trains

from common.run.symptoms import column, symptoms

GUIDE = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")


def rows(model, losses=(), held_out=(), **parts):
    """Make a log: losses every ten steps, with parts of as many values, and (step, figures) of held-out pictures."""
    text = [" ".join(f"{name}={values[i]}" for name, values in parts.items()) for i in range(len(losses))]
    lines = [(10 * i, f"{loss}", text[i]) for i, loss in enumerate(losses)]
    lines += [(step, "", figures) for step, figures in held_out]
    return [{"model": model, "step": f"{step}", "seconds": "1.0", "loss": loss, "parts": text}
            for step, loss, text in sorted(lines, key=lambda line: line[0])]


def falling(count=41, start=4.8, end=0.5):
    return [start + (end - start) * i / (count - 1) for i in range(count)]


def test_a_column_holds_figures_of_training_or_of_held_out_pictures():
    log = rows("prior", [3.0, 2.0], [(10, "loss=2.5 recall_at_1=0.1")])
    assert column(log, "loss") == [(0, 3.0), (10, 2.0)]
    assert column(log, "loss", held_out=True) == [(10, 2.5)]
    assert column(log, "psnr") == []


@pytest.mark.parametrize("losses, guess, seen", [
    ([4.85] * 41, None, True), ([5.2] + [4.85] * 40, math.log(128), True), ([5.2] + [4.85] * 40, None, False),
    ([4.0] + [9.0] * 40, None, True), (falling(), math.log(128), False), ([0.0] * 41, None, False)])
def test_a_loss_that_is_no_better_than_a_guess_is_noticed(losses, guess, seen):
    assert ("learning-rate-too-high" in symptoms("clip", rows("clip", losses), 0.5, guess)) == seen


def test_a_large_adversarial_term_is_no_loss_that_is_stuck():
    log = rows("vqgan", [5.0] + [11.0] * 40, reconstruction=falling())
    assert symptoms("vqgan", log, 0.5) == {}
    log = rows("vqgan", [5.0] + [11.0] * 40, reconstruction=[5.0] * 41)
    assert "learning-rate-too-high" in symptoms("vqgan", log, 0.5)


@pytest.mark.parametrize("usage, seen", [(0.03, True), (0.1, False), (0.9, False)])
def test_codes_that_held_out_pictures_leave_unused_are_noticed(usage, seen):
    log = rows("vqgan", falling(), [(200, "psnr=20.0 usage=0.01"), (400, f"psnr=20.0 usage={usage}")])
    assert ("codebook-collapse" in symptoms("vqgan", log, 0.5)) == seen  # the last figure counts


@pytest.mark.parametrize("count, low, seen", [(41, 0.01, True), (41, 0.6, False), (41, 0.11, False)])
def test_a_discriminator_that_wins_for_long_is_noticed(count, low, seen):
    log = rows("vqgan", falling(count), discriminator=[1.0] * 10 + [low] * (count - 10))
    assert ("discriminator-from-the-first-step" in symptoms("vqgan", log, 0.5)) == seen


def test_a_discriminator_that_wins_for_a_moment_is_not_noticed():
    log = rows("vqgan", falling(), discriminator=[1.0] * 37 + [0.01] * 4)
    assert symptoms("vqgan", log, 0.5) == {}


@pytest.mark.parametrize("model, name", [("dalle", "nats_per_code"), ("prior", "loss"), ("decoder", "loss")])
@pytest.mark.parametrize("figures, seen", [
    ([4.4, 4.6, 5.6, 6.6], True), ([4.4, 4.1, 3.9, 3.8], False), ([4.4, 4.0, 4.2, 4.3], False), ([4.4, 3.0, 2.9, 3.9], False),
    ([4.4, 6.0], False)])
def test_held_out_figures_that_worsen_while_the_loss_falls_are_noticed(model, name, figures, seen):
    held_out = [(100 * (i + 1), f"{name}={value}") for i, value in enumerate(figures)]
    assert ("learning-by-heart" in symptoms(model, rows(model, falling(), held_out), 1.0)) == seen
    assert "learning-by-heart" not in symptoms(model, rows(model, [4.8] + [3.0] * 40, held_out), 1.0)  # a loss that stands still


@pytest.mark.parametrize("count, done, seen", [(41, 0.5, True), (41, 0.05, False), (9, 0.5, False)])
def test_nothing_is_said_of_a_training_that_has_just_begun(count, done, seen):
    assert bool(symptoms("clip", rows("clip", [4.85] * count), done)) == seen


def test_other_models_of_the_run_are_not_blamed():
    assert symptoms("dalle", rows("dalle", falling()) + rows("clip", [4.85] * 41), 1.0) == {}


def test_train_names_what_it_notices_once_and_where_to_read_on(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.training.loop.SAVE_EVERY", 0)
    monkeypatch.setattr("common.training.loop.HELD_OUT_FRACTION", math.inf)
    monkeypatch.setattr("common.run.symptoms.EARLY_STEPS", 4)
    words = ["--data", folder, "--run", tmp_path, "--steps", 8, "--learning-rate", 0, *TINY["clip"].split()]
    trains("clip", *words)
    lines = [line for line in capsys.readouterr().out.splitlines() if "docs/failures.md" in line]
    assert len(lines) == 1
    line = r"clip: the loss is [\d.]+, no better than the [\d.]+ of a guess: docs/failures.md#learning-rate-too-high"
    assert re.fullmatch(line, lines[0])


def anchors(text):
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def test_every_entry_that_train_names_is_a_heading():
    source = (ROOT / "common" / "run" / "symptoms.py").read_text(encoding="utf-8")
    named = set(re.findall(r'"([a-z-]+)": (?:stuck|collapsed|overpowered|by_heart)', source))
    assert len(named) == 4 and named <= anchors(GUIDE)
