"""Attention of one new token per row agrees with its specification, reads no room and does not depend on threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.kernels.decode_attention import naive
from actstore.kernels.decode_attention.api import decode_attention


def inputs(
    rows: int, groups: int, of_group: int, size: int, room: int, seed: int = 0, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    query = rng.normal(0, spread, (rows, groups * of_group, size)).astype(np.float32)
    keys, values = (rng.normal(0, spread, (rows, groups, size, room)).astype(np.float32) for _ in range(2))
    return query, keys, values


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 3, 9]),
    groups=st.integers(1, 3),
    of_group=st.integers(1, 3),
    size=st.sampled_from([1, 7, 8, 32]),
    positions=st.sampled_from([1, 2, 7, 63, 100]),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
)
def test_it_is_what_the_specification_says_and_reads_no_room(
    rows: int, groups: int, of_group: int, size: int, positions: int, spread: float
) -> None:
    query, keys, values = inputs(rows, groups, of_group, size, positions + 5, rows, spread)
    keys[..., positions:] = values[..., positions:] = np.nan
    found = decode_attention(query, keys, values, positions, 0.3)
    expected = naive.decode_attention(query, keys[..., :positions], values[..., :positions], 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_scores_far_apart_do_not_overflow() -> None:
    query, keys, values = inputs(2, 1, 1, 8, 9)
    query[:], keys[..., 3] = 1e3, 1e3
    np.testing.assert_allclose(decode_attention(query, keys, values, 9, 1.0)[:, 0], values[:, 0, :, 3], rtol=1e-6)


def test_neither_threads_nor_other_rows_change_a_bit() -> None:
    query, keys, values = inputs(37, 2, 2, 8, 70)
    one = decode_attention(query, keys, values, 65, 0.3, threads=1)
    np.testing.assert_array_equal(one, decode_attention(query, keys, values, 65, 0.3, threads=3))
    alone = decode_attention(query[5:6], keys[5:6].copy(), values[5:6].copy(), 65, 0.3)
    np.testing.assert_array_equal(one[5:6], alone)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, k, v: (q[0], k, v, 4), "must be"),
        (lambda q, k, v: (q, k[:1], v[:1], 4), "same rows"),
        (lambda q, k, v: (q[:, :3], k, v, 4), "evenly"),
        (lambda q, k, v: (q, k, v, 0), "found 0"),
        (lambda q, k, v: (q, k, v, 10), "found 10"),
        (lambda q, k, v: (q, k.astype(np.float64), v, 4), "keys must be float32"),
        (lambda q, k, v: (q, k, v.swapaxes(2, 3), 4), "keys and values"),
        (lambda q, k, v: (q, k, np.asfortranarray(v), 4), "values must be float32 and C-contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(change: object, said: str) -> None:
    query, keys, values = inputs(2, 2, 2, 8, 9)
    with pytest.raises(ValueError, match=said):
        decode_attention(*change(query, keys, values), 0.3)  # type: ignore[operator]
