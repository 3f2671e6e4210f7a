"""What a machine has: its faster precision, as many threads as help."""

import itertools
import math
import time

import pytest
import torch
from conftest import TINY, trains
from torch import nn

import train
from common.training import device, loop


def test_auto_takes_the_faster_precision_and_the_checkpoint_keeps_it(folder, tmp_path, monkeypatch, capsys):
    for speedup, chosen in ((2.0, "bf16"), (0.7, "fp32")):
        monkeypatch.setattr(device, "bf16_speedup", lambda model, probe: speedup)
        train.main(["vqgan", "--data", str(folder), "--run", str(tmp_path / chosen), "--steps", "1", "--device", "cpu", *TINY["vqgan"].split()])
        assert f"{speedup} times" in capsys.readouterr().out
        assert torch.load(tmp_path / chosen / "vqgan.pt", weights_only=True)["precision"] == chosen
    monkeypatch.setattr(device, "bf16_speedup", lambda model, probe: 1 / 0)  # is not asked again
    train.main(["vqgan", "--run", str(tmp_path / "bf16"), "--resume", "--steps", "2"])
    assert torch.load(tmp_path / "bf16" / "vqgan.pt", weights_only=True)["precision"] == "bf16"


def test_the_speedup_is_how_many_times_as_fast_bf16_is():
    class SlowInFp32(nn.Linear):
        def forward(self, x):
            time.sleep(0.001 if torch.is_autocast_enabled("cpu") else 0.02)
            return super().forward(x)

    assert 2 < device.bf16_speedup(SlowInFp32(2, 2), (torch.ones(2, 2),), seconds=0.05) < 30


def test_measuring_the_speedup_leaves_the_model_as_it_was():
    model = train.VQGAN(train.VQGANConfig(channels=8, z_channels=8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(2, 3, 32, 32)
    assert 0 < device.bf16_speedup(model, (images,), seconds=0.01) < math.inf
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Machine:
    """A machine of four cores on which a step takes so long with so many threads, by a clock of its own."""

    def __init__(self, monkeypatch, **seconds: float):
        self.seconds, self.now, self.threads, self.used = {int(name[1:]): s for name, s in seconds.items()}, 0.0, 4, []
        monkeypatch.setattr(device, "MOST", 4)
        monkeypatch.setattr(device.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(device.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(self, "threads", number))

    def train(self, steps: int, choice) -> None:
        for _ in range(steps):
            next(choice)
            self.used.append(self.threads)
            self.now += self.seconds[self.threads]


def test_the_fastest_number_of_threads_is_used_and_named(monkeypatch):
    machine, said = Machine(monkeypatch, t4=0.225, t2=0.1, t1=0.095), []
    machine.train(3 * device.TRIED + 20, device.choose_threads(said.append))
    assert machine.used == [4, 2, 1] * device.TRIED + [1] * 20
    assert said == ["1 of 4 threads from here on: 95 ms a step instead of 225"]


def test_when_the_other_process_ends_all_threads_are_used_again(monkeypatch):
    machine, said = Machine(monkeypatch, t4=0.225, t2=0.1, t1=0.095), []
    choice = device.choose_threads(said.append)
    machine.train(100, choice)
    machine.seconds = {4: 0.03, 2: 0.05, 1: 0.095}
    machine.train(int(device.EVERY / 0.095) + 3 * device.TRIED, choice)
    assert machine.threads == 4 and said[1:] == ["4 of 4 threads from here on: 30 ms a step instead of 95"]


def test_on_a_quiet_machine_nearly_all_steps_have_all_threads(monkeypatch):
    machine, said = Machine(monkeypatch, t4=0.03, t2=0.05, t1=0.095), []
    machine.train(5000, device.choose_threads(said.append))
    assert machine.used.count(4) > 0.98 * 5000 and not said


@pytest.mark.parametrize("start", range(10))
def test_a_few_slow_steps_in_a_row_change_nothing(start, monkeypatch):
    machine, said = Machine(monkeypatch, t4=0.03, t2=0.05, t1=0.095), []
    choice, quiet = device.choose_threads(said.append), machine.seconds
    for step in range(100):
        machine.seconds = {number: 9.0 for number in quiet} if start <= step < start + 6 else quiet
        machine.train(1, choice)
    assert machine.threads == 4 and not said


def test_a_training_that_ends_while_it_tries_restores_the_threads(monkeypatch):
    machine = Machine(monkeypatch, t4=0.03, t2=0.05, t1=0.095)
    choice = device.choose_threads(print)
    machine.train(2, choice)
    assert machine.threads == 2
    choice.close()
    assert machine.threads == 4


@pytest.mark.parametrize("length, chosen", [(["--steps", 3], 0), (["--minutes", 0.01], 1)])
def test_a_training_of_steps_keeps_all_threads(length, chosen, folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "choose_threads", lambda say: asked.append(say) or itertools.repeat(None))
    trains("vqgan", "--data", folder, "--run", tmp_path, *length, *TINY["vqgan"].split())
    assert len(asked) == chosen
