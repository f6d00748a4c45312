"""Notebooks of the examples, run in a kernel of their own: python tests/support/notebook_runner.py [--write] NOTEBOOK …

Of a notebook, the cell with the tag `parameters` says what is chosen; a test sets other values behind it. With --write, the
file keeps what its cells have shown. Nothing of the machine, such as times of execution, is kept.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 600
_KEPT = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run_notebook(path: Path, parameters: Mapping[str, Any] | None = None) -> nbformat.NotebookNode:
    """The notebook at `path` with what its cells have shown, run in its folder; `CellExecutionError` where a cell fails.

    `parameters`: names that the cell with the tag `parameters` sets, with other values.
    """
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # else Jupyter warns that this will be its way
    os.environ.setdefault("TQDM_DISABLE", "1")  # loading a model draws a bar
    notebook = nbformat.read(path, as_version=4)
    if parameters:
        at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
        unknown = [name for name in parameters if not re.search(rf"\b{name}\b.* = ", notebook.cells[at].source)]
        if unknown:
            raise ValueError(f"{path.name} has no parameter {unknown[0]}")
        chosen = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(chosen))
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=TIMEOUT_S, resources=resources).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # else each time another
        cell.metadata = {name: value for name, value in cell.metadata.items() if name == "tags"}
    notebook.metadata = nbformat.from_dict(_KEPT)
    return notebook


def shown(notebook: nbformat.NotebookNode) -> str:
    """All text that the cells have shown."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def pictures(notebook: nbformat.NotebookNode) -> int:
    """The number of pictures that the cells have shown."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def main() -> None:
    """Run, and keep what is shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="keep what the cells show in the file")
    asked = parser.parse_args()
    for path in asked.notebooks:
        notebook = run_notebook(path)
        print(shown(notebook))
        if asked.write:
            nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
