"""What captures of large models take: bytes, objects, requests, hours; the tables of docs/scale.md, by the product's functions.

python benchmarks/tables/capture_scale.py [--measure] [--write]

Nothing is captured. The sizes of blocks, bytes and objects are those that `actstore.capture` plans with. With --measure, the
time of encoding is measured again, which takes half a minute of an idle machine, and benchmarks/results/encoding.json written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from actstore.display import terminal  # noqa: E402 - the checkout must be importable first
from actstore.engine.capture.buffers import buffer_nbytes  # noqa: E402
from actstore.engine.capture.corpus_run import BLOCK_SLOTS  # noqa: E402
from actstore.engine.capture.plan import block_size  # noqa: E402
from actstore.engine.capture.scale import READ_REQUESTS, write_requests  # noqa: E402
from actstore.engine.capture.settings import MAX_DEFAULT_CONTEXT  # noqa: E402
from actstore.engine.capture.sizes import (  # noqa: E402
    STATISTICS_NBYTES,
    bytes_per_slot,
    default_memory,
    estimate_nbytes,
    estimate_objects,
    planned_slots,
    with_bundles,
)
from actstore.kernels.pack.statistics import STATISTICS  # noqa: E402
from actstore.store.files.precision import PRECISIONS  # noqa: E402
from actstore.store.files.records import CaptureRecord, PlanRecord  # noqa: E402
from actstore.store.files.shards import shard_parts, shard_seed, write_parts  # noqa: E402
from actstore.store.layout import shard_grid  # noqa: E402
from benchmarks.marked import rewrite, table  # noqa: E402
from benchmarks.run import machine  # noqa: E402

RESULTS: Final = ROOT / "benchmarks" / "results" / "encoding.json"
MODELS: Final = {"7B": (32, 11_008), "70B": (80, 28_672)}
"""Name → gated layers, neurons of each: Llama 2."""
D_MODEL: Final = {"7B": 4096, "70B": 8192}
KEEP: Final = 0.01
TOKENS_PER_S: Final = 30_000
"""Of the forward pass of a 7B model on an H100: an assumption, not a measurement."""
CORES_PER_GPU: Final = 16
GPUS: Final = (1, 8, 64)


def capture_record(model: str, precision: str, n_tokens: int, bundle: bool | None = None) -> CaptureRecord:
    """The record of a planned capture of all layers, from a model in float16, every window full."""
    n_layers, width = MODELS[model]
    gated = tuple(range(n_layers)) if PRECISIONS[precision].keeps_values else ()
    sites = {"mlp.post": dict.fromkeys(range(n_layers), width)}
    slot_nbytes = bytes_per_slot(sites, precision, "float16", len(gated) * width)
    usual = default_memory(n_layers * width, D_MODEL[model], "float16")
    slots = block_size(MAX_DEFAULT_CONTEXT, planned_slots(slot_nbytes, None, None, BLOCK_SLOTS, usual))
    n_blocks = -(-n_tokens // slots)
    n_windows = -(-n_tokens // MAX_DEFAULT_CONTEXT)
    plan = PlanRecord(
        "p" * 64, "corpus", "c" * 64, "t" * 64, {}, (), (), n_windows, n_windows, n_tokens, slots, n_blocks
    )
    record = CaptureRecord(
        name="corpus",
        created="",
        written_by="",
        model_fingerprint="f" * 64,
        dtype="float16",
        precision=precision,
        sites={"mlp.post": dict.fromkeys(map(str, range(n_layers)), width)},
        gate_sign=gated,
        keep=KEEP if PRECISIONS[precision].uses_keep else None,
        n_exemplars=20,
        settings={},
        plan=plan,
        statistics=tuple(STATISTICS),
        identity="i" * 32,
        compression=PRECISIONS[precision].default_compression,
    )
    return with_bundles(record, bundle)


def scale_row(model: str, n_tokens: int, precision: str) -> list[str]:
    """One row of the table of a model."""
    record = capture_record(model, precision, n_tokens)
    plain = replace(record, bundled=False)
    width = sum(record.layers("mlp.post").values())
    return [
        f"10{str(len(str(n_tokens)) - 1).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}",
        f"{precision} {KEEP}" if record.keep else precision,
        f"{record.plan.block_slots:,}",
        f"{record.plan.n_blocks:,}",
        f"{estimate_nbytes(record) / 1e12:,.2f}",
        f"{STATISTICS_NBYTES * width * record.plan.n_blocks / 1e12:,.2f}",
        f"{estimate_objects(plain):,}",
        f"{estimate_objects(record):,}" + ("" if record.bundled else " (not bundled)"),
        f"{write_requests(record):,}",
        f"{READ_REQUESTS * record.plan.n_blocks:,}" if PRECISIONS[precision].keeps_values else "–",
    ]


HEADER: Final = [
    "tokens", "precision", "block", "blocks", "TB", "of it statistics of blocks, TB", "files without bundles", "objects",
    "requests to write", "to read a neuron",
]  # fmt: skip


def sizes_table(model: str) -> str:
    """The table of one model."""
    rows = [scale_row(model, n, precision) for n in (10**7, 10**9) for precision in PRECISIONS]
    return table(HEADER, rows, left=2)


def memory_table() -> str:
    """Larger blocks, of the 7B model at int8 over 10⁹ tokens: fewer objects, more memory."""
    record = capture_record("7B", "int8", 10**9)
    rows = []
    for slots in (record.plan.block_slots, 16_384, 131_072):
        changed = replace(record, plan=replace(record.plan, block_slots=slots, n_blocks=-(-(10**9) // slots)))
        files = replace(changed, bundled=False)
        rows.append(
            [
                f"{slots:,}",
                f"{changed.plan.n_blocks:,}",
                f"{estimate_objects(files):,}",
                f"{estimate_objects(changed):,}",
                f"{estimate_nbytes(changed) / 1e12:,.0f}",
                f"{2.5 * buffer_nbytes(changed) / 1e9:,.1f}",
            ]
        )
    return table(
        ["tokens of a block", "blocks", "files without bundles", "objects", "TB", "buffers of a worker, GB"], rows
    )


@dataclass(frozen=True)
class Encoding:
    """What encoding a value of a block cost one core."""

    ns: dict[str, float]
    """Precision → nanoseconds."""
    machine: str


def hours_table(encoding: Encoding) -> str:
    """Hours of the 7B model over 10⁹ tokens: on the GPUs, and on the host's cores beside them."""
    width = sum(capture_record("7B", "int8", 10**9).layers("mlp.post").values())
    rows = []
    for precision, ns in encoding.ns.items():
        nbytes = estimate_nbytes(capture_record("7B", precision, 10**9))
        for n in GPUS:
            forward_h = 1e9 / TOKENS_PER_S / n / 3600
            encode_h = 1e9 * width * ns * 1e-9 / CORES_PER_GPU / n / 3600
            slower_h = max(forward_h, encode_h)
            rows.append(
                [precision, str(n), f"{forward_h:.2f}", f"{encode_h:.2f}", f"{nbytes / slower_h / 3600 / 1e9:,.1f}"]
            )
    header = ["precision", "GPUs", "forward, h", f"encoding on {CORES_PER_GPU} cores per GPU, h", "GB/s to be stored"]
    return table(header, rows)


def read_encoding() -> Encoding:
    """What was measured last."""
    return Encoding(**json.loads(RESULTS.read_text(encoding="utf-8")))


def measure_encoding() -> Encoding:
    """Processor time of compression and checksums, of a block of 11,008 neurons with values of a heavy tail."""
    rng = np.random.default_rng(0)
    rows, columns = MODELS["7B"][1], 2048
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    values = np.where(values > 0, values * values, values / 20)
    encoded: dict[str, Any] = {
        "half": values.astype(np.float16),
        "int8": np.rint(values * (127 / np.abs(values).max(axis=1, keepdims=True))).astype(np.int8),
        "sparse": np.where(np.abs(values) > np.quantile(np.abs(values), 1 - KEEP), values, 0).astype(np.float16),
    }
    ns = {}
    for precision, block in encoded.items():
        compression = PRECISIONS[precision]("float16", compressor=PRECISIONS[precision].default_compression).compression
        times = []
        for _ in range(5):
            began = time.process_time()
            parts = shard_parts(block, shard_grid(rows, columns), compression, shard_seed("i", "k", 0))
            write_parts(parts, lambda _: None)
            times.append(time.process_time() - began)
        ns[precision] = round(min(times) / block.size * 1e9, 1)
    return Encoding(ns, machine())


def markdown(encoding: Encoding) -> dict[str, str]:
    """Mark → text of every table of the page."""
    measured = (
        f"Encoding took {', '.join(f'{ns} ns per value at {name}' for name, ns in encoding.ns.items())} on one core "
        f"({encoding.machine})."
    )
    tables = {f"scale-{model}": sizes_table(model) for model in MODELS}
    return tables | {"scale-memory": memory_table(), "scale-hours": f"{hours_table(encoding)}\n\n{measured}"}


def main() -> None:
    """Print the tables, or write them into docs/scale.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the time of encoding again")
    parser.add_argument("--write", action="store_true", help="write the tables into the documentation")
    options = parser.parse_args()
    if options.measure:
        encoding = measure_encoding()
        RESULTS.write_text(
            json.dumps({"ns": encoding.ns, "machine": encoding.machine}, indent=1) + "\n", encoding="utf-8"
        )
    for mark, text in markdown(read_encoding()).items():
        if options.write:
            rewrite(mark, text)
        terminal.out.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
