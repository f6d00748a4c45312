"""Writes the documentation's tours: runs their commands over the embedded models and puts the output between the marks.

    make demo && .venv/bin/python demo/tour.py [captions]

The commands run in an empty folder that links to demo/ and build/, as a reader would type them at the checkout's root.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.marked import rewrite  # noqa: E402 - the checkout must be importable first

BUILD = ROOT / "build" / "tour"
LINES = 24
"""Maximum number of lines of a command's output; of longer output the middle is left out."""

TOUR = (
    ("What would be captured, before anything is:", "actstore inspect demo/models/stdlib-llama"),
    (
        "Capture it over a folder of text (`make demo` left one), here at one byte a value:",
        "actstore capture demo/models/stdlib-llama build/demo/stdlib stdlib.actstore --precision int8 --max-tokens 250000",
    ),
    (
        "Which neurons stand out? The table is Parquet, the language SQL:",
        'actstore sql stdlib.actstore "select name, max, std, positive from neurons '
        'where layer = 3 order by (max - mean) / std desc limit 5"',
    ),
    ("What does one of them look for?", "actstore top stdlib.actstore {neuron} -k 6"),
    (
        "And which contexts decide? A graph of every neuron from the stored corpus, one of them as a tree:",
        "actstore graphs build stdlib.actstore",
    ),
    ("", "actstore graphs show stdlib.actstore {neuron} --paths 8"),
    (
        "Which neurons write a token? The direct part of each in the token's logit, and the tokens it writes in general:",
        'actstore contributions stdlib.actstore --target " return" -k 5',
    ),
    ("Is every byte what it was, and does the model still say the same?", "actstore verify stdlib.actstore --refill 2"),
    (
        "Take its activations elsewhere, as Parquet, NumPy or safetensors:",
        "actstore export stdlib.actstore --output {neuron}.parquet --neurons {neuron}",
    ),
)

QUESTIONS = (
    (
        "Ask the fact model its 796 questions, and keep what every neuron did for every answer:",
        "actstore attribute demo/models/fact-llama demo/models/fact-llama/questions.json facts.actstore -k 3",
    ),
    (
        "Which neurons is a query's answer attributed to, and other queries' answers not? No model is needed any more:",
        "actstore naica facts.actstore --by relation_name -k 4 --output facts.svg",
    ),
    (
        "Where was it wrong?",
        'actstore sql facts.actstore "select query, n_correct, probability from queries '
        'where not correct order by probability limit 3"',
    ),
)
CAPTIONS = (
    (
        "Draw pictures, and let the embedded captioner say what is on them:",
        "python demo/training/pictures.py pictures --number 600",
    ),
    (
        "",
        "actstore capture demo/models/shapes-llava pictures captions.actstore --generate --site mlp.post --site resid.post",
    ),
    (
        "Which neurons carry each word of a caption, and where on the picture do they look? From the store, without the model:",
        "actstore multimodal captions.actstore -k 3 --document 0 --output maps",
    ),
    (
        "Let it say green instead of red. The new write vectors are computed from the store alone:",
        "actstore edit rewrite captions.actstore --from red --to green --max-documents 400",
    ),
    (
        "Does it, on pictures that the edit was not made from, and is all else as it was?",
        "actstore edit evaluate captions.actstore red-green-least-norm --seeds 1",
    ),
    (
        "Take it along, as an ordinary model folder; `edit revert` puts every byte back:",
        "actstore edit apply captions.actstore red-green-least-norm --output shapes-edited",
    ),
)
TOURS = {"tour": TOUR, "questions": QUESTIONS, "captions": CAPTIONS}


def run(command: str) -> str:
    """The standard output of a command."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(shlex.split(command), cwd=BUILD, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def main() -> None:
    """Run every step and write the tours into the documentation."""
    subprocess.run(["rm", "-rf", str(BUILD)], check=True)
    BUILD.mkdir(parents=True)
    for name in ("demo", "build"):
        (BUILD / name).symlink_to(ROOT / name)
    for mark, steps in TOURS.items():
        if sys.argv[1:] and mark not in sys.argv[1:]:
            continue
        rewrite(mark, "\n".join(walk(steps)))


def walk(steps: tuple[tuple[str, str], ...]) -> list[str]:
    """For each step its text, its command and the command's output, shortened if it is long."""
    parts, neuron = [], ""
    for text, command in steps:
        line = command.format(neuron=neuron)
        output = run(line)
        if match := re.search(r"^L\d+\.N\d+", output, re.MULTILINE):
            neuron = neuron or (match[0] if "sql" in command else "")
        lines = output.splitlines()
        shown = lines if len(lines) <= LINES else [*lines[: LINES - 4], "…", *lines[-2:]]
        block = "\n".join([f"$ {line}", *shown])
        parts.append((f"{text}\n\n" if text else "") + f"```console\n{block}\n```\n")
    return parts


if __name__ == "__main__":
    main()
