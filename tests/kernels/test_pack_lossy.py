"""`quantise` and `sparsify`: what is lost is bounded, and the bound is the one recorded."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actstore.kernels.floats import decode, encode
from actstore.kernels.pack import naive
from actstore.kernels.pack.api import quantise, sparsify

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves support modules off the path
from made import FORMATS, blocks

SLOTS = [0, 1, 2, 31, 300]


@given(blocks(6, SLOTS), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_no_finite_value_is_off_by_more_than_half_a_step_in_float32(block: NDArray[Any], threads: int) -> None:
    steps, scale = quantise(block, threads=threads)
    values = decode(block)
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        error = np.abs(values - steps.astype(np.float32) * scale[:, None])
    half = np.broadcast_to(scale[:, None] / np.float32(2), error.shape)
    assert (error[finite] <= half[finite]).all()
    assert (steps[np.isnan(values)] == 0).all()
    assert (steps[values == np.inf] == 127).all()
    assert (steps[values == -np.inf] == -127).all()


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
    block = np.array([[1.0, -254.0, np.inf], [0.1, 0.01, np.nan], [0, 0, 0]], np.float32)
    steps, scale = quantise(block)
    assert scale[0] == 2
    assert scale[1] * 127 == pytest.approx(0.1, rel=2**-16)
    assert scale[2] == 0
    assert steps.tolist() == [[0, -127, 127], [127, 13, 0], [0, 0, 0]]


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
