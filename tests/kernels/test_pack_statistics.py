"""`Statistics`: merging parts, and what a histogram says of quantiles."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from actstore.kernels.pack import naive
from actstore.kernels.pack.api import HISTOGRAM_EDGES, Columns, Statistics, pack, quantiles
from actstore.kernels.pack.statistics import STATISTICS, exemplar_order

N_NEURONS, N_LABELS, K = 5, 2, 3


def statistics_of(values: NDArray[np.float32], first_token: int) -> Statistics:
    """The statistics of `values` [token, neuron], in windows of four tokens."""
    n_tokens = len(values)
    segments = np.append(np.arange(0, n_tokens, 4), n_tokens)
    labels = (np.arange(len(segments) - 1)[:, None] % (N_LABELS + 1) - 1).astype(np.int32)
    everything = np.ones(n_tokens, np.bool_)
    columns = Columns(np.arange(n_tokens), np.arange(n_tokens), segments, labels, everything, first_token)
    result = Statistics.empty(N_NEURONS, N_LABELS, K)
    pack(values, columns, None, result, threads=1)
    return result


def one_token(token: int) -> Columns:
    first = np.zeros(1, np.int64)
    return Columns(first, first, np.array([0, 1]), np.zeros((1, 0), np.int32), np.ones(1, np.bool_), token)


def one_window(n_tokens: int) -> Columns:
    tokens, everything = np.arange(n_tokens), np.ones(n_tokens, np.bool_)
    return Columns(tokens, tokens, np.array([0, n_tokens]), np.zeros((1, 0), np.int32), everything, 0)


def merged(*parts: Statistics) -> Statistics:
    result = Statistics.from_arrays(parts[0].arrays())
    for part in parts[1:]:
        result.merge(part)
    return result


def assert_equal(a: Statistics, b: Statistics) -> None:
    for name, array in a.arrays().items():
        if array.dtype == np.float64:  # a sum, whose order may differ
            np.testing.assert_allclose(array, b.arrays()[name], rtol=1e-12, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(array, b.arrays()[name], err_msg=name)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 12).map(lambda n: 4 * n), min_size=3, max_size=3), st.booleans())
@settings(max_examples=100, deadline=None)
def test_parts_merge_to_the_whole_in_any_grouping(seed: int, sizes: list[int], tied: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((sum(sizes), N_NEURONS)).astype(np.float32)
    if tied:
        values = np.round(values)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[rng.random(values.shape) < 0.05] = np.inf
    values[:, 0] = np.nan  # a neuron that never has a value
    borders = np.cumsum([0, *sizes])
    a, b, c = (statistics_of(values[x:y], int(x)) for x, y in pairwise(borders))
    left, right = merged(merged(a, b), c), merged(a, merged(b, c))
    assert_equal(left, right)
    for name in STATISTICS.keys() - {"positives"}:  # whose labels follow the windows of each part
        whole = statistics_of(values, 0).arrays()[name]
        np.testing.assert_allclose(left.arrays()[name], whole, rtol=1e-12, atol=1e-12, err_msg=name)


def test_merging_nothing_keeps_every_bit() -> None:
    part = statistics_of(np.random.default_rng(0).standard_normal((40, N_NEURONS)).astype(np.float32), 0)
    empty = Statistics.empty(N_NEURONS, N_LABELS, K)
    for result in (merged(part, empty), merged(empty, part)):
        for name, array in result.arrays().items():
            assert array.tobytes() == part.arrays()[name].tobytes(), name


def test_overflow_is_counted_of_every_token_that_is_stored_and_of_finite_values_alone() -> None:
    values = np.array(
        [[65504, 65519.99, 1], [65520, -65520, np.inf], [-3e38, 7e4, np.nan], [1, 1, -np.inf]], np.float32
    )
    columns = replace(one_window(4), counted=np.array([True, False, True, True]))  # the second is a special token
    for target, expected in ((np.float16, [2, 2, 0]), (np.float32, [0, 0, 0]), (np.uint16, [0, 0, 0])):
        part = Statistics.empty(3, 0, 1)
        pack(values, columns, np.zeros((3, 4), target), part)
        assert part.overflow.tolist() == expected
        assert part.non_finite.tolist() == [0, 0, 2]
    part = Statistics.empty(1, 0, 1)
    pack(np.array([[3.4028235e38]], np.float32), one_token(0), np.zeros((1, 1), np.uint16), part)
    assert part.overflow.tolist() == [1]


def test_a_statistic_that_one_part_lacks_is_absent_from_both_together() -> None:
    whole = Statistics.empty(2, 0, 1)
    pack(np.array([[1e5, 1]], np.float32), one_token(0), np.zeros((2, 1), np.float16), whole)
    assert whole.overflow.tolist() == [1, 0]
    part = Statistics.from_arrays({name: array for name, array in whole.arrays().items() if name != "overflow"})
    for result in (merged(whole, part), merged(part, whole)):
        pack(np.array([[1e5, 1]], np.float32), one_token(9), np.zeros((2, 10), np.float16), result)
        assert list(result.arrays()) == [name for name in STATISTICS if name != "overflow"]
        assert result.count.tolist() == [3, 3]
        with pytest.raises(AttributeError, match="There is no statistic 'overflow' here, only count, non_finite, mean"):
            result.overflow  # noqa: B018


def test_every_statistic_of_the_table_is_annotated() -> None:
    assert list(Statistics.__annotations__) == list(STATISTICS)


def test_statistics_of_other_shapes_do_not_merge() -> None:
    with pytest.raises(ValueError, match=r"count has shape \(2,\) here and \(3,\) there"):
        Statistics.empty(2, 0, 0).merge(Statistics.empty(3, 0, 0))


def test_statistics_read_back_can_be_added_to() -> None:
    arrays = {name: array.copy() for name, array in Statistics.empty(2, 0, 1).arrays().items()}
    for array in arrays.values():
        array.flags.writeable = False
    statistics = Statistics.from_arrays(arrays)
    pack(np.ones((1, 2), np.float32), one_token(7), None, statistics)
    assert statistics.exemplar_tokens.tolist() == [[7], [7]]
    assert arrays["count"].tolist() == [0, 0]


def test_the_histogram_has_two_bins_an_octave_of_either_sign() -> None:
    assert len(HISTOGRAM_EDGES) == 100
    assert np.isinf(HISTOGRAM_EDGES[[0, -1]]).all()
    positive = HISTOGRAM_EDGES[50:-1]
    np.testing.assert_array_equal(HISTOGRAM_EDGES[1:50], -positive[::-1])
    assert positive[0] == 2.0**-14
    assert positive[-1] == 2.0**10
    np.testing.assert_array_equal(positive[2:], 2 * positive[:-2])


def test_values_on_an_edge_and_beside_it_fall_into_the_bins_they_should() -> None:
    edges = HISTOGRAM_EDGES[1:-1]
    around = np.concatenate([edges, np.nextafter(edges, np.float32(-np.inf)), np.nextafter(edges, np.float32(np.inf))])
    values = np.concatenate([around, [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38]]).astype(np.float32)
    for value in values:
        part = Statistics.empty(1, 0, 0)
        pack(np.array([[value]]), one_token(0), None, part, threads=1)
        (bin_,) = np.flatnonzero(part.histogram[0])
        assert bin_ == naive.bins(value)
        assert HISTOGRAM_EDGES[bin_] <= value <= HISTOGRAM_EDGES[bin_ + 1]


@given(st.integers(0, 2**32), st.integers(1, 60), st.floats(-8, 5), st.lists(st.floats(0, 1), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_every_quantile_lies_within_its_bounds(seed: int, n_tokens: int, magnitude: float, shares: list[float]) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((n_tokens, N_NEURONS)) * 10**magnitude).astype(np.float32)
    statistics = statistics_of(values, 0)
    exact = np.sort(values, axis=0)[np.maximum(np.ceil(np.array(shares) * n_tokens).astype(int), 1) - 1].T
    for bounds in ((), (statistics.minimum, statistics.maximum)):
        found = quantiles(statistics.histogram, shares, *bounds)
        assert (found.low <= exact).all()
        assert (exact <= found.high).all()
        assert (found.low <= found.estimate).all()
        assert (found.estimate <= found.high).all()
        assert np.isfinite(found.estimate).all()


def test_a_neuron_without_values_has_no_quantiles() -> None:
    found = quantiles(Statistics.empty(1, 0, 0).histogram, [0.5])
    assert np.isnan([found.estimate, found.low, found.high]).all()


def test_quantiles_refuse_what_is_no_share() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantiles(Statistics.empty(1, 0, 0).histogram, [50])


@given(st.data())
def test_exemplars_are_ordered_as_by_value_and_token(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(0, 5), st.integers(0, 40)))
    few = st.sampled_from([-np.inf, -3.5, -0.0, 0.0, 1e-40, 1.0, 1.5, 3e38])
    values = data.draw(arrays(np.float32, shape, elements=few))
    most = data.draw(st.sampled_from([100, 2**31, 2**32 - 2, 2**40]))
    tokens = data.draw(arrays(np.int64, shape, elements=st.integers(0, most)))
    tokens[values == -np.inf] = -1
    order, expected = exemplar_order(values, tokens), np.lexsort((tokens, -values), axis=1)
    for array in (values, tokens):
        found = np.take_along_axis(array, order, axis=1)
        assert (found == np.take_along_axis(array, expected, axis=1)).all()
