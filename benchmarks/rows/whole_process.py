"""A whole capture, from the start of Python to its end, beside the usual script: peak memory and CPU seconds of the processes.

The model is a Llama of 12 layers × 768 × 3,072 with random weights. Both read the same windows in the same batches, each in a
process of its own, in turn. A forward pass is in all of them; what imports, plan and store take is in those of actstore alone.

python -m benchmarks.rows.whole_process [--tokens N] [--repeats N] [PRECISION …]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.marked import table
from benchmarks.rows.capture import BATCH_WINDOWS, WINDOW, make_ids, make_model

LAYERS, D_MODEL, NEURONS = 12, 768, 3072
PRECISIONS = ("none", "half", "int8", "exact")
SCRIPT = "script"
SOURCES = {
    SCRIPT: """
import json, sys
from pathlib import Path
import numpy as np, torch
from transformers import AutoModelForCausalLM

folder, out, windows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
decoder = AutoModelForCausalLM.from_pretrained(folder / "model").model
ids = torch.tensor([json.loads(line)["input_ids"] for line in (folder / "ids.jsonl").open()])
out.mkdir()
batch = 0
def hook(layer):
    return lambda module, inputs: np.save(out / f"{batch}-{layer}.npy", inputs[0].half().numpy())
for number, layer in enumerate(decoder.layers):
    layer.mlp.down_proj.register_forward_pre_hook(hook(number))
with torch.inference_mode():
    for batch, rows in enumerate(ids.split(windows)):
        decoder(input_ids=rows, use_cache=False)
""",
    "capture": """
import sys
from pathlib import Path
import actstore

folder, out, batch_tokens, precision = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
actstore.capture(
    str(folder / "model"), folder / "ids.jsonl", out, precision=precision, context=256, batch_tokens=batch_tokens
)
""",
}


class Usage(NamedTuple):
    """What one process took."""

    peak_nbytes: int
    cpu_s: float


def measure(tokens: int, repeats: int, precisions: list[str]) -> dict[str, list[Usage]]:
    """What the script and captures of every precision took, in turn; the first turn, which compiles, is not counted."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        folder = Path(name)
        make_model(folder, n_layers=LAYERS, d_model=D_MODEL, n_neurons=NEURONS)
        rows = (json.dumps({"input_ids": row}) for row in make_ids(tokens).tolist())
        (folder / "ids.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        taken: dict[str, list[Usage]] = {kind: [] for kind in (SCRIPT, *precisions)}
        for turn in range(1 + repeats):
            for kind, usages in taken.items():
                usage = _run(folder, kind)
                if turn:
                    usages.append(usage)
    return taken


def _run(folder: Path, kind: str) -> Usage:
    out = folder / "out"
    if kind == SCRIPT:
        arguments = [SOURCES[SCRIPT], folder, out, BATCH_WINDOWS]
    else:
        arguments = [SOURCES["capture"], folder, out, BATCH_WINDOWS * WINDOW, kind]
    process = subprocess.Popen([sys.executable, "-c", *map(str, arguments)], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{kind} ended with status {process.returncode}")
    shutil.rmtree(out)
    return Usage(usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)


def markdown(taken: dict[str, list[Usage]]) -> str:
    """A table of medians, and of the medians of the ratios to the script in the same turn."""
    rows = []
    for kind, usages in taken.items():
        pairs = list(zip(usages, taken[SCRIPT], strict=True))
        rows.append(
            [
                "hooks and numpy.save of float16" if kind == SCRIPT else f"actstore, {kind}",
                f"{statistics.median(usage.peak_nbytes for usage in usages) / 1e6:,.0f}",
                f"{statistics.median(usage.peak_nbytes / script.peak_nbytes for usage, script in pairs):.2f} ×",
                f"{statistics.median(usage.cpu_s for usage in usages):.1f}",
                f"{statistics.median(usage.cpu_s / script.cpu_s for usage, script in pairs):.2f} ×",
            ]
        )
    return table(["process", "peak memory, MB", "of the script's", "CPU seconds", "of the script's"], rows, left=1)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precisions", nargs="*", default=PRECISIONS, help="of captures")
    parser.add_argument("--tokens", type=int, default=16_384, help="a multiple of 2,048")
    parser.add_argument("--repeats", type=int, default=3, help="of every process")
    options = parser.parse_args()
    sys.stdout.write(f"{markdown(measure(options.tokens, options.repeats, list(options.precisions)))}\n")


if __name__ == "__main__":
    main()
