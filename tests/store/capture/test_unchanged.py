"""A block that is rewritten while a reader has its store open: each block is read as it was or as it is, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import planted_stores
import pytest
from planted_stores import Planted, plant

import actstore
from actstore.store.errors import StorageError
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SLOTS, N_BLOCKS = 840, 3


def other(values: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
    """What the same capture may have come out with: values that are quantised otherwise."""
    return np.sign(values) * values**2


@pytest.mark.parametrize("precision", ["exact", "int8"])
def test_a_rewritten_block_gives_no_mixture(
    tmp_path: Path, s3_location: str, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(planted_stores, "BLOCK_SLOTS", SLOTS)
    for name, change in (("before", lambda values, layer: values), ("after", other)):
        plant(tmp_path / name, what=Planted((SLOTS,) * N_BLOCKS, values=change, precision=precision))
    actstore.copy(tmp_path / "before", s3_location)
    before, after, reader = (actstore.open(at) for at in (tmp_path / "before", tmp_path / "after", s3_location))
    assert before.capture().record.identity == after.capture().record.identity
    reader.neuron("L1.N3").activations()

    # As a repair of block 1 goes.
    source, target = Folder(tmp_path / "after"), Folder(s3_location, read_only=False)
    target.delete("captures/corpus/committed.json")
    for key, _ in source.sizes("captures/corpus"):
        if key.endswith("/c/0/1") and ("/values/" in key or "/scale/" in key):
            target.write(key, source.read(key))

    refusals = []
    for name in ("L1.N3", "L1.N4", "L0.N2", "L0.N2", "L0.N3"):
        try:
            found = reader.neuron(name).activations().reshape(N_BLOCKS, SLOTS)
        except StorageError as error:
            refusals.append(str(error))
            continue
        old, new = (of.neuron(name).activations().reshape(N_BLOCKS, SLOTS) for of in (before, after))
        for block in range(N_BLOCKS):
            assert any(np.array_equal(found[block], one[block]) for one in (old, new)), (name, block)
    # Layer 1 was opened before; of layer 0, the int8 values would have the scales of the table, which was read before.
    assert len(refusals) == {"exact": 2, "int8": 5}[precision]
    assert all(one.endswith("while it was read. Open the store again.") for one in refusals)
