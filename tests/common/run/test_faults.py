"""What goes wrong, and what must then hold: one line, a failing exit code, and nothing lost."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, TINY_ALL, TINY_JOB, copy_needs, refused, samples, trains
from PIL import Image

import train
from common.run import folder as folder_module
from common.run import pictures
from common.run.errors import InputError, one_line_errors
from common.run.folder import Log, Run
from common.run.job import Job
from common.run.pictures import Output
from common.training import sources
from common.training.loop import Training


CLIP = TINY["clip"].split()


def test_the_scripts_end_bad_input_with_one_line_and_exit_code_2(tmp_path):
    commands = (["train.py", "clip", "--steps", "0"], ["sample.py", "reconstruct", "nothing.png"])
    started = [subprocess.Popen([sys.executable, str(ROOT / script), *words, "--run", str(tmp_path)], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE) for script, *words in commands]
    for process in started:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 2 and len(errors.splitlines()) == 1 and output == ""


def test_bad_input_gets_one_line_that_names_it(trained, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "empty" in refused("train", "clip", "--data", tmp_path / "empty", "--run", tmp_path / "r")
    assert "dalle.pt is missing: copy one there" in refused("sample", "dalle", "a cat", "--run", tmp_path / "r")
    assert "clip.pt is missing: copy one there" in refused("sample", "guide", "a cat", "--run", tmp_path / "r")
    assert "--wings" in refused("train", "clip", "--wings", 2)
    assert "patch" in refused("train", "clip", "--patch-size", 5, "--run", tmp_path / "r")
    assert "clip" in refused("sample", "reconstruct", folder / "0.png", "--run", trained, "--vqgan", trained / "clip.pt")
    assert "image" in refused("sample", "classify", tmp_path / "broken.png", "--labels", "a", "--run", trained, "--out", tmp_path / "o")
    assert "202 tokens" in refused("sample", "dalle", "word " * 50, "--run", trained, "--out", tmp_path / "o")
    assert "missing.pt" in refused("sample", "reconstruct", folder / "0.png", "--run", trained, "--vqgan", tmp_path / "missing.pt")
    assert "16" in refused("sample", "dalle", "a", "--run", trained, "--rerank", 2, "-n", 16)
    assert not (tmp_path / "o").exists() and not list((tmp_path / "r").glob("*.pt"))


def test_a_mistake_in_hacked_code_keeps_its_traceback(folder, tmp_path, monkeypatch):
    def hacked(*arguments):
        return torch.ones(2, 3) @ torch.ones(2, 3), {}

    monkeypatch.setattr(train, "generator_loss", hacked)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        one_line_errors(lambda: trains("vqgan", "--data", folder, "--run", tmp_path, "--steps", 1, *TINY["vqgan"].split()))
    monkeypatch.setattr(train, "generator_loss", lambda *_: int("a wrong literal"))  # a ValueError that is not ours
    with pytest.raises(ValueError, match="invalid literal"):
        one_line_errors(lambda: trains("vqgan", "--data", folder, "--run", tmp_path, "--steps", 1, *TINY["vqgan"].split()))


@pytest.mark.parametrize("words", [["reconstruct", "0002.png"], ["classify", "0002.png", "--labels", "a", "b"], ["search", "a", "."],
                                   ["dalle", "picture", "-n", "2"], ["guide", "picture", "--steps", "1", "--cutouts", "1"]])
@pytest.mark.parametrize("foreign", ["sheet.png", "index.jsonl", "0000.png"])
def test_a_users_file_in_the_way_is_refused_and_stays(trained, tmp_path, monkeypatch, words, foreign):
    monkeypatch.chdir(tmp_path)
    for name in ("0002.png", "0007.png"):
        Image.new("RGB", (32, 32)).save(name)
    (tmp_path / foreign).write_bytes((tmp_path / "0007.png").read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if foreign == "0000.png" and words[0] in ("classify", "search"):
        samples(trained, *words, "--out", ".")  # these two write no numbered pictures
        after = {name: (tmp_path / name).read_bytes() for name in before}
    else:
        assert foreign in refused("sample", *words, "--out", ".", "--run", trained, "--device", "cpu")
        after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == before


def test_a_users_index_like_ours_does_not_give_his_pictures_away(trained, folder, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "0000.png")
    (tmp_path / "index.jsonl").write_text(json.dumps({"file": "0000.png", "caption": "mine"}) + "\n")
    assert "0000.png" in refused("sample", "reconstruct", folder / "0.png", "--out", tmp_path, "--run", trained)


def test_a_picture_that_was_classified_is_still_the_users(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("0000.png")
    samples(trained, "classify", "0000.png", "--labels", "a", "b", "--out", ".")  # our index now names it
    assert "0000.png" in refused("sample", "reconstruct", "0000.png", "--out", ".", "--run", trained)


def test_a_picture_that_cannot_be_read_is_named_skipped_and_counted(trained, folder, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for words in (["reconstruct"], ["classify", "--labels", "a", "b"]):
        samples(trained, words[0], tmp_path / "broken.png", folder / "0.png", tmp_path / "missing.png", *words[1:], "--out", tmp_path / "out")
        errors = capsys.readouterr().err
        assert "broken.png" in errors and "missing.png" in errors and "skipped 2 of 3" in errors


def test_a_training_names_a_skipped_picture_once(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "pictures")
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "stray.png")
    trains("vqgan", "--data", tmp_path / "pictures", "--run", tmp_path / "run", "--steps", 1, *TINY["vqgan"].split())
    errors = capsys.readouterr().err
    assert errors.count("stray.png") == 1 and errors.count("skipped 1, left ") == 1


def test_a_shorter_run_replaces_a_longer_one_and_no_other_files(trained, folder, tmp_path):
    samples(trained, "dalle", "picture", "-n", 3, "--out", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    Image.new("RGB", (8, 8)).save(tmp_path / "0005.png")
    samples(trained, "dalle", "picture", "-n", 1, "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0000.png", "0005.png", "notes.txt", "sheet.png", "index.jsonl"}
    samples(trained, "classify", folder / "0.png", "--labels", "a", "b", "--out", tmp_path)  # another command's turn
    assert {path.name for path in tmp_path.iterdir()} == {"0005.png", "notes.txt", "sheet.png", "index.jsonl"}


@pytest.mark.parametrize("name", ["log.csv", "scores.json"])
def test_training_into_a_folder_of_somebody_elses_is_refused(folder, tmp_path, name):
    (tmp_path / name).write_text("date,amount\n1,2\n")
    assert name in refused("train", "clip", "--data", folder, "--run", tmp_path, "--steps", 1, *CLIP)
    assert (tmp_path / name).read_text() == "date,amount\n1,2\n" and not (tmp_path / "clip.pt").exists()


def test_scores_of_some_other_program_are_not_overwritten(tmp_path):
    trains("vqgan", "--run", tmp_path, "--steps", 1, "--overfit", *TINY["vqgan"].split())
    (tmp_path / "scores.json").write_text('{"chess": 3}')
    assert "scores.json" in refused("sample", "score", "--run", tmp_path, "--count", 16)


def poisoned(monkeypatch, step: int, what: str) -> None:
    """Make the loss, or a weight, not a number from this step on."""
    advance = Training.log

    def log_step(self, loss, **parts):
        if self.step >= step:
            if what == "loss":
                loss = loss * float("nan")
            else:
                next(p for p in self.parts["model"].parameters() if p.ndim > 1).data.fill_(float("inf"))
        advance(self, loss, **parts)

    monkeypatch.setattr(Training, "log", log_step)


@pytest.mark.parametrize("what", ["loss", "weight"])
@pytest.mark.parametrize("model", ["vqgan", "prior"])
def test_training_stops_at_what_is_not_finite_and_keeps_the_checkpoint(folder, trained, tmp_path, monkeypatch, what, model):
    copy_needs(model, trained, tmp_path)
    words = [model, "--data", folder, "--run", tmp_path]
    trains(*words, "--steps", 2, *TINY_ALL[model].split())
    poisoned(monkeypatch, 5, what)
    line = refused("train", *words, "--resume", "--steps", 9, "--device", "cpu")
    assert ("step 5" in line or "step 6" in line) and "--learning-rate" in line and "holds step 2" in line
    state = torch.load(tmp_path / f"{model}.pt", weights_only=True)
    assert state["step"] == 2 and all(w.isfinite().all() for w in state["weights"].values() if w.is_floating_point())


def test_weights_that_the_last_step_ruined_are_not_saved(folder, tmp_path, monkeypatch):
    words = ["clip", "--data", folder, "--run", tmp_path, *CLIP]
    trains(*words, "--steps", 2)
    poisoned(monkeypatch, 8, "weight")
    assert "not finite" in refused("train", *words, "--resume", "--steps", 9, "--device", "cpu")
    assert torch.load(tmp_path / "clip.pt", weights_only=True)["step"] == 2


def test_a_full_disk_leaves_the_old_checkpoint_whole_and_says_so(folder, tmp_path, monkeypatch):
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 2, *CLIP)
    before = (tmp_path / "clip.pt").read_bytes()

    def full(state, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    line = refused("train", "--run", tmp_path, "--resume", "--steps", 3)
    assert "No space left" in line and "clip.pt" in line and "still there" in line
    assert (tmp_path / "clip.pt").read_bytes() == before and not list(tmp_path.glob("*.new"))


def test_a_checkpoint_that_cannot_be_written_whole_is_reported(folder, tmp_path):
    resource = pytest.importorskip("resource")  # limits the size of files as Unix does
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        line = refused("train", "clip", "--data", folder, "--run", tmp_path, "--steps", 1, "--device", "cpu",
                       "--precision", "fp32", *CLIP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "clip.pt could not be written" in line and not list(tmp_path.glob("clip.pt*"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None])
def test_a_cut_or_empty_checkpoint_is_refused_with_a_remedy_that_works(folder, tmp_path, content):
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, *CLIP)
    path = tmp_path / "clip.pt"
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    line = refused("train", "--run", tmp_path, "--resume")
    assert "clip.pt" in line and "delete it" in line
    assert "clip.pt" in refused("sample", "classify", folder / "0.png", "--labels", "a", "--run", tmp_path)
    path.unlink()
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, *CLIP)


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text[:-9], lambda text: text + "clip,1\0\0,", lambda text: text + "clip,70,"])
def test_a_cut_or_empty_log_is_mended_and_goes_on(folder, tmp_path, damage):
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, *CLIP)
    path = tmp_path / "log.csv"
    path.write_text(damage(path.read_text()))
    trains("--run", tmp_path, "--resume", "--steps", 12)
    assert path.read_text().startswith("model,step,seconds,loss,parts\n")
    assert [row["step"] for row in Log(path).rows() if row["loss"]][-1] == "10"


def test_a_log_line_that_a_crash_cut_is_passed_over(tmp_path):
    path = tmp_path / "log.csv"
    for step in (0, 10):
        Log(path).append("vqgan", step, 1.5, 0.25, {"reconstruction": 0.2, "codebook": 0.05})
    whole = path.read_bytes()
    first = whole.index(b"vqgan,10")
    for cut in range(first, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert [row["step"] for row in Log(path).rows()] == ["0"], whole[first:cut]


@pytest.mark.parametrize("error, locked", [(BlockingIOError, False), (OSError, True)])
def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, error, locked):
    def refuse(*_):
        raise error(38, "Function not implemented")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    with open(tmp_path / "lock", "w") as file:
        assert folder_module.lock(file) is locked


def test_a_closed_pipe_stops_training_saves_and_fails(folder, tmp_path):
    words = ["vqgan", "--data", folder, "--run", tmp_path, "--steps", 100000, "--device", "cpu",
             "--precision", "fp32", *TINY["vqgan"].split()]
    often = "import sys, train; from common.training import loop; loop.SAVE_EVERY = 0.2; from common.run.errors import one_line_errors; " \
            "one_line_errors(lambda: train.main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", often, *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    while ": first loss" not in process.stdout.readline():
        pass
    process.stdout.close()  # as `| head` does
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()  # a training that does not notice would go on for hours
    assert process.returncode == 1 and "closed" in error and "Traceback" not in error
    assert "--resume" in error and torch.load(tmp_path / "vqgan.pt", weights_only=True)["step"] > 0


def test_a_command_whose_output_is_closed_fails_without_a_traceback(trained, folder, tmp_path):
    started = []
    for labels in (2, 500):  # two are too few to fill the buffer, so that only the last flush meets the closed pipe
        words = ["classify", folder / "0.png", "--labels", *(f"label {i % 50}" for i in range(labels)), "--run", trained]
        started.append(subprocess.Popen([sys.executable, str(ROOT / "sample.py"), *map(str, words), "--out", str(tmp_path / str(labels))],
                                        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        started[-1].stdout.close()
    for process in started:
        assert process.wait(timeout=60) == 1 and "Traceback" not in process.stderr.read()


def test_two_processes_do_not_train_in_one_folder(folder, tmp_path):
    pytest.importorskip("fcntl")
    lock = "import fcntl, sys, time; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX); print(); time.sleep(99)"
    first = subprocess.Popen([sys.executable, "-u", "-c", lock, str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    first.stdout.readline()
    line = refused("train", "clip", "--data", folder, "--run", tmp_path, "--steps", 1, *CLIP)
    assert str(tmp_path) in line and "another process" in line
    first.kill()
    first.wait()
    trains("clip", "--data", folder, "--run", tmp_path, "--steps", 1, *CLIP)  # a killed process leaves no lock behind


def test_settings_of_all_models_are_checked_before_the_first_step(folder, tmp_path):
    assert "attention" in refused("train", "--data", folder, "--run", tmp_path, "--dalle.attention", "sideways", *TINY_JOB.split())
    assert "--scenes" in refused("train", "--data", folder, "--run", tmp_path, "--dalle.scenes", 100, *TINY_JOB.split())
    assert "discriminator" in refused("train", "vqgan", "--data", folder, "--run", tmp_path, "--discriminator", "--discriminator-layers", 5)
    assert not list(tmp_path.glob("*.pt"))


def test_long_silent_work_shows_its_progress(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures.sys.stdout, "isatty", lambda: True)
    shutil.copytree(folder, tmp_path / "pictures")
    run = Run(Job(data=str(tmp_path / "pictures"), run=str(tmp_path)))
    images = sources.open_split(run, 32, None)
    assert "reading pictures: 10 of 24" in capsys.readouterr().out
    source = object.__new__(sources.CaptionedCodes)
    source.vqgan = train.VQGAN(train.VQGANConfig(channels=8, z_channels=8)).eval()
    source.run, source.train, source.shift = run, images, 0
    source.encode_pictures()
    assert "encoding pictures" in capsys.readouterr().out


def test_progress_is_printed_every_half_minute_without_a_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(pictures.time, "monotonic", lambda: now[0])
    progress = pictures.Progress("counting")
    for done in range(100):
        now[0] += 1
        progress(done, 100)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["30", "61", "92"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    folder_module.write_whole(path, lambda file: file.write(b"old"))

    def broken(file):
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder_module.write_whole(path, broken)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="nothing was saved"):
        folder_module.write_whole(tmp_path / "no" / "x", lambda file: None)


def test_an_output_folder_that_cannot_be_made_is_one_line(trained, folder, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused("sample", "reconstruct", folder / "0.png", "--run", trained, "--out", tmp_path / "file" / "out")


def test_the_index_lists_every_picture_that_was_written(tmp_path):
    Output(tmp_path, "dalle", 2).write([Image.new("RGB", (8, 8))] * 2, [{"caption": "a"}, {"caption": "b"}])
    entries = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["caption"]) for entry in entries] == [("0000.png", "a"), ("0001.png", "b")]
    assert Output(tmp_path, "dalle").written() == {"0000.png", "0001.png", "sheet.png", "index.jsonl"}
