"""Fixtures of planted stores, for every folder of tests that reads one."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from planted_stores import Planted, plant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


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
