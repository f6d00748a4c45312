"""Stores to read: planted ones and captured ones."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from planted_store_fixtures import planting, somewhere
from planted_stores import WIDTHS, Planted, capture_record, plan_windows, plant

from actstore.engine.capture.api import RunOptions, capture
from actstore.kernels.pack import naive
from actstore.kernels.pack.columns import Columns
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.store.capture.plan import PlannedWindow
    from actstore.store.files.records import CaptureRecord, PlanRecord


__all__ = ["planting", "somewhere"]


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
    """The planted store and its values, to be damaged: it is restored when the test is over."""
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
