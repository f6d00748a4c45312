"""Blocks on their way to a device: the same values, in order, read ahead, and errors where they are taken."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from planted_stores import planted

from actstore.engine.devices import stream
from actstore.engine.devices.device import HOST, Device, as_tensor
from actstore.engine.devices.stream import read_values, stream_values
from actstore.store.errors import NotFoundError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

GPU = Device("cuda")


@pytest.mark.parametrize("precision", ["exact", "half", "int8", "sparse"])
def test_tensors_hold_what_arrays_do(precision: str, launches: Counter[str]) -> None:
    capture, _ = planted(precision=precision)
    places = [(layer, block) for block in capture.blocks for layer in (1, 0)]
    arrays = list(stream_values(capture, places, "mlp.post", HOST))
    tensors = list(stream_values(capture, places, "mlp.post", GPU))
    assert len(arrays) == len(places) == len(tensors)
    for place, array, tensor in zip(places, arrays, tensors, strict=True):
        assert isinstance(array, np.ndarray)
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(array, read_values(capture, *place, "mlp.post"))
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)


def test_tensors_are_theirs_who_took_them(launches: Counter[str]) -> None:
    """The pinned memory is used again; what was copied from it stays."""
    capture, _ = planted()
    taken = list(stream_values(capture, [(1, block) for block in (*capture.blocks, *capture.blocks)], "mlp.post", GPU))
    for tensor, block in zip(taken, (*capture.blocks, *capture.blocks), strict=True):
        np.testing.assert_array_equal(tensor.cpu().numpy(), capture.block_values(1, block))


def test_a_block_is_read_while_the_one_before_is_computed_with() -> None:
    read = [threading.Event() for _ in range(4)]

    def reading(number: int) -> Callable[[], Any]:
        def run() -> Any:
            read[number].set()
            return np.full((2, 3), number, np.float32)

        return run

    tensors = stream._upload(map(reading, range(4)), torch.device("cpu"))
    assert next(tensors)[0, 0] == 0
    assert read[1].wait(10)  # nobody has asked for it
    assert not read[3].is_set()
    assert [int(tensor[0, 0]) for tensor in tensors] == [1, 2, 3]


def test_whoever_stops_taking_ends_the_reading() -> None:
    before = threading.active_count()
    tensors = stream._upload((lambda: np.zeros((1, 1), np.float32) for _ in range(9)), torch.device("cpu"))
    next(tensors)
    tensors.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_what_cannot_be_read_is_raised_where_it_is_taken(launches: Counter[str]) -> None:
    capture, _ = planted()
    streamed = stream_values(capture, [(0, 0), (0, 99)], "mlp.post", GPU)
    next(streamed)
    with pytest.raises(NotFoundError, match="Block 99"):
        next(streamed)


def test_bfloat16_is_uint16_in_numpy_alone() -> None:
    bits = np.array([[0x3F80, 0x7FC0, 0xC000]], np.uint16)
    tensor = as_tensor(bits)
    assert tensor.dtype == torch.bfloat16
    np.testing.assert_array_equal(tensor.float().numpy(), [[1, np.nan, -2]])
    read_only = np.zeros(3, np.float32)
    read_only.setflags(write=False)
    assert as_tensor(read_only).tolist() == [0, 0, 0]
    assert as_tensor(tensor) is tensor
