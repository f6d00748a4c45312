"""A planted store of many blocks, read by every test of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from planted_stores import Planted, plant

import actstore

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = tuple(np.random.default_rng(3).integers(5, 40, 24).tolist())


def shaped(values: np.ndarray, layer: int) -> np.ndarray:
    """Other means and spreads per neuron, one neuron that never varies, and one that has no value here and there."""
    row = np.arange(len(values), dtype=np.float32)[:, None]
    values = values * (1 + row) + 3 * row
    values[2] = 4
    values[3, ::5] = np.nan
    return values.astype(np.float32)


@pytest.fixture(scope="session")
def many_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures `exact`, `half` and `int8` of a dozen blocks, on disk, not to be changed."""
    path = tmp_path_factory.mktemp("batches") / "store"
    for precision in ("exact", "half", "int8"):
        plant(path, precision, Planted(lengths=LENGTHS, precision=precision, values=shaped))
        what = Planted(lengths=LENGTHS, precision=precision, values=shaped, order="token")
        plant(path, f"{precision}-by-token", what)
    return path


@pytest.fixture(scope="session")
def many(many_blocks: Path) -> Any:
    return actstore.open(many_blocks)
