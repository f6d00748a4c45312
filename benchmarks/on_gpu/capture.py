"""What a capture adds to the bare forward pass, at every precision: packed and copied to the host, and written.

A Llama of the shape of the 7B with random weights, and fewer layers than its 32, so that it takes a few minutes: what a layer
costs is the same, and the head is not run. Ratios hold for a whole model on a host with as many more cores.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actstore.engine.capture.block_filler import BlockFiller, batches_of, submit_blocks
from actstore.engine.capture.buffers import block_buffers
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.models.load import LoadedModel
from actstore.store.capture.plan import Plan
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter
from actstore.store.files.precision import PRECISIONS
from actstore.store.storage.folder import Folder
from benchmarks.on_gpu.part import LEAST_S
from benchmarks.rows.host_cost import Planned, plan_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actstore.store.capture.plan import BlockPlan
    from actstore.store.files.records import CaptureRecord
    from benchmarks.on_gpu.part import Part

N_LAYERS, ALL_LAYERS = 8, 32


def run(part: Part) -> None:
    """The bare forward pass, then every precision; what fails or has no time left is told, and the next one is tried."""
    model = make_model(part)
    planned = plan_of(part, model)
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        folder = Path(name)
        bare = measure_bare(part, model, planned, folder)
        for precision in ("int8", "sparse", "none", "exact", "half"):  # what takes the most disk comes last
            if part.left_s < LEAST_S:
                part.row(precision, skipped="no time was left")
                continue
            try:
                measure_precision(part, model, planned, folder, precision, bare)
            except Exception as error:
                part.fail(precision, error)


def make_model(part: Part) -> LoadedModel:
    """The model, made on the device."""
    width, inner, heads, n_vocabulary = (16, 6, 2, 64) if part.small else (4096, 11_008, 32, 32_000)
    config: Any = LlamaConfig(
        vocab_size=n_vocabulary, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=part.pick(N_LAYERS, 1), num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with part.device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return LoadedModel(model, name=f"llama-7b-of-{config.num_hidden_layers}-layers")


def plan_of(part: Part, model: LoadedModel) -> Planned:
    """Four blocks of the default size, in batches of 4,096 tokens; in a small run one."""
    return Planned(
        {layer.layer: layer.neurons for layer in model.spec.layers},
        n_blocks=part.pick(4, 1),
        slots=part.pick(16_384, 32),
        window=part.pick(1024, 32),
        n_vocabulary=part.pick(32_000, 64),
        windows_per_batch=part.pick(4, 2),
    )


def measure_bare(part: Part, model: LoadedModel, planned: Planned, folder: Path) -> float:
    """Seconds of the forward pass alone over all batches, by the same hooks' machinery with no site to read."""
    where = Folder(folder / "bare", read_only=False)
    record = plan_capture(where, "none", "", planned)
    batches = [batch for plan in plans_of(where, record) for batch in batches_of(plan, 2, planned.slots)]

    def forward(sites: Sequence[str]) -> None:
        for batch in batches:
            model.forward(batch.input_ids, batch.attention_mask, sites=sites, sink=lambda *_: None)

    n_tokens = planned.n_blocks * planned.slots
    seconds = part.wall_seconds(lambda: forward(()), part.pick(3, 1))
    bare = statistics.median(seconds)
    tell(part, "bare forward pass", seconds, n_tokens, bare, layers=len(planned.widths), of_layers=ALL_LAYERS)
    seconds = part.wall_seconds(lambda: forward(("mlp.post", "mlp.gate")), part.pick(3, 1))
    tell(part, "hooks that do nothing", seconds, n_tokens, bare)
    return bare


def measure_precision(
    part: Part, model: LoadedModel, planned: Planned, folder: Path, precision: str, bare: float
) -> None:
    """Every block to the host and no further, then half of them all the way to the disk: at exact 6 GB."""
    where = Folder(folder / precision, read_only=False)
    record = plan_capture(where, precision, PRECISIONS[precision].default_compression, planned)
    plans, n_tokens = plans_of(where, record), planned.n_blocks * planned.slots
    nbytes: list[int] = []

    def to_host() -> None:
        nbytes.clear()
        filler = filler_of(part, model, record)
        of_statistics = filler._packer._device_statistics[0].nbytes  # type: ignore[attr-defined] # what is copied
        for filled in filler.fill(plans, CaptureProgress()):
            nbytes.append(of_statistics + sum(array.nbytes for array in filled.arrays.values()))  # type: ignore[attr-defined]
            filled.release()

    seconds = part.wall_seconds(to_host, part.pick(2, 1))
    tell(part, f"{precision}, to the host", seconds, n_tokens, bare, nbytes_per_token=sum(nbytes) / n_tokens)
    if part.left_s < LEAST_S:
        part.row(f"{precision}, written", skipped="no time was left")
        return

    half = plans[: max(1, len(plans) // 2)]
    share = len(half) / len(plans)

    def to_disk() -> None:
        with CaptureWriter(where, record, n_threads=max(1, (os.cpu_count() or 2) // 2), overlap=True) as writer:
            writer.running = RunningStatistics(where, record)
            submit_blocks(filler_of(part, model, record).fill(half, CaptureProgress()), writer)

    before = folder_nbytes(folder / precision)
    seconds = timed_once(to_disk)
    disk = folder_nbytes(folder / precision) - before
    n_written = int(n_tokens * share)
    tell(part, f"{precision}, written", seconds, n_written, bare * share, nbytes_per_token=disk / n_written)
    shutil.rmtree(folder / precision)


def timed_once(call: Callable[[], None]) -> list[float]:
    """Seconds until the host is done. Kernels are compiled by then, and what is written is written once."""
    began = time.perf_counter()
    call()
    return [time.perf_counter() - began]


def filler_of(part: Part, model: LoadedModel, record: CaptureRecord) -> BlockFiller:
    """What fills blocks, with the GPU's packer also where Triton interprets."""
    if part.device.type == "cuda":
        torch.cuda.empty_cache()  # the packer takes a share of what is free
        return BlockFiller(model, record, block_buffers(record, 2))
    from actstore.engine.capture.gpu.packing import DevicePacker

    filler = BlockFiller(model, record, block_buffers(record, 2))
    filler._packer = DevicePacker(record, part.device, block_buffers(record, 2))
    return filler


def plans_of(folder: Folder, record: CaptureRecord) -> list[BlockPlan]:
    """The plan of every block."""
    plan = Plan(folder, record.name, record.plan, record.plan_files)
    return [plan.block(block) for block in range(record.plan.n_blocks)]


def folder_nbytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def tell(part: Part, name: str, seconds: list[float], n_tokens: int, bare: float, **figures: Any) -> None:
    """Tell of a row, with tokens per second and the ratio to the bare forward pass."""
    median = statistics.median(seconds)
    figures |= {"tokens_per_s": n_tokens / median, "ratio": median / bare}
    part.row(name, median_s=median, min_s=min(seconds), max_s=max(seconds), repeats=len(seconds), **figures)
