"""Indices beyond 2³¹, in files that are hardly more than holes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

gpu_statistics = pytest.importorskip("actstore.kernels.pack.gpu_statistics", exc_type=ImportError)
launch = pytest.importorskip("actstore.kernels.gpu", exc_type=ImportError).launch

N_NEURONS = 1 << 30  # two pieces of them are 2³¹ values

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the memory is the CPU's: needs Triton's interpreter")


def reserve(path: Path, dtype: type) -> Tensor:
    """Three pieces of neurons, and before them 2³¹ values where an index that overflowed would point: zeros."""
    array = np.memmap(path, dtype, "w+", shape=(5, N_NEURONS))
    path.unlink()  # what is mapped stays until nothing points to it
    return torch.from_numpy(array)[2:]


def test_pieces_are_merged_beyond_two_to_the_thirty_first_values(tmp_path: Path) -> None:
    formats = (np.int32, np.float64, np.float64, np.float32, np.float32, np.int32)
    partials: Any = gpu_statistics.Partials(*(reserve(tmp_path / str(i), dtype) for i, dtype in enumerate(formats)))
    tile = slice(0, 64)
    partials.minimum[:, tile], partials.best[:, tile] = torch.inf, -torch.inf
    partials.finite[2, tile] = 1
    for tensor in (partials.mean, partials.minimum, partials.best):
        tensor[2, tile] = torch.arange(64).to(tensor.dtype)
    found = gpu_statistics.DeviceStatistics.empty(64, 0, 1, "cpu")
    launch(
        gpu_statistics._merge,
        1,
        partials,
        torch.tensor([0, 1, 2, -1], dtype=torch.int32),
        torch.tensor([100]),
        *(found.count, found.mean, found.m2, found.minimum, found.maximum),
        *(found.exemplar_values, found.exemplar_tokens, 3, N_NEURONS, 1),
        WIDTH=64,
        ENTRIES=1,
        on=found.count,
        fuse=True,
    )
    expected = np.arange(64)
    assert (found.count == 1).all()
    for tensor in (found.mean, found.minimum, found.maximum, found.exemplar_values[:, 0]):
        np.testing.assert_array_equal(tensor, expected)
    assert (found.exemplar_tokens == 100).all()
