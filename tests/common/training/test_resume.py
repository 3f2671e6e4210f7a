"""Runs that stop and go on: killed, interrupted, asked for more. Every printed remedy is executed."""

import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import (
    ROOT, TINY, TINY_ALL, TINY_JOB, TINY_UNCLIP, TINY_UNCLIP_JOB, copy_needs, dotted, refused, samples, trains)
from PIL import Image

import data
import sample
import train
from common.run.folder import Log
from common.training import device
from common.training.loop import Training
from common.training.settle import TIME


def weights(run: Path, model: str) -> dict:
    return torch.load(run / f"{model}.pt", weights_only=True)["weights"]


def assert_same_weights(a: Path, b: Path, model: str) -> None:
    first, second = weights(a, model), weights(b, model)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def pasted(line: str) -> None:
    """Run the command that ends a message: a shell takes it apart, and it runs in this process, which is faster."""
    command = re.search(r"(\S*python\S* \S*train\.py .*)", line).group(1)
    words = subprocess.run(f"printf '%s\\0' {command}", shell=True, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    train.main(words[2:])


def kill_at(monkeypatch, step: int, saving: bool) -> None:
    """Let a training die after a step, as kill -9 would: perhaps after a checkpoint, and nothing more is written."""
    log = Training.log

    def dying(self, loss, **parts):
        log(self, loss, **parts)
        if self.step == step:
            if saving:
                self.save()
            raise RuntimeError("killed")

    monkeypatch.setattr(Training, "log", dying)


def interrupt_at(monkeypatch, step: int) -> None:
    """Press Ctrl-C in the middle of a step."""
    log = Training.log

    def interrupted(self, loss, **parts):
        if self.step == step - 1:
            signal.raise_signal(signal.SIGINT)
        log(self, loss, **parts)

    monkeypatch.setattr(Training, "log", interrupted)


@pytest.mark.parametrize("model", TINY_ALL)
def test_a_resumed_training_ends_with_the_weights_of_one_never_stopped(model, folder, trained, tmp_path, monkeypatch):
    for place in ("whole", "parts"):
        copy_needs(model, trained, tmp_path / place)
    words = [model, "--data", folder, "--steps", 6, *TINY_ALL[model].split()]
    trains(*words, "--run", tmp_path / "whole")
    kill_at(monkeypatch, 3, saving=True)
    with pytest.raises(RuntimeError, match="killed"):
        trains(*words, "--run", tmp_path / "parts")
    monkeypatch.undo()
    train.main(["--run", str(tmp_path / "parts"), "--resume"])  # and nothing else
    assert torch.load(tmp_path / "parts" / f"{model}.pt", weights_only=True)["step"] == 6
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", model)


@pytest.mark.parametrize("again", [["--resume"], []])
def test_a_training_killed_before_its_first_checkpoint_starts_anew(folder, tmp_path, again, monkeypatch):
    words = ["clip", "--data", folder, "--steps", 21, "--run", tmp_path, *TINY["clip"].split()]
    kill_at(monkeypatch, 15, saving=False)
    with pytest.raises(RuntimeError, match="killed"):
        trains(*words)
    monkeypatch.undo()
    trains(*words, *again)
    with open(tmp_path / "log.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["loss"]] == ["0", "10", "20"]


def test_a_killed_process_resumes_to_the_weights_of_one_never_killed(folder, tmp_path):
    words = ["vqgan", "--data", folder, "--steps", 12, *TINY["vqgan"].split()]
    trains(*words, "--run", tmp_path / "whole")
    often = "import sys, train; from common.training import loop; loop.SAVE_EVERY, loop.HELD_OUT_FRACTION = 0, 1e9; train.main(sys.argv[1:])"
    flags = ["--device", "cpu", "--precision", "fp32", "--run", tmp_path / "parts"]
    killed = subprocess.Popen([sys.executable, "-c", often, *map(str, [*words, *flags])], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (tmp_path / "parts" / "vqgan.pt").exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()  # SIGKILL, wherever it happens to be, in the midst of saving perhaps
    killed.wait()
    assert torch.load(tmp_path / "parts" / "vqgan.pt", weights_only=True)["step"] < 12
    train.main(["--run", str(tmp_path / "parts"), "--resume"])
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", "vqgan")


def test_ctrl_c_saves_and_prints_the_command_that_continues(folder, tmp_path):
    place = tmp_path / "a run's folder; with $signs"
    words = ["vqgan", "--data", folder, "--run", place, "--steps", 100000, "--seed", 3, "--device", "cpu",
             "--precision", "fp32", *TINY["vqgan"].split()]
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, words)], stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)
    for _ in range(600):
        if (place / "log.csv").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    line = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume" in line
    step = torch.load(place / "vqgan.pt", weights_only=True)["step"]
    assert step > 0
    pasted(line.strip() + f" --steps {step + 2}")
    state = torch.load(place / "vqgan.pt", weights_only=True)
    assert state["step"] == step + 2 and state["job"]["seed"] == 3 and state["job"]["data"] == str(folder)


def test_a_stop_between_two_steps_waits_until_all_processes_agree(folder, tmp_path, monkeypatch):
    log_step = Training.log

    def log_and_ask(self, *args, **parts):
        log_step(self, *args, **parts)
        if self.step == 3:
            self.asked_to_stop = KeyboardInterrupt  # as Ctrl-C while the leader saves, when the others are ahead already

    monkeypatch.setattr(Training, "log", log_and_ask)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4, which is saved"):
        trains("vqgan", "--data", folder, "--run", tmp_path, "--steps", 9, *TINY["vqgan"].split())
    assert torch.load(tmp_path / "vqgan.pt", weights_only=True)["step"] == 4


def test_an_interrupted_job_resumes_with_the_settings_of_models_not_begun(folder, tmp_path, monkeypatch, capsys):
    words = ["--data", folder, "--steps", 4, "--seed", 2, *TINY_JOB.split()]
    trains(*words, "--run", tmp_path / "whole")
    interrupt_at(monkeypatch, 3)  # of CLIP
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        trains(*words, "--run", tmp_path / "parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "vqgan.pt").exists()
    monkeypatch.setattr(device, "bf16_speedup", lambda model, probe: 9.0)  # fp32 was asked for, whatever is faster
    train.main(["--run", str(tmp_path / "parts"), "--resume"])
    for model in TINY:
        assert_same_weights(tmp_path / "whole", tmp_path / "parts", model)
    assert (tmp_path / "parts" / "samples" / "dalle" / "sheet.png").exists()
    assert "sample.py score --run" in capsys.readouterr().out.splitlines()[-2]  # what a folder of pictures does not get by itself


def test_one_model_of_an_interrupted_job_keeps_its_minutes(folder, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        trains("--data", folder, "--run", tmp_path, "--minutes", 10, *TINY_JOB.split())
    ends = []
    monkeypatch.setattr(Training, "steps", lambda self: ends.append((self.name, self.budget.minutes)) or iter(()))
    for model in ("clip", "vqgan"):  # begun, and not yet begun
        train.main([model, "--run", str(tmp_path), "--resume"])
    assert ends == [("clip", pytest.approx(10 * TIME["clip"])), ("vqgan", pytest.approx(10 * TIME["vqgan"]))]


def test_an_interrupted_job_of_dalle_2_resumes_with_the_decoders_settings(folder, trained, tmp_path, monkeypatch):
    words = ["unclip", "--data", folder, "--steps", 4, "--seed", 2, *TINY_UNCLIP_JOB.split()]
    for place in ("whole", "parts"):
        copy_needs("prior", trained, tmp_path / place)
    trains(*words, "--run", tmp_path / "whole")
    interrupt_at(monkeypatch, 3)  # of the prior
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        trains(*words, "--run", tmp_path / "parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "decoder.pt").exists()
    train.main(["--run", str(tmp_path / "parts"), "--resume"])
    for model in TINY_UNCLIP:
        assert_same_weights(tmp_path / "whole", tmp_path / "parts", model)
    assert (tmp_path / "parts" / "samples" / "unclip" / "sheet.png").exists()


def test_a_prior_trained_alone_becomes_part_of_the_job_of_dalle_2(folder, trained, tmp_path):
    copy_needs("prior", trained, tmp_path)
    trains("prior", "--data", folder, "--run", tmp_path, "--steps", 2, "--seed", 4, *TINY_UNCLIP["prior"].split())
    train.main(["unclip", "--run", str(tmp_path), "--resume", "--decoder.steps", "1",
                *dotted({"decoder": TINY_UNCLIP["decoder"]}).split()])
    assert [torch.load(tmp_path / f"{name}.pt", weights_only=True)["job"]["seed"] for name in TINY_UNCLIP] == [4, 4]


def test_minutes_are_resumed_too(folder, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        trains("clip", "--data", folder, "--run", tmp_path, "--minutes", 7, *TINY["clip"].split())
    ends = []
    monkeypatch.setattr(Training, "steps", lambda self: ends.append((self.budget.minutes, self.budget.steps, self.seconds)) or iter(()))
    train.main(["--run", str(tmp_path), "--resume"])
    minutes, steps, seconds = ends[0]
    assert minutes == 7 and steps is None and seconds > 0


@pytest.mark.parametrize("flags, refusal", [
    (["--seed", "1"], "--seed"), (["--data", "shapes"], "--data"), (["--precision", "bf16"], "--precision"), (["--overfit"], "--overfit"),
    (["clip", "--vision-width", "64"], "--vision-width"), (["clip", "--learning-rate", "0.5"], "--learning-rate"),
])
def test_a_setting_that_contradicts_the_checkpoint_is_refused_by_name(trained, flags, refusal):
    before = (trained / "clip.pt").read_bytes()
    assert refusal in refused("train", "--run", trained, "--resume", *(flags if "clip" in flags else ["clip", *flags]))
    assert (trained / "clip.pt").read_bytes() == before


def test_a_resumed_run_keeps_earlier_held_out_figures(folder, tmp_path):
    for steps in (2, 4):
        trains("clip", "--data", folder, "--run", tmp_path, "--resume", "--steps", steps, *TINY["clip"].split())
    assert [row["step"] for row in Log(tmp_path / "log.csv").rows() if not row["loss"]] == ["2", "4"]


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    (tmp_path / "clip.pt").write_bytes((trained / "vqgan.pt").read_bytes())
    assert "no checkpoint of clip" in refused("train", "--run", tmp_path, "--resume")


def test_a_finished_training_says_so(trained, capsys):
    train.main(["clip", "--run", str(trained), "--resume"])
    assert "finished after 4 steps" in capsys.readouterr().out


def test_minutes_typed_on_resuming_replace_the_steps_of_before(folder, tmp_path, monkeypatch):
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 2, *TINY["clip"].split())
    ends = []
    monkeypatch.setattr(Training, "steps", lambda self: ends.append((self.budget.minutes, self.budget.steps)) or iter(()))
    train.main(["--run", str(tmp_path), "--resume", "--minutes", "5"])
    assert ends == [(5, None)]


def test_more_steps_or_minutes_are_taken_and_said(folder, tmp_path, capsys):
    trains("clip", "--data", folder, "--run", tmp_path, "--minutes", 0.01, "--steps", 2, *TINY["clip"].split())
    trains("clip", "--run", tmp_path, "--resume", "--steps", 5)
    assert "now ends after the steps" in capsys.readouterr().out
    assert torch.load(tmp_path / "clip.pt", weights_only=True)["step"] == 5


def test_a_folder_is_the_same_with_a_slash_and_from_elsewhere(folder, tmp_path, monkeypatch):
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, *TINY["clip"].split())
    trains("clip", "--data", f"{folder}/", "--run", tmp_path, "--steps", 2, "--resume")
    monkeypatch.chdir(folder.parent)
    trains("clip", "--data", folder.name, "--run", tmp_path, "--steps", 3, "--resume")


def test_the_next_model_is_trained_on_the_data_of_the_others(folder, tmp_path, capsys):
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, *TINY["clip"].split())
    trains("vqgan", "--run", tmp_path, "--steps", 1, *TINY["vqgan"].split())
    assert torch.load(tmp_path / "vqgan.pt", weights_only=True)["job"]["data"] == str(folder)
    assert f"data: {folder}" in capsys.readouterr().out
    assert "--data" in refused("train", "dalle", "--data", "shapes", "--run", tmp_path)


def test_a_checkpoint_from_a_gpu_resumes_on_a_cpu(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")  # as a file written on a GPU says
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 2, *TINY["clip"].split())
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "clip.pt", weights_only=True)
    train.main(["--run", str(tmp_path), "--resume", "--steps", "3"])
    assert torch.load(tmp_path / "clip.pt", weights_only=True, map_location="cpu")["step"] == 3


def test_a_run_without_checkpoints_says_there_is_nothing_to_resume(folder, tmp_path, capsys):
    trains("clip", "--data", folder, "--run", tmp_path, "--resume", "--steps", 1, *TINY["clip"].split())
    assert "nothing to resume" in capsys.readouterr().out


def test_nothing_is_overwritten_without_resume(trained, folder):
    before = (trained / "clip.pt").read_bytes()
    assert "--resume" in refused("train", "clip", "--data", folder, "--run", trained)
    assert (trained / "clip.pt").read_bytes() == before


def test_a_run_of_an_earlier_version_can_be_used_but_not_resumed(folder, trained, tmp_path):
    for model in TINY:
        state = torch.load(trained / f"{model}.pt", weights_only=True)
        kept = ("kind", "config", "weights", "recipe", "step", "seconds", "training", *(("tokenizer", "vqgan") if model == "dalle" else ()))
        old = {name: state[name] for name in kept} | {"seed": 0, "data": str(folder)}
        if model == "dalle":
            old["config"] = {**old["config"], "text_loss_weight": 0.125}  # the recipe's since
        torch.save(old, tmp_path / f"{model}.pt")
    (tmp_path / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    samples(tmp_path, "dalle", "picture number 1", "--rerank", 2)
    samples(tmp_path, "reconstruct", folder / "0.png")
    assert "earlier version" in refused("train", "--run", tmp_path, "--resume")
    assert "--data" in refused("train", "clip", "--run", tmp_path, "--data", "shapes")


@pytest.mark.parametrize("model, user", [("vqgan", "dalle"), ("clip", "prior"), ("clip", "decoder")])
def test_a_model_that_others_learned_from_does_not_train_on(folder, trained, tmp_path, model, user):
    for name in (f"{model}.pt", f"{user}.pt", "tokenizer.json", "vqgan.pt", "clip.pt", "log.csv"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    line = refused("train", model, "--run", tmp_path, "--resume", "--steps", 9)
    assert f"train {user} alone" in line
    if user != "decoder":  # the same line as for the prior
        pasted(line)
    (tmp_path / f"{model}.pt").unlink()
    assert f"{user}.pt" in refused("train", model, "--data", folder, "--run", tmp_path)


def test_a_missing_model_is_refused_with_the_command_that_trains_it(folder, tmp_path):
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, *TINY["clip"].split())
    line = refused("train", "dalle", "--run", tmp_path)
    assert "vqgan.pt is missing" in line
    pasted(line + f" --steps 1 {TINY['vqgan']}")
    trains("dalle", "--run", tmp_path, "--steps", 1, *TINY["dalle"].split())


def test_dalle_does_not_resume_on_the_codes_of_another_vqgan(folder, trained, tmp_path):
    for name in ("tokenizer.json", "dalle.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "other").mkdir()
    trains("vqgan", "--data", folder, "--run", tmp_path / "other", "--steps", 1, "--seed", 5, *TINY["vqgan"].split())
    (tmp_path / "vqgan.pt").write_bytes((tmp_path / "other" / "vqgan.pt").read_bytes())
    assert "another vqgan" in refused("train", "dalle", "--run", tmp_path, "--resume", "--steps", 9)


def test_a_tokenizer_of_other_captions_is_not_taken_over_in_silence(folder, trained, tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"merges": ["c a", "ca t</w>"]}')
    assert "other captions" in refused("train", "clip", "--data", folder, "--run", tmp_path)


def test_a_caption_that_is_too_long_is_refused_by_file_or_cut(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("a picture")
    trains("clip", "--data", pictures, "--run", tmp_path / "run", "--steps", 1, *TINY["clip"].split())
    (pictures / "2.txt").write_text("many words " * 40)
    line = refused("train", "--run", tmp_path / "run", "--resume", "--steps", 2)
    assert "2.png" in line and "1 of 2 captions" in line and "--truncate" in line
    assert "2.png" in refused("train", "--data", pictures, "--run", tmp_path / "new")  # before the first step of any model
    assert "2.png" in refused("train", "--data", pictures, "--run", tmp_path / "new", "--clip.context-length", 512)  # for DALL·E's sake
    trains("clip", "--data", pictures, "--run", tmp_path / "cut", "--truncate", "--steps", 1, *TINY["clip"].split())


def test_a_held_out_caption_counts_before_the_first_step(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(40):
        Image.new("RGB", (32, 32), (6 * i, 0, 0)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"a picture {i % 3}")
    held_out = Path(data.load(pictures, 32, "held-out").name(0)).name
    (pictures / held_out).with_suffix(".txt").write_text("a picture " * 10)
    trains("clip", "--data", pictures, "--run", tmp_path / "run", "--steps", 1, *TINY["clip"].split())
    assert torch.load(tmp_path / "run" / "clip.pt", weights_only=True)["config"]["context_length"] > 16
    (pictures / held_out).with_suffix(".txt").write_text("many words " * 40)
    assert held_out in refused("train", "--data", pictures, "--run", tmp_path / "new")


def test_the_layout_of_a_folder_is_part_of_the_run(tmp_path, capsys):
    for i in range(24):  # class folders with text files: two layouts
        place = tmp_path / "pictures" / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (6 * i, 0, 0)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"picture {i}")
    words = ["clip", "--data", tmp_path / "pictures", "--run", tmp_path / "run"]
    trains(*words, "--layout", "classes", "--steps", 1, *TINY["clip"].split())
    assert "data: class folders" in capsys.readouterr().out and (tmp_path / "run" / "pictures-32.npy").exists()
    assert "--layout classes, not text" in refused("train", *words, "--layout", "text", "--resume")
    assert "--layout classes, not text" in refused("train", "vqgan", *words[1:], "--layout", "text")
    trains("vqgan", *words[1:], "--steps", 1, *TINY["vqgan"].split())  # the others of the run follow
    assert "data: class folders" in capsys.readouterr().out
    sample.main(["score", "--run", str(tmp_path / "run"), "--device", "cpu"])
    assert "among 2 captions" in capsys.readouterr().out
