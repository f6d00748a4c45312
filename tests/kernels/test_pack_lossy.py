"""`quantise` and `sparsify`: what is lost is bounded, and the bound is the one recorded."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_values import FORMATS, blocks
from numpy.typing import NDArray

from actstore.kernels.floats import decode, encode
from actstore.kernels.pack import naive
from actstore.kernels.pack.api import quantise, sparsify
from actstore.kernels.pack.steps import decode as decode_steps

SLOTS = [0, 1, 2, 31, 300]


@given(blocks(6, SLOTS), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_no_finite_value_is_off_by_more_than_half_a_step_in_float32(block: NDArray[Any], threads: int) -> None:
    steps, scale = quantise(block, threads=threads)
    values, again = decode(block), decode_steps(steps, scale[:, None])
    finite = np.isfinite(values)
    np.testing.assert_array_equal(np.where(finite, 0, again), np.where(finite, 0, values))  # NaN, and infinities
    assert np.isfinite(again[finite]).all()
    half = np.broadcast_to(scale[:, None] / np.float32(2), values.shape)
    assert (np.abs(values[finite] - again[finite]) <= half[finite]).all()


@given(blocks(6, SLOTS))
@settings(max_examples=50, deadline=None)
def test_a_row_without_infinities_reads_as_it_always_did(block: NDArray[Any]) -> None:
    steps, scale = quantise(block)
    plain = ~np.isinf(decode(block)).any(axis=1)
    assert (scale[plain].view(np.uint32) & 127 == 0).all()
    with np.errstate(over="ignore"):
        products = steps.astype(np.float32) * scale[:, None]
    expected = np.where(steps == -128, np.float32(np.nan), products)[plain]
    found = decode_steps(steps, scale[:, None])[plain]
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("others", [[], [1.0], [-3e38, 2.0], [1e-45]])
def test_infinities_are_told_from_the_largest_value(others: list[float]) -> None:
    block = np.array([[np.inf, -np.inf, np.nan, *others]], np.float32)
    steps, scale = quantise(block)
    assert steps[0, :3].tolist() == [127, -127, -128]
    assert np.abs(steps[0, 3:]).max(initial=0) <= 126
    again = decode_steps(steps, scale[:, None])
    np.testing.assert_array_equal(again[0, :3], block[0, :3])
    np.testing.assert_allclose(again[0, 3:], block[0, 3:], atol=float(scale[0]))


def test_steps_of_earlier_versions_read_as_they_did() -> None:
    """There an infinity was one of the steps of ±127, and every scale ended in seven zeros."""
    steps, scale = np.array([[127, -127, 5, -128]], np.int8), np.array([[2.0]], np.float32)
    assert decode_steps(steps, scale)[0, :3].tolist() == [254, -254, 10]
    assert np.isnan(decode_steps(steps, scale)[0, 3])


def test_the_largest_floats_do_not_become_infinite() -> None:
    largest = np.finfo(np.float32).max
    below = np.nextafter(largest, np.float32(0), dtype=np.float32) - np.float32(2**104) * np.arange(
        200, dtype=np.float32
    )
    for block in (below[:, None], np.stack([below, np.full(200, np.inf, np.float32)], axis=1)):
        steps, scale = quantise(block)
        again = decode_steps(steps, scale[:, None])
        assert np.isfinite(again[:, 0]).all()
        assert (np.abs(again[:, 0] - below) <= scale / 2).all()
        for found, expected in zip((steps, scale), naive.quantise(block), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_block_is_quantised_in_its_own_memory(dtype: Any) -> None:
    values = np.random.default_rng(0).standard_normal((5, 1000)).astype(np.float32)
    values[0, 3], values[1, 999], values[2] = np.nan, np.inf, 0
    block = encode(values, dtype)
    expected, expected_scale = quantise(block)
    steps, scale = quantise(block, block.view(np.int8)[:, :1000])
    assert np.shares_memory(steps, block)
    np.testing.assert_array_equal(steps, expected)
    np.testing.assert_array_equal(scale.view(np.uint32), expected_scale.view(np.uint32))


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_read_only_block_is_quantised_and_not_sparsified(dtype: Any) -> None:
    block = encode(np.random.default_rng(0).standard_normal((5, 63)).astype(np.float32), dtype)
    expected = quantise(block)
    block.flags.writeable = False
    for found, wanted in zip(quantise(block), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="block is read-only, but would be written"):
        sparsify(block, 0.5)


@given(blocks(6, SLOTS), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_quantise_is_what_its_specification_says(block: NDArray[Any], threads: int) -> None:
    out = np.full(block.shape, 99, np.int8)
    steps, scale = quantise(block, out, threads)
    expected, expected_scale = naive.quantise(block)
    assert steps is out
    np.testing.assert_array_equal(steps, expected)
    np.testing.assert_array_equal(scale, expected_scale)


def test_the_scale_is_the_largest_magnitude_over_127_but_for_seven_bits() -> None:
    block = np.array([[1.0, -254.0, 2.0], [0.1, 0.01, np.nan], [0, 0, 0]], np.float32)
    steps, scale = quantise(block)
    assert scale[0] == 2
    assert scale[1] * 127 == pytest.approx(0.1, rel=2**-16)
    assert scale[2] == 0
    assert steps.tolist() == [[0, -127, 1], [127, 13, -128], [0, 0, 0]]


def test_half_way_goes_to_the_even_step() -> None:
    steps, scale = quantise(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32))
    assert scale.tolist() == [1]
    assert steps.tolist() == [[127, 0, 2, 2, 0, -2]]


@given(blocks(6, SLOTS), st.sampled_from([0, 0.01, 0.1, 0.5, 0.999, 1]), st.booleans(), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_sparsify_is_what_its_specification_says(block: NDArray[Any], keep: float, masked: bool, threads: int) -> None:
    counted: Any = np.random.default_rng(0).random(block.shape[1]) < 0.8 if masked else None
    found, expected = block.copy(), block.copy()
    threshold, dropped = sparsify(found, keep, counted, threads)
    expected_threshold, expected_dropped = naive.sparsify(expected, keep, counted)
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))
    np.testing.assert_array_equal(threshold, expected_threshold)
    np.testing.assert_array_equal(dropped, expected_dropped)


@given(blocks(6, SLOTS), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_what_is_dropped_lies_below_the_threshold_and_what_is_kept_above(block: NDArray[Any], keep: float) -> None:
    before, after = decode(block), block.copy()
    threshold, dropped = sparsify(after, keep)
    above = ~(np.abs(before) <= threshold[:, None])
    np.testing.assert_array_equal(after.view(block.dtype)[above].view(np.uint8), block[above].view(np.uint8))
    assert (after[~above].view(np.uint8) == 0).all()
    np.testing.assert_array_equal(dropped, (~above & (before != 0)).sum(axis=1))
    assert np.isfinite(threshold).all()


def test_the_share_asked_for_is_kept() -> None:
    block = np.random.default_rng(0).standard_normal((4, 1000)).astype(np.float32)
    _, dropped = sparsify(block, 0.1)
    assert dropped.tolist() == [900] * 4
    assert (block != 0).sum(axis=1).tolist() == [100] * 4


def test_the_share_is_one_of_values_and_a_slot_without_one_is_none() -> None:
    """An expert that is given a tenth of the tokens: what it lacks at the others uses nothing of the share up."""
    rng = np.random.default_rng(0)
    block = np.full((3, 1000), np.nan, np.float32)
    given_tokens = rng.permutation(1000)[:100]
    block[:, given_tokens] = rng.standard_normal((3, 100))
    block[2, given_tokens[:4]] = np.inf
    _, dropped = sparsify(block, 0.1)
    assert dropped.tolist() == [90] * 3
    assert (np.isnan(block).sum(axis=1) == 900).all()
    assert (np.isinf(block).sum(axis=1) == [0, 0, 4]).all()  # four of the ten


def test_nothing_is_lost_where_fewer_values_are_non_zero_than_may_be_kept() -> None:
    block = np.zeros((1, 100), np.float32)
    block[0, :10] = -1e-40
    before = block.copy()
    threshold, dropped = sparsify(block, 0.1)
    np.testing.assert_array_equal(block, before)
    assert threshold.tolist() == [0]
    assert dropped.tolist() == [0]


def test_what_cannot_be_done_is_refused_in_a_sentence() -> None:
    block = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="keep must be a share between 0 and 1, not 10"):
        sparsify(block, 10)
    with pytest.raises(ValueError, match=r"counted must hold one flag for each of 3 slots, not \[2\]"):
        sparsify(block, 0.5, np.ones(2, np.bool_))
    with pytest.raises(ValueError, match=r"out must be int8 \[2, 3\], not float32 \[2, 3\]"):
        quantise(block, block)  # type: ignore[arg-type]
    block.flags.writeable = False
    with pytest.raises(ValueError, match="block is read-only"):
        sparsify(block, 0.5)
