"""The environments in which the tests have been run, and the page that lists them.

    python docs/compatibility.py run newest     # makes one environment, runs the tests in it, records what came of it
    python docs/compatibility.py run            # every environment, one after another
    python docs/compatibility.py page           # writes compatibility.md from what is recorded

Each environment is a virtual environment of its own below .venv-compatibility, removed afterwards unless --keep. Its releases
are resolved by uv (`make lock` installs it) from pyproject.toml. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"
LOCK = ROOT / "requirements.lock"
TRACED = "locked, 3.12"
"""The environment whose run says how many statements the tests run: from Python 3.12 on that costs next to nothing."""
MAX_NAMED = 10
"""Failures of an environment that the page names."""
MADE = "constraints.txt"
"""In a finished environment: what it was made with."""
PACKAGES = ("torch", "transformers", "tokenizers", "triton", "zarr", "numcodecs", "numpy", "numba", "pyarrow", "duckdb")
"""Those of which the page names the release."""


@dataclass(frozen=True)
class Environment:
    """One environment; `lock` says where its releases come from."""

    about: str
    python: str = "3.11"
    lock: str = "locked"
    """`locked`: requirements.lock as it is; `newest` or `lowest`: of everything that pyproject.toml names."""
    pins: tuple[str, ...] = ()
    """Requirements that differ from the lock, and what follows from them."""


CPU_TORCH = "torch==2.13.0"
"""Of other releases only CUDA builds are on the package index, several GB each."""

ENVIRONMENTS = {
    "locked": Environment("what `make env` installs"),
    "locked, 3.12": Environment("what `make env PYTHON=python3.12` installs", python="3.12"),
    "newest": Environment("the newest releases that pyproject.toml admits", lock="newest"),
    "lowest": Environment("the oldest releases that pyproject.toml admits, but for torch", lock="lowest", pins=(CPU_TORCH,)),
    "transformers 5.23": Environment("the lock, with the last transformers before `cache`", pins=("transformers==5.23.0",)),
    "GPU machines": Environment(
        "the lock, with the torch and triton of the GPU machines", python="3.12", pins=("torch==2.11.0", "triton==3.6.0")
    ),
}  # fmt: skip


def main() -> int:
    """The exit status: that of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run")
    run.add_argument("names", nargs="*", metavar="NAME", help=f"Of: {', '.join(ENVIRONMENTS)}.")
    run.add_argument("--python", help="The interpreter, where it is not python3.11 or python3.12 of the PATH.")
    run.add_argument("--keep", action="store_true", help="Leave the environment where it is, for another run.")
    run.add_argument("--pytest", default="", help="Further arguments of pytest; what is then run is not recorded.")
    actions.add_parser("page")
    asked = parser.parse_args()
    status = 0
    if asked.action == "run":
        if unknown := [name for name in asked.names if name not in ENVIRONMENTS]:
            parser.error(f"There is no environment {unknown[0]!r}: name one of {', '.join(ENVIRONMENTS)}.")
        for name in asked.names or ENVIRONMENTS:
            status = run_tests(name, asked.python, shlex.split(asked.pytest), keep=asked.keep) or status
    write_page()
    return status


def run_tests(name: str, python: str | None, pytest: list[str], *, keep: bool) -> int:
    """Make the environment, run the tests in it, record what came of a whole run."""
    environment = ENVIRONMENTS[name]
    folder = ROOT / ".venv-compatibility" / name.replace(", ", "-").replace(" ", "-")
    constraints, report = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("txt", "xml"))
    folder.parent.mkdir(exist_ok=True)
    try:
        resolve(environment, constraints)
        if not holds(folder, constraints):
            shutil.rmtree(folder, ignore_errors=True)
            install(python or f"python{environment.python}", folder, constraints)
        command = [str(folder / "bin" / "python"), "-m", "pytest", "-m", "not slow", "--numprocesses", "auto"]
        command += [
            "--maxprocesses",
            "4",
            "--dist",
            "loadfile",
            "--no-loadscope-reorder",
            f"--junitxml={report}",
            *(["--cov", f"--cov-report=json:{report.with_suffix('.json')}"] if name == TRACED else []),
            *pytest,
        ]
        variables = os.environ | {"COVERAGE_CORE": "sysmon"}
        status = subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode
        if not pytest:
            record(name, environment, folder, report)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def resolve(environment: Environment, constraints: Path) -> None:
    """Write the release of every package of the environment into `constraints`."""
    if environment.lock == "locked":
        shutil.copyfile(LOCK, constraints)  # uv keeps the pins that it finds in its output, where it can
    else:
        constraints.unlink(missing_ok=True)
    if environment.lock == "locked" and not environment.pins:
        return
    pins = constraints.with_name(f"{constraints.stem}.in")
    pins.write_text("\n".join([*environment.pins, "pip>=26", "setuptools>=77"]) + "\n", encoding="utf-8")
    command = [".venv-lock/bin/uv", "pip", "compile", "pyproject.toml", str(pins), "--extra", "dev", "--quiet"]
    command += ["--python-version", environment.python, "--output-file", str(constraints)]
    command += ["--resolution", "lowest-direct"] if environment.lock == "lowest" else []
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def holds(folder: Path, constraints: Path) -> bool:
    """Whether the environment was made with just these constraints."""
    made = folder / MADE
    return made.is_file() and made.read_bytes() == constraints.read_bytes()


def install(python: str, folder: Path, constraints: Path) -> None:
    """A virtual environment with this project and what the constraints name."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--quiet",
        "--constraint",
        str(constraints),
    ]
    subprocess.run([*pip, "pip", "setuptools"], check=True)
    subprocess.run([*pip, "--no-build-isolation", "--editable", ".[dev]"], cwd=ROOT, check=True)
    shutil.copyfile(constraints, folder / MADE)


def record(name: str, environment: Environment, folder: Path, report: Path) -> None:
    """Put what came of a run into compatibility.json, in place of what came of the one before."""
    script = (
        "import importlib.metadata as m, json, platform, sys\n"
        "print(json.dumps({'python': platform.python_version()} | {n: m.version(n) for n in sys.argv[1:]}))"
    )
    asked = [str(folder / "bin" / "python"), "-c", script, *PACKAGES]
    versions = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    traced = report.with_suffix(".json")
    totals = json.loads(traced.read_text(encoding="utf-8"))["totals"] if name == TRACED else {}
    rows = read_record()
    rows[name] = {
        "about": environment.about,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip(),
        "machine": f"{os.uname().sysname} {os.uname().machine}, no GPU" if not has_gpu(folder) else "with a GPU",
        "versions": versions,
        "passed": counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
        "seconds": round(float(suite.get("time", 0))),
    } | ({"statements": totals["num_statements"], "run": totals["covered_lines"]} if totals else {})
    RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def has_gpu(folder: Path) -> bool:
    """Whether the environment's torch finds one."""
    script = "import torch; print(torch.cuda.is_available())"
    asked = [str(folder / "bin" / "python"), "-c", script]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip() == "True"


def read_record() -> dict[str, Any]:
    """Environment → what came of its last whole run."""
    rows: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    return rows


def write_page() -> None:
    """compatibility.md, from compatibility.json."""
    recorded = read_record()
    # Behind those that pyproject.toml admits, those that it did when they were run.
    rows = {name: recorded[name] for name in dict.fromkeys([*ENVIRONMENTS, *recorded]) if name in recorded}
    missing = [name for name in ENVIRONMENTS if name not in recorded]
    lines = [
        "# Compatibility",
        "",
        "`make env` installs the releases that `requirements.lock` names, of every package and of what these need: an",
        "installation is the same next year. `pyproject.toml` admits a range of each. These environments were made, and",
        "`make test` was run in each (`python docs/compatibility.py run NAME`, which writes this page).",
        "",
        "| environment | Python | " + " | ".join(PACKAGES) + " | passed | failed | skipped | run on | commit |",
        "|---|---|" + "---|" * len(PACKAGES) + "---:|---:|---:|---|---|",
    ]
    for name, row in rows.items():
        versions = [row["versions"][package] for package in ("python", *PACKAGES)]
        counts = [f"{row['passed']:,}", f"{len(row['failed']):,}", f"{row['skipped']:,}"]
        lines.append(f"| {' | '.join([name, *versions, *counts, row['date'], row['commit']])} |")
    lines += ["", *(f"- **{name}**: {row['about']}." for name, row in rows.items())]
    for row in rows.values():
        if "statements" in row:
            share = f"{row['run'] / row['statements']:.1%}".replace("%", " %")
            lines += [
                "",
                f"`make test` runs {share} of {row['statements']:,} statements, counted in its own processes alone and",
            ]
            lines += ["without what numba compiles (`make coverage` lists the others)."]
    for name, row in rows.items():
        if row["failed"]:
            lines += ["", f"Failed in {name}:", "", *(f"- `{test}`" for test in row["failed"][:MAX_NAMED])]
        if len(row["failed"]) > MAX_NAMED:
            lines += [f"- and {len(row['failed']) - MAX_NAMED:,} more (compatibility.json)"]
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    if all("no GPU" in row["machine"] for row in rows.values()):
        lines += ["", "On a GPU: not measured."]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
