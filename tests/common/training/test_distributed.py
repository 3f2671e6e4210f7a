"""Several processes train as one: what torchrun starts, started here by the variables that it sets."""

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from conftest import ROOT, TINY, TINY_JOB, trains
from common.training import distributed as distributed
from common.run.errors import one_line_errors
from common.run.folder import Log

MODELS = ("clip", "vqgan", "dalle")
SHARED = "--device cpu --precision fp32"


def start(*words, processes: int = 2) -> list[subprocess.Popen]:
    """Start train.py in several processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, words)], text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)]


def together(*words) -> list[str]:
    """Let several processes train to their end, and return what each printed."""
    started = start(*words)
    outputs = [process.communicate(timeout=100) for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    return [output for output, _ in outputs]


@pytest.fixture(scope="module")
def pair(folder, tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """Train the same job in one process and in two, CLIP there in two chunks -> both folders, what the two printed."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    words = ["--data", folder, "--steps", 4, *SHARED.split(), *TINY_JOB.split(), "--dalle.caption-dropout", 0]
    trains(*words, "--run", one)
    return one, two, together(*words, "--run", two)


def difference(model: str, *folders: Path) -> float:
    """Compare the weights of a model in two runs: ‖a - b‖ / ‖a‖, without what softmax makes meaningless."""
    a, b = (torch.load(folder / f"{model}.pt", weights_only=True)["weights"] for folder in folders)
    # the same number added to all scores of a query changes nothing, so biases of keys have gradients of pure rounding
    names = [name for name in a if not name.endswith("key.bias")]
    a, b = (torch.cat([weights[name].float().flatten() for name in names]) for weights in (a, b))
    return ((a - b).norm() / a.norm()).item()


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_end_with_the_weights_of_one(pair, model):
    assert difference(model, *pair[:2]) < 3e-5


def test_only_the_leader_prints_and_logs(pair):
    one, two, printed = pair
    assert "dalle: 4 steps" in printed[0] and printed[1] == ""
    losses = [[float(row["loss"]) for row in Log(folder / "log.csv").rows() if row["loss"]] for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # those of the whole batch
    assert [sum(not row["loss"] for row in Log(folder / "log.csv").rows()) for folder in (one, two)] == [3, 3]  # held-out figures


def test_a_run_goes_on_with_another_number_of_processes(pair, tmp_path):
    one, two, _ = pair
    for place in (one, two):
        trains("dalle", "--run", place, "--resume", "--steps", 6)
    assert difference("dalle", one, two) < 3e-5


def test_a_process_that_dies_ends_the_others_with_one_line(folder, tmp_path):
    leader, other = start("vqgan", "--data", folder, "--run", tmp_path, "--steps", 100_000, *SHARED.split(), *TINY["vqgan"].split())
    while "first loss" not in leader.stdout.readline():
        assert leader.poll() is None, leader.stderr.read()
    other.kill()
    _, errors = leader.communicate(timeout=60)
    assert (leader.returncode, errors) == (2, "train.py: another process of this training has ended; the last checkpoint is whole: "
                                                 "--resume continues it\n")


def test_several_processes_end_at_once(monkeypatch):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    one_line_errors(lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    one_line_errors(lambda: None)
    assert ends == [0]


def test_torchrun_takes_none_of_our_flags_for_its_own():
    words = shlex.split(re.search(r"`(torchrun .*?)`", (ROOT / "README.md").read_text())[1])
    args = get_args_parser().parse_args([*words[1:], "--run", "runs/two", "--seed", "1"])
    assert args.training_script == "train.py" and args.training_script_args == ["--run", "runs/two", "--seed", "1"]


def test_a_batch_that_does_not_divide_evenly_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "WORLD", 3)
    with pytest.raises(distributed.InputError, match="a batch of 8 cannot be divided among 3 processes: choose a --batch-size that"):
        distributed.own_part(torch.zeros(8, 2))


def test_the_parts_of_a_batch_do_not_overlap_and_leave_nothing_out(monkeypatch):
    monkeypatch.setattr(distributed, "WORLD", 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "RANK", rank)
        parts += distributed.own_part(torch.arange(12))
    assert torch.cat(parts).tolist() == list(range(12))


def test_alone_every_function_gives_back_what_it_was_given():
    x = torch.randn(4, 2)
    assert distributed.own_part(x)[0] is not None and torch.equal(distributed.own_part(x)[0], x)
    assert distributed.gather(x)[0] is x and distributed.agree("a") == "a" and distributed.mean(x.sum()) == [x.sum().item()]


def test_a_rank_that_a_batch_system_sets_alone_means_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    spec = importlib.util.spec_from_file_location("common.run.again", ROOT / "common" / "run" / "folder.py")
    folder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(folder)
    assert (folder.WORLD, folder.RANK, folder.LEADER) == (1, 0, True)
