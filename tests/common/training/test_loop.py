"""train.py: the flags, the optimiser, the schedule, the loops end to end on tiny models, the log."""

import csv
import math
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import train
import data
from common.training import sources as captions
from common.training import device as precision
from common.training import loop as training
from common.run.flags import Options, Parser, add_fields, option, typed_fields
from common.drawing.guide import Guiding
from common.training.settle import Budget, Job
from common.run.models import COPIES
from common.training.muon import Muon, balance, orthogonalise
from common.training.recipes import fitting
from mindalle.unclip import DecoderConfig
from minclip import CLIPConfig
from minvqgan import VQGANConfig
from conftest import TINY, TINY_ALL, TINY_JOB, TINY_UNCLIP, TINY_UNCLIP_JOB, copy_needs, refused, samples, trains


def log_rows(run, model=None):
    with open(run / "log.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if model in (None, row["model"])]


def test_orthogonalising_keeps_the_directions_of_a_matrix_and_brings_its_singular_values_near_one():
    u, _, v = torch.linalg.svd(torch.randn(24, 60, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.08, 1, 24)) @ v
    for matrices in (torch.stack([matrix, 100 * matrix]), matrix.mT[None]):  # each on its own, whatever its length
        near = torch.linalg.svdvals(orthogonalise(matrices))
        assert ((near > 0.6) & (near < 1.3)).all()
    mixed = u.mT @ orthogonalise(matrix[None])[0] @ v.mT
    assert (mixed - torch.diag(mixed.diag())).abs().max() < 1e-4


def test_balanced_updates_move_all_neurons_equally_far_over_time_and_a_matrix_as_far_as_before():
    torch.manual_seed(0)
    uneven = torch.tensor([[[1.0], [0.01], [3.0]], [[2.0], [0.1], [0.1]]])  # (k out 1): how far each neuron would move
    powers = list(torch.zeros(2, 3, 1))
    for _ in range(60):
        updates = uneven * torch.randn(2, 3, 400)
        balanced = balance(updates, powers)
    rows = balanced.norm(dim=2)
    assert torch.allclose(rows, rows.mean(dim=1, keepdim=True).expand(2, 3), rtol=0.1)
    assert torch.allclose(balanced.norm(dim=(1, 2)), updates.norm(dim=(1, 2)))
    sudden = balance(torch.cat([10 * updates[:, :1], updates[:, 1:]], dim=1), powers).norm(dim=2)
    assert (sudden[:, 0] > 3 * sudden[:, 1]).all()  # over time: one step may still be longer


def test_a_neuron_without_a_gradient_stays_and_so_does_a_matrix_without_one():
    updates = torch.randn(2, 3, 4)
    updates[0, 1], updates[1] = 0, 0
    balanced = balance(updates, list(torch.zeros(2, 3, 1)))
    assert balanced.isfinite().all() and not balanced[0, 1].any() and not balanced[1].any()


def test_muon_moves_hidden_matrices_alone_by_orthogonal_steps_and_all_else_as_adamw_does():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))
    peer = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))
    peer.load_state_dict(model.state_dict())
    muon = Muon(model, [model[1]], lr=0.01, outer_rate=0.5, weight_decay=0.1)
    adamw = torch.optim.AdamW([{"params": [p for p in peer.parameters() if p.ndim > 1], "weight_decay": 0.1},
                               {"params": [p for p in peer.parameters() if p.ndim == 1], "weight_decay": 0}], lr=0.005)
    for group in muon.param_groups:
        group["lr"] = group["rate"]
    before = model[1].weight.detach().clone()
    for each, optimiser in ((model, muon), (peer, adamw)):
        each(torch.ones(3, 6)).square().sum().backward()
        optimiser.step()
    for name in ("0.weight", "0.bias", "1.bias"):
        assert torch.allclose(model.get_parameter(name), peer.get_parameter(name), atol=1e-6), name
    step = (model[1].weight - before * (1 - 0.01 * 0.1)) / (0.01 * 0.2 * 8**0.5)
    assert 0.6 < torch.linalg.matrix_norm(step, 2) < 1.3
    assert torch.allclose(step.norm(dim=1), step.norm(dim=1).mean().expand(4), rtol=1e-3)  # balanced


def test_the_rate_rises_over_a_twentieth_of_the_training_and_falls_along_a_line_to_zero():
    optimiser = Muon(nn.Linear(2, 2), [], lr=0.5)

    def rate(done):
        training.set_learning_rate(optimiser, done, train.CLIPRecipe(steps=1000))
        lowest, *_, highest = sorted(group["lr"] for group in optimiser.param_groups)
        assert lowest == highest
        return lowest

    assert [rate(done) for done in (0, 0.025, 0.05, 0.525, 1)] == pytest.approx([0.01, 0.25, 0.5, 0.25, 0])


def test_clip_turns_to_look_alikes_after_its_share_of_the_training_and_muon_moves_its_stem(folder, tmp_path, monkeypatch):
    draw, muon, batches, hidden = train.LookAlikes.draw, train.Muon, [], []
    monkeypatch.setattr(train.LookAlikes, "draw", lambda self, *args: batches.append(args) or draw(self, *args))
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


def test_every_step_of_dalle_drops_captions_and_trains_on_those_that_are_left(folder, trained, tmp_path, monkeypatch):
    for name in ("tokenizer.json", "vqgan.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    drop, loss, texts, seen = train.drop_captions, train.dalle_loss, [], []
    monkeypatch.setattr(train, "drop_captions", lambda text, empty, share: texts.append(drop(text, empty, share)) or texts[-1])
    monkeypatch.setattr(train, "dalle_loss", lambda *args: seen.append(args[2]) or loss(*args))
    trains("dalle", "--data", folder, "--run", tmp_path, "--steps", 3, "--caption-dropout", 1, *TINY["dalle"].split())
    assert len(texts) == 3 and all(torch.equal(text, used) for text, used in zip(texts, seen))
    assert all(len(text.unique(dim=0)) == 1 for text in texts)  # the empty caption


def test_the_discriminator_takes_part_after_its_share_of_the_training(folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "discriminator_loss", lambda *args: seen.append(args) or args[0](args[1]).mean())
    trains("vqgan", "--data", folder, "--run", tmp_path, "--discriminator", "--discriminator-start", 0.75, "--steps", 4, *TINY["vqgan"].split())
    assert len(seen) == 1
    assert {"discriminator", "optimiser_d"} <= torch.load(tmp_path / "vqgan.pt", weights_only=True)["training"].keys()


def test_a_discriminator_that_is_off_is_neither_built_nor_saved(trained):
    assert torch.load(trained / "vqgan.pt", weights_only=True)["training"].keys() == {"optimiser"}


def budget(*words, of="vqgan", before=None, job=None):
    """The budget of a model in a job; before: the seconds that the models before it took."""
    model, typed, flags = train.parse([*([job] if job else []), *words])
    run = SimpleNamespace(job=Job(**typed, model=model, flags=flags), state=lambda name: before and {"seconds": before})
    return Budget.of(run, of, train.MODELS[of][2](steps=10))


def test_minutes_without_steps_outlast_the_recipes_steps_and_with_steps_the_sooner_ends_it():
    def done(*words):
        return budget(*words, job="vqgan").done(20, 30.0)

    assert done() == 2 and done("--minutes", "1") == 0.5
    assert done("--minutes", "1", "--steps", "10") == 2 and done("--minutes", "0.1", "--steps", "10") == 5


def test_in_a_job_of_minutes_each_model_has_its_share_or_enough_steps_and_the_last_has_what_the_others_left():
    shares = {name: train.MODELS[name][2].share for name in TINY_ALL}
    assert sum(shares[name] for name in TINY) == sum(shares[name] for name in TINY_UNCLIP) == 1
    assert budget("--minutes", "10", of="clip") == Budget(10 * shares["clip"], train.CLIPRecipe.enough)
    assert budget("--minutes", "10", of="vqgan").done(train.VQGANRecipe.enough, 1.0) == 1
    assert budget("--minutes", "10", "--vqgan.steps", "7", of="vqgan") == Budget(10 * shares["vqgan"], 10)
    assert budget("--minutes", "10", of="dalle", before=60.0) == Budget(8, None)
    assert budget("--minutes", "10", of="dalle", before=600.0).minutes == pytest.approx(10 * shares["dalle"] / 2)
    assert budget("--minutes", "10", of="decoder", before=30.0, job="unclip") == Budget(9.5, None)


@pytest.mark.parametrize("job", [None, "unclip"])
def test_a_job_of_several_models_takes_minutes_unless_minutes_or_steps_are_typed(job, tmp_path):
    def minutes(*words):
        return train.jobs.open_run(*train.parse([*([job] if job else []), "--run", str(tmp_path), *words])).job.minutes

    assert minutes() == train.jobs.MINUTES[job] and minutes("--minutes", "3") == 3 and minutes("--steps", "5") is None


def test_look_alikes_are_left_out_where_captions_hardly_share_words_unless_they_are_typed(capsys):
    def share(texts, **typed):
        run = SimpleNamespace(job=Job(flags={"clip": typed}))
        return captions.without_look_alikes(run, texts, train.CLIPRecipe(**typed)).look_alikes

    names, scenes = ["cat", "dog", "cow"], [f"{a} {b} {c}" for a in "abcd" for b in "efgh" for c in "ij"]
    assert share(names) == 1 and "hardly share words" in capsys.readouterr().out
    assert share(scenes) == 0.3 and share(names, look_alikes=0.5) == 0.5 and not capsys.readouterr().out


@pytest.mark.parametrize("model", ["clip", "vqgan"])
def test_every_batch_of_few_pictures_is_moved(folder, tmp_path, monkeypatch, model):
    moved = []
    monkeypatch.setattr(train, "shifted", lambda images, most: moved.append(most) or images)
    trains(model, "--data", folder, "--run", tmp_path, "--steps", 3, *TINY[model].split())
    assert moved == [2, 2, 2]


def test_dalle_learns_from_all_copies(folder, trained, tmp_path, monkeypatch):
    copy_needs("dalle", trained, tmp_path)
    monkeypatch.setattr(train, "encode_all", lambda vqgan, images, device, shift: torch.arange(COPIES).reshape(-1, 1, 1).repeat(1, len(images), 64))
    seen, loss = set(), train.dalle_loss
    monkeypatch.setattr(train, "dalle_loss", lambda *args: seen.update(args[3].unique().tolist()) or loss(*args))
    trains("dalle", "--data", folder, "--run", tmp_path, "--steps", 12, *TINY["dalle"].split())
    assert seen == set(range(COPIES))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_caption_of_another_image_that_is_right_for_this_one_too_counts_as_right(folder, tmp_path, monkeypatch, accumulate):
    seen, everything = [], lambda self, indices, texts: torch.ones(len(texts), len(texts), dtype=torch.bool)
    monkeypatch.setattr(data.Dataset, "right", everything)
    whole = train.LOSSES["softmax"]
    monkeypatch.setitem(train.LOSSES, "softmax", whole._replace(loss=lambda logits, same: seen.append(same) or whole.loss(logits, same)))
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, "--accumulate", accumulate, *TINY["clip"].split())
    assert seen[-1].all()


@pytest.mark.parametrize("typed, shift", [({}, 2), ({"shift": 0}, 0), ({"shift": 3}, 3)])
def test_few_pictures_are_moved_at_random_and_the_checkpoint_says_by_how_much(folder, tmp_path, typed, shift):
    words = [word for name, value in typed.items() for word in (f"--{name}", value)]
    trains("vqgan", "--data", folder, "--run", tmp_path, "--steps", 1, *words, *TINY["vqgan"].split())
    assert torch.load(tmp_path / "vqgan.pt", weights_only=True)["recipe"]["shift"] == shift


def test_the_shapes_world_is_never_moved_and_neither_are_many_pictures_or_the_batch_to_overfit(tmp_path):
    def shift(job, count):
        return captions.settle_shift(SimpleNamespace(job=job), range(count), 64, train.VQGANRecipe()).shift

    assert shift(Job(data="emoji"), 1000) == 4
    assert shift(Job(), 1000) == shift(Job(data="emoji"), captions.FEW) == shift(Job(data="emoji", overfit=True), 1000) == 0


def test_a_moved_image_is_the_image_elsewhere_with_its_border_repeated():
    image = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    assert training.shifted(image, 0) is image
    generator, found = torch.Generator().manual_seed(0), set()
    for _ in range(100):
        for one, moved in zip(image, training.shifted(image, 1, generator)):
            places = [(y, x) for y in (0, 1, 2) for x in (0, 1, 2)
                      if moved.equal(torch.nn.functional.pad(one[None], [1] * 4, mode="replicate")[0, :, y : y + 8, x : x + 8])]
            assert len(places) == 1
            found.add(places[0])
    assert len(found) == 9


def test_dalle_learns_the_codes_of_several_moved_copies_the_first_of_them_not_moved(folder):
    model = train.VQGAN(train.VQGANConfig(channels=8, z_channels=8)).eval()
    images = data.load(folder, 32)
    codes, plain = train.encode_all(model, images, "cpu", 4), train.encode_all(model, images, "cpu")
    assert plain.shape == (1, len(images), 64) and codes.shape == (COPIES, len(images), 64)
    assert codes[0].equal(plain[0]) and all((copy != plain[0]).float().mean() > 0.2 for copy in codes[1:])


def test_a_loss_is_compiled_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda loss, dynamic: lambda x: loss(x) + 0.5)
    for asked, result in ((True, 1.5), (False, 1)):
        assert precision.compiled(SimpleNamespace(job=Job(compile=asked)), "dalle", lambda x: x)(1) == result


def test_a_compiler_that_fails_costs_a_line_and_an_error_of_the_loss_itself_is_raised(monkeypatch, capsys):
    def broken(x):
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", lambda loss, dynamic: broken)
    loss = precision.compiled(SimpleNamespace(job=Job(compile=True)), "dalle", lambda x: 1 / x)
    assert loss(2) == loss(2) == 0.5
    assert capsys.readouterr().out.count("torch.compile failed (RuntimeError)") == 1
    with pytest.raises(ZeroDivisionError):
        loss(0)


def test_training_leaves_checkpoints_tokenizer_log_and_loss_curves(trained):
    assert {"clip.pt", "vqgan.pt", "dalle.pt", "tokenizer.json", "log.csv", "losses.png"} <= {p.name for p in trained.iterdir()}
    assert [row["model"] for row in log_rows(trained) if row["loss"]] == [*TINY_ALL]


def test_the_log_has_held_out_figures_of_every_model_at_its_end(trained):
    figures = {row["model"]: dict(part.split("=") for part in row["parts"].split()) for row in log_rows(trained) if not row["loss"]}
    assert figures["clip"].keys() == {"recall_at_1", "scale"} and figures["vqgan"].keys() == {"psnr", "usage"}
    assert figures["dalle"].keys() == {"nats_per_code"}
    assert figures["prior"].keys() == {"loss", "recall_at_1"} and figures["decoder"].keys() == {"loss", "cosine"}


def test_on_the_shapes_world_the_held_out_figures_are_zero_shot_and_the_overlap_of_drawings(tmp_path):
    for model, options in TINY_ALL.items():
        trains(model, "--run", tmp_path, "--steps", 1, "--scenes", 64, *options.split())
    parts = {row["model"]: row["parts"] for row in log_rows(tmp_path) if not row["loss"]}
    assert "zero_shot_of_16=" in parts["clip"] and "overlap=" in parts["dalle"] and "overlap=" in parts["decoder"]


def test_held_out_figures_are_taken_every_so_often_and_change_no_weight(folder, tmp_path, monkeypatch):
    words = ["--data", folder, "--steps", 4]
    for model, options in TINY_ALL.items():
        trains(model, *words, "--run", tmp_path / "a", *options.split())
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    monkeypatch.setattr(training, "HELD_OUT_SHARE", math.inf)
    for model, options in TINY_ALL.items():
        trains(model, *words, "--run", tmp_path / "b", *options.split())
        assert len([row for row in log_rows(tmp_path / "b", model) if not row["loss"]]) == 4
        a, b = (torch.load(tmp_path / name / f"{model}.pt", weights_only=True)["weights"] for name in "ab")
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_captions_of_one_word_leave_room_for_longer_prompts(folder, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "a" / name).write_bytes((folder / name).read_bytes())
    trains("clip", "--data", tmp_path, "--run", tmp_path / "run", "--steps", 1, *TINY["clip"].split())
    samples(tmp_path / "run", "classify", folder / "0.png", "--labels", "a", "b", "--templates", "an icon: {}")


@pytest.mark.parametrize("model, steps", [("clip", 40), ("vqgan", 60), ("dalle", 100), ("prior", 200), ("decoder", 150)])
def test_overfitting_one_batch_leaves_a_tenth_of_every_loss(model, steps, tmp_path):
    words = ["--overfit", "--run", tmp_path]
    for needed in ("clip", "vqgan") if model not in ("clip", "vqgan") else ():
        trains(needed, *words, "--steps", 1, *TINY[needed].split())
    trains(model, *words, "--steps", steps, *TINY_ALL[model].split())
    losses = [float(row["loss"]) for row in log_rows(tmp_path, model) if row["loss"]]
    assert losses[-1] < 0.1 * losses[0]


def test_the_main_job_trains_all_models_with_flags_of_each_and_ends_in_pictures_and_scores(tmp_path, monkeypatch):
    whole = train.finish.__globals__["scores"].score
    monkeypatch.setattr(train.finish.__globals__["scores"], "score", lambda models, how, seed: whole(models, how, 16, 2, 2, seed))
    monkeypatch.setitem(train.finish.__globals__["finish_all"].__globals__, "Guiding", lambda: Guiding(steps=4))
    trains("--run", tmp_path, "--steps", 1, "--image-size", 28, "--clip.scenes", 64, "--vqgan.scenes", 64, "--dalle.scenes", 64, *TINY_JOB.split())
    clip, vqgan, dalle = (torch.load(tmp_path / f"{model}.pt", weights_only=True)["config"] for model in TINY)
    assert clip["image_size"] == vqgan["image_size"] == 28 and clip["patch_size"] == 4 and vqgan["multipliers"] == (1, 2, 4)
    assert dalle["grid"] == 7 and dalle["width"] == 32
    for place in ("originals", "reconstruct", "dalle", "guide"):
        assert (tmp_path / "samples" / place / "sheet.png").exists()
    assert "match novel" in (tmp_path / "scores.json").read_text()


@pytest.mark.parametrize("side", [28, 32, 36, 48, 56, 64, 80, 96, 128])
def test_the_shape_of_each_model_follows_from_the_side_of_the_pictures(side):
    clip, vqgan, decoder = (config(**{"image_size": side} | fitting(model, side)) for model, config in (
        ("clip", CLIPConfig), ("vqgan", VQGANConfig), ("decoder", DecoderConfig)))
    assert 16 <= (clip.image_size // clip.patch_size) ** 2 <= 144 and 49 <= vqgan.grid**2 <= 256 and decoder.grid <= 16
    if side == 32:
        assert (clip, vqgan, decoder) == (CLIPConfig(), VQGANConfig(), DecoderConfig())


def test_a_side_that_cannot_be_halved_is_refused_with_the_next_that_can(tmp_path):
    assert "image_size 50 cannot be halved 2 times: choose 48 or 52" in refused("train", "--image-size", 50, "--run", tmp_path)
    assert "cannot be halved" in refused("train", "vqgan", "--image-size", 31, "--run", tmp_path)


def test_the_job_of_dalle_2_trains_both_parts_at_clips_size_and_draws_held_out_captions(folder, trained, tmp_path):
    copy_needs("prior", trained, tmp_path)
    trains("unclip", "--run", tmp_path, "--data", folder, "--steps", 2, "--decoder.steps", 3, *TINY_UNCLIP_JOB.split())
    prior, decoder = (torch.load(tmp_path / f"{model}.pt", weights_only=True) for model in ("prior", "decoder"))
    clip = torch.load(tmp_path / "clip.pt", weights_only=True)["config"]
    assert (prior["step"], decoder["step"]) == (2, 3) and prior["clip"] == decoder["clip"]
    assert prior["config"]["embed_dim"] == decoder["config"]["embed_dim"] == clip["embed_dim"]
    assert decoder["config"]["image_size"] == clip["image_size"] and prior["config"]["text_length"] == clip["context_length"]
    assert (tmp_path / "samples" / "unclip" / "sheet.png").exists()


# ---- Flags ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExampleOptions(Options):
    some_sizes: tuple[int, ...] = option((1, 2), "how many sizes")
    share: float = option(0.5, "not quite 100%", least=0, most=1)
    on: bool = option(True, "a switch")
    plain: int = 3


def test_a_flag_is_made_of_each_field_with_or_without_a_help_text():
    parser = Parser(prog="x")
    add_fields(parser, ExampleOptions)
    assert typed_fields(parser.parse_args(["--some-sizes", "3", "4", "--plain", "5", "--no-on"]), ExampleOptions) == {
        "some_sizes": (3, 4), "plain": 5, "on": False}
    assert typed_fields(parser.parse_args([]), ExampleOptions) == {}  # only what was typed
    text = parser.format_help()
    assert "how many sizes (default: 1 2)" in text and "--share" in text and "100%" in text


def test_common_flags_may_stand_before_the_models_name_or_after_it():
    before, after = train.parse(["--run", "x", "clip", "--vision-width", "32"]), train.parse(["clip", "--vision-width", "32", "--run", "x"])
    assert before == after and before[0] == "clip" and before[1] == {"run": "x"} and before[2]["clip"] == {"vision_width": 32}


@pytest.mark.parametrize("words, meant", [
    (["--beta", "3"], "--vqgan.beta"), (["--no-rotary"], "--no-dalle.rotary"), (["clip", "--vqgan.vision-width", "3"], "--vision-width"),
    (["unclip", "--channels", "3"], "--decoder.channels"), (["decoder", "--decoder.channels", "8"], "--channels"),
])
def test_a_flag_that_is_not_there_is_refused_with_the_one_that_was_meant(words, meant):
    assert meant in refused("train", *words)


def test_a_flag_with_a_models_name_is_refused_where_that_model_alone_is_trained():
    for words in (["--clip.patch-size", 4, "vqgan"], ["vqgan", "--clip.patch-size", 4], ["--resume", "clip", "--vqgan.beta", 3]):
        assert "leave out the model's name" in refused("train", *words)
    assert "leave it out" in refused("train", "unclip", "--clip.patch-size", 4)


def test_what_other_models_decide_is_no_flag_and_abbreviations_are_none():
    for words in (["dalle", "--text-vocab", 9], ["--clip.image-size", 64], ["clip", "--share", 1], ["clip", "--enough", 1], ["clip", "--vision-wid", 9]):
        assert words[-2] in refused("train", *words)
    assert "--temp" in refused("sample", "dalle", "a", "--temp", 1)


def test_a_run_may_be_called_like_a_model():
    assert train.parse(["--run", "clip", "--clip.patch-size", "4"])[0] is None
    assert train.parse(["--run", "clip", "vqgan", "--beta", "1"])[2]["vqgan"] == {"beta": 1.0}


@pytest.mark.parametrize("words, name", [
    (["clip", "--batch-size", "0"], "--batch-size"), (["vqgan", "--discriminator-start", "1.5"], "--discriminator-start"),
    (["--minutes", "0"], "--minutes"), (["dalle", "--steps", "0"], "--steps"), (["--seed", "x"], "--seed"), (["clip", "--ste", "4"], "--ste"),
])
def test_a_number_that_makes_no_sense_is_refused_by_the_name_of_its_flag(words, name, tmp_path):
    assert name in refused("train", *words, "--run", tmp_path)
    assert not any(tmp_path.glob("*.pt"))


# ---- Precision --------------------------------------------------------------------------------------------------------


def test_auto_takes_the_precision_that_is_measured_to_be_faster_and_the_checkpoint_keeps_it(folder, tmp_path, monkeypatch, capsys):
    for speedup, chosen in ((2.0, "bf16"), (0.7, "fp32")):
        monkeypatch.setattr(precision, "bf16_speedup", lambda model, loss: speedup)
        train.main(["vqgan", "--data", str(folder), "--run", str(tmp_path / chosen), "--steps", "1", "--device", "cpu", *TINY["vqgan"].split()])
        assert f"{speedup} times" in capsys.readouterr().out
        assert torch.load(tmp_path / chosen / "vqgan.pt", weights_only=True)["precision"] == chosen
    monkeypatch.setattr(precision, "bf16_speedup", lambda model, loss: 1 / 0)  # is not asked again
    train.main(["vqgan", "--run", str(tmp_path / "bf16"), "--resume", "--steps", "2"])
    assert torch.load(tmp_path / "bf16" / "vqgan.pt", weights_only=True)["precision"] == "bf16"


def test_the_measured_speedup_is_how_many_times_as_fast_bf16_is():
    layer = nn.Linear(2, 2)

    def slow_in_fp32():
        time.sleep(0.001 if torch.is_autocast_enabled("cpu") else 0.02)
        return layer(torch.ones(2, 2)).sum()

    assert 2 < precision.bf16_speedup(layer, slow_in_fp32, seconds=0.05) < 30


def test_the_measured_speedup_is_a_ratio_of_times_and_leaves_the_model_as_it_was():
    model = train.VQGAN(train.VQGANConfig(channels=8, z_channels=8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(2, 3, 32, 32)
    assert 0 < precision.bf16_speedup(model, lambda: model(images)[0].mean(), seconds=0.01) < math.inf
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
