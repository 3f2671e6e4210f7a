"""The tour, docs/tour.ipynb: its cells run, on our models and on published ones; its outputs and links are up to date."""

import ast
import base64
import copy
import io
import json
import os
import re
import shlex

import pytest
import torch
from PIL import Image

import data
import train
from benchmarks.tour import NOTEBOOK, CellError, code_cells, execute, execute_cell, fingerprint
from common.drawing.dalle import MINDALLE_DRAWING, Drawing
from common.drawing.guide import PUBLISHED_GUIDING, Guiding
from conftest import ROOT

TOUR = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
TEXT = "\n".join("".join(cell["source"]) for cell in TOUR["cells"] if cell["cell_type"] == "markdown")
CODE = "\n".join("".join(cell["source"]) for cell in code_cells(TOUR))


def outputs(notebook: dict) -> list[tuple[str, list[str]]]:
    """List for each cell what kinds of output it has."""
    return [(cell["id"], [kind for output in cell["outputs"] for kind in output.get("data", ["printed"])])
            for cell in code_cells(notebook)]


@pytest.fixture
def tour():
    """A copy of the notebook; its cells switch gradients off, for the whole process."""
    with torch.enable_grad():
        yield copy.deepcopy(TOUR)


def test_every_cell_runs_on_the_run_that_train_leaves_and_gives_the_kinds_of_output_that_are_committed(tour, trained):
    words = "picture number 3"
    execute(tour, {"RUN": str(trained), "LABELS": [words, "number 1"], "QUERY": words, "PROMPT": words, "CAPTION": words,
                   "STEPS": 2})
    assert outputs(tour) == outputs(TOUR)


def test_the_same_cells_run_on_published_weights_and_a_folder_of_pictures(tour, trained, published, folder):  # noqa: F811
    execute(tour, {"RUN": str(trained), "CLIP": f"{published}/clip", "DALLE": f"{published}/1.3B", "PICTURES": str(folder),
                   "LABELS": ["the", "a"], "QUERY": "the", "PROMPT": "the", "CAPTION": "the", "STEPS": 2})
    assert outputs(tour) == outputs(TOUR)


def test_a_cell_that_fails_is_named_with_its_error_and_the_working_directory_is_restored(tour, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code_cells(tour)[1]["source"] = ["undefined + 1"]
    with pytest.raises(CellError, match="cell 2, load> failed: NameError: name 'undefined'"):
        execute(tour, {})
    assert os.getcwd() == str(tmp_path)


def test_a_setting_that_the_first_cell_does_not_have_is_refused(tour):
    with pytest.raises(ValueError, match="the first cell has no STEP$"):
        execute(tour, {"STEP": 2})


@pytest.mark.parametrize("source, kinds", [
    ("x = 1", []), ("None", []), ("print(7)", ["printed"]), ("print(7); 8", ["printed", "text/plain"]), ("8; x = 1", []),
    ("Image.new('RGB', (2, 3))", ["text/plain", "image/png"]), ("", [])])
def test_a_cell_shows_what_it_prints_and_then_its_last_expression_as_jupyter_does(source, kinds):
    cell = {"cell_type": "code", "id": "one", "source": [source]}
    cell["outputs"] = execute_cell(cell, 1, {"Image": Image})
    assert sorted(outputs({"cells": [cell]})[0][1]) == sorted(kinds)


def test_the_notebook_is_valid_and_its_pictures_open():
    assert set(TOUR) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (TOUR["nbformat"], TOUR["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in TOUR["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[a-z-]{1,64}", name) for name in ids)
    for count, cell in enumerate(code_cells(TOUR), start=1):
        assert set(cell) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
        assert cell["execution_count"] == count
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                assert set(output) == {"output_type", "name", "text"}
            else:
                assert set(output) == {"output_type", "execution_count", "data", "metadata"}
                assert output["execution_count"] == count
                Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"], validate=True))).load()


def test_the_committed_outputs_are_those_of_the_present_cells():
    assert TOUR["metadata"]["outputs_of"] == fingerprint(TOUR), "the cells have changed: python -m benchmarks.tour"


def test_changing_a_cell_makes_the_outputs_out_of_date_and_changing_a_text_does_not(tour):
    tour["cells"][0]["source"] = ["another text"]
    assert fingerprint(tour) == fingerprint(TOUR)
    code_cells(tour)[-1]["source"].append("\n")
    assert fingerprint(tour) != fingerprint(TOUR)


def test_the_tour_is_small_and_its_cells_are_short():
    assert NOTEBOOK.stat().st_size < 300_000 and 10 <= len(code_cells(TOUR)) <= 14
    for cell in code_cells(TOUR):
        assert len(cell["source"]) <= 16 and max(len(line.rstrip()) for line in cell["source"]) <= 130, cell["id"]


def definitions(path) -> set[str]:
    """List the functions and classes of a file, and methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in getattr(node, "body", []) if isinstance(part, ast.FunctionDef)}
    return names


def test_every_step_opens_with_its_source_and_each_file_and_function_it_names_is_there():
    assert [cell["cell_type"] for cell in TOUR["cells"]] == ["markdown", "code"] * len(code_cells(TOUR))
    for cell in TOUR["cells"][2:]:
        if cell["cell_type"] == "markdown":
            first = [line for line in cell["source"] if line.strip() and not line.startswith("#")][0]
            parts = first.removeprefix("Source: ").split(";")
            assert first.startswith("Source: "), cell["id"]
            for part in parts:
                link, names = re.fullmatch(r"\s*\[.*\]\((.*)\)((?:,? `[\w.]+`)+)\s*", part).groups()
                for name in re.findall(r"[\w.]+", names):
                    assert name in definitions(NOTEBOOK.parent / link), (cell["id"], link, name)


def test_every_link_of_the_tour_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert len(links) > 15
    for link in links:
        assert (NOTEBOOK.parent / link).exists(), link


def test_the_commands_of_the_tour_parse_and_are_those_of_the_run_that_it_shows():
    commands = [shlex.split(line) for line in re.findall(r"^python train\.py (.*)$", TEXT, re.MULTILINE)]
    printed = "".join(code_cells(TOUR)[1]["outputs"][0]["text"])
    assert len(commands) == 2
    for words in commands:
        _, typed, flags = train.parse(words)
        assert printed.count(f"seed {typed['seed']}\n") == 5
        for name, fields in flags.items():
            assert f"{name}.pt: {fields['steps']:,} steps" in printed if fields else True


def test_the_cells_sample_and_guide_as_sample_does():
    for how, names in ((Guiding(), ("cutouts", "smallest", "octaves", "latent_noise")), (PUBLISHED_GUIDING, ("cutouts",)),
                       (Drawing(), ("top_k", "guidance")), (MINDALLE_DRAWING, ("top_k",))):
        for name in names:
            assert f'"{name}": {json.dumps(getattr(how, name))}' in CODE, name


def test_the_texts_of_the_first_cell_fit_the_pictures(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = {}
    execute_cell(code_cells(TOUR)[0], 1, settings)
    scenes = data.load("shapes", 32, "unseen", count=64, seed=settings["SEED"])
    true, *others = settings["LABELS"]
    assert scenes.captions[3] == [true] and data.split_of(settings["CAPTION"]) == "unseen"
    for other in others:
        assert sum(a != b for a, b in zip(true.split(), other.split(), strict=True)) == 1
