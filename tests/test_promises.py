"""What the documents promise, held against the code."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import sample
import train
from common.run.flags import command

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
WORDS = {"README.md": 1200, "results.md": 2200, "findings.md": 1800, "failures.md": 1600, "exercises.md": 2000}
TOPS = ("README.md", "LICENSE", "pyproject.toml", "train.py", "sample.py", "minclip", "minvqgan", "mindalle", "data",
        "common", "page", "benchmarks", "tests", "docs")
PRODUCT = [path for top in TOPS if top != "tests" for path in [ROOT / top, *(ROOT / top).rglob("*.py")]
           if path.suffix == ".py"]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# ---- The documents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, most", WORDS.items())
def test_a_document_keeps_its_word_budget(name, most):
    document = next(path for path in DOCUMENTS if path.name == name)
    assert len(read(document).split()) <= most


def anchors(document: Path) -> set[str]:
    """List the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", read(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_or_heading_resolves(document):
    for link in re.findall(r"\]\(([^)]+)\)", read(document)):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = document.parent / file if file else document
            assert target.exists() and (not anchor or anchor in anchors(target)), link


def test_the_reading_list_is_short_and_counts_lines_truly():
    listed = re.findall(r"^- \[(\S+\.py)\]\(\1\), (\d+) lines", read(README), re.MULTILINE)
    assert 5 <= len(listed) <= 8
    assert listed == [(name, str(len(read(ROOT / name).splitlines()))) for name, _ in listed]


def commands(script: str) -> list[list[str]]:
    """Collect a script's commands from the code of all documents."""
    text = "\n".join(read(document) for document in DOCUMENTS)
    code = "\n".join(block or span for block, span in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))
    lines = re.findall(rf"^(?:.*&& )?\S*python {script}\.py ?(.*)$", code, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_training_command_of_the_documents_parses():
    assert len(commands("train")) > 20
    classes = {name: model[1:] for name, model in train.MODELS.items()}
    for words in commands("train"):
        train.parse([word for word in words if word != "--help"], "", classes)


def test_every_sampling_command_of_the_documents_parses():
    assert len(commands("sample")) > 20
    for words in commands("sample"):
        if words and not words[0].isupper():  # `python sample.py COMMAND`
            sample.parser().parse_args(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_a_document_runs(document, trained, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "shapes").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", read(document), re.DOTALL):
        code = code.replace("a large blue ring on a gray background", "picture number 3")  # a caption of this small run
        exec(compile(code, document.name, "exec"), {})


def test_the_readme_begins_with_its_two_commands():
    first, second = re.findall(r"^python3 -m venv .*$", read(README), re.MULTILINE)
    assert first.endswith("bin/python train.py") and second.endswith("bin/python -m pytest -q")


# ---- The source -------------------------------------------------------------------------------------


def test_the_top_level_holds_what_the_layout_names():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in files.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} == set(TOPS)


def test_lines_are_short_and_files_are_not_long():
    lines = {path: read(path).splitlines() for path in PRODUCT}
    wide = sum(len(line) > 100 for text in lines.values() for line in text)
    assert wide <= 0.05 * sum(map(len, lines.values()))
    assert max(map(len, lines.values())) <= 420


def test_no_test_name_has_more_than_twelve_words():
    names = {node.name for path in (ROOT / "tests").rglob("test_*.py") for node in ast.walk(ast.parse(read(path)))
             if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    assert len(names) > 300 and not [name for name in names if name.count("_") > 12]


def test_every_field_of_every_config_and_recipe_has_a_help_text():
    for model in train.MODELS.values():
        for field in [*dataclasses.fields(model.config), *dataclasses.fields(model.recipe)]:
            assert field.metadata.get("help"), field.name


def test_a_printed_command_survives_the_shell():
    words = ["--run", "a run; $HOME 'quoted'"]
    assert shlex.split(command("train.py", *words))[2:] == words
