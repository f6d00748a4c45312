"""How Triton kernels are started: by one function, which always says what Triton's defaults would decide."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

gpu = pytest.importorskip("actstore.kernels.gpu", exc_type=ImportError)

ROOT = Path(__file__).parents[2]
FOLDERS = ("kernels", "store", "engine", "display", "api", "commands", "benchmarks")


def launches(source: str) -> list[int]:
    """The lines where a kernel is started: `kernel[grid](…)`, `kernel.run(…)`, `kernel.warmup(…)`."""
    if "gpu" not in source and "jit" not in source:  # most files, parsed for nothing
        return []
    nodes = list(ast.walk(ast.parse(source)))
    kernels = {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(mark) for mark in node.decorator_list)
    }
    return [
        node.lineno
        for node in nodes
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Subscript) and isinstance(node.func.slice, ast.Tuple))
            or (isinstance(node.func, (ast.Subscript, ast.Attribute)) and ast.unparse(node.func.value) in kernels)
        )
    ]


def test_every_kernel_is_started_by_launch() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), line)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for line in launches(path.read_text(encoding="utf-8"))
    }
    assert [path for path, _ in found] == ["kernels/gpu.py"]


@pytest.mark.parametrize("call", ["_add[(3,)](x)", "_add[grid](x)", "_add.run(x, grid=(1,))", "other[(1, 2)](x)"])
def test_a_kernel_that_is_started_otherwise_is_found(call: str) -> None:
    assert launches(f"@jit_for_any('n')\ndef _add(x):\n    pass\n\n{call}\n") == [5]


@pytest.mark.parametrize("fuse", [True, False])
def test_fusion_and_grid_are_said(fuse: bool) -> None:
    calls: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **keywords: calls.append((grid, arguments, keywords))

    gpu.launch(Kernel(), 3, "x", SPAN=4, on=torch.zeros(1), fuse=fuse)
    assert calls == [((3,), ("x",), {"SPAN": 4, "enable_fp_fusion": fuse})]


def test_more_programs_than_a_gpu_counts_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"a GPU starts at most 2,147,483,647 programs .*: pass fewer rows at once"):
        gpu.launch(None, 1 << 31, on=torch.zeros(1), fuse=True)


def test_an_interpreter_that_numpy_has_left_behind_is_refused_in_a_sentence() -> None:
    lines = [
        "import numpy, torch, triton",
        "numpy.__version__, triton.__version__ = '2.4.0', '3.6.0'",
        "import actstore.kernels.gpu",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    said = "ImportError: Triton 3.6.0's interpreter does not run with numpy 2.4.0: install triton>=3.7, or unset"
    assert said in run.stderr
