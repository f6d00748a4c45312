"""`contribution`, `top_contribution` and `sum_contributions` against their specification, and what keeps their bits."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.kernels.contribution import naive, products
from actstore.kernels.contribution.api import (
    ContributionSums,
    Targets,
    contribution,
    sum_contributions,
    top_contribution,
)
from actstore.kernels.floats import decode, encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = [np.float32, np.float16, np.uint16]
SIZES = [0, 1, 2, 15, 16, 17, 63, 100]


@dataclass(frozen=True)
class Case:
    activations: NDArray[Any]
    write_vectors: NDArray[Any]
    targets: Targets
    groups: NDArray[np.int64]

    def sums(self, threads: int = 2) -> ContributionSums:
        return sum_contributions(self.activations, self.write_vectors, self.targets, self.groups, 3, threads)

    def bound(self) -> NDArray[np.float64]:
        """What the scores may be wrong by: float32 products are wrong by a share of their largest terms."""
        given, magnitudes = self.targets, Targets(np.abs(decode(self.targets.directions)), self.targets.rows)
        weights = [None if x is None else np.abs(x) for x in (given.gain, given.scale)]
        magnitudes = Targets(magnitudes.directions, given.rows, *weights)
        activations = np.abs(np.nan_to_num(decode(self.activations), posinf=0, neginf=0))
        return 1e-5 * naive.contribution(activations, np.abs(decode(self.write_vectors)), magnitudes) + 1e-30


def make_case(
    seed: int, n_neurons: int, n_tokens: int, dtypes: tuple[Any, Any, Any], special: bool = False, n_columns: int = 1
) -> Case:
    rng = np.random.default_rng(seed)
    d, n_rows = int(rng.integers(1, 70)), int(rng.integers(1, 40))
    activations = rng.standard_normal((n_neurons, 2 * n_tokens)).astype(np.float32)[:, ::2]
    if special:
        for number in (np.nan, np.inf, -np.inf, -0.0):
            activations[rng.random(activations.shape) < 0.05] = number
    one_each = rng.random() < 0.3
    directions = rng.standard_normal((n_tokens if one_each else n_rows, d)).astype(np.float32)
    gain, scale = rng.standard_normal(d).astype(np.float32), rng.random(n_tokens).astype(np.float32)
    # As a module holds them: transposed.
    write_vectors = rng.standard_normal((d, n_neurons)).astype(np.float32).T
    return Case(
        encode(activations, dtypes[0]),
        encode(write_vectors, dtypes[1]) if rng.random() < 0.5 else encode(write_vectors.T, dtypes[1]).T,
        Targets(
            encode(directions, dtypes[2]),
            None if one_each else rng.integers(0, n_rows, n_tokens),
            gain if rng.random() < 0.5 else None,
            scale if rng.random() < 0.5 else None,
        ),
        rng.permuted(np.tile([0, 1, 2, -1, -1], (n_tokens, 1)), axis=1)[:, :n_columns],
    )


def assert_close(found: NDArray[Any], expected: NDArray[np.float64], bound: NDArray[np.float64]) -> None:
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    assert (np.abs(found[finite] - expected[finite]) <= bound[finite]).all()


def assert_same(found: ContributionSums, expected: ContributionSums) -> None:
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(array, expected.arrays()[name], err_msg=name)


CASES = {
    "seed": st.integers(0, 2**32),
    "n_neurons": st.sampled_from([*SIZES, 300]),
    "n_tokens": st.sampled_from(SIZES),
    "dtypes": st.tuples(*[st.sampled_from(FORMATS)] * 3),
    "special": st.booleans(),
}


@given(**CASES, threads=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_contribution_is_what_its_specification_says(threads: int, **arguments: Any) -> None:
    case = make_case(**arguments)
    found = contribution(case.activations, case.write_vectors, case.targets, threads)
    assert found.dtype == np.float32
    assert_close(found, naive.contribution(case.activations, case.write_vectors, case.targets), case.bound())


@given(**CASES, k=st.integers(0, 20), threads=st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_the_top_neurons_are_those_with_the_largest_scores(k: int, threads: int, **arguments: Any) -> None:
    case = make_case(**arguments)
    scores = contribution(case.activations, case.write_vectors, case.targets)
    found = top_contribution(case.activations, case.write_vectors, case.targets, k, threads)
    one = np.ones((1, 1), np.float32)
    for token in range(scores.shape[1]):
        # The scores themselves, to the bit, so that who wins is not a matter of rounding.
        expected = naive.top_contribution(scores[:, [token]], np.repeat(one, len(scores), axis=0), Targets(one), k)
        np.testing.assert_array_equal(found.neurons[token], expected.neurons[0])
        np.testing.assert_array_equal(found.scores[token], expected.scores[0])


def test_ties_go_to_the_smaller_neuron_and_nan_never_wins() -> None:
    activations = np.array([[1, 0], [2, np.nan], [1, 0], [2, -np.inf], [0, 0]], np.float32)
    found = top_contribution(activations, np.ones((5, 1), np.float32), Targets(np.ones((2, 1), np.float32)), 4)
    assert found.neurons.tolist() == [[1, 3, 0, 2], [0, 2, 4, -1]]
    assert found.scores.tolist() == [[2, 2, 1, 1], [0, 0, 0, -np.inf]]


@given(**CASES, n_columns=st.integers(0, 5), threads=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_sums_are_what_their_specification_says(threads: int, **arguments: Any) -> None:
    case = make_case(**arguments)
    found = case.sums(threads)
    expected = naive.sum_contributions(case.activations, case.write_vectors, case.targets, case.groups, 3)
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_array_equal(found.non_finite, expected.non_finite)
    of_group = (case.groups[:, :, None] == np.arange(3)).any(axis=1).astype(np.float64)
    bound = of_group.T @ case.bound().T + 1e-30
    assert_close(found.total, expected.total, bound)
    assert_close(found.magnitude, expected.magnitude, bound)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("n_neurons", "n_tokens"), [(1, 1), (17, 63), (300, 100)])
def test_activations_by_token_give_the_same_bits(dtype: Any, n_neurons: int, n_tokens: int) -> None:
    case = make_case(n_neurons, n_neurons, n_tokens, (dtype, np.float32, np.uint16), special=True, n_columns=2)
    by_token = np.ascontiguousarray(case.activations.T)
    found = sum_contributions(by_token, case.write_vectors, case.targets, case.groups, 3, token_major=True)
    for name, expected in case.sums().arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], expected)


def test_groups_may_be_one_column_and_a_token_without_one_needs_no_target() -> None:
    rng = np.random.default_rng(0)
    activations, weights = rng.standard_normal((2, 5, 4)).astype(np.float32)
    unembedding = rng.standard_normal((9, 4)).astype(np.float32)
    groups = np.array([1, -1, 0, 1])
    found = sum_contributions(activations, weights, Targets(unembedding, np.array([8, -1, 3, 3])), groups, 2)
    scores = contribution(activations, weights, Targets(unembedding, np.array([8, 0, 3, 3])))
    np.testing.assert_allclose(found.total, [scores[:, 2], scores[:, 0] + scores[:, 3]], rtol=1e-6)
    np.testing.assert_allclose(found.magnitude[1], np.abs(scores[:, 0]) + np.abs(scores[:, 3]), rtol=1e-6)
    assert found.count.tolist() == [1, 2]


def large_case(n_neurons: int = 330) -> Case:
    """Long enough that some activations are read in a second piece, with targets that come often and rarely."""
    rng = np.random.default_rng(7)
    write_vectors, unembedding = (rng.standard_normal((n, 96)).astype(np.float32) for n in (330, 400))
    rows = np.minimum(rng.zipf(1.3, 900), 400) - 1
    activations = rng.standard_normal((330, 900)).astype(np.float16)[:n_neurons]
    scale = rng.random(900).astype(np.float32)
    targets = Targets(unembedding, rows, rng.standard_normal(96).astype(np.float32), scale)
    return Case(activations, write_vectors[:n_neurons], targets, rng.integers(-1, 3, (900, 1)))


@pytest.mark.parametrize(("threads", "tile"), [(1, (16, 16)), (2, (48, 64)), (3, (256, 100)), (8, (1024, 4096))])
def test_neither_threads_nor_tiles_change_a_bit(
    monkeypatch: pytest.MonkeyPatch, threads: int, tile: tuple[int, int]
) -> None:
    case = large_case()
    sums, scores = case.sums(), contribution(case.activations, case.write_vectors, case.targets)
    monkeypatch.setattr(products, "NEURONS", tile[0])
    monkeypatch.setattr(products, "COLUMNS", tile[1])
    assert_same(case.sums(threads), sums)
    np.testing.assert_array_equal(contribution(case.activations, case.write_vectors, case.targets, threads), scores)


@pytest.mark.parametrize("n_neurons", [1, 2, 5, 17, 250])
def test_a_neuron_has_the_same_bits_in_any_company(n_neurons: int) -> None:
    alone, together = large_case(n_neurons).sums(), large_case().sums()
    np.testing.assert_array_equal(alone.total, together.total[:, :n_neurons])


def test_what_scratch_memory_held_before_is_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case, few = large_case(), large_case(3)
    expected = case.sums(), few.sums(), contribution(few.activations, few.write_vectors, few.targets)
    monkeypatch.setattr(
        torch, "empty", lambda *shape: torch.full(*shape if isinstance(shape[0], tuple) else (shape,), torch.nan)
    )
    assert_same(case.sums(), expected[0])
    assert_same(few.sums(), expected[1])
    np.testing.assert_array_equal(contribution(few.activations, few.write_vectors, few.targets), expected[2])


def test_parts_merge_to_the_whole_and_always_to_the_same() -> None:
    case = large_case()

    def merged() -> ContributionSums:
        sums = ContributionSums.empty(3, 330)
        for tokens in np.split(np.arange(900), [100, 101, 650]):
            targets, groups = case.targets.take(tokens), case.groups[tokens]
            sums.merge(sum_contributions(case.activations[:, tokens], case.write_vectors, targets, groups, 3))
        return sums

    whole, parts = case.sums(), merged()
    assert_same(merged(), parts)
    np.testing.assert_array_equal(parts.count, whole.count)
    np.testing.assert_allclose(parts.total, whole.total, rtol=0, atol=1e-9 * whole.magnitude.max())
    with pytest.raises(ValueError, match=r"total has shape \(3, 330\) here and \(2, 330\) there"):
        parts.merge(ContributionSums.empty(2, 330))


def test_weights_that_are_mapped_are_only_read() -> None:
    case = large_case()
    case.write_vectors.flags.writeable = False
    case.targets.directions.flags.writeable = False
    case.activations.flags.writeable = False
    assert_same(case.sums(), large_case().sums())


def test_tensors_give_what_arrays_give() -> None:
    case = large_case()
    unembedding = torch.from_numpy(case.targets.directions).bfloat16().requires_grad_()
    rows, gain, scale = (torch.from_numpy(x) for x in (case.targets.rows, case.targets.gain, case.targets.scale))
    write_vectors = torch.nn.Parameter(torch.from_numpy(case.write_vectors).bfloat16())
    found = sum_contributions(
        torch.from_numpy(case.activations), write_vectors, Targets(unembedding, rows, gain, scale), case.groups, 3
    )
    targets = Targets(
        encode(case.targets.directions, np.uint16), case.targets.rows, case.targets.gain, case.targets.scale
    )
    arrays = case.activations, encode(case.write_vectors, np.uint16)
    assert_same(found, sum_contributions(*arrays, targets, case.groups, 3))


def test_calls_at_the_same_time_do_not_disturb_each_other() -> None:
    case = large_case()
    expected = case.sums()
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: case.sums(), range(6)):
            assert_same(found, expected)


def test_the_number_of_torchs_own_threads_stays() -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        large_case(40).sums(threads=5)
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert [torch.get_num_threads(), *seen] == [3, 3]
    finally:
        torch.set_num_threads(before)


def test_importing_it_loads_neither_torch_nor_triton() -> None:
    script = (
        "import sys, actstore.kernels.contribution.api, actstore.kernels.vocabulary_top_k.api;"
        "print(sorted({'torch', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


A, W, U = np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32), np.zeros((5, 2), np.float32)
ROWS, GROUPS = np.zeros(4, np.int64), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Targets(ROWS), r"directions must be \[row, d\], not \[4\]"),
        (lambda: Targets(U, ROWS[None]), r"rows must be \[token\] integers, not int64 \[1, 4\]"),
        (lambda: Targets(U, ROWS * 1.0), r"rows must be \[token\] integers, not float64 \[4\]"),
        (lambda: Targets(U, ROWS, A[0]), r"gain must be \[d\] with 2 entries, not \[4\]"),
        (lambda: Targets(U, ROWS, scale=U[0]), r"scale must be \[token\] with 4 entries, not \[2\]"),
        (lambda: Targets(U, ROWS, scale=A[0] + np.inf), "scale must be finite: leave out the tokens that have none"),
        (
            lambda: contribution(A, W, Targets(U, ROWS + 5)),
            "rows must be 0 or more and below 5, the number of directions; found 5 to 5",
        ),
        (lambda: contribution(A[:2], W, Targets(U, ROWS)), r"must be \[3 neurons, 4 tokens\], not \[2, 4\]"),
        (lambda: contribution(A, W, Targets(U)), r"must be \[3 neurons, 5 tokens\], not \[3, 4\]"),
        (lambda: contribution(A, A, Targets(U, ROWS)), r"write_vectors must be \[neuron, d\] with d = 2, not \[3, 4\]"),
        (lambda: top_contribution(A, W, Targets(U, ROWS), -1), "k must be 0 or more, not -1"),
        (lambda: sum_contributions(A, W, Targets(U, ROWS - 1), GROUPS, 1), "found -1 to -1"),
        (
            lambda: sum_contributions(A, W, Targets(U, ROWS), GROUPS[:3], 1),
            r"groups must be \[4 tokens\] or \[4 tokens, column\] integers, not int64 \[3\]",
        ),
        (
            lambda: sum_contributions(A, W, Targets(U, ROWS), GROUPS + 1, 1),
            "groups must be -1, for none, or below n_groups = 1; found 1 to 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_other_dtypes_are_refused_by_name() -> None:
    for arguments, name in (
        ((A * 1j, W, U), "activations"),
        ((A, W.astype(int), U), "write_vectors"),
        ((A, W, U > 0), "directions"),
    ):
        with pytest.raises(TypeError, match=f"{name} must be float32, float16 or bfloat16"):
            contribution(*arguments[:2], Targets(arguments[2], ROWS))
