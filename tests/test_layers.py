"""Who may import whom: kernels nothing of ours, the store kernels, the engine both, the command line all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "kernels": {"kernels"},
    "store": {"store", "kernels"},
    "engine": {"engine", "store", "kernels"},
    "display": {"display", "engine", "store", "kernels"},
}
SOURCES = [(layer, path) for layer in ALLOWED for path in sorted((ROOT / layer).rglob("*.py"))]


def read_imports(path: Path) -> set[str]:
    """Every module, or name in a module, that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


# Read at collection: Python 3.11 fails now and then to parse while another thread of the process does.
IMPORTS = {path: read_imports(path) for _, path in SOURCES}


def imported_layers(path: Path) -> set[str]:
    """The folders of ours that a module imports from; "" is the package itself."""
    ours = [name.split(".") for name in IMPORTS[path] if name.split(".")[0] == "actstore"]
    return {parts[1] if len(parts) > 1 else "" for parts in ours}


@pytest.mark.parametrize(("layer", "path"), SOURCES, ids=[str(p.relative_to(ROOT)) for _, p in SOURCES])
def test_a_module_imports_from_the_layers_below_only(layer: str, path: Path) -> None:
    assert imported_layers(path) <= ALLOWED[layer]


def test_every_layer_was_looked_at() -> None:
    assert {layer for layer, _ in SOURCES} == set(ALLOWED)
    assert len(SOURCES) > 30


def test_no_transformers_below_the_engine() -> None:
    for layer, path in SOURCES:
        tops = {name.split(".")[0] for name in IMPORTS[path]}
        assert layer == "engine" or not tops & {"transformers", "tokenizers"}, path


@pytest.mark.parametrize("statement", ["import actstore.store.reader", "import actstore", "import actstore.cli"])
def test_reading_needs_neither_transformers_nor_the_engine_that_runs_models(statement: str, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('transformers', 'torch', 'tokenizers', 'numba'):\n"
        "            raise ImportError(f'{name} is not for readers')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"{statement}\n"
        "print(*sorted(m for m in sys.modules if m.startswith('actstore.engine')))"
    )
    # Not in the checkout, where the folder kernels/ would be a top-level module.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    # What a capture reports is all that the command line's progress bar knows of the engine.
    allowed = {"actstore.engine", "actstore.engine.capture.progress"} if statement.endswith("cli") else set()
    assert set(done.stdout.split()) <= allowed
