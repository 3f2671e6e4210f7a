"""train.py and sample.py from outside: end to end on tiny models, killed, resumed, given nonsense."""

import contextlib
import csv
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import recipe
import sample
import test_minclip
import test_mindalle
import test_minvqgan
import train
from minclip import Tokenizer

TINY = {
    "clip": "--vision-width 32 --vision-layers 1 --text-width 32 --text-layers 1 --batch-size 16",
    "vqgan": "--channels 8 --z-channels 8 --codebook-size 32 --batch-size 8",
    "dalle": "--width 32 --layers 1 --heads 2 --batch-size 8",
}


def run(script: str, *words, ok: bool = True) -> subprocess.CompletedProcess:
    result = subprocess.run([sys.executable, str(ROOT / f"{script}.py"), *map(str, words)], capture_output=True, text=True)
    if ok:
        assert result.returncode == 0, result.stderr
    return result


def refused(script: str, *words) -> str:
    """Run a command that must fail, as the script itself would, and return its one line."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as exit:
        sample.one_line_errors(lambda: {"train": train, "sample": sample}[script].main([*map(str, words)]))
    lines = errors.getvalue().strip().splitlines()
    assert exit.value.code == 2 and len(lines) == 1, (exit.value.code, lines)
    return lines[0]


@pytest.mark.parametrize("script, words", [("train", ["clip", "--steps", "0"]), ("sample", ["reconstruct", "nothing.png"])])
def test_the_scripts_end_bad_input_with_one_line_and_exit_code_2(script, words, tmp_path):
    result = run(script, *words, "--run", tmp_path, ok=False)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and result.stdout == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of captioned pictures of any size."""
    place, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(24):
        size = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"picture number {i % 5}")
    return place


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of three tiny models, each trained for four steps."""
    place = tmp_path_factory.mktemp("run")
    for model, options in TINY.items():
        train.main([model, "--data", str(folder), "--run", str(place), "--steps", "4", "--device", "cpu", *options.split()])
    return place


def sampled(trained, *words):
    sample.main([*map(str, words), "--run", str(trained), "--device", "cpu"])


def test_orthogonalising_keeps_the_directions_of_a_matrix_and_brings_its_singular_values_near_one():
    u, values, v = torch.linalg.svd(torch.randn(24, 60, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    matrix = u @ torch.diag(values) @ v
    for matrices in (torch.stack([matrix, 100 * matrix]), matrix.mT[None]):  # each on its own, whatever its length
        near = torch.linalg.svdvals(train.orthogonalise(matrices))
        assert ((near > 0.6) & (near < 1.3)).all()
    mixed = u.mT @ train.orthogonalise(matrix[None])[0] @ v.mT
    assert (mixed - torch.diag(mixed.diag())).abs().max() < 1e-4


def test_muon_moves_hidden_matrices_alone_by_orthogonal_steps_and_all_else_as_adamw_does():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))
    peer = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))
    peer.load_state_dict(model.state_dict())
    muon = train.Muon(model, [model[1]], lr=0.01, outer_rate=0.5, weight_decay=0.1)
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


def test_a_batch_of_look_alikes_holds_captions_that_differ_in_little_and_are_not_the_same():
    torch.manual_seed(0)
    texts = torch.tensor([[1, colour, shape, place] for colour in (2, 3, 4, 5) for shape in (6, 7, 8, 9) for place in (10, 11)] * 3)
    batch = texts[train.look_alikes(texts, 20, group=5)]
    assert batch.shape == (20, 4)
    for first, *others in batch.split(5):
        for other in others:
            assert (other == first).sum() == 3  # one word of three is another, and the start is shared
    everyone = torch.cat([texts[train.look_alikes(texts, 20, group=5)] for _ in range(50)])
    assert len(everyone.unique(dim=0)) == 32


def test_a_batch_of_look_alikes_sets_a_caption_beside_the_same_words_in_another_order():
    torch.manual_seed(0)
    texts = torch.tensor([[1, a, 9, b] for a in range(2, 9) for b in range(2, 9) if a != b])  # a above b
    for first, second in texts[train.look_alikes(texts, 20, group=2)].split(2):
        assert first.tolist() == second[[0, 3, 2, 1]].tolist()


def test_the_rate_rises_over_a_twentieth_of_the_training_and_falls_along_a_line_to_zero():
    optimiser = train.Muon(torch.nn.Linear(2, 2), [], lr=0.5)

    def rate(done):
        recipe = SimpleNamespace(steps=1000)
        train.Loop.set_learning_rate(SimpleNamespace(progress=lambda: done, recipe=recipe, parts={"optimiser": optimiser}))
        lowest, *_, highest = sorted(group["lr"] for group in optimiser.param_groups)
        assert lowest == highest
        return lowest

    assert [rate(done) for done in (0, 0.025, 0.05, 0.525, 1)] == pytest.approx([0.01, 0.25, 0.5, 0.25, 0])


def test_clip_turns_to_look_alikes_after_its_share_of_the_training_and_muon_moves_its_stem(folder, tmp_path, monkeypatch):
    look_alikes, muon, batches, hidden = train.look_alikes, train.Muon, [], []
    monkeypatch.setattr(train, "look_alikes", lambda *args: batches.append(args) or look_alikes(*args))
    monkeypatch.setattr(train, "Muon", lambda model, inside, *args, **kwargs: hidden.extend(inside) or muon(model, inside, *args, **kwargs))
    options = "--steps 4 --look-alikes 0.5 --batch-size 8 --stem-width 8 --device cpu".split()
    train.main(["clip", "--data", str(folder), "--run", str(tmp_path), *options])
    assert len(batches) == 2  # of four
    stem = [weight for part in hidden for weight in part.parameters() if weight.ndim == 4]
    assert len(stem) == 2  # all three convolutions but the first, which reads pixels


def test_minutes_without_steps_outlast_the_recipes_steps_and_with_steps_the_sooner_ends_it(folder, tmp_path):
    def steps_of(*options):
        run = train.Run(*train.parse(["vqgan", "--data", str(folder), "--run", str(tmp_path), "--device", "cpu", *options]))
        run.minutes = {"vqgan": run.args.minutes}
        loop = train.Loop(run, "vqgan", None, train.VQGANRecipe(steps=10), model=torch.nn.Linear(2, 2))
        loop.step, loop.seconds = 20, 30.0
        return loop.progress()

    assert steps_of() == 2 and steps_of("--minutes", "1") == 0.5
    assert steps_of("--minutes", "1", "--steps", "10") == 2 and steps_of("--minutes", "0.1", "--steps", "10") == 5


def test_training_leaves_checkpoints_tokenizer_log_and_loss_curves(trained):
    assert {"clip.pt", "vqgan.pt", "dalle.pt", "tokenizer.json", "log.csv", "losses.png"} <= {p.name for p in trained.iterdir()}
    with open(trained / "log.csv", newline="") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["clip", "vqgan", "dalle"]


def test_classify_gives_each_image_and_label_a_probability(trained, folder, capsys):
    sampled(trained, "classify", folder / "0.png", folder / "1.png", "--labels", "number 1", "number 2")
    assert capsys.readouterr().out.count("%") == 4


def test_search_ranks_a_folder_by_text_and_by_picture(trained, folder, tmp_path):
    sampled(trained, "search", "number 1", folder, "-n", 5, "--out", tmp_path)
    assert (tmp_path / "index.jsonl").read_text().count("\n") == 5
    sampled(trained, "search", folder, "--image", folder / "3.png", "-n", 5, "--out", tmp_path)
    assert '3.png", "score": 1.0' in (tmp_path / "index.jsonl").read_text().splitlines()[0].replace("0.99999", "1.0")


def test_reconstruct_shows_originals_over_reconstructions(trained, folder, tmp_path):
    sampled(trained, "reconstruct", folder / "0.png", folder / "1.png", "--out", tmp_path)
    assert {"0000.png", "0001.png", "sheet.png", "index.jsonl"} == {p.name for p in tmp_path.iterdir()}


def test_dalle_draws_the_same_pictures_from_the_same_seed(trained, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sampled(trained, "dalle", "picture number 1", "", "-n", 2, "--seed", seed, "--out", tmp_path / name)
    a, b, c = (b"".join((tmp_path / name / f"000{i}.png").read_bytes() for i in range(4)) for name in "abc")
    assert a == b and a != c


def test_dalle_reranks_and_primes(trained, folder, tmp_path):
    sampled(trained, "dalle", "picture number 1", "--rerank", 4, "-n", 2, "--prime", folder / "0.png", "--prime-rows", 3,
            "--out", tmp_path)
    assert '"rank": 1' in (tmp_path / "index.jsonl").read_text()


def test_guide_starts_blank_with_noise_under_our_own_clip_and_as_published_under_another_and_takes_what_was_typed():
    args = sample.parser().parse_args(["guide", "a cat", "--steps", "7"])
    ours, published = (SimpleNamespace(marks=lambda name, found=found: found) for found in ({"kind": "clip"}, {}))
    assert sample.guiding_options(args, ours) == {"steps": 7, "cutouts": 16, "start": "blank", "latent_noise": 1.0, "jitter": 0.6}
    assert sample.guiding_options(args, published) == {"steps": 7, "cutouts": 32, "start": "codes", "latent_noise": 0.0, "jitter": 0.1}


def test_guide_leaves_the_picture_a_filmstrip_and_a_gif(trained, tmp_path):
    sampled(trained, "guide", "picture number 1: 1 | number 2: -0.3", "--steps", 3, "--cutouts", 2, "--out", tmp_path)
    assert {"0000.png", "filmstrip.png", "guide.gif"} <= {p.name for p in tmp_path.iterdir()}


def test_score_prints_every_figure_and_the_ceiling_beside_it(tmp_path, capsys):
    place = tmp_path / "run"
    for model, options in TINY.items():
        train.main([model, "--run", str(place), "--steps", "1", "--overfit", "--device", "cpu", *options.split()])
    sampled(place, "score", "--count", 16, "--draws", 2, "--rerank", 2)
    printed = capsys.readouterr().out
    for figure in ("judge unseen", "zero-shot novel", "recall@1", "psnr", "usage", "perplexity", "kept", "match unseen reranked"):
        assert figure in printed
    assert (place / "scores.json").exists()


@pytest.mark.parametrize("model", TINY)
def test_a_resumed_training_ends_with_the_very_weights_of_one_never_stopped(model, folder, trained, tmp_path, monkeypatch):
    for name in ("tokenizer.json", "vqgan.pt"):
        for place in ("whole", "parts"):
            (tmp_path / place).mkdir(exist_ok=True)
            if name.split(".")[0] != model:
                (tmp_path / place / name).write_bytes((trained / name).read_bytes())
    words = [model, "--data", str(folder), "--steps", "6", "--device", "cpu", *TINY[model].split()]
    train.main([*words, "--run", str(tmp_path / "whole")])

    def killed(loop, *_):  # as kill -9 would: after the checkpoint of step 3 nothing more is written
        loop.save()
        raise RuntimeError("killed")

    monkeypatch.setattr(train.Loop, "show", lambda loop, speed: killed(loop) if loop.step == 3 and speed else None)
    with pytest.raises(RuntimeError):
        train.main([*words, "--run", str(tmp_path / "parts")])
    monkeypatch.undo()
    train.main([*words, "--run", str(tmp_path / "parts"), "--resume"])
    whole, parts = (torch.load(tmp_path / place / f"{model}.pt", weights_only=True) for place in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 6
    for name, value in whole["weights"].items():
        assert torch.equal(value, parts["weights"][name]), name


@pytest.mark.parametrize("again", [["--resume"], []])
def test_a_training_killed_before_its_first_checkpoint_starts_anew_and_logs_each_step_once(folder, tmp_path, again, monkeypatch):
    words = ["clip", "--data", str(folder), "--steps", "21", "--device", "cpu", "--run", str(tmp_path), *TINY["clip"].split()]

    def killed(loop, speed):
        if loop.step == 15:
            raise RuntimeError("killed")

    monkeypatch.setattr(train.Loop, "show", killed)
    with pytest.raises(RuntimeError):
        train.main(words)
    monkeypatch.undo()
    train.main([*words, *again])
    with open(tmp_path / "log.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "10", "20"]


def test_a_training_killed_outright_goes_on_to_the_very_weights_of_one_never_killed(folder, tmp_path):
    words = ["vqgan", "--data", str(folder), "--steps", "60", "--device", "cpu", *TINY["vqgan"].split()]
    train.main([*words, "--run", str(tmp_path / "whole")])
    often = "import sys, train; train.SAVE_EVERY = 0; train.main(sys.argv[1:])"
    killed = subprocess.Popen([sys.executable, "-c", often, *words, "--run", str(tmp_path / "parts")], cwd=ROOT,
                              stdout=subprocess.DEVNULL)
    while not (tmp_path / "parts" / "vqgan.pt").exists() and killed.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    killed.kill()  # SIGKILL, wherever it happens to be, in the midst of saving perhaps
    killed.wait()
    assert torch.load(tmp_path / "parts" / "vqgan.pt", weights_only=True)["step"] < 60
    train.main([*words, "--run", str(tmp_path / "parts"), "--resume"])
    whole, parts = (torch.load(tmp_path / place / "vqgan.pt", weights_only=True) for place in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 60
    assert all(torch.equal(value, parts["weights"][name]) for name, value in whole["weights"].items())


def test_ctrl_c_saves_and_says_how_to_go_on(folder, tmp_path):
    words = ["vqgan", "--data", folder, "--run", tmp_path, "--steps", 100000, "--device", "cpu", *TINY["vqgan"].split()]
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, words)], stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)
    for _ in range(600):
        if (tmp_path / "log.csv").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "--resume" in process.communicate(timeout=60)[1]
    assert torch.load(tmp_path / "vqgan.pt", weights_only=True)["step"] > 0


def test_nothing_is_overwritten_without_resume(trained, folder):
    before = (trained / "clip.pt").read_bytes()
    assert "--resume" in refused("train", "clip", "--data", folder, "--run", trained)
    assert (trained / "clip.pt").read_bytes() == before


def test_bad_input_gets_one_line_that_names_it(trained, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "empty" in refused("train", "clip", "--data", tmp_path / "empty", "--run", tmp_path / "r")
    assert "--wings" in refused("train", "clip", "--wings", 2)
    assert "patch" in refused("train", "clip", "--patch-size", 5, "--run", tmp_path / "r")
    assert "clip" in refused("sample", "reconstruct", folder / "0.png", "--run", trained, "--vqgan", trained / "clip.pt")
    assert "image" in refused("sample", "classify", tmp_path / "broken.png", "--labels", "a", "--run", trained)
    assert "202 tokens" in refused("sample", "dalle", "word " * 50, "--run", trained)
    assert "shapes world" in refused("sample", "score", "--run", trained)
    assert not (tmp_path / "r").exists()


def test_captions_of_one_word_leave_room_for_longer_prompts(folder, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "a" / name).write_bytes((folder / name).read_bytes())
    train.main(["clip", "--data", str(tmp_path), "--run", str(tmp_path / "run"), "--steps", "1", *TINY["clip"].split()])
    sampled(tmp_path / "run", "classify", folder / "0.png", "--labels", "a", "b", "--templates", "an icon: {}")


def test_a_dalle_refuses_the_codes_of_another_vqgan(trained, folder, tmp_path):
    train.main(["vqgan", "--data", str(folder), "--run", str(tmp_path), "--steps", "1", "--seed", "5", "--device", "cpu",
                *TINY["vqgan"].split()])
    with pytest.raises(ValueError, match="another vqgan"):
        sampled(trained, "dalle", "picture", "--vqgan", tmp_path / "vqgan.pt")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_checkpoint_that_is_a_malicious_pickle_does_not_run(trained, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"kind": "vqgan", "config": Bomb()}))
    with pytest.raises(ValueError, match="bomb.pt"):
        sampled(trained, "reconstruct", folder / "0.png", "--vqgan", tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("model", TINY)
def test_overfitting_one_batch_leaves_a_tenth_of_every_loss(model, tmp_path):
    words = ["--steps", "200", "--device", "cpu", "--overfit", "--run", str(tmp_path)]
    if model == "dalle":
        train.main(["clip", *words[:1], "1", *words[2:], *TINY["clip"].split()])
        train.main(["vqgan", *words[:1], "1", *words[2:], *TINY["vqgan"].split()])
    train.main([model, *words, *TINY[model].split()])
    with open(tmp_path / "log.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["model"] == model]
    assert losses[-1] < 0.1 * losses[0]


# ---- Published weights: each package's layout is proven in its own tests; here the commands that use them ----------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Small models in the published layouts: a folder of Hugging Face's, and minDALL-E's with its VQGAN and tokenizer."""
    place = tmp_path_factory.mktemp("published")
    clip, dalle = place / "clip", place / "1.3B"
    clip.mkdir()
    dalle.mkdir()
    (clip / "merges.txt").write_text("\n".join(["#version: 0.2", *test_minclip.FIRST_MERGES]))
    (clip / "config.json").write_text(json.dumps(test_minclip.hugging_face_config(vocab_size=524)))
    torch.save(test_minclip.filled(test_minclip.hugging_face_shapes(vocab=524)), clip / "pytorch_model.bin")

    sizes = dict(text_vocab=len(test_mindalle.TOKENS), image_vocab=96, text_length=8, grid=4, width=64, layers=2)
    test_mindalle.publish_tokenizer(dalle / "tokenizer")
    weights = {name: recipe.fill(name, shape) for name, shape in test_mindalle.published_shapes(**sizes).items()}
    torch.save({"state_dict": weights}, dalle / "stage2_last.ckpt")
    (dalle / "config.yaml").write_text(test_mindalle.published_yaml(**sizes, heads=1).replace("n_heads: 3", "resolution: 16"))
    stage1 = {name: recipe.fill(name, shape) for name, shape in test_minvqgan.STATES["vq"].items()}
    torch.save({"state_dict": stage1}, dalle / "stage1_last.ckpt")
    return place


def test_every_command_takes_published_weights(published, folder, tmp_path):
    clip, dalle, picture = f"--clip {published}/clip", f"--dalle {published}/1.3B", f"{folder}/1.png"
    for line in (f"classify {picture} --labels the thing {clip}", f"search the {folder} {clip}",
                 f"search {folder} --image {picture} {clip}", f"reconstruct {picture} --vqgan {published}/1.3B",
                 f"guide the {clip} --vqgan {published}/1.3B --steps 2 --cutouts 2",
                 f"dalle the {dalle} {clip} --rerank 3 -n 2"):
        command = line.split()[0]
        sample.main([*line.split(), "--device", "cpu", "--run", str(tmp_path / "none"), "--out", str(tmp_path / command)])
        assert (tmp_path / command / "sheet.png").exists(), line
    assert Image.open(tmp_path / "dalle" / "0001.png").size == (16, 16)


def test_published_weights_see_pictures_as_they_were_trained_to_and_our_own_as_train_does(published, trained, tmp_path):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))  # red where nothing shows
    clear.save(tmp_path / "clear.png")
    theirs = sample.Models(tmp_path, "cpu", clip=published / "clip").read_images([tmp_path / "clear.png"])[1]
    ours = sample.Models(trained, "cpu").read_images([tmp_path / "clear.png"])[1]
    assert theirs[0, :, 0, 0].tolist() == [1, -1, -1] and ours[0, :, 0, 0].tolist() == [1, 1, 1]


def test_drawing_defaults_are_minDALL_Es_for_minDALL_E_and_what_is_typed_always_wins(published, trained):
    words = sample.parser().parse_args(["dalle", "a", "--temperature", "0.3"])
    theirs = sample.drawing_options(words, sample.Models(trained, "cpu", dalle=published / "1.3B"))
    ours = sample.drawing_options(words, sample.Models(trained, "cpu"))
    assert theirs == {"temperature": 0.3, "top_k": 256, "top_p": 1.0, "guidance": 1.0}
    assert ours == {"temperature": 0.3, "top_k": 2, "top_p": 1.0, "guidance": 1.5}


def test_a_tokenizer_that_is_named_takes_the_place_of_the_runs_own(trained, folder, tmp_path):
    Tokenizer([]).save(tmp_path / "other.json")
    words = ["classify", folder / "1.png", "--labels", "one", "--run", trained, "--tokenizer", tmp_path / "other.json"]
    assert "the tokenizer 514" in refused("sample", *words)


def test_a_published_clip_asks_for_its_merges_and_a_dalle_for_its_vqgan(published, trained, folder, tmp_path):
    (tmp_path / "config.json").write_text((published / "clip" / "config.json").read_text())
    (tmp_path / "model.bin").write_bytes((published / "clip" / "pytorch_model.bin").read_bytes())
    words = ["classify", folder / "1.png", "--labels", "the", "--clip", tmp_path / "model.bin", "--run", trained]
    line = refused("sample", *words)
    assert "knows 524 tokens" in line and "--merges" in line
    sample.main([*map(str, words), "--merges", str(published / "clip" / "merges.txt"), "--out", str(tmp_path / "out")])
    line = refused("sample", "dalle", "a", "--dalle", published / "1.3B", "--vqgan", trained / "vqgan.pt", "--run", trained)
    assert "draws in 96 codes" in line and "name the right --vqgan" in line
