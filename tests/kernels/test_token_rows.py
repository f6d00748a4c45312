"""Token rows against their specification: transposed into rows in any order, decoded, clipped, shifted, scaled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.kernels.floats import encode
from actstore.kernels.token_rows import api, naive
from actstore.kernels.token_rows.naive import Decoding

DTYPES = (np.float32, np.float16, np.uint16)


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32])
@given(n_neurons=st.integers(0, 50), n_tokens=st.integers(0, 100), seed=st.integers(0, 99))
def test_tokens_are_put_into_their_rows(dtype: type[np.generic], n_neurons: int, n_tokens: int, seed: int) -> None:
    """And nothing else is: other columns and rows keep what they had, odd sizes and left out tokens included."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-100, 100, (n_neurons, n_tokens + 3)).astype(dtype)[:, :n_tokens]
    rows = rng.permutation(n_tokens + 5)[:n_tokens]
    target = np.where(rng.random(n_tokens) < rng.choice([0.05, 0.5, 1]), rows, -1)
    ours = rng.integers(-100, 100, (n_tokens + 5, n_neurons + 7)).astype(dtype)
    theirs = ours.copy()
    api.scatter_rows(values, target, ours, 4)
    naive.scatter_rows(values, target, theirs, 4)
    np.testing.assert_array_equal(ours, theirs)


def decoding_of(rng: np.random.Generator, width: int, scales: np.ndarray | None) -> Decoding:
    limit = np.where(rng.random(width) < 0.3, 65504, np.inf).astype(np.float32)
    shift, factor = rng.standard_normal((2, width)).astype(np.float32)
    return Decoding(scales, limit, shift, factor)


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [0, 1, 63, 1100])
def test_floats_are_decoded(dtype: type, out_dtype: type, width: int) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((9, width)) * 10).astype(np.float32)
    values[:, ::7], values[:, 1::7], values[:, 2::7] = np.nan, np.inf, -np.inf
    raw, blocks = encode(values, dtype), np.zeros(9, np.int32)
    for decoding in (decoding_of(rng, width, None), plain(width)):
        expect_same(raw, blocks, decoding, out_dtype)


def plain(width: int) -> Decoding:
    ones = np.ones(width, np.float32)
    return Decoding(None, ones * np.inf, ones * 0, ones)


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("width", [0, 1, 63, 1100])
def test_steps_are_decoded_by_the_scales_of_their_block(out_dtype: type, width: int) -> None:
    """Steps without a value and infinite ones, which the scale's mark tells, included."""
    rng = np.random.default_rng(1)
    raw, blocks = rng.integers(-128, 128, (64, width)).astype(np.int8), rng.integers(0, 3, 64).astype(np.int32)
    bits = rng.random((3, width), np.float32).view(np.uint32) & ~np.uint32(127)
    scales = (bits | (rng.random((3, width)) < 0.5)).astype(np.uint32).view(np.float32)
    expect_same(raw, blocks, decoding_of(rng, width, scales), out_dtype)


def expect_same(raw: np.ndarray, blocks: np.ndarray, decoding: Decoding, dtype: type) -> None:
    ours, theirs = np.empty(raw.shape, dtype), np.empty(raw.shape, dtype)
    api.decode_rows(raw, blocks, decoding, ours)
    naive.decode_rows(raw, blocks, decoding, theirs)
    np.testing.assert_array_equal(ours, theirs)


def test_what_does_not_fit_is_refused() -> None:
    values, out = np.zeros((4, 8), np.float16), np.zeros((8, 4), np.float16)
    with pytest.raises(ValueError, match="rows below 8 or -1, found 0 to 8"):
        api.scatter_rows(values, np.arange(8) + np.arange(8) // 7, out, 0)
    with pytest.raises(ValueError, match="from column 1 on"):
        api.scatter_rows(values, np.arange(8), out, 1)
    with pytest.raises(TypeError, match="int8 steps with scales"):
        api.decode_rows(out, np.zeros(8, np.int32), Decoding(np.ones((1, 4), np.float32), *[np.ones(4)] * 3), out)
    steps, limits = np.zeros((8, 4), np.int8), [np.ones(4, np.float32)] * 3
    with pytest.raises(ValueError, match="one of 1 blocks"):
        api.decode_rows(steps, np.ones(8, np.int32), Decoding(np.ones((1, 4), np.float32), *limits), out)
