"""What a capture on a GPU costs the host, at the shape of a 7B model: a model of cost, measured where no GPU is needed.

A block of one layer's share is made as a GPU hands it over, and goes through the product's own writer: encoded, checksummed,
written, its statistics encoded, committed, added up. What is counted is CPU time of all threads, in proportion to the neurons.
The thread that feeds the GPU must not wait: its CPU time is that of a block of as many layers as the model's, with few neurons
each, of which it only hands over arrays. The arithmetic then says how many tokens per second 16 cores and a PCIe 5 bus take.

python -m benchmarks.rows.host_cost [--write] [COMPRESSION …]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.engine.capture.gpu.buffers import BlockStatistics
from actstore.engine.capture.gpu.outgoing import Outgoing, compacted_capacity
from actstore.engine.capture.packing import used_slots
from actstore.kernels.compaction.api import compact
from actstore.kernels.compaction.rows import CompactedRows
from actstore.kernels.pack import api
from actstore.kernels.pack.statistics import STATISTICS, Statistics
from actstore.store import layout
from actstore.store.capture.plan import Plan, PlannedWindow, PlanWriter
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.files.compression import HUFFMAN
from actstore.store.files.precision import PRECISIONS
from actstore.store.files.records import CaptureRecord, PlanRecord
from actstore.store.model import root
from actstore.store.storage.folder import Folder
from benchmarks.marked import commit, rewrite, table
from benchmarks.rows.packing import make_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from actstore.kernels.pack.gpu_statistics import DeviceStatistics
    from actstore.store.files.chunks import Rows

LAYERS = 32
MODEL_NEURONS = LAYERS * 11_008
"""Gated neurons of a Llama 2 of 7B."""
NEURONS, QUICK_NEURONS = 1376, 96
"""Of them, those that are measured: an eighth of a layer."""
SLOTS, WINDOW = 16_384, 256
N_BLOCKS = 3
FED_NEURONS, FED_BLOCKS = 8, 6
"""Of each layer, and of blocks of all layers: for the feeding thread."""
KEEP = 0.05
CORES = 16
PCIE_BYTES_PER_S = 50e9
"""Of PCIe 5 with 16 lanes, whose nominal rate is 63 GB/s: an assumption, not a measurement."""
FED_TOKENS = 131_072
REPEATS = 5
TARGETS = {"none": 30_000, "exact": 30_000, "half": 25_000, "int8": 25_000, "sparse": 25_000}
TESTS = ("tests/store/capture", "tests/store/files")


@dataclass(frozen=True)
class HostCost:
    """What one token of a 7B model costs the host at one precision."""

    precision: str
    compression: str
    """As a capture's record has it; empty for those of earlier versions, LZ4 or zstandard."""
    core_s: float
    """CPU seconds of all threads."""
    feeding_s: float
    """Of the thread that feeds the GPU."""
    bus_nbytes: float
    """Bytes that the GPU copies to the host."""
    disk_nbytes: float
    core_range_s: tuple[float, float] | None = None
    """The extremes of `core_s` over the rounds; None of one round."""

    @property
    def tokens_per_s(self) -> float:
        """What the slower of cores and bus can take."""
        return min(CORES / self.core_s, PCIE_BYTES_PER_S / self.bus_nbytes)

    @property
    def share_blocked(self) -> float:
        """The share of the time in which the feeding thread does this work, at the target's rate."""
        return self.feeding_s * TARGETS[self.precision]

    def cells(self) -> list[str]:
        """The row of the table."""
        spread = (
            "" if self.core_range_s is None else " – ".join(f"{1e6 * seconds:,.0f}" for seconds in self.core_range_s)
        )
        return [
            self.precision, self.compression or "earlier", f"{self.core_s * 1e6:,.0f}", spread,
            f"{CORES / self.core_s:,.0f}", f"{TARGETS[self.precision]:,}",
            f"{self.feeding_s * FED_TOKENS:.2f}", f"{self.share_blocked:.1%}", f"{self.bus_nbytes / 1e3:,.0f}",
            f"{PCIE_BYTES_PER_S / self.bus_nbytes:,.0f}", f"{self.disk_nbytes / 1e3:,.0f}",
        ]  # fmt: skip


COLUMNS = [
    "precision",
    "compression",
    "core-µs per token",
    "min – max",
    f"tokens/s on {CORES} cores",
    "target",
    f"feeding thread, s per {FED_TOKENS:,} tokens",
    "of the time, at the target",
    "device → host, kB per token",
    "tokens/s over PCIe 5",
    "on disk, kB per token",
]


def measure_host_cost(
    *, quick: bool, repeats: int = REPEATS, compressions: tuple[str, ...] = (HUFFMAN,)
) -> list[HostCost]:
    """Every precision with every compression; the median over `repeats`, in which all take turns."""
    n_neurons = QUICK_NEURONS if quick else NEURONS
    values = make_activations(SLOTS, n_neurons)
    statistics = gather(values)
    measured: dict[tuple[str, str], list[HostCost]] = {(p, c): [] for p in PRECISIONS for c in compressions}
    for _ in range(1 + (1 if quick else repeats)):  # the first compiles and loads
        for kind, costs in measured.items():
            costs.append(_measure(*kind, values, statistics))
    return [_median(costs[1:]) for costs in measured.values()]


def make_activations(n_tokens: int, n_neurons: int) -> torch.Tensor:
    """SiLU(gate) · up in bfloat16 [token, neuron]; how far a gate is shut differs from neuron to neuron."""
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn((2, n_tokens, n_neurons), generator=generator)
    return (torch.nn.functional.silu(1.5 * gate - torch.linspace(0, 3, n_neurons)) * up).to(torch.bfloat16)


def gather(values: torch.Tensor) -> Statistics:
    """The statistics of a block, as a GPU gathers them."""
    statistics = Statistics.empty(values.shape[1], 3, 20)
    api.pack(values, make_columns(len(values)), None, statistics)
    return statistics


@dataclass(frozen=True)
class Planned:
    """What a capture is planned of: windows of one length, of random tokens."""

    widths: Mapping[int, int]
    """Layer → neurons, all gated."""
    n_blocks: int = N_BLOCKS
    slots: int = SLOTS
    window: int = WINDOW
    n_vocabulary: int = 2
    windows_per_batch: int = SLOTS // WINDOW


def plan_capture(folder: Folder, precision: str, compression: str, planned: Planned) -> CaptureRecord:
    """A planned capture of gated layers of a model in bfloat16; an empty `compression` is that of earlier versions."""
    plan = PlanWriter(folder, "corpus", planned.slots, {})
    n_tokens, rng = planned.n_blocks * planned.slots, np.random.default_rng(0)
    plan.add_document({"source": "synthetic", "sha256": "", "n_tokens": n_tokens})
    everywhere, text = np.arange(planned.window, dtype=np.int32), np.full(planned.window, layout.TEXT, np.uint8)
    for _ in range(planned.n_blocks):
        ids = rng.integers(0, planned.n_vocabulary, (planned.slots // planned.window, planned.window), np.int32)
        windows = [PlannedWindow(0, row, everywhere, text, (0,)) for row in ids]
        starts = range(0, len(windows), planned.windows_per_batch)
        plan.add_block([windows[i : i + planned.windows_per_batch] for i in starts])
    fingerprint = plan.close((("half", "even"), ("half", "odd")))
    keeps = PRECISIONS[precision].keeps_values
    record = CaptureRecord(
        "corpus", root.now(), root.written_by(), "none", "bfloat16", precision,
        {"mlp.post": {str(layer): width for layer, width in planned.widths.items()}},
        tuple(planned.widths) if keeps else (), KEEP if PRECISIONS[precision].uses_keep else None, 20, {},
        PlanRecord(
            fingerprint, "synthetic", "", "", {}, ("half",), (("half", "even"), ("half", "odd")), 1, plan.n_windows,
            plan.n_tokens, planned.slots, planned.n_blocks,
        ),
        statistics=tuple(STATISTICS), compression=compression,
    )  # fmt: skip
    return create_capture(folder, record)


def filled_arrays(
    record: CaptureRecord, folder: Folder, values: torch.Tensor
) -> dict[str, NDArray[Any] | CompactedRows]:
    """The arrays of a block as a GPU has encoded them, compacted where it compacts them."""
    used = used_slots(record, Plan(folder, record.name, record.plan).block(0))
    capacity = compacted_capacity(record)
    arrays: dict[str, NDArray[Any] | CompactedRows] = {}
    if (form := record.encoding.staging_format) is not None:
        staged = np.ascontiguousarray(_bits(values, form.name).T)
        encoded = record.encoding.encode(staged, used, api)
        rows: NDArray[Any] | CompactedRows = encoded.values
        if capacity:
            common = np.zeros(SLOTS, encoded.values.dtype)
            rows = CompactedRows(compact(encoded.values, common, capacity), encoded.values.dtype)
        signs = np.ascontiguousarray(np.packbits((values > 0).numpy().T, axis=1, bitorder="little"))
        for layer in record.layers("mlp.post"):
            arrays[layout.values_key(record.name, "mlp.post", layer)] = rows
            for name, parameter in encoded.parameters.items():
                arrays[layout.block_parameters_key(record.name, "mlp.post", layer, name)] = parameter[:, None]
            arrays[layout.gate_sign_key(record.name, layer)] = signs
    return arrays


def _bits(values: torch.Tensor, form: str) -> NDArray[Any]:
    if form == "float16":
        return values.half().numpy()
    return values.view(torch.int16).numpy().view(np.uint16)


def copied_nbytes(record: CaptureRecord, statistics: BlockStatistics) -> int:
    """Bytes of a block that a GPU copies to the host: those of the buffers that it copies."""
    return Outgoing(record, torch.device("cpu")).host_nbytes + statistics.nbytes


def on_device(record: CaptureRecord, gathered: Statistics) -> BlockStatistics:
    """The statistics as a GPU leaves them in pinned memory."""
    block = BlockStatistics.empty(record, "cpu")
    of_site: DeviceStatistics
    for of_site in block.sites.values():
        for name, tensor in of_site.tensors().items():
            tensor.copy_(torch.from_numpy(getattr(gathered, name)))
    block.label_tokens = np.array([SLOTS // 2, SLOTS // 2, SLOTS])
    return block


def _measure(precision: str, compression: str, values: torch.Tensor, gathered: Statistics) -> HostCost:
    n_neurons = values.shape[1]
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        folder = Folder(Path(name), read_only=False)
        record = plan_capture(folder, precision, compression, Planned({0: n_neurons}))
        arrays, statistics = filled_arrays(record, folder, values), on_device(record, gathered)
        bus_nbytes = copied_nbytes(record, statistics)
        before, began = _folder_size(Path(name)), time.process_time()
        _write(folder, record, arrays, statistics)
        core_s = time.process_time() - began
        disk_nbytes = _folder_size(Path(name)) - before
    scale = MODEL_NEURONS / n_neurons / SLOTS
    feeding_s = _measure_feeding(precision, compression, values[:, :FED_NEURONS].contiguous())
    return HostCost(
        precision, compression, core_s * scale / N_BLOCKS, feeding_s, bus_nbytes * scale, disk_nbytes * scale / N_BLOCKS
    )


def _measure_feeding(precision: str, compression: str, values: torch.Tensor) -> float:
    """Seconds of the feeding thread per token: it hands over the arrays of all layers, however many neurons these have."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        folder = Folder(Path(name), read_only=False)
        widths = dict.fromkeys(range(LAYERS), values.shape[1])
        record = plan_capture(folder, precision, compression, Planned(widths, n_blocks=FED_BLOCKS))
        arrays, statistics = filled_arrays(record, folder, values), on_device(record, gather(values))
        began = time.thread_time()
        _write(folder, record, arrays, statistics)
        return (time.thread_time() - began) / FED_BLOCKS / SLOTS


def _write(folder: Folder, record: CaptureRecord, arrays: Mapping[str, Rows], statistics: BlockStatistics) -> None:
    """Fill every block of a planned capture with the same arrays."""
    running = RunningStatistics(folder, record)
    with CaptureWriter(folder, record, n_threads=1, overlap=True) as writer:
        writer.running = running
        for block in range(record.plan.n_blocks):
            writer.submit(block, arrays, statistics.to_host(), time.monotonic())


def _folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _median(costs: list[HostCost]) -> HostCost:
    def median(name: str) -> float:
        return float(np.median([getattr(cost, name) for cost in costs]))

    core_s = [cost.core_s for cost in costs]
    return HostCost(
        costs[0].precision,
        costs[0].compression,
        *map(median, ("core_s", "feeding_s", "bus_nbytes", "disk_nbytes")),
        core_range_s=(min(core_s), max(core_s)) if len(costs) > 1 else None,
    )


def markdown(costs: list[HostCost]) -> str:
    """The documentation's table."""
    note = (
        f"A block of {SLOTS:,} tokens of {NEURONS:,} gated neurons goes through the writer as a GPU hands it over; times and "
        f"bytes are those of a 7B model's {MODEL_NEURONS:,} neurons. The feeding thread's time is that of a block of {LAYERS} "
        f"layers, its share that of the time at the target's rate. PCIe 5 is taken for {PCIE_BYTES_PER_S / 1e9:.0f} GB/s. "
        f"Forward pass and kernels on the GPU are left out. Medians of {REPEATS} rounds; commit {commit()}."
    )
    return f"{table(COLUMNS, [cost.cells() for cost in costs], left=2)}\n\n{note}"


def main() -> None:
    """Measure, print the table, and write it into the documentation if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "compressions", nargs="*", default=["", HUFFMAN], help="as `--compression`; '' for what it was before"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the neurons, once")
    parser.add_argument("--write", action="store_true", help="write the table into the documentation")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--write is for a whole measurement: leave out --quick.")
    text = markdown(measure_host_cost(quick=options.quick, compressions=tuple(options.compressions)))
    if options.write:
        rewrite("host-cost", text)
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
