"""Who may import whom, as one table: the layers, the parts of the engine and of the store; and no cycle anywhere.

Every import counts: at the top of a module, under `TYPE_CHECKING`, inside a function.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import actstore

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent

# From below: a layer imports from itself and from those before it.
LAYERS = ("kernels", "store", "engine", "display", "api", "explorer", "commands", "cli")

# Parts of the store, from below. A module of `store/` itself belongs to the part that BELONGS names, or else to the reader.
STORE = (
    "basics", "storage", "files", "model", "capture", "graphs", "explanations", "reader", "batches", "exports", "transfer"
)  # fmt: skip
BELONGS = {
    name: "basics"
    for name in (
        "arguments",
        "calls",
        "damage",
        "errors",
        "hooks",
        "layout",
        "neurons",
        "sites",
        "table",
        "tokens",
        "version",
    )
}

# Parts of the engine → the other parts that they may import.
FOUNDATIONS = {"inputs": set(), "models": set(), "devices": set(), "workers": {"models"}}
FOUNDATIONS |= {"contributions": {"devices", "models", "workers"}}
FOUNDATIONS |= {"capture": {"inputs", "models", "workers", "contributions"}}
METHOD = {"inputs", "models", "devices", "capture", "workers"}
ENGINE: dict[str, set[str]] = FOUNDATIONS | {
    "attribution": METHOD,
    "building": METHOD,
    "change": METHOD,
    "coactivation": METHOD,
    "coverage": METHOD,
    "edit": METHOD | {"contributions", "attribution", "naica"},
    "explain": METHOD | {"coactivation", "graphs"},
    "filling": METHOD | {"attribution", "graphs"},
    "graphs": METHOD,
    "multimodal": METHOD | {"contributions"},
    "naica": METHOD | {"attribution"},
    "repair": METHOD | {"filling"},
    "selectivity": METHOD | {"contributions"},
    "verify": METHOD | {"attribution"},
}


def module_of(path: Path) -> str:
    """The dotted name of a file of ours."""
    parts = ("actstore", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_of(path): path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))}
PATHS |= {module_of(path): path for path in (ROOT / "cli.py", ROOT / "__init__.py")}


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement below `tree`: as `ast.walk`, which visits the parts of expressions too, twelve times as many nodes."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for node in getattr(tree, name, ()):
            yield node
            yield from statements(node)


def read_imports(path: Path) -> set[str]:
    """Every module, or name in a module, that a file imports, wherever in it."""
    names: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


# Read at collection: Python 3.11 fails now and then to parse while another thread of the process does.
NAMES = {module: read_imports(path) for module, path in PATHS.items()}


def resolve(name: str) -> str | None:
    """The module of ours that an imported name is, or is in."""
    while name and name not in PATHS:
        name = name.rpartition(".")[0]
    return name or None


IMPORTS = {
    module: {found for name in names if name.startswith("actstore") and (found := resolve(name)) not in (None, module)}
    for module, names in NAMES.items()
}
MODULES = sorted(PATHS)


def layer_of(module: str) -> str:
    """The layer of a module; the package itself, which is the public API, is the last."""
    return module.split(".")[1] if "." in module else LAYERS[-1]


def part_of(module: str) -> str:
    """The part of the engine or of the store that a module belongs to."""
    _, layer, *rest = module.split(".")
    if layer == "store" and len(rest) < 2 and (not rest or rest[0] not in STORE):
        return BELONGS.get(rest[0] if rest else "errors", "reader")
    return rest[0] if rest else ""


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_layer_and_those_below(module: str) -> None:
    allowed = LAYERS[: LAYERS.index(layer_of(module)) + 1]
    assert {found for found in IMPORTS[module] if layer_of(found) not in allowed} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("actstore.engine.")])
def test_a_part_of_the_engine_imports_the_parts_in_the_table(module: str) -> None:
    allowed = ENGINE[part_of(module)] | {part_of(module)}
    others = {found for found in IMPORTS[module] if layer_of(found) == "engine"}
    assert {found for found in others if part_of(found) not in allowed} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("actstore.store.")])
def test_a_part_of_the_store_imports_the_parts_below(module: str) -> None:
    allowed = STORE[: STORE.index(part_of(module)) + 1]
    others = {found for found in IMPORTS[module] if layer_of(found) == "store"}
    assert {found for found in others if part_of(found) not in allowed} == set()


def test_an_import_is_seen_in_every_place_for_a_statement(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import a\n"
        "if x:\n    import b\nelse:\n    import c\n"
        "for x in y:\n    import d\nelse:\n    import e\n"
        "while x:\n    import f\n"
        "try:\n    import g\nexcept E:\n    import h\nelse:\n    import i\nfinally:\n    import j\n"
        "with x:\n    import k\n"
        "match x:\n    case 1:\n        import l\n"
        "class C:\n    def f(self):\n        from m import n\n"
        "async def g():\n    import o\n"
        "try:\n    import p\nexcept* E:\n    import q\n"
    )
    assert read_imports(path) == {*"abcdefghijkl", "m.n", *"opq"}


def on_cycles(imports: dict[str, set[str]]) -> set[str]:
    """The modules that lie on a cycle, or import one that does."""
    left = dict(imports)
    while free := {module for module, found in left.items() if not found & left.keys()}:
        left = {module: found for module, found in left.items() if module not in free}
    return set(left)


def test_no_imports_form_a_cycle() -> None:
    assert on_cycles({module: found for module, found in IMPORTS.items() if module != "actstore"}) == set()


def test_a_cycle_is_found() -> None:
    assert on_cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_every_folder_is_in_the_table() -> None:
    """And none has a loose module where only folders belong, nor more modules than one can overlook."""
    assert {path.name for path in (ROOT / "engine").iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        *ENGINE
    }
    assert {path.name for path in (ROOT / "engine").glob("*.py")} == {"__init__.py"}
    assert {part_of(module) for module in MODULES if layer_of(module) == "store"} == {*STORE}
    for folder in {path.parent for path in PATHS.values()}:
        modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 20, f"{folder} has {len(modules)} modules"


def test_modules_and_functions_are_of_a_size_that_can_be_read() -> None:
    """At most 350 lines per module, 60 per function; kernels and declarations of commands, whose options are lines, aside.

    Of the functions of the public API, whose parameters are lines, the body counts.
    """
    for module, path in PATHS.items():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 350, f"{path}: {text.count(chr(10))} lines"
        if layer_of(module) in ("kernels", "commands"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                # A declaration of the public API is long for its parameters, as that of a command is for its options.
                is_declaration = node.name in actstore.__all__ or layer_of(module) == "api"
                body = node.body[1:] if is_declaration else []
                first = body[0] if body else node
                assert node.end_lineno - first.lineno < 60, f"{path}:{node.lineno}: {node.name}"


def test_no_transformers_below_the_engine() -> None:
    for module, names in NAMES.items():
        tops = {name.split(".")[0] for name in names}
        assert layer_of(module) not in ("kernels", "store") or not tops & {"transformers", "tokenizers"}, module


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
    # The command line reads the engine's tables of closed sets at every start: they load none of the blocked libraries.
    assert statement.endswith("cli") or done.stdout.split() == []
