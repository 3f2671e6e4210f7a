"""Execute the cells of docs/tour.ipynb in order, as Jupyter does, and store what they show in the file.

    python -m benchmarks.tour                    on runs/shapes
    python -m benchmarks.tour --run runs/other   where `python train.py` and `python train.py unclip` left their models

A notebook is JSON: a list of cells, and for each cell of code a list of outputs, printed text and pictures. Nothing of
Jupyter's is needed.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import linecache
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from common.run.errors import InputError, one_line_errors
from common.run.flags import command

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tour.ipynb"


class CellError(Exception):
    """Name the cell that failed; the cause is the cell's own error."""


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def fingerprint(notebook: dict) -> str:
    """Name the code of all cells in 12 hexadecimal digits: outputs that carry another name are out of date."""
    sources = ["".join(cell["source"]) for cell in code_cells(notebook)]
    return sha256(json.dumps(sources).encode()).hexdigest()[:12]


def show(value: Any, count: int) -> dict:
    """Make the output of a cell's last expression, a picture or a text; count: the number of the cell."""
    content = {"text/plain": [repr(value)]}
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.save(file, "PNG", optimize=True)
        content = {"image/png": base64.b64encode(file.getvalue()).decode(),
                   "text/plain": [f"<PIL.Image.Image image mode={value.mode} size={value.width}x{value.height}>"]}
    return {"output_type": "execute_result", "execution_count": count, "data": content, "metadata": {}}


def execute_cell(cell: dict, count: int, namespace: dict[str, Any]) -> list[dict]:
    """Execute the code of a cell in the namespace -> its outputs: what it prints, then the value of its last expression."""
    source, name = "".join(cell["source"]), f"<cell {count}, {cell['id']}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # for tracebacks to quote from
    printed, value = io.StringIO(), None
    try:
        body = ast.parse(source, name).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(body, []), name, "exec"), namespace)
            if last:
                value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    except Exception as error:
        raise CellError(f"{name} failed: {type(error).__name__}: {error}") from error
    stream = {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)}
    return [stream] * bool(printed.getvalue()) + ([show(value, count)] if value is not None else [])


def execute(notebook: dict, settings: dict[str, Any]) -> None:
    """Execute all cells in the notebook's folder and put their outputs into it; raise CellError at the first that fails.

    settings: values that take the place of those the first cell gives to its variables. They are not written down.
    """
    namespace, folder = {"__name__": "__main__"}, os.getcwd()
    os.chdir(NOTEBOOK.parent)
    try:
        for count, cell in enumerate(code_cells(notebook), start=1):
            cell["outputs"], cell["execution_count"] = execute_cell(cell, count, namespace), count
            if count == 1:
                if unknown := settings.keys() - namespace.keys():
                    raise ValueError(f"the first cell has no {', '.join(sorted(unknown))}")
                namespace.update(settings)
    finally:
        os.chdir(folder)
    notebook["metadata"]["outputs_of"] = fingerprint(notebook)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tour", description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="runs/shapes", help="the run to show (default: runs/shapes)")
    run = Path(parser.parse_args().run).resolve()
    for name, job in {"dalle.pt": (), "decoder.pt": ("unclip",)}.items():
        if not (run / name).exists():
            remedy = command("train.py", *job, "--run", run)
            raise InputError(f"{run / name} is missing: name another --run, or train it: {remedy}")
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    execute(notebook, {"RUN": str(run)})
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {NOTEBOOK}, {NOTEBOOK.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    one_line_errors(main)
