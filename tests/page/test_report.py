"""The report of a run: what it tells, that it is one whole file, and when it calls a loss normal."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, refused, trains
from PIL import Image

sys.path.insert(0, str(ROOT / "benchmarks"))

from common import charts
from common import expected
from common.run import log
from common import page
from common import report
from common.expected import SHARES, History, Range
from common.training.settle import Job
from common.run.runs import MODELS, Run
from common.training.loop import Training

VOID = {"meta", "img", "br"}  # elements without an end
VQGAN = ["vqgan", "--steps", 4, *TINY["vqgan"].split()]


class Page(HTMLParser):
    """Read a page: its visible texts, all tags with their attributes, and those that are not closed in their order."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.open, self.wrong = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)

    def __contains__(self, words):
        return words in " ".join(" ".join(self.text).split())


def place(trained, tmp_path, name="run"):
    """Copy the small run, so that its report can be written again."""
    shutil.copytree(trained, tmp_path / name)
    return tmp_path / name


def sheet(folder, captions, size=(40, 40)):
    """Write a sheet of samples with its index."""
    folder.mkdir(parents=True)
    Image.new("RGB", size).save(folder / "sheet.png")
    (folder / "index.jsonl").write_text("".join(json.dumps({"caption": text}) + "\n" for text in captions))


# ---- The file ---------------------------------------------------------------------------------------------------------


def test_a_training_ends_with_the_address_of_its_report(folder, tmp_path, capsys):
    trains(*VQGAN, "--data", folder, "--run", tmp_path / "a run")
    assert capsys.readouterr().out.splitlines()[-1] == f"report: file://{tmp_path}/a%20run/report.html"
    assert (tmp_path / "a run" / "report.html").exists()


def test_the_report_is_one_well_formed_file_without_a_script_or_anything_from_elsewhere(trained, tmp_path):
    run = place(trained, tmp_path)
    sheet(run / "samples" / "dalle", ["a cat"])
    report.write(run)
    content = Page(run / "report.html")
    assert not content.wrong and not content.open
    tags = {tag for tag, _ in content.tags}
    assert "script" not in tags and "link" not in tags and {"h1", "h2", "h3", "table", "svg", "img"} <= tags
    for _, attributes in content.tags:
        assert attributes.get("src", "data:").startswith("data:") and "href" not in attributes


def test_pictures_and_curves_have_texts_for_those_who_cannot_see_them(trained, tmp_path):
    run = place(trained, tmp_path)
    sheet(run / "samples" / "dalle", ["a cat", "a dog"])
    report.write(run)
    tags = Page(run / "report.html").tags
    assert [attributes["alt"] for tag, attributes in tags if tag == "img"] == ["Drawn by DALL·E: a cat; a dog"]
    labels = [attributes["aria-label"] for tag, attributes in tags if tag == "svg"]
    assert len(labels) == 5 and labels[0].startswith("CLIP: loss from")


def test_words_of_others_are_never_read_as_html(trained, tmp_path):
    evil = '<script>alert("x")</script>'
    run = place(trained, tmp_path, "<img src=x>")
    sheet(run / "samples" / "<i>mine", [evil])
    state = torch.load(run / "vqgan.pt", weights_only=True)
    torch.save(state | {"job": state["job"] | {"data": f"/data/{evil}"}}, run / "vqgan.pt")
    (run / "scores.json").write_text(json.dumps({"settings": {evil: 1}, "printed": {evil: [evil, evil]}, evil: 0.5}))
    report.write(run)
    content = Page(run / "report.html")
    assert not content.wrong and not {"script", "i"} & {tag for tag, _ in content.tags}
    assert all(attributes["src"].startswith("data:") for tag, attributes in content.tags if tag == "img")
    assert f"Data: /data/{evil}" in content and "Run <img src=x>" in content


def test_a_report_of_somebody_elses_is_not_overwritten(folder, tmp_path):
    (tmp_path / "report.html").write_text("<h1>Sales</h1>")
    assert "report.html" in refused("train", *VQGAN, "--data", folder, "--run", tmp_path)
    assert (tmp_path / "report.html").read_text() == "<h1>Sales</h1>" and not (tmp_path / "vqgan.pt").exists()


def test_nothing_is_reported_where_nothing_was_trained(tmp_path):
    report.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_that_are_broken_are_left_out(trained, tmp_path):
    run = place(trained, tmp_path)
    sheet(run / "samples" / "dalle", [])
    (run / "samples" / "dalle" / "index.jsonl").write_text("[1, 2]\n{")
    (run / "samples" / "dalle" / "sheet.png").write_bytes(b"no picture" * page.HEAVY)
    (run / "scores.json").write_text("[]")
    report.write(run)
    content = Page(run / "report.html")
    assert "Drawn by DALL·E" not in content and "Scores" not in content and "Losses" in content


def test_a_large_picture_is_reduced_and_a_small_one_kept_as_it_is(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 1400, 3), dtype=np.uint8)
    for name, side in (("small", 8), ("large", 1400)):
        Image.fromarray(noise[:side, :side]).save(tmp_path / f"{name}.png")
    small, large = (len(page.picture(tmp_path / f"{name}.png", "")) for name in ("small", "large"))
    assert small > (tmp_path / "small.png").stat().st_size and large < (tmp_path / "large.png").stat().st_size * 0.6


# ---- What it tells ----------------------------------------------------------------------------------------------------


def test_it_tells_what_was_trained_on_what_and_how_long(trained, folder, tmp_path):
    run = place(trained, tmp_path)
    report.write(run)
    content = Page(run / "report.html")
    assert f"Data: {folder}" in content and "no runs to compare its loss with" in content and "the range of" not in content
    for words in ("CLIP", "DALL·E 2's decoder", "finished", "--batch-size 16", "fp32", "CLIP: loss from", "VQGAN: psnr"):
        assert words in content, words


def test_scores_stand_beside_their_ceiling_or_chance(trained, tmp_path):
    run = place(trained, tmp_path)
    (run / "scores.json").write_text(json.dumps({
        "settings": {"count": 16}, "printed": {"kept": ["90.4%", "ceiling 99.0%"]}, "kept": 0.9043, "of an earlier version": 0.5}))
    (run / "samples" / "explain").mkdir(parents=True)
    (run / "samples" / "explain" / "explain.json").write_text('{"settings": {}, "printed": {"clip": ["95%", "chance 4%"]}, "clip": 0.95}')
    report.write(run)
    content = Page(run / "report.html")
    assert "kept 90.4% ceiling 99.0%" in content and "clip 95% chance 4%" in content and "of an earlier version 0.5" in content and "count 16" in content


def test_an_interrupted_training_is_reported_as_far_as_it_came_and_a_resumed_one_whole(folder, tmp_path, monkeypatch):
    whole = Training.log

    def interrupted(self, loss, **parts):
        self.asked_to_stop = KeyboardInterrupt if self.step == 2 else None  # during the third step
        whole(self, loss, **parts)

    monkeypatch.setattr(Training, "log", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3"):
        trains(*VQGAN, "--data", folder, "--run", tmp_path)
    stopped = Page(tmp_path / "report.html")
    assert "stopped at 75 %" in stopped and "--resume" in stopped and (tmp_path / "losses.png").exists()
    monkeypatch.undo()
    trains("--resume", "--run", tmp_path)
    ended = Page(tmp_path / "report.html")
    assert "finished" in ended and "stopped" not in ended and "--resume" not in ended


def test_a_training_that_was_killed_before_its_first_checkpoint_is_reported_from_its_log(tmp_path):
    for step in range(0, 50, 10):
        log.append(tmp_path / "log.csv", "clip", step, step / 10, 5 - step / 10, {})
        log.append(tmp_path / "log.csv", "clip", step, step / 10, None, {"scale": float("nan")})
    report.write(tmp_path)
    content = Page(tmp_path / "report.html")
    assert "stopped before its first checkpoint" in content and "CLIP: loss from 5.000 to 1.000" in content


def test_what_goes_wrong_is_named_with_its_entry_in_the_gallery_of_failures(tmp_path):
    for step in range(0, 2000, 10):
        log.append(tmp_path / "log.csv", "clip", step, step / 10, 4.85, {})
    report.write(tmp_path)
    assert "docs/failures.md#" in Page(tmp_path / "report.html")


# ---- Is it normal? ----------------------------------------------------------------------------------------------------

RANGE = Range([1.0] * 50, [1.5] * 50, [2.0] * 50, runs=3, steps=100)


def history(losses, steps=100, at=SHARES):
    return History("clip", {}, True, steps, 1.0, losses=[*zip(at, losses)])


def test_a_loss_within_the_range_is_normal_and_a_little_outside_too():
    for losses in ([1.5] * 50, [2.4] * 50, [0.81] * 50, [9.0] + [1.5] * 49):
        assert expected.judge_curve(history(losses), RANGE) == (True, "The loss lies within the range of 3 runs of this recipe.")


def test_a_loss_outside_the_range_is_not_normal_and_the_part_is_named():
    good, text = expected.judge_curve(history([1.5] * 25 + [4.0] * 25), RANGE)
    assert good is False and "above it from 51 % to 99 % of the training" in text
    good, text = expected.judge_curve(history([0.2] * 50), RANGE)
    assert good is False and "below it from 1 % to 99 %" in text


def test_a_shorter_training_may_have_a_higher_loss_but_no_lower_one():
    good, text = expected.judge_curve(history([4.0] * 50, steps=20), RANGE)
    assert good is None and "20 steps" in text and "fewer steps" in text
    assert expected.judge_curve(history([0.2] * 50, steps=20), RANGE)[0] is False


def test_a_log_of_a_few_lines_is_not_judged():
    good, text = expected.judge_curve(history([9.0, 9.0], at=[0.1, 0.9]), RANGE)
    assert good is None and "too few lines" in text


def test_the_first_loss_may_be_half_as_large_again_as_the_expected_one():
    assert expected.judge_first(4.95, 4.85)[0] and expected.judge_first(1.7, 1.36)[0]
    assert not expected.judge_first(9.0, 4.85)[0] and not expected.judge_first(0.1, 4.85)[0]


def test_only_models_of_the_default_recipe_and_what_they_learned_from_are_compared():
    job = {"data": "shapes", "overfit": False, "flags": {"clip": {"steps": 5}, "vqgan": {}, "dalle": {}}}
    states = {name: {"job": job} for name in ("clip", "vqgan", "dalle")}
    assert all(expected.follows_recipe(states, name) for name in states)
    assert not expected.follows_recipe({"dalle": states["dalle"]}, "dalle")
    for changed in (job | {"data": "/cats"}, job | {"overfit": True}, job | {"flags": {"vqgan": {"channels": 8}}}):
        assert not expected.follows_recipe(states | {"vqgan": {"job": changed}}, "dalle")


def test_a_training_of_an_earlier_version_without_an_end_in_steps_has_a_history_too(trained, tmp_path):
    run = place(trained, tmp_path)
    state = torch.load(run / "clip.pt", weights_only=True)
    del state["recipe"]["enough"]
    state["job"] |= {"model": None, "minutes": 60.0, "flags": {}}  # of which it would have its share, or steps enough
    torch.save(state, run / "clip.pt")
    clip = expected.histories(run)[0]
    assert clip.model == "clip" and 0 < clip.done < 1


def test_the_losses_are_averaged_at_equal_shares_of_the_training_and_missing_after_its_end():
    smooth = history([3.0, 1.0, 5.0], at=[0.10, 0.11, 0.5]).smooth
    assert smooth[5] == 2.0 and smooth[25] == 5.0 and smooth[-1] is None


def test_the_shares_follow_from_the_minutes_or_the_steps_that_the_job_sets(tmp_path):
    for options, share in (({"minutes": 1.0}, 0.5), ({"flags": {"clip": {"steps": 400}}}, 0.25)):
        run = Run(Job(model="clip", run=str(tmp_path), **options))
        run.save("clip", {"recipe": {"steps": 400, "share": 0.15, "enough": 3000}, "step": 100, "seconds": 30.0})
        log.append(run.log_path, "clip", 100, 30.0, 1.0, {})
        assert expected.histories(tmp_path)[0].losses[-1] == (share, 1.0)


def test_the_table_of_expected_losses_has_an_ordered_range_of_every_share():
    known = expected.read()
    assert {"clip", "vqgan", "dalle"} <= known.keys() <= set(MODELS)
    for range_ in known.values():
        assert len(range_.low) == len(SHARES) and range_.runs >= 1 and range_.steps > 100
        assert all(0 < low <= median <= high for low, median, high in zip(range_.low, range_.median, range_.high))


def test_the_table_is_made_of_finished_runs_of_the_recipe_alone(tmp_path, capsys):
    from expected import main  # benchmarks/expected.py

    for name, loss, flags in (("a", 1.0, {}), ("b", 3.0, {}), ("c", 9.0, {"batch_size": 4})):
        run = Run(Job(model="clip", run=str(tmp_path / name), flags={"clip": flags}))
        run.folder.mkdir()
        run.save("clip", {"recipe": {"steps": 100, "share": 0.15, "enough": 3000}, "step": 100, "seconds": 30.0})
        for step in range(100):
            log.append(run.log_path, "clip", step, step / 10, loss, {})
    main([*(str(tmp_path / name) for name in "abc"), "--out", str(tmp_path / "table.csv")])
    found = expected.read(tmp_path / "table.csv")
    assert found == {"clip": Range([1.0] * 50, [2.0] * 50, [3.0] * 50, 2, 100)}
    assert "c: clip is left out" in capsys.readouterr().out


# ---- Curves -----------------------------------------------------------------------------------------------------------


def coordinates(svg, css):
    points = re.search(rf'<polyline class="{css}" points="([^"]*)"', svg).group(1)
    return [tuple(map(float, point.split(","))) for point in points.split()]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_curve_spans_its_frame_and_higher_values_stand_higher(logarithmic):
    svg = charts.chart("loss", {"run": [(0, 8.0), (0.5, 4.0), (1, 2.0)]}, logarithmic=logarithmic)
    (x0, y0), (x1, y1), (x2, y2) = coordinates(svg, "run")
    assert x0 == charts.LEFT and x2 == charts.WIDTH - charts.RIGHT and charts.TOP < y0 < y1 < y2 < charts.HEIGHT - charts.BOTTOM
    assert (abs((y0 + y2) / 2 - y1) < 0.11) == logarithmic  # halved and halved again: equal steps on a logarithmic axis


def test_a_curve_of_one_value_a_level_and_a_range_can_be_drawn():
    for value in (0.0, 3.0):
        assert len(coordinates(charts.chart("flat", {"run": [(0, value), (1, value)]}), "run")) == 2
    svg = charts.chart("loss", {"run": [(0, 1.0)]}, band=([0, 1], [1.0, 1.0], [2.0, 2.0]), level=5.0)
    assert coordinates(svg, "level")[0][1] < coordinates(svg, "run")[0][1] and svg.count("polygon") == 1


def test_the_numbers_of_an_axis_are_round_few_and_within_it():
    for low, high in ((0.03, 7.0), (0.9, 1.1), (1e-6, 1e6), (17.0, 101.0), (-0.2, 0.3)):
        for logarithmic in (False, True)[: 1 + (low > 0)]:
            found = charts.ticks(low, high, logarithmic)
            assert 2 <= len(found) <= 8 and all(low <= tick <= high for tick in found), (low, high, found)


# ---- What a checkpoint keeps for it -----------------------------------------------------------------------------------


def test_a_checkpoint_keeps_the_first_loss_to_expect_and_what_it_was_trained_with(trained, tmp_path):
    for model in TINY:
        state = torch.load(trained / f"{model}.pt", weights_only=True)
        assert state["facts"]["expected"] > 0 and state["facts"]["pictures"].keys() == {"train", "held-out"}
        assert state["facts"]["torch"] == torch.__version__ and state["parameters"] > 1000
    run = place(trained, tmp_path)
    report.write(run)
    content = Page(run / "report.html")
    assert "close to the expected" in content and "pictures to train on" in content and f"{state['parameters']:,}" in content
