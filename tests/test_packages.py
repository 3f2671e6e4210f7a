"""Each package stands alone, and its twins in the other packages are equal."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("minclip", "minvqgan", "mindalle")
ALONE = (*PACKAGES, "data")


def trees(package: str) -> dict[Path, ast.Module]:
    """Parse the files of a package; `python -m data` is a script, which may do what it needs."""
    paths = [path for path in (ROOT / package).rglob("*.py") if path.name != "__main__.py"]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@pytest.mark.parametrize("package", ALONE)
def test_a_package_needs_only_torch_einops_numpy_and_pillow(package):
    for path, tree in trees(package).items():
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        allowed = {"torch", "einops", "numpy", "PIL"} | ({"pyarrow"} if path.name == "archives.py" else set())
        assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names) | allowed, path


@pytest.mark.parametrize("package", ALONE)
def test_a_package_neither_prints_nor_seeds_nor_parses_arguments(package):
    for path, tree in trees(package).items():
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert calls.isdisjoint({"print", "torch.manual_seed", "random.seed", "input"}), path


def test_a_package_works_when_copied_alone_into_an_empty_folder(tmp_path):
    for package in ALONE:
        shutil.copytree(ROOT / package, tmp_path / package / package)
    code = f"""
import importlib, sys
path = sys.path[1:]  # without the folder that Python was started in
for package in {ALONE}:
    sys.path = [f"{tmp_path}/{{package}}", *path]
    module = importlib.import_module(package)
    assert module.__file__.startswith(sys.path[0])
    assert all(hasattr(module, name) for name in module.__all__)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True)
    assert (result.returncode, result.stderr) == (0, "")


def source_of(package: str, file: str, name: str) -> str:
    source = (ROOT / package / file).read_text(encoding="utf-8")
    return next(ast.get_source_segment(source, node) for node in ast.parse(source).body
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)


@pytest.mark.parametrize("packages, file, name", [
    (("minclip", "mindalle"), "layers.py", "attention_weights"),
    (PACKAGES, "model.py", "option"),
    (PACKAGES, "pretrained.py", "fit"),
    (PACKAGES, "pretrained.py", "describe"),
    (("minvqgan", "mindalle"), "pretrained.py", "ModelCheckpoint"),
    (("minvqgan", "mindalle"), "pretrained.py", "read"),
    (ALONE, "errors.py", "InputError"),
])
def test_twins_are_equal_to_the_letter(packages, file, name):
    assert len({source_of(package, file, name) for package in packages}) == 1
