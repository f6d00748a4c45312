"""Stores to read: planted ones, whose every value is chosen here without a model, and captured ones."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, settings

from actstore.engine.capture_run import RunOptions, capture
from actstore.kernels.pack import naive
from actstore.kernels.pack.columns import Columns
from actstore.store import layout, root
from actstore.store.folder import Folder
from actstore.store.plans import Plan, PlannedWindow, PlanWriter
from actstore.store.reader import Store
from actstore.store.records import CaptureRecord, LayerRecord, ModelRecord, PlanRecord
from actstore.store.statistics import CaptureStatistics, RunningStatistics, write_finished
from actstore.store.writer import CaptureWriter, block_arrays, create_capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# How fast examples are made says more about what else the machine does than about the code.
settings.register_profile("actstore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("actstore")

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
    )


def plant(location: str | Path, name: str = "corpus", what: Planted | None = None) -> dict[int, NDArray[np.float32]]:
    """The values [neuron, token] by layer, in the order of the tokens table, that now stand in a capture at `location`."""
    what = what or Planted()
    folder = Folder(location, read_only=False)
    pieces = pa.table(
        {
            "token": pa.array(range(len(VOCABULARY)), pa.int32()),
            "piece": VOCABULARY,
            "text": VOCABULARY,
            "bytes": [piece.encode() for piece in VOCABULARY],
            "special": [False] * len(VOCABULARY),
        }
    )
    plan_record, _ = plan_windows(folder, name, what)
    record = capture_record(name, plan_record, what)
    root.write_tokenizer(folder, None, pieces, "t" * 64)
    root.write_neurons(folder, model_record(), None)
    root.write_root(folder, model_record())
    create_capture(folder, record)
    rng = np.random.default_rng(what.seed + 1)
    values = {
        layer: what.values(rng.standard_normal((width, plan_record.n_tokens), np.float32), layer)
        for layer, width in enumerate(WIDTHS)
    }
    plan = Plan(folder, name, plan_record)
    ends = np.cumsum([len(plan.block(block).position) for block in range(plan_record.n_blocks)])
    with CaptureWriter(folder, record, n_threads=2, overlap=True) as writer:
        for block in what.blocks if what.blocks is not None else range(plan_record.n_blocks):
            slots = slice(int(ends[block]) - len(plan.block(block).position), int(ends[block]))
            here = {layer: v[:, slots] for layer, v in values.items()}
            arrays, statistics = fill(record, plan, block, here)
            writer.submit(block, arrays, statistics.encode, began=0.0)
    if what.finish:
        running = RunningStatistics(folder, record)
        running.advance()
        write_finished(folder, record, running.total)
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
        staged = np.full((len(rows), record.plan.block_slots), np.nan, np.float32)
        naive.pack(rows.T, columns, staged, statistics.sites["mlp.post", layer])
        if layer in record.gate_sign:
            bits = np.zeros((len(rows), record.plan.block_slots // 8), np.uint8)
            # The planted gate is open where the activation is below zero.
            naive.pack_signs(-rows.T, columns, bits, statistics.gate_positives[layer])
            arrays[layout.gate_sign_key(record.name, layer)] = bits
        key = layout.values_key(record.name, "mlp.post", layer)
        if record.precision == "int8":
            arrays[key], scale = naive.quantise(staged)
            arrays[key][np.isnan(staged)] = layout.NO_VALUE_INT8
            arrays[layout.block_parameters_key(record.name, "mlp.post", layer, "scale")] = scale[:, None]
        elif record.precision == "sparse":
            used = np.arange(record.plan.block_slots) < n
            assert record.keep is not None
            threshold, dropped = naive.sparsify(staged, record.keep, used)
            arrays[key] = staged
            for parameter, array in {"threshold": threshold, "dropped": dropped}.items():
                arrays[layout.block_parameters_key(record.name, "mlp.post", layer, parameter)] = array[:, None]
        elif key in specs:
            with np.errstate(over="ignore"):
                arrays[key] = staged.astype(specs[key].dtype)
    return arrays, statistics


@pytest.fixture
def somewhere() -> str:
    """A location for a store: in memory, because making a hundred small files is most of what a planted store costs."""
    return f"memory://{uuid.uuid4()}/store"


@pytest.fixture(scope="session")
def planting() -> Callable[..., dict[int, NDArray[np.float32]]]:
    """plant(location, name, **what): plants a capture, returns its values by layer; `what` are the fields of `Planted`."""

    def planting(location: str | Path, name: str = "corpus", **what: Any) -> dict[int, NDArray[np.float32]]:
        return plant(location, name, replace(Planted(), **what))

    return planting


@pytest.fixture(scope="session")
def planned() -> Callable[..., tuple[PlanRecord, list[PlannedWindow]]]:
    """planned(folder, **what): writes the plan of a planted capture, returns its record and windows."""

    def planned(folder: Folder, **what: Any) -> tuple[PlanRecord, list[PlannedWindow]]:
        return plan_windows(folder, "corpus", replace(Planted(), **what))

    return planned


@pytest.fixture
def record() -> CaptureRecord:
    """The record of a planted capture of three blocks."""
    plan, _ = plan_windows(Folder(f"memory://{uuid.uuid4()}", read_only=False), "corpus", Planted())
    return capture_record("corpus", plan, Planted())


@pytest.fixture
def statistics_of(record: CaptureRecord) -> Callable[[int], CaptureStatistics]:
    """statistics_of(seed): statistics of one block of random values under `record`."""

    def statistics_of(seed: int) -> CaptureStatistics:
        rng = np.random.default_rng(seed)
        result = CaptureStatistics.empty(record)
        columns = Columns(
            np.arange(64), np.arange(64), np.arange(0, 65, 8), np.full((8, 1), 2), np.ones(64, bool), seed * 64
        )
        for (_, layer), statistics in result.sites.items():
            naive.pack(rng.standard_normal((64, WIDTHS[layer])).astype(np.float32), columns, None, statistics)
        result.label_tokens[:] = 64, 0, 64
        return result

    return statistics_of


@pytest.fixture(scope="session")
def planted_path(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, NDArray[np.float32]]]:
    """A planted store of one exact capture on disk, not to be changed, and its values."""
    path = tmp_path_factory.mktemp("planted") / "store"
    return path, plant(path)


@pytest.fixture(scope="session")
def planted_bytes(planted_path: tuple[Path, dict[int, NDArray[np.float32]]]) -> dict[Path, bytes]:
    """Every file of the planted store."""
    return {file: file.read_bytes() for file in planted_path[0].rglob("*") if file.is_file()}


@pytest.fixture
def planted(
    planted_path: tuple[Path, dict[int, NDArray[np.float32]]], planted_bytes: dict[Path, bytes]
) -> Iterator[tuple[Store, dict[int, Any]]]:
    """The planted store and its values, to be damaged: it is mended when the test is over."""
    yield Store(planted_path[0]), planted_path[1]
    for file, data in planted_bytes.items():
        if not file.is_file() or file.read_bytes() != data:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    for file in planted_path[0].rglob("*"):
        if file.is_file() and file not in planted_bytes:
            file.unlink()


@pytest.fixture(scope="session")
def captured(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that the engine made of the tiny model, not to be changed: `corpus` exact, `in-int8` of the last tokens."""
    path = tmp_path_factory.mktemp("captured") / "store"
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products this small lose more to waiting for each other than they win
    options = RunOptions(memory=100_000)
    asked: dict[str, Any] = {"label_columns": ("language",), "max_documents": 30, "exemplars": 5}
    capture(str(tiny_model), corpus, path, options=options, **asked)
    asked |= {"precision": "int8", "positions": "last"}
    capture(str(tiny_model), corpus, path, name="in-int8", options=options, **asked)
    torch.set_num_threads(n_threads)
    return Store(path)
