"""Writes the README's tour: runs its commands over the embedded model and puts what they print between the README's marks.

    make demo && .venv/bin/python demo/tour.py

The commands run in an empty folder beside the embedded model, as a reader would type them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "tour"

STEPS = (
    ("What would be captured, before anything is:", "actstore inspect demo/stdlib-llama"),
    (
        "Capture it over a folder of text (`make demo` left one), here at one byte a value:",
        "actstore capture demo/stdlib-llama build/demo/stdlib stdlib.actstore --precision int8 --max-tokens 250000",
    ),
    (
        "Which neurons stand out? The table is Parquet, the language SQL:",
        'actstore sql stdlib.actstore "select name, max, std, positive from neurons '
        'where layer = 3 order by (max - mean) / std desc limit 5"',
    ),
    ("What does one of them look for?", "actstore top stdlib.actstore {neuron} -k 6"),
    ("Is every byte what it was, and does the model still say the same?", "actstore verify stdlib.actstore --refill 2"),
    ("Take its activations elsewhere:", "actstore export stdlib.actstore {neuron}.parquet --neurons {neuron}"),
)


def run(command: str) -> str:
    """What a command prints on standard output."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(shlex.split(command), cwd=BUILD, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def main() -> None:
    """Run every step and rewrite the README."""
    subprocess.run(["rm", "-rf", str(BUILD)], check=True)
    BUILD.mkdir(parents=True)
    for name in ("demo", "build"):
        (BUILD / name).symlink_to(ROOT / name)
    parts, neuron = [], ""
    for text, command in STEPS:
        typed = command.format(neuron=neuron)
        printed = run(typed)
        if found := re.search(r"^L\d+\.N\d+", printed, re.MULTILINE):
            neuron = neuron or (found[0] if "sql" in command else "")
        parts.append(f"{text}\n\n```console\n$ {typed}\n{printed}\n```\n")
    readme = ROOT / "README.md"
    content = "\n".join(parts)
    pattern = re.compile(r"(<!-- tour -->\n).*?(<!-- /tour -->)", re.DOTALL)
    readme.write_text(pattern.sub(lambda m: m[1] + content + m[2], readme.read_text()))


if __name__ == "__main__":
    main()
