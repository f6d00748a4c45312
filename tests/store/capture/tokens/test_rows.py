"""Blocks as rows of one token each: the values of `block_values`, in rows that the caller names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from planted_stores import BLOCK_SLOTS, WIDTHS

from actstore.kernels.floats import decode
from actstore.store.capture.tokens.rows import raw_token_rows, stored_dtype, token_values
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("precision", ["exact", "half", "int8", "sparse"])
def test_values_are_those_of_the_reader(somewhere: str, planting: Callable[..., Any], precision: str) -> None:
    """Of all neurons or some, of all slots or the first ones, as float32, float16 and bfloat16."""

    def holes(values: np.ndarray, layer: int) -> np.ndarray:
        values[1::3, ::7] = np.nan
        values[2, 5] = 1e6  # beyond float16
        return values

    planting(somewhere, precision=precision, values=holes)
    capture = Store(somewhere).capture()
    for layer, width in enumerate(WIDTHS):
        for block in capture.blocks:
            for saturated in (False, True):
                expected = capture.block_values(layer, block, saturated=saturated).T
                out = np.empty((BLOCK_SLOTS, width), np.float32)
                token_values(capture, layer, block, out, saturated=saturated)
                np.testing.assert_array_equal(out, expected)
            neurons = np.arange(1, width, 3)
            some = np.empty((50, len(neurons)), np.uint16)
            token_values(capture, layer, block, some, neurons=neurons)
            expected = capture.block_values(layer, block).T[:50, neurons]
            finite = np.isfinite(expected)
            np.testing.assert_allclose(decode(some)[finite], expected[finite], rtol=2**-8)
            half = np.empty((BLOCK_SLOTS, width), np.float16)
            token_values(capture, layer, block, half)
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(half, capture.block_values(layer, block).T.astype(np.float16))


def test_tokens_go_into_the_rows_that_they_are_given(planted_path: tuple[Path, Any]) -> None:
    """Layers side by side, tokens that are left out nowhere."""
    capture = Store(planted_path[0]).capture()
    out = np.full((BLOCK_SLOTS, sum(WIDTHS)), -1, stored_dtype(capture))
    target = np.random.default_rng(0).permutation(BLOCK_SLOTS)
    target[10:30] = -1
    for layer, column in ((1, 0), (0, WIDTHS[1])):
        raw_token_rows(capture, layer, 0, target, out, column=column)
    expected = np.vstack([capture.raw_block(1, 0), capture.raw_block(0, 0)]).T
    np.testing.assert_array_equal(out[target[target >= 0]], expected[target >= 0])
    assert (np.delete(out, target[target >= 0], axis=0) == -1).all()


def test_values_are_held_against_their_checksums(planted: tuple[Store, Any]) -> None:
    store, _ = planted
    path = store.folder.local_path() / "captures/corpus/values/mlp.post/1/c/0/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    message = r"capture 'corpus', layer 1 \(mlp\.post\), block 0, neuron.* Run `store\.verify\(\)`"
    with pytest.raises(FormatError, match=message):
        token_values(store.capture(), 1, 0, np.empty((BLOCK_SLOTS, WIDTHS[1]), np.float32))


def test_what_is_not_there_is_named(somewhere: str, planting: Callable[..., Any]) -> None:
    planting(somewhere, precision="none")
    capture = Store(somewhere).capture()
    with pytest.raises(NotFoundError, match=r"statistics only \(precision none\), no values"):
        token_values(capture, 0, 0, np.empty((BLOCK_SLOTS, WIDTHS[0]), np.float32))
