"""`vocabulary_top_k` in Triton against its specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_values import FORMATS, make_weights

from actstore.kernels.vocabulary_top_k import api, naive

gpu = pytest.importorskip("actstore.kernels.vocabulary_top_k.gpu", exc_type=ImportError)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    OnDevice = Callable[[NDArray[Any]], Tensor]


def draw_d(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 5, 31, 32, 33, 70]))


def assert_equal(found: api.VocabularyTopK, expected: api.VocabularyTopK) -> None:
    for side, of_side in zip(found, expected, strict=True):
        np.testing.assert_array_equal(side.values, of_side.values, strict=True)
        np.testing.assert_array_equal(side.tokens, of_side.tokens, strict=True)


@given(
    seed=st.integers(0, 2**32),
    n_neurons=st.sampled_from([0, 1, 63, 65]),
    n_tokens=st.sampled_from([0, 1, 63, 64, 65, 100, 257, 300]),
    k=st.sampled_from([0, 1, 3, 8, 33]),
    dtypes=st.tuples(*[st.sampled_from(FORMATS)] * 2),
    flags=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=30, deadline=None)
def test_it_is_what_its_specification_says(
    on_device: OnDevice,
    seed: int,
    n_neurons: int,
    n_tokens: int,
    k: int,
    dtypes: tuple[Any, Any],
    flags: tuple[bool, bool],
) -> None:
    write_vectors, unembedding, gain = make_weights(seed, n_neurons, n_tokens, dtypes, flags[0], draw_d)
    weights = gain if flags[1] else None
    with np.errstate(invalid="ignore"):  # the interpreter multiplies with numpy, which warns of inf · 0
        found = gpu.vocabulary_top_k(on_device(write_vectors), on_device(unembedding), k, weights).to_host()
    assert_equal(found, naive.vocabulary_top_k(write_vectors, unembedding, k, weights))


def test_ties_go_to_the_smaller_id_and_nan_never_wins(on_device: OnDevice) -> None:
    unembedding = np.array([[1], [2], [np.nan], [1], [2], [-np.inf]], np.float32)
    arrays = np.array([[1], [-1], [np.nan]], np.float32), unembedding
    with np.errstate(invalid="ignore"):
        found = gpu.vocabulary_top_k(*map(on_device, arrays), 5).to_host()
    assert found.largest.tokens.tolist() == [[1, 4, 0, 3, -1], [5, 0, 3, 1, 4], [-1] * 5]
    assert found.smallest.tokens.tolist() == [[5, 0, 3, 1, 4], [1, 4, 0, 3, -1], [-1] * 5]
    assert found.smallest.values.tolist() == [[-np.inf, 1, 1, 2, 2], [-2, -2, -1, -1, np.inf], [np.inf] * 5]


def test_the_interface_takes_weights_wherever_they_lie(on_device: OnDevice) -> None:
    write_vectors, unembedding, gain = make_weights(1, 65, 300, (np.float32, np.float32), False, draw_d)
    found = api.vocabulary_top_k(on_device(write_vectors), on_device(unembedding), 4, on_device(gain))
    assert_equal(found, naive.vocabulary_top_k(write_vectors, unembedding, 4, gain))
