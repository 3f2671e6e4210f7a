"""The tour, docs/tour.ipynb: its cells run, on our models and on published ones; its links are up to date."""

import ast
import contextlib
import io
import json
import re
import shlex

import torch

import data
import train
from common.drawing.dalle import MINDALLE_DRAWING, Drawing
from common.drawing.guide import PUBLISHED_GUIDING, Guiding
from conftest import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
TOUR = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
TEXT = "\n".join("".join(cell["source"]) for cell in TOUR["cells"] if cell["cell_type"] == "markdown")
CELLS = [cell for cell in TOUR["cells"] if cell["cell_type"] == "code"]
CODE = "\n".join("".join(cell["source"]) for cell in CELLS)


def kinds(cell: dict) -> set[str]:
    """List what kinds of output a cell stores: printed text, a value, a picture."""
    return {kind for output in cell["outputs"] for kind in output.get("data", ["printed"])} - {"text/plain"}


def execute(settings: dict, monkeypatch) -> None:
    """Execute all cells in order, the variables of the first changed to `settings`.

    What a cell prints or shows must be of the kind that the notebook stores.
    """
    monkeypatch.chdir(NOTEBOOK.parent)
    namespace = {}
    with torch.enable_grad():  # a cell switches gradients off, for the whole process
        for cell in CELLS:
            body, printed, shown = ast.parse("".join(cell["source"])).body, io.StringIO(), None
            last = body.pop() if isinstance(body[-1], ast.Expr) else ast.Expr(ast.Constant(None))
            with contextlib.redirect_stdout(printed):
                exec(compile(ast.fix_missing_locations(ast.Module(body, [])), cell["id"], "exec"), namespace)
                code = ast.fix_missing_locations(ast.Expression(last.value))
                shown = eval(compile(code, cell["id"], "eval"), namespace)
            found = {"printed"} if printed.getvalue() else set()
            assert found | ({"image/png"} if hasattr(shown, "save") else set()) == kinds(cell), cell["id"]
            if cell is CELLS[0]:
                assert set(settings) <= set(namespace)
                namespace.update(settings)


def test_every_cell_runs_on_the_run_that_train_leaves(trained, monkeypatch):
    words = "picture number 3"
    execute({"RUN": str(trained), "LABELS": [words, "number 1"], "QUERY": words, "PROMPT": words, "CAPTION": words,
             "STEPS": 2}, monkeypatch)


def test_the_same_cells_run_on_published_weights(trained, published, folder, monkeypatch):
    execute({"RUN": str(trained), "CLIP": f"{published}/clip", "DALLE": f"{published}/1.3B", "PICTURES": str(folder),
             "LABELS": ["the", "a"], "QUERY": "the", "PROMPT": "the", "CAPTION": "the", "STEPS": 2}, monkeypatch)


def test_the_tour_is_small_and_its_cells_are_short():
    assert NOTEBOOK.stat().st_size < 300_000 and 10 <= len(CELLS) <= 14
    for cell in CELLS:
        assert len(cell["source"]) <= 16 and max(len(line.rstrip()) for line in cell["source"]) <= 130, cell["id"]


def definitions(path) -> set[str]:
    """List the functions and classes of a file, and methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in getattr(node, "body", []) if isinstance(part, ast.FunctionDef)}
    return names


def test_every_step_names_files_and_functions_that_are_there():
    assert [cell["cell_type"] for cell in TOUR["cells"]] == ["markdown", "code"] * len(CELLS)
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


def test_the_outputs_are_those_of_the_commands_shown():
    commands = [shlex.split(line) for line in re.findall(r"^python train\.py (.*)$", TEXT, re.MULTILINE)]
    printed = "".join(CELLS[1]["outputs"][0]["text"])
    assert len(commands) == 2
    for words in commands:
        _, typed, flags = train.parse(words, "", {name: model[1:] for name, model in train.MODELS.items()})
        assert printed.count(f"seed {typed['seed']}\n") == 5
        for name, fields in flags.items():
            assert f"{name}.pt: {fields['steps']:,} steps" in printed if fields else True


def test_the_cells_sample_and_guide_as_sample_does():
    for options, names in ((Guiding(), ("cutouts", "smallest", "octaves", "latent_noise")), (PUBLISHED_GUIDING, ("cutouts",)),
                       (Drawing(), ("top_k", "guidance")), (MINDALLE_DRAWING, ("top_k",))):
        for name in names:
            assert f'"{name}": {json.dumps(getattr(options, name))}' in CODE, name


def test_the_texts_of_the_first_cell_fit_the_pictures(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = {}
    exec("".join(CELLS[0]["source"]), settings)
    scenes = data.load("shapes", 32, "unseen", count=64, seed=settings["SEED"])
    true, *others = settings["LABELS"]
    assert scenes.captions[3] == [true] and data.split_of(settings["CAPTION"]) == "unseen"
    for other in others:
        assert sum(a != b for a, b in zip(true.split(), other.split(), strict=True)) == 1
