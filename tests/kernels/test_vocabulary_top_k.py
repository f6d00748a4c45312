"""`vocabulary_top_k` against its specification, and what keeps its bits and its memory small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_values import FORMATS, make_weights

from actstore.kernels.contribution import products
from actstore.kernels.floats import decode, encode
from actstore.kernels.vocabulary_top_k import naive
from actstore.kernels.vocabulary_top_k.api import VocabularyTopK, vocabulary_top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray


def draw_d(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 70))


def assert_equal(found: VocabularyTopK, expected: VocabularyTopK) -> None:
    for side, of_side in zip(found, expected, strict=True):
        np.testing.assert_array_equal(side.values, of_side.values, strict=True)
        np.testing.assert_array_equal(side.tokens, of_side.tokens, strict=True)


@given(
    seed=st.integers(0, 2**32),
    n_neurons=st.sampled_from([0, 1, 15, 16, 17, 40]),
    n_tokens=st.sampled_from([0, 1, 15, 17, 63, 64, 65, 100, 1100]),
    k=st.sampled_from([0, 1, 3, 10, 70]),
    dtypes=st.tuples(*[st.sampled_from(FORMATS)] * 2),
    flags=st.tuples(st.booleans(), st.booleans()),
    threads=st.integers(1, 3),
)
@settings(max_examples=120, deadline=None)
def test_it_is_what_its_specification_says(
    seed: int, n_neurons: int, n_tokens: int, k: int, dtypes: tuple[Any, Any], flags: tuple[bool, bool], threads: int
) -> None:
    weights = make_weights(seed, n_neurons, n_tokens, dtypes, flags[0], draw_d)
    write_vectors, unembedding, gain = weights[0], weights[1], weights[2] if flags[1] else None
    found = vocabulary_top_k(write_vectors, unembedding, k, gain, threads)
    assert_equal(found, naive.vocabulary_top_k(write_vectors, unembedding, k, gain))


def random_weights() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    write_vectors, unembedding = (rng.standard_normal((n, 96)).astype(np.float32) for n in (150, 3000))
    return write_vectors, unembedding, rng.standard_normal(96).astype(np.float32)


def test_products_are_those_of_float32() -> None:
    write_vectors, unembedding, gain = random_weights()
    found = vocabulary_top_k(write_vectors, unembedding, 10, gain)
    products = write_vectors.astype(np.float64) @ (unembedding * gain.astype(np.float64)).T
    expected = naive.vocabulary_top_k(write_vectors, unembedding, 10, gain)
    for side, of_side in zip(found, expected, strict=True):
        np.testing.assert_allclose(side.values, np.take_along_axis(products, side.tokens, axis=1), atol=1e-4)
        np.testing.assert_allclose(side.values, of_side.values, atol=1e-4)


def test_ties_go_to_the_smaller_id_and_nan_never_wins() -> None:
    unembedding = np.array([[1], [2], [np.nan], [1], [2], [-np.inf]], np.float32)
    found = vocabulary_top_k(np.array([[1], [-1], [np.nan]], np.float32), unembedding, 5)
    assert found.largest.tokens.tolist() == [[1, 4, 0, 3, -1], [5, 0, 3, 1, 4], [-1] * 5]
    assert found.largest.values.tolist() == [[2, 2, 1, 1, -np.inf], [np.inf, -1, -1, -2, -2], [-np.inf] * 5]
    assert found.smallest.tokens.tolist() == [[5, 0, 3, 1, 4], [1, 4, 0, 3, -1], [-1] * 5]
    assert found.smallest.values.tolist() == [[-np.inf, 1, 1, 2, 2], [-2, -2, -1, -1, np.inf], [np.inf] * 5]


@pytest.mark.parametrize(("threads", "tile"), [(1, (16, 16)), (2, (48, 64)), (3, (256, 100)), (8, (1024, 4096))])
def test_neither_threads_nor_tiles_change_a_bit(
    monkeypatch: pytest.MonkeyPatch, threads: int, tile: tuple[int, int]
) -> None:
    write_vectors, unembedding, gain = random_weights()
    expected = vocabulary_top_k(write_vectors, unembedding, 7, gain)
    monkeypatch.setattr(products, "NEURONS", tile[0])
    monkeypatch.setattr(products, "COLUMNS", tile[1])
    assert_equal(vocabulary_top_k(write_vectors, unembedding, 7, gain, threads), expected)


def test_scratch_memory_is_small_and_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    write_vectors, unembedding, gain = random_weights()
    halves = encode(write_vectors[:5], np.uint16), encode(unembedding, np.uint16)
    expected, made = vocabulary_top_k(*halves, 7, gain), []

    def poisoned(*shape: Any) -> torch.Tensor:
        made.append(torch.full(shape[0] if isinstance(shape[0], tuple) else shape, torch.nan))
        return made[-1]

    monkeypatch.setattr(torch, "empty", poisoned)
    assert_equal(vocabulary_top_k(*halves, 7, gain), expected)
    assert 0 < sum(room.numel() for room in made) < unembedding.size / 2


def test_a_modules_own_layout_and_tensors_give_the_same() -> None:
    write_vectors, unembedding, gain = random_weights()
    projection = torch.nn.Linear(150, 96, bias=False)  # its weight is [d, neuron]
    projection.weight.data = torch.from_numpy(write_vectors.T.copy())
    found = vocabulary_top_k(projection.weight.T, torch.from_numpy(unembedding), 4, torch.from_numpy(gain))
    assert_equal(found, vocabulary_top_k(write_vectors, unembedding, 4, gain))


W, U = np.zeros((3, 2), np.float32), np.zeros((5, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vocabulary_top_k(W, U[0], 1), r"unembedding must be \[vocabulary, d\], not \[2\]"),
        (lambda: vocabulary_top_k(W.T, U, 1), r"write_vectors must be \[neuron, d\] with d = 2, not \[2, 3\]"),
        (lambda: vocabulary_top_k(W, U, -1), "k must be 0 or more, not -1"),
        (lambda: vocabulary_top_k(W, U, 1, decode(U[:, 0])), r"gain must be \[d\] with 2 entries, not \[5\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_other_dtypes_are_refused_by_name() -> None:
    for arguments, name in (((W * 1j, U), "write_vectors"), ((W, U > 0), "unembedding")):
        with pytest.raises(TypeError, match=f"{name} must be float32, float16 or bfloat16"):
            vocabulary_top_k(*arguments, 1)
