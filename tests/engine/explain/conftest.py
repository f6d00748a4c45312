"""A planted store whose neurons each look for what a rule says, and a server of rules."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from planted_capture import make_windows, plant_capture
from rule_server import RuleServer, rule_server

from actstore.engine.explain.settings import ExplainSettings
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SETTINGS = ExplainSettings(context=12, exemplars=8, tests=8, quantiles=4, batch=5)
"""Of explanations in these tests."""


def on_seven(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Fires on w7, from 0.6 to 1."""
    return np.where(ids == 7, 0.6 + 0.1 * (np.cumsum(ids) % 5), 0.1).astype(np.float32)


def before_five(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Fires on w3, where w5 is before it."""
    return ((ids == 3) & (np.roll(ids, 1) == 5)).astype(np.float32)


def near_seven(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Fires on w7 and on w8."""
    return np.isin(ids, (7, 8)).astype(np.float32)


def never(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Is always below zero."""
    return np.full(len(ids), -1, np.float32)


def once(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Fires in one window alone."""
    return (np.cumsum(ids) == int(np.sum(LONGEST))).astype(np.float32)


WINDOWS = make_windows(260)
LONGEST = WINDOWS[int(np.argmax([window.sum() for window in WINDOWS]))]


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer 0: on_seven, before_five, near_seven, never, once. Not to be changed."""
    path = tmp_path_factory.mktemp("explained") / "store"
    plant_capture(path, WINDOWS, [[on_seven, before_five, near_seven, never, once]])
    return path


@pytest.fixture
def store(planted: Path, tmp_path: Path) -> Store:
    """A copy of the planted store, to be written to."""
    shutil.copytree(planted, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def server() -> Iterator[RuleServer]:
    """A server of rules."""
    with rule_server() as state:
        yield state
