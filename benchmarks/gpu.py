"""What a machine with a GPU is asked, once and in under six minutes: is everything right there, and how fast?

    python benchmarks/gpu.py [--only PART …] [--output FILE]    measures; prints as it goes; benchmarks/results/gpu.json
    python benchmarks/gpu.py --write                            writes README.md's and docs/gpu.md's tables from that file
    python benchmarks/gpu.py --small                            runs all of it, tiny, on a CPU in Triton's interpreter

Every part is a process of its own with a time of its own: one that fails, hangs or loses the GPU is recorded as failed, and the
next one begins. It takes the releases of torch and Triton that are there, and needs no installation of actstore.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULTS: Final = ROOT / "benchmarks" / "results" / "gpu.json"
PARTS: Final = {"machine": 30, "large": 45, "kernels": 75, "capture": 110, "commands": 35, "tests": 60}
"""Part, a module of `benchmarks/on_gpu` → seconds after which its process is ended: all together, less than six minutes."""
START_S: Final = 5.0
"""Of these, what a part keeps back for its end."""

Told = dict[str, Any]


def main() -> None:
    """Measure, or write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--output", type=Path, help="where the results go; a small run keeps none unless this is said")
    parser.add_argument("--small", action="store_true", help="tiny inputs, to see whether everything runs")
    parser.add_argument(
        "--write", action="store_true", help="write the tables of what was measured last, and measure nothing"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options.part, options.small, tell)
    elif options.write:
        write_tables()
    else:
        output = options.output or (None if options.small else RESULTS)
        measure(options.only, small=options.small, output=output)


def measure(parts: Sequence[str], *, small: bool, output: Path | None, isolated: bool = True) -> Told:
    """Run the parts one after another; what they told, which is in `output` after each.

    isolated: each in a process of its own, which is ended when its time is up.
    """
    results: Told = {"small": small, "machine": {}, "parts": {}}
    for name in parts:
        began = time.monotonic()
        rows: list[Told] = []
        error = _run_isolated(name, small, rows) if isolated else _run_here(name, small, rows)
        part: Told = {"status": "failed" if error else "measured", "seconds": round(time.monotonic() - began, 1)}
        part |= {"error": error} if error else {}
        if name == "machine":
            results["machine"] = rows[0] if rows else {}
        else:
            part["rows"] = rows
        results["parts"][name] = part
        if error:
            tell({"part": name, "failed": error})
        if output is not None:
            output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def run_part(name: str, small: bool, told: Callable[[Told], None]) -> None:
    """Run one part in this process."""
    if name == "machine":
        told(machine())
        return
    from benchmarks.on_gpu.part import Part

    module = importlib.import_module(f"benchmarks.on_gpu.{name}")
    module.run(Part(name, told, PARTS[name] - START_S, small))


def machine() -> Told:
    """The card, the releases, the commit, the date; no card where there is none."""
    import importlib.metadata as metadata

    import torch

    properties: Any = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    names = ("torch", "triton", "transformers", "numpy", "numba", "zarr", "numcodecs")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "card": properties and properties.name,
        "memory_nbytes": properties and properties.total_memory,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if properties else "",
        "processors": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": versions,
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def tell(row: Told) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def write_tables() -> None:
    """Write the tables of what is in the results; those of a small run, or of no card, are refused."""
    from benchmarks.marked import rewrite
    from benchmarks.on_gpu import tables

    for mark, text in tables.markdown(tables.read(RESULTS)).items():
        rewrite(mark, text)


def _run_here(name: str, small: bool, rows: list[Told]) -> str:
    def told(row: Told) -> None:
        tell(row)
        rows.append(row)

    try:
        run_part(name, small, told)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return _failure(rows)


def _run_isolated(name: str, small: bool, rows: list[Told]) -> str:
    """Fill `rows` with what a process tells as it goes; returns why it failed, or nothing."""
    with tempfile.TemporaryDirectory(prefix="actstore-gpu-") as folder, tempfile.TemporaryFile("w+") as errors:
        # A checkout is the package under its name, installed or not.
        (Path(folder) / "actstore").symlink_to(ROOT)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
        if small:
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, __file__, "--part", name, *(["--small"] if small else [])]
        began = time.monotonic()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            timer = threading.Timer(PARTS[name], process.kill)
            timer.start()
            assert process.stdout is not None
            _read(process.stdout, rows)
            status = process.wait()
            timer.cancel()
        if time.monotonic() - began >= PARTS[name]:
            return f"ended after {PARTS[name]} s"
        if status:
            errors.seek(0)
            return f"ended with status {status}: {errors.read()[-1500:]}"
    return _failure(rows)


def _read(stream: IO[str], rows: list[Told]) -> None:
    for line in stream:
        sys.stdout.write(line)
        sys.stdout.flush()
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)


def _failure(rows: list[Told]) -> str:
    """What failed in a part that went to its end."""
    failed = [str(row["name"]) for row in rows if "error" in row or row.get("right") is False]
    return f"failed or not right: {', '.join(failed)}" if failed else ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
