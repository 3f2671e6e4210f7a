"""The page of a run: what it shows, that it stands alone, and whose files it leaves alone."""

import json
import re
import shutil

import pytest
import torch
from conftest import TINY, refused, trains
from PIL import Image

from common.run.folder import Log
from page import export


def content(folder) -> dict:
    """Read the run's data out of its page."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r"const run = (.*);\n", page)[1].replace("<\\/", "</"))


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A copy of the trained run, with its page."""
    place = tmp_path_factory.mktemp("report") / "a run"
    shutil.copytree(trained, place)
    export.write(place)
    return place


def test_the_page_shows_every_model_with_its_settings(run):
    models = {model["name"]: model for model in content(run)["models"]}
    assert [*models] == ["clip", "vqgan", "dalle", "prior", "decoder"]
    facts = models["vqgan"]["facts"]
    assert facts["Steps"] == 4 and "--codebook-size 32" in facts["Flags"] and facts["State"] == "finished"
    assert facts["Precision"] == "fp32" and facts["Pictures"] == 23 and facts["Seed"] == 0


def test_its_curves_are_those_of_the_log(run):
    rows = [row for row in Log(run / "log.csv").rows() if row["model"] == "clip"]
    curves = content(run)["models"][0]["curves"]
    assert curves["loss"] == [[0, float(rows[0]["loss"])]] and curves["recall at 1"][0][0] == 4


def test_a_long_curve_is_thinned_and_keeps_its_first_loss():
    rows = [{"model": "clip", "step": str(step), "seconds": "1", "loss": f"{5 - step / 9999}", "parts": ""}
            for step in range(9999)]
    curve = export.describe("clip", rows, {})["curves"]["loss"]
    assert len(curve) <= export.MOST_POINTS and curve[0] == (0, 5.0)


def test_a_training_that_goes_wrong_is_named_on_the_page():
    rows = [{"model": "clip", "step": str(step), "seconds": "1", "loss": "4.85", "parts": ""}
            for step in range(0, 210, 10)]
    assert "learning-rate-too-high" in export.describe("clip", rows, {})["symptoms"]


def test_the_page_stands_alone_and_asks_no_network(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(?!data:)|url\(|fetch\(|@import""", page.replace("{ src: source, alt }", ""))
    assert page.count("<script>") == page.count("</script>") == 1


def test_no_text_of_a_run_becomes_markup(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    sheet = tmp_path / "run" / "samples" / "dalle"
    sheet.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(sheet / "sheet.png")
    (sheet / "index.jsonl").write_text(json.dumps({"caption": "</script><b>bold"}) + "\n")
    export.write(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "</script><b>" not in page
    assert content(tmp_path / "run")["samples"][0]["alt"] == "</script><b>bold"


def test_a_large_picture_is_reduced(tmp_path):
    noise = torch.randint(256, (2000, 2000, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(tmp_path / "sheet.png")
    assert len(export.picture(tmp_path / "sheet.png")) < 1.4 * (export.WIDEST**2 + 5000)


def test_scores_stand_on_the_page_as_they_were_printed(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    scores = {"settings": {"count": 16}, "printed": {"psnr": ["31.4", "dB"]}, "psnr": 31.4159}
    (tmp_path / "run" / "scores.json").write_text(json.dumps(scores))
    export.write(tmp_path / "run")
    shown = content(tmp_path / "run")["scores"][0]
    assert shown["rows"] == [["psnr", "31.4", "dB"]] and shown["settings"] == {"count": 16}


def test_a_training_that_ends_in_an_error_still_leaves_its_page(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        with export.reported(tmp_path / "run"):
            raise KeyboardInterrupt
    assert content(tmp_path / "run")["models"] and "report:" not in capsys.readouterr().out


def test_training_prints_the_pages_address(folder, tmp_path, capsys):
    trains("vqgan", "--data", folder, "--run", tmp_path, "--steps", 1, *TINY["vqgan"].split())
    assert f"report: {(tmp_path / 'report.html').as_uri()}" in capsys.readouterr().out


def test_another_programs_report_is_refused_before_training(folder, tmp_path):
    (tmp_path / "report.html").write_text("<html>mine</html>")
    words = ["vqgan", "--data", folder, "--run", tmp_path, "--steps", 1, *TINY["vqgan"].split()]
    assert "report.html was not written by train.py" in refused("train", *words)
    assert (tmp_path / "report.html").read_text() == "<html>mine</html>"


def test_only_the_leader_of_several_processes_writes(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))
    monkeypatch.setattr(export, "LEADER", False)
    export.write(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()
