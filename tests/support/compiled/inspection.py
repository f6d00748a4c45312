"""What a compiled kernel uses, counted in its code, and what must not be in it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton

from compiled.addresses import narrow_products
from compiled.stub import SHARED_MEMORY

if TYPE_CHECKING:
    from compiled.cases import Case
    from compiled.stub import Compiled

MAX_STACK = {"cuda": 64, "hip": 256}
"""Bytes of a thread that do not fit in registers. On an MI300, the keys of more than 32 top tokens beside products in parts."""

_FORBIDDEN = {".ftz": "flushes subnormals to zero", ".tf32": "rounds products to TF32"}
_TENSOR_CORES = re.compile(r"wgmma\.mma_async|mma\.sync|v_mfma_")


def resources(kernel: Any) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        found = [re.search(rf"\.{name}: *(\d+)", text) for name in ("vgpr_count", "private_segment_fixed_size")]
    else:
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(kernel.asm["cubin"])
            text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        found = [re.search(rf"{name}:(\d+)", text) for name in ("REG", "STACK")]
    if not all(found):
        raise ValueError(f"no registers or stack in: {text[:300]}")
    registers, stack = (int(match[1]) for match in found if match)
    return registers, stack


def counts(kernel: Any) -> dict[str, int]:
    """How often the code that was compiled has what is worth watching, and what a thread and a program use."""
    registers, stack = resources(kernel)
    numbers = {"registers": registers, "stack": stack, "shared": kernel.metadata.shared}
    if "ptx" in kernel.asm:
        code = kernel.asm["ptx"]
        patterns = {
            "atomics": r"\b(?:red|atom)\.global",
            "loads": r"\bld\.global",
            "wide loads": r"\bld\.global\S*\.v4",
            "stores": r"\bst\.global",
            "wide stores": r"\bst\.global\S*\.v[24]",
            "tensor core products": _TENSOR_CORES.pattern,
            "barriers": r"\bbar(?:rier)?\.sync",
        }
        numbers |= {name: len(re.findall(pattern, code)) for name, pattern in patterns.items()}
    return numbers


def problems(compiled: Compiled, numbers: dict[str, int], case: Case, arch: int | str) -> list[str]:
    """What is wrong with a kernel, each in one sentence."""
    asm = compiled.kernel.asm
    code = asm.get("ptx") or asm["amdgcn"]
    found = []
    most = MAX_STACK["cuda" if "ptx" in asm else "hip"]
    if numbers["stack"] > most:
        found.append(f"keeps {numbers['stack']} bytes of a thread in memory, more than {most}")
    if numbers["shared"] > SHARED_MEMORY[arch]:
        found.append(f"needs {numbers['shared']} bytes of shared memory, of which there are {SHARED_MEMORY[arch]}")
    found += [says for what, says in _FORBIDDEN.items() if what in code]
    if case.on_tensor_cores and not _TENSOR_CORES.search(code):
        found.append("multiplies 16-bit floats without tensor cores")
    if arch == 90:
        more = {name: most for name, most in case.at_most.items() if numbers[name] > most}
        found += [f"has {numbers[name]} {name}, more than {most}" for name, most in more.items()]
    if "enable_fp_fusion" not in compiled.keywords:
        found.append("does not say whether products and sums are fused")
    elif not compiled.keywords["enable_fp_fusion"] and re.search(r"\bfma\.rn\.f", code):
        found.append("fuses products and sums, although it was to give the CPU's bits")
    found += [f"multiplies an index in 32 bits: {line}" for line in narrow_products(asm["ttir"])]
    return [f"{compiled.case}: {compiled.name} {problem}" for problem in found]
