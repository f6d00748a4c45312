"""Every Triton kernel, compiled for GPUs that need not be there: what the interpreter, which has no types, cannot show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compiled.addresses import narrow_products

pytest.importorskip("triton", reason="Triton is for Linux")

COMPILER = Path(__file__).parents[1] / "support" / "compiled"


def compile_kernels(*arguments: str) -> dict[str, Any]:
    """What tests/support/compiled prints. Its process has no interpreter; what was compiled stays in Triton's own cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_INTERPRET")}
    command = [sys.executable, str(COMPILER), *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr == "", "compilers warn"
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("cuda:90", "--usual"), id="Hopper"),
        pytest.param(("cuda:90",), id="Hopper, every case", marks=pytest.mark.slow),
        pytest.param(("cuda:80",), id="Ampere, every case", marks=pytest.mark.slow),
        pytest.param(("hip:gfx942",), id="MI300, every case", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_compiles_to_what_it_should(arguments: tuple[str, ...]) -> None:
    found = compile_kernels(*arguments)
    assert found["problems"] == []
    assert found["missing"] == [], "kernels in the source that no case of tests/support/compiled/cases.py compiles"


WIDE = """
module {
  tt.func public @_kernel(%x: !tt.ptr<f32>, %n: i32) {
    %p = tt.get_program_id x : i32 loc(#loc)
    %w = arith.extsi %p : i32 to i64 loc(#loc)
    %m = arith.extsi %n : i32 to i64 loc(#loc)
    %o = arith.muli %w, %m : i64 loc(#loc)
    %a = tt.addptr %x, %o : !tt.ptr<f32>, i64 loc(#loc)
    %v = tt.load %a : !tt.ptr<f32> loc(#loc)
    %d = arith.muli %p, %n : i32 loc(#loc)
    tt.store %a, %v : !tt.ptr<f32> loc(#loc)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
"""
CARRIED = """
    %r:2 = scf.for %i = %c0 to %n step %c1 iter_args(%s = %o, %t = %v) -> (i64, f32)  : i32 {
      %q = arith.muli %i, %n : i32
      %e = arith.extsi %q : i32 to i64
      scf.yield %e, %t : i64, f32
    }
    %b = tt.addptr %x, %r#INDEX : !tt.ptr<f32>, i64
    %u = tt.load %b : !tt.ptr<f32>
"""


@pytest.mark.parametrize(
    ("line", "instead", "lines"),
    [
        ("", "", []),
        ("%o = arith.muli %w, %m : i64", "%n2 = arith.muli %p, %n : i32\n%o = arith.extsi %n2 : i32 to i64", ["%n2"]),
        ("%v = tt.load %a", "%k = arith.cmpi slt, %d, %n : i32\n%v = tt.load %a, %k", ["%d"]),
        ("    tt.return", CARRIED.replace("INDEX", "0") + "    tt.return", ["%q"]),
        ("    tt.return", CARRIED.replace("INDEX", "1") + "    tt.return", []),
    ],
    ids=["wide, and a product that is no address", "narrow address", "narrow mask", "carried by a loop", "not carried"],
)
def test_products_of_indices_in_32_bits_are_found(line: str, instead: str, lines: list[str]) -> None:
    found = narrow_products(WIDE.replace(line, instead) if line else WIDE)
    assert [product.partition(" =")[0] for product in found] == lines
