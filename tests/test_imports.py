"""Imports run one way: which room of the source may import which, read off every .py file."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("minclip", "minvqgan", "mindalle", "data")
ROOMS = {  # room -> the rooms that it may import, besides itself
    "minclip": (),
    "minvqgan": (),
    "mindalle": (),
    "data": (),
    "common.run": PACKAGES,
    "common.drawing": (*PACKAGES, "common.run"),
    "common.scoring": (*PACKAGES, "common.run", "common.drawing"),
    "common.training": (*PACKAGES, "common.run"),
    "page": (*PACKAGES, "common.run"),
    # scripts, which nobody imports
    "benchmarks": (*PACKAGES, "common.run", "common.drawing", "common.scoring", "common.training"),
    "sample": (*PACKAGES, "common.run", "common.drawing", "common.scoring", "page"),
    "train": (*PACKAGES, "common.run", "common.drawing", "common.scoring", "common.training", "page"),
    "data.__main__": (*PACKAGES, "common.run", "common.training"),
}
OURS = {room.split(".")[0] for room in ROOMS} | {"tests"}


def read_sources() -> dict[str, str]:
    """Map each module of ours, tests apart, to its source; "minclip" is minclip/__init__.py."""
    sources = {}
    for top in sorted(OURS - {"tests"}):
        for path in [ROOT / f"{top}.py", *(ROOT / top).rglob("*.py")]:
            if path.is_file():
                parts = path.relative_to(ROOT).with_suffix("").parts
                sources[".".join(part for part in parts if part != "__init__")] = path.read_text(encoding="utf-8")
    return sources


SOURCES = read_sources()


@cache
def import_statements(source: str, in_functions: bool) -> list[ast.Import | ast.ImportFrom]:
    """Collect imports; without in_functions, only those that run when the module is imported."""
    found, nodes = [], [ast.parse(source)]
    while nodes:
        for node in ast.iter_child_nodes(nodes.pop()):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.append(node)
            elif in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                nodes.append(node)
    return found


def imports(module: str, sources: dict[str, str], in_functions: bool) -> set[str]:
    """List what a module imports, relative imports resolved."""
    parts = module.split(".")
    if any(name.startswith(f"{module}.") for name in sources):
        parts.append("__init__")
    found = set()
    for node in import_statements(sources[module], in_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        above = parts[: -node.level] if node.level else []
        base = ".".join([*above, node.module] if node.module else above)
        names = {f"{base}.{alias.name}" for alias in node.names}
        found |= {name if name in sources else base for name in names}
    return found


def room(module: str) -> str:
    return max((name for name in ROOMS if f"{module}.".startswith(f"{name}.")), key=len, default=module)


def violations(sources: dict[str, str]) -> set[str]:
    """List imports that ROOMS does not allow, and a circle among modules if there is one."""
    wrong = set()
    for module in sources:
        for other in imports(module, sources, in_functions=True):
            ours = other.split(".")[0] in OURS
            if ours and room(other) not in (room(module), *ROOMS.get(room(module), ())):
                wrong.add(f"{module} imports {other}")
    graph = {module: imports(module, sources, in_functions=False) & sources.keys() for module in sources}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.add("circle: " + " <- ".join(error.args[1]))
    return wrong


def test_imports_run_one_way_without_circles():
    assert not violations(SOURCES)


@pytest.mark.parametrize("module, line", [
    ("minclip.new", "import data"),
    ("data.new", "import sample"),
    ("mindalle.unclip.new", "from minclip.model import CLIP"),
    ("common.run.new", "from ..drawing import dalle"),
    ("common.drawing.new", "import common.scoring.shapes"),
    ("common.scoring.new", "def late():\n    from ..training import loop"),
    ("common.training.new", "from common.drawing.dalle import Drawing"),
    ("common.new", "import minclip"),
    ("page.new", "from train import MODELS"),
    ("sample", "from common.training.muon import Muon"),
    ("data.errors", "from .pictures import open_image"),  # pictures imports errors
])
def test_a_planted_bad_import_is_caught(module, line):
    planted = SOURCES | {module: f"{line}\n{SOURCES.get(module, '')}"}
    assert violations(planted) - violations(SOURCES)


def test_no_import_is_for_type_checkers_alone():
    assert not [module for module, source in SOURCES.items() if "TYPE_CHECKING" in source]
