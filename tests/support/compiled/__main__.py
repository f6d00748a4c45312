"""Compile the Triton kernels for a GPU that need not be there, through their launchers, and print what is wrong with them.

    python tests/support/compiled cuda:90 [--usual]

Prints one JSON document: `problems`, sentences; `missing`, kernels in the source that nothing compiled; `kernels`, what each
uses; `cpu_s`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is imported, below
sys.path.insert(0, str(Path(__file__).parents[1]))

import actstore.kernels.gpu
from compiled.cases import Case, cases
from compiled.inspection import counts, problems
from compiled.stub import Compiled, compiling, target_of


def kernels_in_source() -> set[str]:
    """The Triton functions that no other calls, as `pack.gpu._pack`."""
    folder = Path(actstore.kernels.gpu.__file__).parent
    functions: set[str] = set()
    called: set[str] = set()
    for path in folder.rglob("gpu*.py"):
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(mark) for mark in node.decorator_list):
                functions.add(f"{module}.{node.name}")
                calls = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
                # Only public parts are called from other modules.
                called |= {f"{module}.{name}" if name.startswith("_") else name for name in calls}
    return {name for name in functions if not {name, name.rpartition(".")[2]} & called}


def run_case(case: Case, failed: list[str]) -> None:
    """Call a launcher; what it raises, warnings too, is a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            case.call()
    except Exception as error:
        failed.append(f"{case.name}: {type(error).__name__}: {error}")


def main() -> None:
    """Compile, inspect, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--usual", action="store_true")
    options = parser.parse_args()
    target, began = target_of(options.target), time.process_time()
    compiled: dict[str, Compiled] = {}
    failed: list[str] = []
    done: dict[str, Case] = {}
    with compiling(target, compiled, failed) as current:
        for case in cases():
            if case.usual or not options.usual:
                current[0] = case.name
                run_case(case, failed)
                done[case.name] = case
    kernels: list[dict[str, Any]] = []
    for one in compiled.values():
        numbers = counts(one.kernel)
        kernels.append({"kernel": one.name, "case": one.case, **numbers})
        failed += problems(one, numbers, done[one.case], target.arch)
    print(
        json.dumps(
            {
                "problems": failed,
                "missing": sorted(kernels_in_source() - {one.name for one in compiled.values()}),
                "kernels": kernels,
                "cpu_s": round(time.process_time() - began, 1),
            }
        )
    )


main()
