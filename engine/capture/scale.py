"""`actstore.sizes`: what a capture would take, by a model's configuration alone: bytes, files, requests, memory.

Sums, made with the functions by which captures are planned: no weight is loaded, and no corpus read. Every window is full.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa

from actstore.engine.capture.buffers import buffer_nbytes
from actstore.engine.capture.corpus_run import BLOCK_SLOTS
from actstore.engine.capture.plan import block_size
from actstore.engine.capture.settings import CaptureSettings
from actstore.engine.capture.sizes import (
    STATISTICS_NBYTES,
    bytes_per_slot,
    estimate_nbytes,
    estimate_objects,
    memory_of_model,
    planned_slots,
    with_storage,
)
from actstore.engine.models.sources import ModelSource
from actstore.engine.models.writing.path import is_scaled
from actstore.kernels.pack.statistics import STATISTICS
from actstore.store.arguments import argument
from actstore.store.calls import checked
from actstore.store.errors import InvalidInputError
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.precision import PRECISIONS
from actstore.store.files.records import CaptureRecord, PlanRecord
from actstore.store.storage.objects.writer import PART_NBYTES
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.capture.settings import Part
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.load import ModelSpec

READ_REQUESTS: Final = 3
"""Per block, of a layer of which nothing was read before: tests/store/storage/test_object_requests.py counts them."""
MOST_TOKENS: Final = 10**15


@dataclass(frozen=True)
class CaptureScale:
    """What a capture would take."""

    precision: str
    n_tokens: int
    block_slots: int
    """Tokens of a block."""
    n_blocks: int
    nbytes: int
    """On disk, compressed, as measured on small models; weights and plan are not among them."""
    statistics_nbytes: int
    """Of them, what every block has of statistics of its own, which `finish` adds up."""
    n_files: int
    """Of the capture if every file of a block is one of its own."""
    n_objects: int
    """Of the capture as it would be: bundled where there would be more than 100,000 files, unless told otherwise."""
    bundled: bool
    write_requests: int
    """To put all blocks into an object store."""
    read_requests: int
    """To read one neuron from an object store; 0 where no values are kept."""
    buffers_nbytes: int
    """Memory of a worker in which blocks are collected and encoded."""


@checked
def sizes(
    model: ModelInput,
    tokens: int,
    *,
    precision: str | Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    part: Part | None = None,
    layers: int | Sequence[int] | None = None,
    keep: float | None = None,
    gate_sign: bool | None = None,
    exemplars: int | None = None,
    context: int | None = None,
    block_tokens: int | None = None,
    bundle: bool | None = None,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    memory: int | None = None,
    trust_remote_code: bool = False,
) -> Table:
    """What a capture of `tokens` tokens would take, one row per precision: sums over the model's configuration.

    No weight is loaded and no corpus read: every window counts as full. `estimate` measures both, where the model can run.
    Columns: precision, n_tokens, block_slots (tokens of a block), n_blocks, nbytes (compressed), statistics_nbytes (the part of
    them that each block has of its own), n_files (if each file were one of its own), n_objects and bundled (as it would be
    stored), write_requests and read_requests (of an object store: to put all blocks, to read one neuron), buffers_nbytes
    (memory of a worker beside the model).

    - `tokens`: how many are captured, from 1 to 10^15
    - `precision`: one or several; all unless given
    - the others are settings of `capture`; `keep` is of precision sparse, and passed over at others

    Errors: `InvalidInputError` for what the model does not have.

    >>> actstore.sizes("meta-llama/Llama-3.1-8B", 10**9, precision=["half", "int8"])
    """
    one = argument("precision", precision, str | tuple[str, ...] | None)
    named = tuple(PRECISIONS) if one is None else (one,) if isinstance(one, str) else one
    requested: dict[str, Any] = {
        "sites": sites, "part": part, "layers": layers, "gate_sign": gate_sign, "exemplars": exemplars, "context": context,
        "block_tokens": block_tokens, "bundle": bundle,
    }  # fmt: skip
    requested = {name: value for name, value in requested.items() if value is not None}
    n_tokens = argument("tokens", tokens, int)
    run: dict[str, Any] = {"memory": argument("memory", memory, int | None), "dtype": argument("dtype", dtype, str)}
    spec = ModelSource.of(model).inspect(trust_remote_code=trust_remote_code)
    rows = []
    for name in named:
        kept: dict[str, Any] = {"keep": keep} if keep is not None and name == "sparse" else {}
        rows.append(asdict(capture_scale(spec, n_tokens, precision=name, **run, **requested, **kept)))
    return Table(pa.table({field.name: [row[field.name] for row in rows] for field in fields(CaptureScale)}))


def capture_scale(
    spec: ModelSpec, n_tokens: int, *, memory: int | None = None, dtype: str = "auto", **settings: Any
) -> CaptureScale:
    """What a capture of `n_tokens` tokens with these `settings` of `capture` would take.

    `InvalidInputError` for what the model cannot give, and where `n_tokens` is not between 1 and 10^15.
    """
    if not 1 <= n_tokens <= MOST_TOKENS:
        raise InvalidInputError(f"`tokens` lies between 1 and 10^15, found {n_tokens:,}.")
    record = scale_record(spec, n_tokens, memory=memory, dtype=dtype, **settings)
    width = sum(width for site in record.sites for width in record.layers(site).values())
    keeps_values = PRECISIONS[record.precision].keeps_values
    return CaptureScale(
        precision=record.precision,
        n_tokens=n_tokens,
        block_slots=record.plan.block_slots,
        n_blocks=record.plan.n_blocks,
        nbytes=estimate_nbytes(record),
        statistics_nbytes=STATISTICS_NBYTES * width * record.plan.n_blocks,
        n_files=estimate_objects(replace(record, bundled=False)),
        n_objects=estimate_objects(record),
        bundled=record.bundled,
        write_requests=write_requests(record),
        read_requests=READ_REQUESTS * record.plan.n_blocks if keeps_values else 0,
        buffers_nbytes=int(2.5 * buffer_nbytes(record)),
    )


def scale_record(
    spec: ModelSpec, n_tokens: int, *, memory: int | None = None, dtype: str = "auto", **requested: Any
) -> CaptureRecord:
    """The record of such a capture, as it would be planned."""
    settings = CaptureSettings.resolve(requested, spec)
    dtype = spec.dtype if dtype == "auto" else dtype
    widths = settings.widths(spec)
    gated = tuple(n for n in widths.get("mlp.post", ()) if spec.layers[n].gated) if settings.gate_sign else ()
    n_gate = sum(widths.get("mlp.post", {}).values()) if settings.gate_sign else 0
    slot_nbytes = bytes_per_slot(widths, settings.precision, dtype, n_gate)
    target = planned_slots(slot_nbytes, memory, settings.block_tokens, BLOCK_SLOTS, memory_of_model(spec, dtype))
    assert settings.context is not None
    slots = block_size(settings.context, target)
    n_windows = math.ceil(n_tokens / settings.context)
    plan = PlanRecord(
        "p" * 64, "", "c" * 64, "t" * 64, {}, (), (), n_windows, n_windows, n_tokens, slots, math.ceil(n_tokens / slots)
    )
    keeps_values = PRECISIONS[settings.precision].keeps_values
    record = CaptureRecord(
        name="corpus",
        created="",
        written_by="",
        model_fingerprint="f" * 64,
        dtype=dtype,
        precision=settings.precision,
        sites={site: {str(layer): width for layer, width in layers.items()} for site, layers in widths.items()},
        gate_sign=gated,
        keep=settings.keep if PRECISIONS[settings.precision].uses_keep else None,
        n_exemplars=settings.exemplars,
        settings={},
        plan=plan,
        statistics=tuple(STATISTICS),
        identity="i" * 32,
        write_scale=tuple(n for n in widths.get("mlp.post", ()) if is_scaled(spec.layers[n].scaled_by))
        if keeps_values
        else (),
    )
    return with_storage(record, requested)


def file_sizes(record: CaptureRecord) -> list[float]:
    """Bytes expected of each file of a block but its commit record, one bundle or many."""
    sizes = []
    for spec in block_arrays(record):
        per_value = record.encoding.bytes_per_value if spec.dimension == "token" else spec.dtype.itemsize
        sizes.append(spec.rows * spec.columns * per_value)
    statistics = STATISTICS_NBYTES * sum(width for site in record.sites for width in record.layers(site).values())
    return [sum(sizes) + statistics] if record.bundled else [*sizes, statistics]


def write_requests(record: CaptureRecord) -> int:
    """Requests that put all blocks: one per object, of large ones one per part and two more."""
    of_files = sum(1 if size < PART_NBYTES else 2 + math.ceil(size / PART_NBYTES) for size in file_sizes(record))
    return int(record.plan.n_blocks * (of_files + 1))
