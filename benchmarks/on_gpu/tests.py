"""The project's own tests of what runs on a GPU, there, within the part's time."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from benchmarks.on_gpu.part import Part

ROOT = Path(__file__).resolve().parents[2]
TESTS: Final = (
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "kernels").glob("test_*gpu*.py")),
    "tests/engine/capture/gpu",
    "tests/engine/devices",
)
SMALL_TESTS = ("tests/kernels/test_gpu_launch.py",)


def run(part: Part) -> None:
    """One row: how many passed, how many did not, and what failed."""
    files = SMALL_TESTS if part.small else TESTS
    # Warnings of releases that we do not know are no failures here.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=line",
        "-W",
        "default",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
    ]
    if not part.small and importlib.util.find_spec("xdist") is not None:
        command += ["--numprocesses", str(min(12, os.cpu_count() or 1)), "--maxfail", "50"]
    try:
        done = subprocess.run(
            [*command, *files], cwd=ROOT, capture_output=True, text=True, timeout=max(part.left_s - 2, 1), check=False
        )
        text, status = done.stdout + done.stderr, str(done.returncode)
    except subprocess.TimeoutExpired as expired:
        text, status = (expired.stdout or b"").decode(errors="replace"), "out of time"
    counts = {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", text)}
    failures = re.findall(r"^(?:FAILED|ERROR) (.*)$", text, re.MULTILINE)[:40]
    figures = {"error": f"pytest ended with status {status}: {text[-1500:]}"} if status != "0" else {}
    part.row("tests of the GPU path", **counts, failures=failures, **figures)
