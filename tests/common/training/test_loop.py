"""The loops end to end on tiny models: what each step does, the log, held-out figures, whole jobs."""

import csv
import math

import pytest
import torch
from conftest import TINY, TINY_ALL, TINY_JOB, TINY_UNCLIP_JOB, copy_needs, trains
from torch import nn

import data
import train
from common.drawing.guide import Guiding
from common.training import loop, sources
from common.training.muon import Muon


def log_rows(run, model=None):
    with open(run / "log.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if model in (None, row["model"])]


def test_the_rate_rises_then_falls_linearly_to_zero():
    optimiser = Muon(nn.Linear(2, 2), [], lr=0.5)

    def rate(done):
        loop.set_learning_rate(optimiser, done, train.CLIPRecipe(steps=1000))
        lowest, *_, highest = sorted(group["lr"] for group in optimiser.param_groups)
        assert lowest == highest
        return lowest

    assert [rate(done) for done in (0, 0.025, 0.05, 0.525, 1)] == pytest.approx([0.01, 0.25, 0.5, 0.25, 0])


def test_every_step_draws_another_batch(folder, tmp_path, monkeypatch):
    batch, drawn = sources.Images.batch, []
    monkeypatch.setattr(sources.Images, "batch", lambda self, indices:
                        drawn.append(tuple(indices.tolist())) or batch(self, indices))
    trains("vqgan", "--data", folder, "--run", tmp_path, "--steps", 3, *TINY["vqgan"].split())
    assert len(drawn) == len(set(drawn)) == 3


def test_clip_turns_to_look_alikes_and_muon_moves_its_stem(folder, tmp_path, monkeypatch):
    draw, muon, batches, hidden = sources.LookAlikes.draw, train.Muon, [], []
    monkeypatch.setattr(sources.LookAlikes, "draw", lambda self, *args: batches.append(args) or draw(self, *args))
    monkeypatch.setattr(train, "Muon", lambda model, inside, *args, **kwargs: hidden.extend(inside) or muon(model, inside, *args, **kwargs))
    options = "--steps 4 --look-alikes 0.5 --look-alike-group 3 --batch-size 8 --stem-width 8".split()
    trains("clip", "--data", folder, "--run", tmp_path, *options)
    assert batches == [(8, 3)] * 2  # of four steps
    stem = [weight for part in hidden for weight in part.parameters() if weight.ndim == 4]
    assert len(stem) == 2  # all three convolutions but the first, which reads pixels


def test_every_step_of_clip_clamps_the_temperature(folder, tmp_path, monkeypatch):
    clamp, calls = train.CLIP.clamp_temperature, []
    monkeypatch.setattr(train.CLIP, "clamp_temperature", lambda self: calls.append(clamp(self)))
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 3, *TINY["clip"].split())
    assert len(calls) == 3


def test_every_step_of_dalle_trains_on_what_caption_dropout_leaves(folder, trained, tmp_path, monkeypatch):
    for name in ("tokenizer.json", "vqgan.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    drop, loss, texts, seen = train.drop_captions, train.dalle_loss, [], []
    monkeypatch.setattr(train, "drop_captions", lambda text, empty, share: texts.append(drop(text, empty, share)) or texts[-1])
    monkeypatch.setattr(train, "dalle_loss", lambda *args: seen.append(args[2]) or loss(*args))
    trains("dalle", "--data", folder, "--run", tmp_path, "--steps", 3, "--caption-dropout", 1, *TINY["dalle"].split())
    assert len(texts) == 3 and all(torch.equal(text, used) for text, used in zip(texts, seen))
    assert all(len(text.unique(dim=0)) == 1 for text in texts)  # the empty caption


def test_the_discriminator_begins_at_its_fraction_of_the_training(folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "discriminator_loss", lambda *args: seen.append(args) or args[0](args[1]).mean())
    trains("vqgan", "--data", folder, "--run", tmp_path, "--discriminator", "--discriminator-start", 0.75, "--steps", 4, *TINY["vqgan"].split())
    assert len(seen) == 1
    assert {"discriminator", "optimiser_d"} <= torch.load(tmp_path / "vqgan.pt", weights_only=True)["training"].keys()


def test_a_discriminator_that_is_off_is_not_saved(trained):
    assert torch.load(trained / "vqgan.pt", weights_only=True)["training"].keys() == {"optimiser"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_another_images_caption_that_fits_this_one_counts_as_right(folder, tmp_path, monkeypatch, accumulate):
    seen, everything = [], lambda self, indices, texts: torch.ones(len(texts), len(texts), dtype=torch.bool)
    monkeypatch.setattr(data.Dataset, "right", everything)
    whole = train.LOSSES["softmax"]
    monkeypatch.setitem(train.LOSSES, "softmax", whole._replace(loss=lambda logits, same: seen.append(same) or whole.loss(logits, same)))
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, "--accumulate", accumulate, *TINY["clip"].split())
    assert seen[-1].all()


def test_training_leaves_checkpoints_tokenizer_and_log(trained):
    assert {"clip.pt", "vqgan.pt", "dalle.pt", "tokenizer.json", "log.csv"} <= {p.name for p in trained.iterdir()}
    assert [row["model"] for row in log_rows(trained) if row["loss"]] == [*TINY_ALL]


def test_the_log_ends_with_held_out_figures_of_every_model(trained):
    figures = {row["model"]: dict(part.split("=") for part in row["parts"].split()) for row in log_rows(trained) if not row["loss"]}
    assert figures["clip"].keys() == {"recall_at_1", "scale"} and figures["vqgan"].keys() == {"psnr", "usage"}
    assert figures["dalle"].keys() == {"nats_per_code"}
    assert figures["prior"].keys() == {"loss", "recall_at_1"} and figures["decoder"].keys() == {"loss", "cosine"}


def test_held_out_figures_on_shapes_are_zero_shot_and_overlap(tmp_path):
    for model, options in TINY_ALL.items():
        trains(model, "--run", tmp_path, "--steps", 1, "--scenes", 64, *options.split())
    parts = {row["model"]: row["parts"] for row in log_rows(tmp_path) if not row["loss"]}
    assert "zero_shot_of_16=" in parts["clip"] and "overlap=" in parts["dalle"] and "overlap=" in parts["decoder"]


def test_held_out_figures_change_no_weight(folder, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    monkeypatch.setattr(loop, "HELD_OUT_FRACTION", math.inf)
    for model, options in TINY_ALL.items():
        trains(model, "--data", folder, "--steps", 4, "--run", tmp_path, *options.split())
        assert len([row for row in log_rows(tmp_path, model) if not row["loss"]]) == 4
        seldom, often = (torch.load(run / f"{model}.pt", weights_only=True)["weights"]
                         for run in (trained, tmp_path))
        assert all(torch.equal(seldom[name], often[name]) for name in seldom)


@pytest.mark.parametrize("model, steps", [
    ("clip", 11), ("vqgan", 11), ("dalle", 41), ("prior", 81), ("decoder", 21)])
def test_overfitting_one_batch_halves_every_loss(model, steps, tmp_path):
    words = ["--overfit", "--run", tmp_path]
    for needed in ("clip", "vqgan") if model not in ("clip", "vqgan") else ():
        trains(needed, *words, "--steps", 1, *TINY[needed].split())
    trains(model, *words, "--steps", steps, *TINY_ALL[model].split())
    losses = [float(row["loss"]) for row in log_rows(tmp_path, model) if row["loss"]]
    assert losses[-1] < losses[0] / 2


def test_the_main_job_ends_in_pictures_and_scores(tmp_path, monkeypatch):
    score = train.score
    monkeypatch.setattr(train, "score", lambda models, drawing, seed: score(models, drawing, 16, 2, 2, seed))
    monkeypatch.setattr(train, "Guiding", lambda: Guiding(steps=4))
    trains("--run", tmp_path, "--steps", 1, "--image-size", 28, "--clip.scenes", 64, "--vqgan.scenes", 64, "--dalle.scenes", 64, *TINY_JOB.split())
    clip, vqgan, dalle = (torch.load(tmp_path / f"{model}.pt", weights_only=True)["config"] for model in TINY)
    assert clip["image_size"] == vqgan["image_size"] == 28 and clip["patch_size"] == 4 and vqgan["multipliers"] == (1, 2, 4)
    assert dalle["grid"] == 7 and dalle["width"] == 32
    for place in ("originals", "reconstruct", "dalle", "guide"):
        assert (tmp_path / "samples" / place / "sheet.png").exists()
    assert "match novel" in (tmp_path / "scores.json").read_text()


def test_the_job_of_dalle_2_trains_both_parts_at_clips_size(folder, trained, tmp_path):
    copy_needs("prior", trained, tmp_path)
    trains("unclip", "--run", tmp_path, "--data", folder, "--steps", 2, "--decoder.steps", 3, *TINY_UNCLIP_JOB.split())
    prior, decoder = (torch.load(tmp_path / f"{model}.pt", weights_only=True) for model in ("prior", "decoder"))
    clip = torch.load(tmp_path / "clip.pt", weights_only=True)["config"]
    assert (prior["step"], decoder["step"]) == (2, 3) and prior["clip"] == decoder["clip"]
    assert prior["config"]["embed_dim"] == decoder["config"]["embed_dim"] == clip["embed_dim"]
    assert decoder["config"]["image_size"] == clip["image_size"] and prior["config"]["text_length"] == clip["context_length"]
    assert (tmp_path / "samples" / "unclip" / "sheet.png").exists()
