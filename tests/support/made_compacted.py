"""Blocks in which most values are those of one row, for the tests of compaction on the CPU and on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.kernels.compaction.compacted import Compacted

SLOTS = [0, 1, 63, 255, 256, 300, 1100]


def common_row(block: NDArray[Any], share: float) -> NDArray[Any]:
    """A row of zeros and of NaN; `block` is given its values at a share of the places."""
    rng = np.random.default_rng(0)
    base = np.zeros(block.shape[1], block.dtype)
    base[rng.random(len(base)) < 0.3] = np.array([0x7FC1], np.uint16) if block.dtype == np.uint16 else np.nan
    equal = rng.random(block.shape) < share
    block[equal] = np.broadcast_to(base, block.shape)[equal]
    return base


def assert_same(found: Compacted[NDArray[Any]], expected: Compacted[NDArray[Any]]) -> None:
    """All but what is undefined: entries from a neuron's total on."""
    for name in ("base", "totals", "counts"):
        np.testing.assert_array_equal(found.parts()[name], expected.parts()[name], name, strict=True)
    for neuron, total in enumerate(expected.totals):
        for name in ("offsets", "values"):
            np.testing.assert_array_equal(found.parts()[name][neuron, :total], expected.parts()[name][neuron, :total])
