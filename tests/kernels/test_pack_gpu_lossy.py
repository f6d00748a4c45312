"""`quantise` and `sparsify` in Triton: bit for bit what their specification gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_values import FORMATS, blocks

from actstore.kernels.floats import encode
from actstore.kernels.pack import api, naive

gpu_lossy = pytest.importorskip("actstore.kernels.pack.gpu_lossy", exc_type=ImportError)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    OnDevice = Callable[[NDArray[Any]], Tensor]
    OnHost = Callable[[Tensor], NDArray[Any]]

# 1,024 values of a row are looked at together.
SLOTS = [0, 1, 2, 31, 300, 1023, 1024, 1100]


@given(blocks(4, SLOTS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_quantise_is_what_its_specification_says(
    on_device: OnDevice, on_host: OnHost, block: NDArray[Any], given_out: bool
) -> None:
    out = on_device(np.full(block.shape, 99, np.int8)) if given_out else None
    steps, scale = gpu_lossy.quantise(on_device(block), out)
    expected, expected_scale = naive.quantise(block)
    assert out is None or steps is out
    np.testing.assert_array_equal(on_host(steps), expected, strict=True)
    np.testing.assert_array_equal(on_host(scale), expected_scale, strict=True)


def test_half_way_goes_to_the_even_step(on_device: OnDevice, on_host: OnHost) -> None:
    block = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -126.5]], np.float32)
    steps, scale = gpu_lossy.quantise(on_device(block))
    assert on_host(scale).tolist() == [1]
    assert on_host(steps).tolist() == [[127, 0, 2, 2, 0, -2, 126, -126]]


def test_the_largest_floats_and_infinities_are_quantised_like_on_the_cpu(on_device: OnDevice, on_host: OnHost) -> None:
    bits = np.float32(np.finfo(np.float32).max).view(np.uint32) - np.arange(200, dtype=np.uint32) * 97
    finite = bits.view(np.float32)
    infinite = np.resize(np.array([np.inf, -np.inf, np.nan], np.float32), 200)
    for block in (finite[:, None], np.stack([finite, infinite], axis=1), infinite.reshape(20, 10), infinite[:, None]):
        steps, scale = gpu_lossy.quantise(on_device(block))
        expected, expected_scale = naive.quantise(block)
        np.testing.assert_array_equal(on_host(steps), expected)
        np.testing.assert_array_equal(on_host(scale).view(np.uint32), expected_scale.view(np.uint32))


def test_every_float16_is_quantised_like_on_the_cpu(on_device: OnDevice, on_host: OnHost) -> None:
    block = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(32, 2048)
    steps, scale = gpu_lossy.quantise(on_device(block))
    expected, expected_scale = api.quantise(block)
    np.testing.assert_array_equal(on_host(steps), expected)
    np.testing.assert_array_equal(on_host(scale), expected_scale)


@given(blocks(4, SLOTS), st.sampled_from([0, 0.01, 0.1, 0.5, 0.999, 1]), st.booleans(), st.sampled_from([300, 2048]))
@settings(max_examples=60, deadline=None)
def test_sparsify_is_what_its_specification_says(
    on_device: OnDevice, on_host: OnHost, block: NDArray[Any], keep: float, masked: bool, held: int
) -> None:
    counted: Any = np.random.default_rng(0).random(block.shape[1]) < 0.8 if masked else None
    found, expected = on_device(block.copy()), block.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_lossy, "HELD", held)  # longer rows are read in spans
        threshold, dropped = gpu_lossy.sparsify(found, keep, counted)
    expected_threshold, expected_dropped = naive.sparsify(expected, keep, counted)
    np.testing.assert_array_equal(on_host(found).view(np.uint8), expected.view(np.uint8))
    np.testing.assert_array_equal(on_host(threshold), expected_threshold, strict=True)
    np.testing.assert_array_equal(on_host(dropped), expected_dropped, strict=True)


def test_a_part_of_a_wider_block_is_all_that_changes(on_device: OnDevice, on_host: OnHost) -> None:
    block = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    whole, expected = on_device(block.copy()), block.copy()
    gpu_lossy.sparsify(whole[:, 10:30], 0.2)
    naive.sparsify(expected[:, 10:30], 0.2)
    np.testing.assert_array_equal(on_host(whole), expected)
    steps, _ = gpu_lossy.quantise(whole[:, 10:30])
    np.testing.assert_array_equal(on_host(steps), naive.quantise(expected[:, 10:30])[0])


def test_what_cannot_be_done_is_refused_in_a_sentence(device: torch.device) -> None:
    block = torch.zeros(2, 3, device=device)
    with pytest.raises(ValueError, match=r"out must be int8 \[2, 3\] on .*, not torch.float32 \[2, 3\]"):
        gpu_lossy.quantise(block, block)
    with pytest.raises(ValueError, match=r"block must be \[neuron, slot\], contiguous along its slots, not \[3, 2\]"):
        gpu_lossy.quantise(block.T)
    with pytest.raises(TypeError, match="values must be float32, float16 or bfloat16"):
        gpu_lossy.sparsify(block.double(), 0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", FORMATS)
def test_the_api_takes_a_large_block_on_a_gpu_to_the_same_bits(
    on_device: OnDevice, on_host: OnHost, dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    block = encode(
        (rng.standard_normal((2000, 16384)) * 10.0 ** rng.integers(-9, 4, (2000, 1))).astype(np.float32), dtype
    )
    for found, expected in zip(api.quantise(on_device(block)), api.quantise(block), strict=True):
        np.testing.assert_array_equal(on_host(found), expected)
    counted, sparse = rng.random(16384) < 0.9, on_device(block.copy())
    threshold, dropped = api.sparsify(sparse, 0.1, counted)
    expected_threshold, expected_dropped = api.sparsify(block, 0.1, counted)
    np.testing.assert_array_equal(on_host(sparse), block)
    np.testing.assert_array_equal(on_host(threshold), expected_threshold)
    np.testing.assert_array_equal(on_host(dropped), expected_dropped)
