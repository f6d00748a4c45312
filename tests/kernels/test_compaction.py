"""Compacted blocks on the CPU: what was put in comes out again, and what did not fit is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_compacted import SLOTS, assert_same, common_row
from made_values import FORMATS, blocks

from actstore.kernels.compaction import api, naive
from actstore.kernels.compaction.compacted import nbytes_per_neuron
from actstore.kernels.compaction.rows import CompactedRows

if TYPE_CHECKING:
    from numpy.typing import NDArray


@given(blocks(4, SLOTS), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([0, 7, 1100]), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_what_is_kept_is_what_the_specification_says_and_every_bit_comes_back(
    block: NDArray[Any], share: float, capacity: int, threads: int
) -> None:
    base = common_row(block, share)
    compacted, expected = api.compact(block, base, capacity, threads), naive.compact(block, base, capacity)
    assert_same(compacted, expected)
    bits = block.view(f"i{block.itemsize}")
    if compacted.totals.max(initial=0) > capacity:
        with pytest.raises(ValueError, match=rf"entries, of which {capacity} were kept: read the block itself"):
            api.expand(compacted, threads=threads)
        return
    np.testing.assert_array_equal(naive.expand(expected), bits)
    np.testing.assert_array_equal(api.expand(compacted, threads=threads), bits, strict=True)
    np.testing.assert_array_equal(api.expand(compacted, 1, 3), bits[1:3])


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_compacted_block_reads_as_the_array_that_it_was(dtype: Any) -> None:
    block = np.zeros((5, 700), dtype)
    block[:, ::50] = np.arange(1, 71).reshape(5, 14)
    rows = CompactedRows(api.compact(block, np.zeros(700, dtype), 35), block.dtype)
    assert (rows.shape, rows.itemsize) == (block.shape, block.itemsize)
    np.testing.assert_array_equal(rows[3:99], block[3:], strict=True)
    np.testing.assert_array_equal(np.asarray(rows), block, strict=True)
    assert rows.nbytes == 5 * nbytes_per_neuron(700, 35, block.itemsize) + block[0].nbytes < block.nbytes / 2


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    block = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"one value for each slot of block, of its dtype, not float32 \[2\] for"):
        api.compact(block, np.zeros(2, np.float32), 1)
    with pytest.raises(ValueError, match="of its dtype, not float16"):
        api.compact(block, np.zeros(3, np.float16), 1)
