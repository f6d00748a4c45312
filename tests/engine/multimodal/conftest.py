"""Captures of images with captions, planted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves support modules off the path
from planted_captions import plant_captions

if TYPE_CHECKING:
    from actstore.store.reader import Capture


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Capture, dict[str, Any]]:
    """A capture of five captions, not to be changed, and what was planted."""
    return plant_captions(tmp_path_factory.mktemp("captions") / "store")
