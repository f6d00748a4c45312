"""Neuron graphs planted line by line into a store without a capture."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from planted_graphs import plant_graphs, plant_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from planted_graphs import Line

    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store without captures or graphs."""
    return plant_store(tmp_path / "store")


@pytest.fixture
def planting(store: Store) -> Callable[..., Graphs]:
    """planting({(layer, neuron): lines, …}, **record): graphs in the store."""

    def plant(neurons: dict[tuple[int, int], Sequence[Line]], **record: Any) -> Graphs:
        return plant_graphs(store, neurons, **record)

    return plant


@pytest.fixture(scope="session")
def planted_model() -> Callable[..., Graphs]:
    """planted_model({(layer, neuron): lines, …}): graphs in a store of their own, in memory."""

    def plant(neurons: dict[tuple[int, int], Sequence[Line]]) -> Graphs:
        return plant_graphs(plant_store(f"memory://{uuid.uuid4()}/store"), neurons)

    return plant
