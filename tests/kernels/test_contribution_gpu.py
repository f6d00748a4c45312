"""Contributions in Triton against their specification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore.kernels.contribution import api, naive
from actstore.kernels.contribution.api import Targets
from actstore.kernels.contribution.entries import Entries
from actstore.kernels.floats import decode, encode

gpu = pytest.importorskip("actstore.kernels.contribution.gpu", exc_type=ImportError)
gpu_pairs = pytest.importorskip("actstore.kernels.contribution.gpu_pairs", exc_type=ImportError)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    OnDevice = Callable[[NDArray[Any]], Tensor]

FORMATS = [np.float32, np.float16, np.uint16]
# The borders of a tile (64 × 64, or 32), and what lies beside them.
SIZES = [0, 1, 31, 33, 63, 64, 65, 100]
CASES = {
    "seed": st.integers(0, 2**32),
    "n_neurons": st.sampled_from(SIZES),
    "n_tokens": st.sampled_from(SIZES),
    "dtypes": st.tuples(*[st.sampled_from(FORMATS)] * 3),
    "special": st.booleans(),
}


@dataclass(frozen=True)
class Case:
    activations: NDArray[Any]
    write_vectors: NDArray[Any]
    targets: Targets
    groups: NDArray[np.int64]
    bound: NDArray[np.float64]


def make_case(seed: int, n_neurons: int, n_tokens: int, dtypes: tuple[Any, Any, Any], special: bool) -> Case:
    rng = np.random.default_rng(seed)
    d, n_rows = int(rng.choice([1, 5, 31, 32, 33, 70])), int(rng.integers(1, 50))
    one_each, weighted = rng.random(2) < 0.4
    activations = rng.standard_normal((n_tokens, n_neurons)).astype(np.float32).T
    write_vectors = rng.standard_normal((d, n_neurons)).astype(np.float32).T
    directions = rng.standard_normal((n_tokens if one_each else n_rows, d)).astype(np.float32)
    rows = None if one_each else np.minimum(rng.zipf(1.5, n_tokens), n_rows) - 1
    gain, scale = (rng.random(n).astype(np.float32) + 1 if weighted else None for n in (d, n_tokens))
    targets = Targets(encode(directions, dtypes[2]), rows, gain, scale)
    # float32 products are wrong by a share of their largest terms.
    magnitudes = Targets(np.abs(decode(targets.directions)), rows, gain, scale)
    bound = 1e-5 * naive.contribution(np.abs(activations), np.abs(write_vectors), magnitudes) + 1e-30
    if special:
        for number in (np.nan, np.inf, -np.inf, -0.0):
            activations[rng.random(activations.shape) < 0.05] = number
    groups = rng.permuted(np.tile([0, 1, 2, -1, -1], (n_tokens, 1)), axis=1)[:, : int(rng.integers(0, 4))]
    return Case(encode(activations, dtypes[0]), encode(write_vectors, dtypes[1]), targets, groups, bound * 1.02)


def assert_close(found: NDArray[Any], expected: NDArray[np.float64], bound: NDArray[np.float64]) -> None:
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    assert (np.abs(found[finite] - expected[finite]) <= bound[finite]).all()


def moved(case: Case, on_device: OnDevice) -> tuple[Tensor, Targets]:
    targets = case.targets
    return on_device(case.write_vectors), Targets(
        on_device(targets.directions), targets.rows, targets.gain, targets.scale
    )


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory held before a kernel wrote there is NaN: what is not written shows."""
    empty = torch.empty

    def poison(*arguments: Any, **keywords: Any) -> Tensor:
        made = empty(*arguments, **keywords)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poison)


@given(**CASES)
@settings(max_examples=40, deadline=None)
def test_contribution_is_what_its_specification_says(on_device: OnDevice, **arguments: Any) -> None:
    case = make_case(**arguments)
    found = gpu.contribution(on_device(case.activations), *moved(case, on_device)).cpu().numpy()
    assert_close(found, naive.contribution(case.activations, case.write_vectors, case.targets), case.bound)


@given(**CASES, k=st.sampled_from([0, 1, 5, 70]))
@settings(max_examples=30, deadline=None)
def test_the_top_neurons_are_those_with_the_largest_scores(on_device: OnDevice, k: int, **arguments: Any) -> None:
    case = make_case(**arguments)
    weights, targets = moved(case, on_device)
    scores = gpu.contribution(case.activations, weights, targets).cpu().numpy()
    found = gpu.top_contribution(on_device(case.activations), weights, targets, k)
    one = np.ones((1, 1), np.float32)
    for token in range(scores.shape[1]):
        # The scores themselves, to the bit, so that who wins is not a matter of rounding.
        expected = naive.top_contribution(scores[:, [token]], np.repeat(one, len(scores), axis=0), Targets(one), k)
        np.testing.assert_array_equal(found.neurons[token], expected.neurons[0])
        np.testing.assert_array_equal(found.scores[token], expected.scores[0])


@given(**CASES, cut=st.sampled_from([(32, 1024), (3, 1), (2, 1024)]))
@settings(max_examples=40, deadline=None)
def test_sums_are_what_their_specification_says(on_device: OnDevice, cut: tuple[int, int], **arguments: Any) -> None:
    case = make_case(**arguments)
    rows = np.arange(case.targets.n_tokens) if case.targets.rows is None else case.targets.rows
    entries = Entries.of(rows, case.groups)
    weights, targets = moved(case, on_device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_pairs, "PAIR_TOKENS", cut[0])
        patch.setattr(gpu_pairs, "PROGRAMS", cut[1])
        found = gpu.sum_contributions(on_device(case.activations), weights, targets, entries, 3)
    expected = naive.sum_contributions(case.activations, case.write_vectors, case.targets, case.groups, 3)
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_array_equal(found.non_finite, expected.non_finite)
    of_group = (case.groups[:, :, None] == np.arange(3)).any(axis=1).astype(np.float64)
    bound = of_group.T @ case.bound.T + 1e-30
    assert_close(found.total, expected.total, bound)
    assert_close(found.magnitude, expected.magnitude, bound)
    for name, array in found.arrays().items():
        assert array.dtype == expected.arrays()[name].dtype


@pytest.mark.parametrize(
    ("n_targets", "n_tiles", "n_parts"), [(1, 172, 5), (5000, 172, 5), (5000, 24, 39), (3, 2000, 1)]
)
def test_a_group_is_cut_so_that_every_processor_has_work(n_targets: int, n_tiles: int, n_parts: int) -> None:
    rows = np.sort(np.random.default_rng(0).integers(0, n_targets, 20_000))
    pairs = gpu_pairs.Pairs.of(Entries.of(rows, np.zeros((20_000, 1), np.int64)), n_tiles)
    assert pairs.n_parts == n_parts
    lengths = pairs.stops - pairs.starts
    assert (lengths > 0).all()
    assert lengths.max() <= 32
    taken = np.concatenate([pairs.tokens[a:b] for a, b in zip(pairs.starts, pairs.stops, strict=True)])
    assert sorted(taken) == list(range(20_000))
    assert pairs.firsts[0] == 0
    assert pairs.firsts[-1] == len(lengths)
    assert (np.diff(pairs.firsts) > 0).all()


def test_every_run_gives_the_same_bits(on_device: OnDevice) -> None:
    case = make_case(3, 65, 100, (np.float32, np.float32, np.float32), special=False)
    weights, targets = moved(case, on_device)
    entries = Entries.of(np.arange(100) % len(case.targets.directions), np.arange(100)[:, None] % 2)
    runs = [gpu.sum_contributions(case.activations, weights, targets, entries, 2) for _ in range(3)]
    for again in runs[1:]:
        np.testing.assert_array_equal(again.total, runs[0].total)


def test_the_interface_takes_weights_wherever_they_lie(on_device: OnDevice) -> None:
    case = make_case(5, 33, 63, (np.float16, np.float32, np.float32), special=False)
    arguments = case.activations, *moved(case, on_device)
    scores = api.contribution(*arguments)
    assert isinstance(scores, np.ndarray)
    assert_close(scores, naive.contribution(case.activations, case.write_vectors, case.targets), case.bound)
    assert api.top_contribution(*arguments, 3).neurons.tolist() == np.argsort(-scores, axis=0)[:3].T.tolist()
    groups = np.zeros(63, np.int64)
    sums = api.sum_contributions(*arguments, groups, 1)
    np.testing.assert_allclose(sums.total[0], scores.sum(axis=1), atol=2 * case.bound.sum(axis=1).max())
