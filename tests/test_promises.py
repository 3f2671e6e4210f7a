"""What the README and the layout promise, held against the code."""

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

PACKAGES = ("minclip", "minvqgan", "mindalle")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_nothing_but_the_standard_library_torch_and_einops(package):
    for path in (ROOT / package).glob("*.py"):
        assert imports(path) <= set(sys.stdlib_module_names) | {"torch", "einops", "numpy", "PIL"}, path


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_works_when_copied_alone_into_an_empty_folder(package, tmp_path):
    subprocess.run(["cp", "-r", str(ROOT / package), str(tmp_path)], check=True)
    code = f"import {package}, sys; assert {package}.__file__.startswith({str(tmp_path)!r}); print(len({package}.__all__))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_neither_prints_nor_seeds_nor_parses_arguments(package):
    for path in (ROOT / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "torch.manual_seed", "random.seed", "input"), path


def source_of(package: str, name: str, file: str = "layers.py") -> str:
    source = (ROOT / package / file).read_text(encoding="utf-8")
    return next(ast.get_source_segment(source, node) for node in ast.parse(source).body
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)


def test_the_twins_called_attend_are_equal_to_the_letter():
    assert source_of("minclip", "attend") == source_of("mindalle", "attend")


@pytest.mark.parametrize("name", ["fit", "describe"])
def test_the_twins_that_fit_weights_are_equal_to_the_letter(name):
    assert len({source_of(package, name, "pretrained.py") for package in PACKAGES}) == 1


@pytest.mark.parametrize("name", ["ModelCheckpoint", "read"])
def test_the_twins_that_read_a_checkpoint_are_equal_to_the_letter(name):
    assert source_of("minvqgan", name, "pretrained.py") == source_of("mindalle", name, "pretrained.py")


def test_the_top_level_holds_what_the_layout_names_and_nothing_else():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in files.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} == {
        "README.md", "LICENSE", "pyproject.toml", "data.py", "train.py", "sample.py", "tests", "docs", *PACKAGES}


def commands(script: str) -> list[list[str]]:
    code = "\n".join(block or span for block, span in re.findall(r"```\n(.*?)```|`([^`\n]+)`", README, re.DOTALL))
    lines = re.findall(rf"^(?:.*&& )?\S*python {script}\.py ?(.*)$", code, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_training_command_of_the_readme_parses():
    assert commands("train")
    for words in commands("train"):
        train.parse(words)


def test_every_sampling_command_of_the_readme_parses():
    assert commands("sample")
    for words in commands("sample"):
        sample.parser().parse_args(words)


def test_every_link_of_the_readme_to_a_file_resolves():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_field_of_every_config_and_recipe_has_a_comment_which_is_its_help():
    for config, recipe, *_ in train.MODELS.values():
        for cls in (config, recipe):
            assert set(train.comments(cls)) == {field.name for field in dataclasses.fields(cls)}
