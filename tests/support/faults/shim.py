"""The preloaded library: built where a C compiler is, armed in this process by `arm`."""

from __future__ import annotations

import ctypes
import errno
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
CLASSES = ("create", "write", "fsync", "rename", "unlink", "truncate", "mkdir", "open", "read", "mmap")
"""Classes of calls, in the order of the C enumeration; `create` is every open that writes or creates."""
CHANGES = CLASSES[:7]
ACTIONS = ("nothing", "kill", "fail", "tear", "wait")


@dataclass(frozen=True)
class Fault:
    """What happens at the `nth` call (from 1) of some classes; `nth` 0: nothing, calls are counted."""

    action: str = "nothing"
    classes: tuple[str, ...] = ()
    nth: int = 0
    error: str = "EIO"
    stays: bool = False
    """Whether every later call of the classes fails too, as on a disk that is full."""
    wait_ms: int = 0

    def __str__(self) -> str:
        what = self.error if self.action == "fail" else self.action
        return f"{what}{' from then on' if self.stays else ''} at {'/'.join(self.classes)} {self.nth}"


def compiler() -> str | None:
    """The path of a C compiler, None where there is none."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """The library, compiled into a folder."""
    target, found = folder / "faults-shim.so", compiler()
    if found is None:
        raise FileNotFoundError("a C compiler, cc or gcc")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    subprocess.run([found, *flags, "-o", str(target), str(SOURCE), "-ldl", "-lpthread"], check=True)
    return target


def arm(folder: Path, fault: Fault, journal: Path | None = None) -> None:
    """From here on, calls below `folder` are counted and `fault` happens; the library must be preloaded in this process."""
    mask = sum(1 << CLASSES.index(name) for name in fault.classes)
    ctypes.CDLL(None).fault_arm(
        str(folder).encode(),
        ctypes.c_uint(mask),
        ctypes.c_long(fault.nth),
        ACTIONS.index(fault.action),
        getattr(errno, fault.error),
        int(fault.stays),
        fault.wait_ms,
        b"" if journal is None else str(journal).encode(),
    )


def disarm() -> tuple[dict[str, int], bool]:
    """How many calls of each class there were since `arm`, and whether the fault happened."""
    library = ctypes.CDLL(None)
    library.fault_disarm()
    library.fault_count.restype = ctypes.c_long
    return {name: library.fault_count(i) for i, name in enumerate(CLASSES)}, bool(library.fault_happened())


def write_bytes(path: str, n: int) -> None:
    """Write `n` bytes in one call: what tests of the shim call in a child."""
    with open(path, "wb", buffering=0) as file:
        file.write(b"x" * n)
