"""What is installed is what is there."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import actstore

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_INSTALLED = {"tests", "benchmarks", "demo", "docs", "examples", "build", "dist"}


def test_every_folder_with_python_in_it_is_found_to_be_a_package() -> None:
    # In a process of its own: setuptools puts packages of its own among those that are found to be installed.
    script = (
        "import json, runpy, setuptools\n"
        "setuptools.setup = lambda **arguments: print(json.dumps(arguments))\n"
        f"runpy.run_path({str(ROOT / 'setup.py')!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    arguments = json.loads(done.stdout)
    paths = [path.relative_to(ROOT).parent for path in ROOT.rglob("*.py")]
    folders = {
        folder.parts
        for folder in paths
        if not any(part.startswith(".") or part.endswith(".egg-info") for part in folder.parts)
        and not (folder.parts and folder.parts[0] in NOT_INSTALLED)
    }
    # A folder above a package is one too, whether it holds a module or not.
    parents = {parts[:n] for parts in folders for n in range(len(parts) + 1)}
    assert arguments["packages"] == sorted(".".join(["actstore", *parts]) for parts in parents)
    assert arguments["script_name"] == "setup.py"  # without, a wheel holds it as a module


def test_kernels_is_a_namespace_that_transformers_cannot_mistake_for_its_own() -> None:
    # transformers looks for a top-level module `kernels`, and finds ours where the checkout is the working directory.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    script = (
        "import importlib.util; from transformers.utils import import_utils; import transformers; print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "imported\n", done.stderr


def test_the_version_is_the_projects() -> None:
    assert importlib.metadata.version("actstore") == PROJECT["project"]["version"]


def test_types_travel_with_the_package() -> None:
    assert (ROOT / "py.typed").is_file()
    assert PROJECT["tool"]["setuptools"]["package-data"]["actstore"] == [
        "py.typed",
        "explorer/bundle/*",
        "demo/models/*/*",
    ]


def test_the_command_is_the_function() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="actstore")
    assert script.value == PROJECT["project"]["scripts"]["actstore"]
    assert callable(script.load())


def test_the_public_names_exist() -> None:
    for name in actstore.__all__:
        assert getattr(actstore, name) is not None
