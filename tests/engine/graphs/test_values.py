"""The part of silent positions in the value of a path, compared with sums position by position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.engine.graphs.values import silent_means, values_with
from actstore.kernels.suffix_trie.api import IGNORE, Nodes

FEW = st.sampled_from([0.0, 0.25, -0.5, 3.0, np.nan, np.inf])


@given(
    st.lists(st.tuples(st.integers(0, 5), FEW, st.booleans()), max_size=30),
    st.lists(st.integers(0, 7), max_size=9),
    FEW,
)
def test_means_are_those_of_silent_positions_of_the_same_token(rows: list[Any], tokens: list[int], rest: float) -> None:
    rest = rest if np.isfinite(rest) else 0.125
    ids, values, silent = (
        np.array([row[i] for row in rows], t) for i, t in enumerate((np.int64, np.float32, np.bool_))
    )
    result = silent_means(ids, values, silent, np.array(tokens, np.int64), rest)
    for token, mean in zip(tokens, result.tolist(), strict=True):
        own = [float(v) for t, v, s in rows if t == token and s and np.isfinite(v)]
        assert mean == pytest.approx((sum(own) + rest) / (len(own) + 1))


def test_a_line_is_worth_what_its_activating_token_does_silently() -> None:
    nan = np.nan
    nodes = Nodes(
        np.array([0, 3, 3, 5]),
        np.array([-1, 0, 1, -1, -1], np.int32),
        np.array([4, IGNORE, 7, 2, 4], np.int32),
        np.array([0, 1, 2, 0, 0], np.uint8),
        np.array([True, False, True, True, True]),
        np.array([0.25, nan, 0.5, 1.0, 0.0], np.float32),
        np.array([0.5, nan, 0.75, 0.875, 0.125], np.float32),
        *np.ones((2, 5), np.int32),
    )
    offsets, fired = np.array([0, 2, 2, 5]), np.array([4, 4, 4, 2, 4])
    silent, rest = np.array([0.5, 0.5, 0.25, 9.0, 0.25]), np.array([0.1, 0.2, 0.125])
    result = values_with(nodes, offsets, fired, silent, rest)
    expected = [0.5 + 0.75 * (0.5 - 0.1), nan, 0.75 + 0.5 * (0.5 - 0.1), 0.875, 0.125 + 1.0 * (0.25 - 0.125)]
    np.testing.assert_allclose(result, np.array(expected), rtol=1e-6)
    assert result.dtype == np.float32
    none = nodes._replace(
        **{name: getattr(nodes, name)[:0] for name in Nodes._fields[1:]}, offsets=np.zeros(4, np.int64)
    )
    assert values_with(none, offsets, fired, silent, rest).shape == (0,)
