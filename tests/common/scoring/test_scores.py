"""Scores are written as they come, and only of models that belong together."""

import json
from types import SimpleNamespace

import pytest

from common.run.errors import InputError
from common.scoring.scores import Scores, trained_on


def models_of(jobs):
    """Stand in for models with such checkpoints, {name: content}."""
    return SimpleNamespace(has=lambda name: name in jobs, checkpoint=jobs.get,
                           files={name: f"{name}.pt" for name in jobs})


def test_each_figure_is_written_as_it_comes(tmp_path, capsys):
    figures = Scores(tmp_path / "new" / "scores.json", {"count": 16})
    figures.add("psnr", 31.41592, percent=False)
    figures.add("usage", 0.98765, "of 512 codes")
    printed = {"psnr": ["31.4", ""], "usage": ["98.8%", "of 512 codes"]}
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == {
        "settings": {"count": 16}, "printed": printed, "psnr": 31.4159, "usage": 0.9877}
    assert "98.8% of 512 codes" in capsys.readouterr().out


def test_scores_replace_their_own_file_and_no_other(tmp_path):
    path = tmp_path / "scores.json"
    Scores(path, {}).add("psnr", 1.0)
    Scores(path, {}).add("usage", 1.0)
    assert "psnr" not in path.read_text()
    path.write_text("{}")
    with pytest.raises(InputError, match="scores.json was not written by this command"):
        Scores(path, {})


def test_models_of_one_data_set_say_what_it_is():
    job = {"data": "a", "layout": "pairs", "class_names": (), "seed": 0}
    models = models_of({"clip": {"job": job}, "vqgan": job | {"seed": 1}})  # an early one
    assert trained_on(models) == {"data": "a", "layout": "pairs"}


@pytest.mark.parametrize("jobs, message", [
    ({"clip": {}}, "clip.pt was trained on other pictures"),
    ({"clip": {"data": "a"}, "dalle": {"data": "b"}}, "dalle.pt was trained on b"),
    ({"clip": {"data": "a"}, "vqgan": {"data": "a", "layout": "c"}}, "vqgan.pt was trained on a"),
])
def test_models_without_common_data_are_refused(jobs, message):
    with pytest.raises(InputError, match=message):
        trained_on(models_of(jobs))
