"""Blocks on their way to a device: the same values, in order, read ahead, and errors where they are taken."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
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

    from numpy.typing import NDArray

GPU = Device("cuda")


def extreme(values: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
    """Values of every magnitude, of which some are not there, and some infinite."""
    values = values * 10.0 ** np.linspace(-42, 37, len(values), dtype=np.float32)[:, None]
    values[0, :20], values[3, 4], values[4, 9] = np.nan, np.inf, -np.inf
    return values.astype(np.float32)


@pytest.mark.parametrize("precision", ["exact", "half", "int8", "sparse"])
def test_tensors_hold_what_arrays_do(precision: str, launches: Counter[str]) -> None:
    capture, _ = planted(precision=precision, values=extreme)
    places = [(layer, block) for block in capture.blocks for layer in (1, 0)]
    arrays = list(stream_values(capture, places, "mlp.post", HOST))
    tensors = list(stream_values(capture, places, "mlp.post", GPU))
    assert len(arrays) == len(places) == len(tensors)
    for place, array, tensor in zip(places, arrays, tensors, strict=True):
        assert isinstance(array, np.ndarray)
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(array, read_values(capture, *place, "mlp.post"))
        assert_same_bits(tensor, array)


def assert_same_bits(tensor: torch.Tensor, array: NDArray[Any]) -> None:
    """A tensor has the array's values, signs of zero included."""
    found = tensor.cpu().numpy()
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(np.signbit(found[~np.isnan(found)]), np.signbit(array[~np.isnan(array)]))


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
            return stream._Stored(np.full((2, 3), number, np.float32))

        return run

    tensors = stream._upload(map(reading, range(4)), torch.device("cpu"))
    assert next(tensors)[0, 0] == 0
    assert read[1].wait(10)  # nobody has asked for it
    assert not read[3].is_set()
    assert [int(tensor[0, 0]) for tensor in tensors] == [1, 2, 3]


def test_whoever_stops_taking_ends_the_reading() -> None:
    before = threading.active_count()
    tensors = stream._upload(
        (lambda: stream._Stored(np.zeros((1, 1), np.float32)) for _ in range(9)), torch.device("cpu")
    )
    next(tensors)
    tensors.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


class Streams:
    """What torch's streams, events and pinned memory are asked for, in order; copies happen at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.n_copies = 0
        allocate, overwrite = torch.empty, torch.Tensor.copy_

        def empty(*shape: Any, pin_memory: bool = False, **keywords: Any) -> torch.Tensor:
            if pin_memory:
                self.log.append("allocate pinned")
            return allocate(*shape, **keywords)

        def copy(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            self.log.append("copy to the device" if non_blocking else "fill pinned")
            return overwrite(tensor, source)

        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(torch.Tensor, "copy_", copy)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, _: self.log.append("keep for compute"))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)

    def record_event(self) -> Any:
        self.n_copies += 1
        name = f"copy {self.n_copies}"
        return SimpleNamespace(name=name, synchronize=lambda: self.log.append(f"wait for {name}"))

    def wait_event(self, event: Any) -> None:
        self.log.append(f"compute after {event.name}")


def test_pinned_memory_is_overwritten_only_when_it_was_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    buffer = stream._PinnedBuffer(torch.device("cpu"), streams)
    first = buffer.upload(lambda: stream._Stored(np.ones((2, 3), np.float32)))
    second = buffer.upload(lambda: stream._Stored(np.full((2, 2), 2, np.float16)))
    third = buffer.upload(lambda: stream._Stored(np.full((9, 9), 3, np.float32)))
    assert streams.log == [
        "allocate pinned", "fill pinned", "copy to the device",
        "wait for copy 1", "fill pinned", "copy to the device",
        "wait for copy 2", "allocate pinned", "fill pinned", "copy to the device",
    ]  # fmt: skip
    streams.log.clear()
    assert [found.taken().unique().tolist() for found in (first, second, third)] == [[1], [2], [3]]
    assert streams.log[:2] == ["compute after copy 1", "keep for compute"]


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
