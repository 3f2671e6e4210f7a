"""Scores are written as they come, and only of models that belong together."""

import json
from types import SimpleNamespace

import pytest

from common.run.errors import InputError
from common.scoring.scores import Scores, trained_on


def models_of(jobs):
    """Models with such checkpoints, {name: content}."""
    def get(name):
        raise InputError(f"{name}.pt is missing")

    return SimpleNamespace(has=lambda name: name in jobs, checkpoint=jobs.get, get=get,
                           files={name: f"{name}.pt" for name in jobs})


def test_each_figure_is_written_as_it_comes(tmp_path, capsys):
    figures = Scores(tmp_path / "new" / "scores.json", {"count": 16})
    figures.add("psnr", 31.41592, percent=False)
    figures.add("usage", 0.98765, "of 512 codes")
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == {
        "settings": {"count": 16}, "printed": {"psnr": ["31.4", ""], "usage": ["98.8%", "of 512 codes"]},
        "psnr": 31.4159, "usage": 0.9877}
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
    job = {"data": "pictures", "layout": "pairs", "class_names": (), "seed": 0}
    models = models_of({"clip": {"job": job}, "vqgan": {"job": job | {"seed": 1}}})
    assert trained_on(models) == {"data": "pictures", "layout": "pairs"}
    assert trained_on(models_of({"clip": {"data": "shapes"}})) == {"data": "shapes"}  # an early one


@pytest.mark.parametrize("jobs, message", [
    ({}, "clip.pt is missing"),
    ({"clip": {}}, "clip.pt was trained on other pictures"),
    ({"clip": {"job": {"data": "a"}}, "dalle": {"job": {"data": "b"}}}, "dalle.pt was trained on b"),
    ({"clip": {"job": {"data": "a"}}, "vqgan": {"job": {"data": "a", "layout": "pairs"}}},
     "vqgan.pt was trained on a"),
])
def test_models_without_common_data_are_refused(jobs, message):
    with pytest.raises(InputError, match=message):
        trained_on(models_of(jobs))
