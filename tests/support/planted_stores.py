"""Planted stores: every value is chosen here, without a model. Tests of other folders read such stores too.

Importlib mode leaves this folder off the path: whoever imports this module puts it there.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actstore.kernels.pack import naive
from actstore.kernels.pack.columns import Columns
from actstore.kernels.pack.statistics import STATISTICS
from actstore.store import layout
from actstore.store.capture.plan import Plan, PlannedWindow, PlanWriter
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
from actstore.store.capture.statistics.finished import write_totals
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.records import CaptureRecord, LayerRecord, ModelRecord, PlanRecord, with_checksum
from actstore.store.model import root
from actstore.store.reader import Capture, Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

WIDTHS = (5, 40)
"""Neurons of the two planted layers: fewer than a chunk has rows, and more, with no divisor near."""
BLOCK_SLOTS = 64
VOCABULARY = [f" w{i}" for i in range(100)]


@dataclass(frozen=True)
class Planted:
    """What to plant: windows of tokens, the values of every neuron at every kept token, what to keep of them."""

    lengths: Sequence[int] = (20, 30, 14, 40, 24, 7)
    """Tokens a window; windows fill blocks of 64 slots in this order."""
    kept: Callable[[int], NDArray[np.int32]] = field(default=lambda n: np.arange(n, dtype=np.int32))
    special_first: bool = True
    """Whether a window's first token is a special one, which is stored but not counted."""
    seed: int = 0
    values: Callable[[NDArray[np.float32], int], NDArray[np.float32]] = field(default=lambda values, layer: values)
    """Changes a layer's random values [neuron, token] before they are planted."""
    precision: str = "exact"
    gate_sign: bool = True
    n_exemplars: int = 3
    blocks: Sequence[int] | None = None
    """The blocks to commit, in this order; all by default."""
    finish: bool = True
    bundled: bool = False
    """Whether all files of a block lie in one object."""
    order: str = "neuron"
    """Whether values lie neuron by neuron or token by token."""


def model_record() -> ModelRecord:
    layers = tuple(
        LayerRecord(i, n, f"layers.{i}.mlp.down_proj", True, i, "decoder", None) for i, n in enumerate(WIDTHS)
    )
    sites = ("mlp.post", "mlp.gate")
    return ModelRecord("planted", "llama", "causal", 8, len(VOCABULARY), "float32", "f" * 64, sites, layers, {"a": 1})


def plan_windows(folder: Folder, name: str, what: Planted) -> tuple[PlanRecord, list[PlannedWindow]]:
    """Two documents to a label; windows take turns in documents."""
    plan_settings = {"block_slots": BLOCK_SLOTS}
    writer = PlanWriter(folder, name, BLOCK_SLOTS, plan_settings)
    rng = np.random.default_rng(what.seed)
    pairs = (("language", "en"), ("language", "fr"))
    for number in range(4):
        row = {"source": f"corpus.jsonl:{number + 1}", "sha256": f"{number:064d}", "n_tokens": 9}
        writer.add_document(row | {"language": pairs[number % 2][1]})
    windows = []
    for number, length in enumerate(what.lengths):
        kept = what.kept(length)
        modality = np.where((kept == 0) & what.special_first, layout.SPECIAL, layout.TEXT).astype(np.uint8)
        ids = rng.integers(0, len(VOCABULARY), length).astype(np.int32)
        windows.append(PlannedWindow(number % 4, ids, kept, modality, (number % 2,)))
    blocks: list[list[PlannedWindow]] = [[]]
    for window in windows:
        if sum(len(w.kept) for w in blocks[-1]) + len(window.kept) > BLOCK_SLOTS:
            blocks.append([])
        blocks[-1].append(window)
    for block in blocks:
        writer.add_block([block[:1], block[1:]] if len(block) > 1 else [block])
    fingerprint = writer.close(pairs)
    record = PlanRecord(
        fingerprint=fingerprint,
        corpus="corpus.jsonl",
        corpus_fingerprint="c" * 64,
        tokenizer_fingerprint="t" * 64,
        settings=plan_settings,
        label_columns=("language",),
        labels=pairs,
        n_documents=4,
        n_windows=len(windows),
        n_tokens=sum(len(w.kept) for w in windows),
        block_slots=BLOCK_SLOTS,
        n_blocks=len(blocks),
    )
    return record, windows


def capture_record(name: str, plan: PlanRecord, what: Planted) -> CaptureRecord:
    return CaptureRecord(
        name=name,
        created="2026-01-01T00:00:00+00:00",
        written_by="actstore 0",
        model_fingerprint="f" * 64,
        dtype="float32",
        precision=what.precision,
        sites={"mlp.post": {str(i): n for i, n in enumerate(WIDTHS)}},
        gate_sign=(0, 1) if what.gate_sign else (),
        keep=0.25 if what.precision == "sparse" else None,
        n_exemplars=what.n_exemplars,
        settings={},
        plan=plan,
        statistics=tuple(STATISTICS),
        bundled=what.bundled,
        order={"mlp.post": what.order} if what.order != "neuron" else {},
    )


def change_root(folder: Folder, **changes: Any) -> None:
    """Write the root of a store with other values, its checksum made good; None takes a value out."""
    group = folder.read_json("zarr.json")
    values = group["attributes"]["actstore"] | changes
    group["attributes"]["actstore"] = with_checksum({key: value for key, value in values.items() if value is not None})
    folder.write_json("zarr.json", group)


def write_vocabulary(folder: Folder, mark: object = "") -> None:
    """Write the vocabulary of planted stores; with a `mark`, one of other texts under the same fingerprint."""
    texts = [f"{piece}{mark}" for piece in VOCABULARY]
    pieces = pa.table(
        {
            "token": pa.array(range(len(VOCABULARY)), pa.int32()),
            "piece": texts,
            "text": texts,
            "bytes": [text.encode() for text in texts],
            "special": [False] * len(VOCABULARY),
        }
    )
    root.write_tokenizer(folder, None, pieces, "t" * 64)


def begin(folder: Folder, name: str, what: Planted) -> tuple[CaptureRecord, Plan]:
    """The record and the plan of a planted capture, without a block yet; the store's root is written too."""
    plan_record, _ = plan_windows(folder, name, what)
    record = capture_record(name, plan_record, what)
    if not root.is_store(folder):
        root.write_neurons(folder, model_record(), None)
        root.write_root(folder, model_record())
    record = create_capture(folder, record)
    return record, Plan(folder, name, plan_record)


def plant(location: str | Path, name: str = "corpus", what: Planted | None = None) -> dict[int, NDArray[np.float32]]:
    """The values [neuron, token] by layer, in the order of the tokens table, that now stand in a capture at `location`."""
    what = what or Planted()
    folder = Folder(location, read_only=False)
    write_vocabulary(folder)
    record, plan = begin(folder, name, what)
    rng = np.random.default_rng(what.seed + 1)
    values = {
        layer: what.values(rng.standard_normal((width, record.plan.n_tokens), np.float32), layer)
        for layer, width in enumerate(WIDTHS)
    }
    ends = np.cumsum([len(plan.block(block).position) for block in range(record.plan.n_blocks)])
    with CaptureWriter(folder, record, n_threads=2, overlap=True) as writer:
        for block in what.blocks if what.blocks is not None else range(record.plan.n_blocks):
            slots = slice(int(ends[block]) - len(plan.block(block).position), int(ends[block]))
            here = {layer: v[:, slots] for layer, v in values.items()}
            arrays, statistics = fill(record, plan, block, here)
            writer.submit(block, arrays, statistics, began=0.0)
    if what.finish:
        running = RunningStatistics(folder, record)
        running.advance()
        write_totals(folder, record, running.total)
    return values


def fill(
    record: CaptureRecord, plan: Plan, block: int, values: dict[int, NDArray[np.float32]]
) -> tuple[dict[str, NDArray[Any]], CaptureStatistics]:
    """What the engine would hand to the writer for a block: arrays by key, statistics."""
    here = plan.block(block)
    n, n_labels = len(here.position), len(record.plan.labels)
    columns = Columns(
        rows=np.arange(n),
        slots=np.arange(n),
        segments=np.cumsum([0, *here.windows["n_slots"]]),
        labels=np.concatenate([here.labels, np.full((len(here.labels), 1), n_labels, np.int32)], axis=1),
        counted=here.modality != layout.SPECIAL,
        first_token=block * record.plan.block_slots,
    )
    statistics = CaptureStatistics.empty(record)
    window = np.repeat(np.arange(len(here.labels)), here.windows["n_slots"])
    np.add.at(statistics.label_tokens, columns.labels[window[columns.counted]], 1)
    arrays: dict[str, NDArray[Any]] = {}
    specs = {spec.key: spec for spec in block_arrays(record)}
    for layer, rows in values.items():
        form = np.float16 if record.precision == "half" else np.float32
        staged = np.full((len(rows), record.plan.block_slots), np.nan, form)
        naive.pack(rows.T, columns, staged, statistics.sites["mlp.post", layer])
        if layer in record.gate_sign:
            bits = np.zeros((len(rows), record.plan.block_slots // 8), np.uint8)
            # The planted gate is open where the activation is below zero.
            naive.pack_signs(-rows.T, columns, bits, statistics.gate_positives[layer])
            arrays[layout.gate_sign_key(record.name, layer)] = bits
        key = layout.values_key(record.name, "mlp.post", layer)
        if record.precision == "int8":
            arrays[key], scale = naive.quantise(staged)
            arrays[layout.block_parameters_key(record.name, "mlp.post", layer, "scale")] = scale[:, None]
        elif record.precision == "sparse":
            used = np.arange(record.plan.block_slots) < n
            assert record.keep is not None
            threshold, dropped = naive.sparsify(staged, record.keep, used)
            arrays[key] = staged
            for parameter, array in {"threshold": threshold, "dropped": dropped}.items():
                arrays[layout.block_parameters_key(record.name, "mlp.post", layer, parameter)] = array[:, None]
        elif key in specs:
            arrays[key] = staged.astype(specs[key].dtype)
    return arrays, statistics


def planted(
    name: str = "corpus", where: str | None = None, **what: Any
) -> tuple[Capture, dict[int, NDArray[np.float32]]]:
    """A planted capture, in memory if nowhere else, and its values by layer; `what` are the fields of `Planted`."""
    where = where or f"memory://{uuid.uuid4()}/store"
    values = plant(where, name, replace(Planted(), **what))
    return Store(where).capture(name), values
