"""Writes the documentation's tours: runs their commands over the embedded models and puts the output between the marks.

    make demo && .venv/bin/python demo/tour.py [MARK …]

The commands run in an empty folder that links to demo/ and build/, as a reader would type them at the checkout's root. A
command that several tours have runs once. Tours whose mark begins with `output-` are the examples of the method pages.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.marked import page_with, rewrite  # noqa: E402 - the checkout must be importable first
from demo.command_tours import COMMANDS  # noqa: E402
from demo.tours import CAPTURE_CODE, STAND_OUT, TOURS, Step  # noqa: E402

BUILD = ROOT / "build" / "tour"
PICTURES = ROOT / "docs" / "pictures"


@cache
def run(command: str) -> str:
    """The standard output of a command, which runs once; of a server, its first line."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if command.startswith("actstore serve"):
        with subprocess.Popen(
            shlex.split(command), cwd=BUILD, env=environment, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            line = server.stdout.readline().rstrip()
            server.send_signal(signal.SIGINT)
        return line
    done = subprocess.run(shlex.split(command), cwd=BUILD, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def main() -> None:
    """Run every step and write the tours into the documentation."""
    tours = TOURS | COMMANDS
    if unknown := set(sys.argv[1:]) - tours.keys():
        sys.exit(f"There is no tour {unknown.pop()!r}. The tours are: {', '.join(tours)}.")
    subprocess.run(["rm", "-rf", str(BUILD)], check=True)
    BUILD.mkdir(parents=True)
    PICTURES.mkdir(exist_ok=True)
    for name in ("demo", "build"):
        (BUILD / name).symlink_to(ROOT / name)
    for mark, steps in tours.items():
        if sys.argv[1:] and mark not in sys.argv[1:]:
            continue
        pictures = os.path.relpath(PICTURES, page_with(mark).parent)
        rewrite(mark, "\n".join(walk(steps, pictures)))


def neuron() -> str:
    """The neuron that the tours of code look at."""
    run(CAPTURE_CODE)
    match = re.search(r"^L\d+\.N\d+", run(STAND_OUT), re.MULTILINE)
    assert match is not None
    return match[0]


def walk(steps: tuple[Step, ...], pictures: str) -> list[str]:
    """For each step its text, its command, the command's output, shortened if it is long, and its picture."""
    parts = []
    for step in steps:
        if not step.command:
            parts.append(f"{step.text}\n")
            continue
        command = step.command.format(neuron=neuron()) if "{neuron}" in step.command else step.command
        lines = shorten(run(command).splitlines(), step.max_lines)
        block = "\n".join([f"$ {command}", *lines])
        parts.append((f"{step.text}\n\n" if step.text else "") + f"```console\n{block}\n```\n")
        if step.picture is not None:
            source, name, alternative = step.picture
            if source:
                shutil.copyfile(BUILD / source, PICTURES / name)
            parts.append(f"![{alternative}]({pictures}/{name})\n")
    return parts


def shorten(lines: list[str], max_lines: int) -> list[str]:
    """The lines, or where there are more than `max_lines` the first of them and, of long output, the last two."""
    if len(lines) <= max_lines:
        return lines
    return [*lines[: max_lines - 4], "…", *lines[-2:]] if max_lines > 8 else lines[:max_lines]


if __name__ == "__main__":
    main()
