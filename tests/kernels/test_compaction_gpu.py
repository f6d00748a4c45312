"""Compaction in Triton: entry for entry what its specification gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_compacted import SLOTS, assert_same, common_row
from made_values import FORMATS, blocks

from actstore.kernels.compaction import api, naive
from actstore.kernels.compaction.compacted import Compacted

gpu = pytest.importorskip("actstore.kernels.compaction.gpu", exc_type=ImportError)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    OnDevice = Callable[[NDArray[Any]], Tensor]
    OnHost = Callable[[Tensor], NDArray[Any]]


@given(blocks(4, SLOTS), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([0, 7, 1100]))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_is_what_the_specification_says(
    on_device: OnDevice, on_host: OnHost, block: NDArray[Any], share: float, capacity: int
) -> None:
    base = common_row(block, share)
    found = gpu.compact(on_device(block), on_device(base), capacity)
    parts = {name: on_host(part) for name, part in found.parts().items()}
    assert_same(Compacted(**parts), naive.compact(block, base, capacity))


@pytest.mark.parametrize("dtype", FORMATS)
def test_slots_without_a_value_are_common_to_all_neurons(on_device: OnDevice, on_host: OnHost, dtype: Any) -> None:
    missing = np.array([np.nan], dtype) if dtype != np.uint16 else np.array([0x7FC0], dtype)
    block = np.zeros((3, 40), dtype)
    block[:, 30:] = missing
    block[0, 5] = 1  # a value of the first neuron is not what all have in common
    base = gpu.common_row(on_device(block), int(missing.view(f"i{missing.itemsize}")[0]))
    found = gpu.compact(on_device(block), base, 4)
    assert on_host(found.totals).tolist() == [1, 0, 0]
    compacted = Compacted(**{name: on_host(part) for name, part in found.parts().items()})
    np.testing.assert_array_equal(api.expand(compacted), block.view(f"i{block.itemsize}"))


def test_a_part_of_a_wider_block_is_compacted_as_it_is(on_device: OnDevice, on_host: OnHost) -> None:
    whole = np.random.default_rng(0).standard_normal((3, 600)).astype(np.float32)
    found = gpu.compact(on_device(whole)[:, 10:310], on_device(np.zeros(300, np.float32)), 300)
    compacted = Compacted(**{name: on_host(part) for name, part in found.parts().items()})
    np.testing.assert_array_equal(api.expand(compacted).view(np.float32), whole[:, 10:310])


def test_what_does_not_fit_is_refused_in_a_sentence(device: torch.device) -> None:
    block = torch.zeros(2, 3, device=device)
    with pytest.raises(ValueError, match=r"block must be \[neuron, slot\], contiguous along its slots, not \[3, 2\]"):
        gpu.compact(block.T, block[:, 0], 1)
    with pytest.raises(ValueError, match=r"base must be torch.float32 \[3\] on .*, not torch.float32 \[2\]"):
        gpu.compact(block, block[:, 0], 1)
