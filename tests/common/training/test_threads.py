"""How many threads train: as many as help, found on a training's own steps."""

import itertools

import pytest
import torch

from common.training import threads
from common.training import loop as training
from conftest import TINY, trains


class Machine:
    """A machine of four cores on which a step takes so long with so many threads, by a clock of its own."""

    def __init__(self, monkeypatch, **seconds: float):
        self.seconds, self.now, self.threads, self.used = {int(name[1:]): s for name, s in seconds.items()}, 0.0, 4, []
        monkeypatch.setattr(threads, "MOST", 4)
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(self, "threads", number))

    def train(self, steps: int, choice) -> None:
        for _ in range(steps):
            next(choice)
            self.used.append(self.threads)
            self.now += self.seconds[self.threads]


def test_the_number_of_threads_with_which_steps_are_fastest_is_used_and_said(monkeypatch):
    machine, said = Machine(monkeypatch, t4=0.225, t2=0.1, t1=0.095), []
    machine.train(3 * threads.TRIED + 20, threads.choose_threads(said.append))
    assert machine.used == [4, 2, 1] * threads.TRIED + [1] * 20
    assert said == ["1 of 4 threads from here on: 95 ms a step instead of 225"]


def test_when_the_other_process_ends_all_threads_are_used_again(monkeypatch):
    machine, said = Machine(monkeypatch, t4=0.225, t2=0.1, t1=0.095), []
    choice = threads.choose_threads(said.append)
    machine.train(100, choice)
    machine.seconds = {4: 0.03, 2: 0.05, 1: 0.095}
    machine.train(int(threads.EVERY / 0.095) + 3 * threads.TRIED, choice)
    assert machine.threads == 4 and said[1:] == ["4 of 4 threads from here on: 30 ms a step instead of 95"]


def test_on_a_quiet_machine_nearly_all_steps_have_all_threads_and_nothing_is_said(monkeypatch):
    machine, said = Machine(monkeypatch, t4=0.03, t2=0.05, t1=0.095), []
    machine.train(5000, threads.choose_threads(said.append))
    assert machine.used.count(4) > 0.98 * 5000 and not said


@pytest.mark.parametrize("start", range(10))
def test_a_few_slow_steps_one_after_the_other_change_nothing_while_torch_settles_or_something_disturbs_it(start, monkeypatch):
    machine, said = Machine(monkeypatch, t4=0.03, t2=0.05, t1=0.095), []
    choice, quiet = threads.choose_threads(said.append), machine.seconds
    for step in range(100):
        machine.seconds = {number: 9.0 for number in quiet} if start <= step < start + 6 else quiet
        machine.train(1, choice)
    assert machine.threads == 4 and not said


def test_a_training_that_ends_while_it_tries_leaves_the_number_chosen_before(monkeypatch):
    machine = Machine(monkeypatch, t4=0.03, t2=0.05, t1=0.095)
    choice = threads.choose_threads(print)
    machine.train(2, choice)
    assert machine.threads == 2
    choice.close()
    assert machine.threads == 4


@pytest.mark.parametrize("length, chosen", [(["--steps", 3], 0), (["--minutes", 0.01], 1)])
def test_a_training_of_so_many_steps_keeps_all_threads_so_that_it_can_be_repeated_exactly(length, chosen, folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "choose_threads", lambda say: asked.append(say) or itertools.repeat(None))
    trains("vqgan", "--data", folder, "--run", tmp_path, *length, *TINY["vqgan"].split())
    assert len(asked) == chosen
