"""`top_k` against its specification, and what makes it safe to merge."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_values import FORMATS, make_values

from actstore.kernels.floats import encode
from actstore.kernels.top_k import naive
from actstore.kernels.top_k.api import TopK, merge, top_k


def assert_equal(found: TopK, expected: TopK) -> None:
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


@given(
    seed=st.integers(0, 2**32),
    n_neurons=st.integers(0, 4),
    n_tokens=st.sampled_from([0, 1, 2, 255, 256, 257, 600]),
    k=st.integers(0, 6),
    dtype=st.sampled_from(FORMATS),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    threads=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_top_k_is_what_its_specification_says(
    seed: int, n_neurons: int, n_tokens: int, k: int, dtype: Any, flags: tuple[bool, ...], threads: int
) -> None:
    tied, special, segmented, continued = flags
    rng = np.random.default_rng(seed)
    everywhere = rng.permutation(2000)
    tokens, earlier = np.sort(everywhere[:n_tokens]), np.sort(everywhere[n_tokens : n_tokens + 30])
    values = encode(make_values(rng, (n_neurons, n_tokens), tied, special), dtype)
    segments = np.sort(np.concatenate([[0, n_tokens], rng.integers(0, n_tokens + 1, 4)])) if segmented else None
    state = naive.top_k(make_values(rng, (n_neurons, 30), tied, special), earlier, k) if continued else None
    found = top_k(values, tokens, k, segments, state, threads)
    assert_equal(found, naive.top_k(values, tokens, k, segments, state))


@given(st.integers(0, 2**32), st.integers(0, 5), st.booleans())
@settings(max_examples=100, deadline=None)
def test_parts_merge_to_the_whole_in_any_order_and_grouping(seed: int, k: int, special: bool) -> None:
    rng = np.random.default_rng(seed)
    values = make_values(rng, (3, 90), tied=True, special=special)
    tokens = np.arange(90)
    a, b, c = (top_k(values[:, x : x + 30], tokens[x : x + 30], k) for x in (0, 30, 60))
    whole = top_k(values, tokens, k)
    assert_equal(merge(merge(a, b), c), whole)
    assert_equal(merge(a, merge(b, c)), whole)
    assert_equal(merge(merge(c, a), b), whole)
    assert_equal(top_k(values[:, :30], tokens[:30], k, state=merge(c, b)), whole)
    assert_equal(naive.merge(naive.merge(a, b), c), whole)


def test_ties_go_to_the_earlier_token_also_across_batches() -> None:
    later = top_k(np.zeros((1, 3), np.float32), np.array([7, 8, 9]), 2)
    assert later.tokens.tolist() == [[7, 8]]
    assert top_k(np.zeros((1, 1), np.float32), np.array([3]), 2, state=later).tokens.tolist() == [[3, 7]]
    assert later.tokens.tolist() == [[7, 8]], "the state given is not changed"


def test_nan_never_wins_and_an_empty_place_says_so() -> None:
    found = top_k(np.array([[np.nan, 1.0, np.nan], [np.nan, -np.inf, np.nan]], np.float32), np.arange(3), 2)
    assert found.values.tolist() == [[1, -np.inf], [-np.inf, -np.inf]]
    assert found.tokens.tolist() == [[1, -1], [-1, -1]]


def test_a_segment_has_one_place_that_of_its_first_largest_value() -> None:
    values = np.array([[1, 5, 5, 4, 3, 2]], np.float32)
    found = top_k(values, np.arange(10, 16), 3, segments=np.array([0, 3, 3, 6]))
    assert found.values.tolist() == [[5, 4, -np.inf]]
    assert found.tokens.tolist() == [[11, 13, -1]]


def test_any_number_of_threads_gives_the_same() -> None:
    values = np.round(np.random.default_rng(0).standard_normal((50, 500)), 1).astype(np.float32)
    assert_equal(top_k(values, np.arange(500), 7, threads=1), top_k(values, np.arange(500), 7, threads=4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: top_k(v, np.arange(3), 1), r"values must be \[neuron, token\] with 3 tokens, not \[2, 4\]"),
        (
            lambda v: top_k(v, np.array([0, 2, 1, 3]), 1),
            "tokens must be token indices of 0 or more, ascending, each once",
        ),
        (lambda v: top_k(v, np.arange(4), -1), "k must be 0 or more, not -1"),
        (
            lambda v: top_k(v, np.arange(4), 1, np.array([0, 3])),
            "segments must ascend from 0 to the number of tokens, 4",
        ),
        (
            lambda v: top_k(v, np.arange(4), 2, state=top_k(v, np.arange(4), 1)),
            r"state must be \[2 neurons, k = 2\], not \[2, 1\]",
        ),
        (
            lambda v: merge(top_k(v, np.arange(4), 1), top_k(v[:1], np.arange(4), 1)),
            "cannot merge the top activations of 2 and of 1 neurons",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 4), np.float32))
