"""Memory that batches are in is used again, and never while anybody holds a part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from actstore.store.batches.memory import ArrayPool

if TYPE_CHECKING:
    from collections.abc import Callable

HOLDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "the array": lambda array: array,
    "a view of a view": lambda array: array[1:].reshape(-1)[::2],
    "other bits": lambda array: array.view(np.uint32),
    "a tensor": torch.from_numpy,
    "a part of a tensor": lambda array: torch.from_numpy(array[2:])[1].view(torch.int32),
    "a buffer": lambda array: memoryview(array),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_is_taken_again_once_nobody_holds_it(holder: str) -> None:
    pool = ArrayPool((4, 6), "float32", 2)
    array = pool.take()
    first = array.ctypes.data
    held = HOLDERS[holder](array)
    del array
    other = pool.take()
    assert len(pool._memories) == 2
    assert abs(other.ctypes.data - first) >= other.nbytes
    assert (other.shape, other.dtype, first % 64, other.ctypes.data % 64) == ((4, 6), np.float32, 0, 0)
    del held
    assert pool.take().ctypes.data == first


def test_no_more_than_so_many_are_kept() -> None:
    pool = ArrayPool((2,), "int8", 2)
    held = [pool.take() for _ in range(5)]
    assert len({array.ctypes.data for array in held}) == 5
    assert len(pool._memories) == 2
    assert all(np.shares_memory(*pair) for pair in zip(pool._memories, held[3:], strict=True))


@pytest.mark.parametrize("settings", [{}, {"dtype": "float16"}, {"threads": 0, "window": 2}])
@pytest.mark.parametrize("name", ["exact", "half-by-token"])
def test_batches_that_are_kept_stay_what_they_were(many: Any, name: str, settings: dict[str, Any]) -> None:
    batches = many.batches("mlp.post", 1, capture=name, batch=17, epochs=2, **settings)
    kept = [(batch, batch.activations.clone()) for batch in batches]
    for batch, then in kept:
        np.testing.assert_array_equal(batch.activations.numpy(), then.numpy())


def test_a_loop_takes_the_memory_of_the_windows_that_it_checked_for(many: Any) -> None:
    """One, and with a thread two, though batches are parts of it."""
    for threads in (0, 1):
        batches = many.batches("mlp.post", 1, capture="exact", batch=17, threads=threads)
        for _ in range(2):
            for batch in batches:
                assert len(batch)
        assert len(batches._window_memory._memories) == 1 + threads
