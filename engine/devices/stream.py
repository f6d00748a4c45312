"""Blocks of activations, one after the other, from a store to the device that computes with them.

To a GPU the next block is read, decoded and copied while it works on the one before: through two pinned buffers in turn, on a
stream of its own. Of the blocks no more than three are on the device: one that is computed with, and two that come.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from actstore.engine.devices.device import HOST, Array, Device, as_tensor
from actstore.kernels.pack.steps import INFINITE, MARK, NO_VALUE
from actstore.store.capture.statistics.exemplars import SCALE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.kernels.floats import FloatArray
    from actstore.store.reader import Capture

N_BUFFERS = 2
"""Pinned buffers; the reading thread waits until what the GPU has been given from the next one is there."""


def read_values(capture: Capture, layer: int, block: int, site: str) -> FloatArray:
    """A block of activations [neuron, slot] in a format that kernels take, without a copy in float32 where it has one.

    What `half` stores as infinite for being too large is ±65,504.
    """
    if capture.record.encoding.decode_parameters:
        return cast("FloatArray", capture.block_values(layer, block, site, saturated=True))
    return cast("FloatArray", capture.raw_block(layer, block, site, saturated=True))


def stream_values(
    capture: Capture, places: Iterable[tuple[int, int]], site: str, device: Device = HOST
) -> Iterator[Array]:
    """The values [neuron, slot] of each (layer, block) in turn: arrays, each read when it is asked for, or tensors on a GPU.

    A tensor is valid as long as it is kept; whoever keeps none has at most three on the device.
    """
    if not device.is_gpu:
        for layer, block in places:
            yield read_values(capture, layer, block, site)
        return
    yield from _upload((partial(_read_stored, capture, *place, site) for place in places), device.torch)


class _Stored(NamedTuple):
    """A block as it goes to a GPU: values that kernels take, or int8 steps, a quarter of the bytes, with their scale."""

    values: NDArray[Any]
    """[neuron, slot]"""
    scale: NDArray[np.float32] | None = None
    """[neuron]"""


def _read_stored(capture: Capture, layer: int, block: int, site: str) -> _Stored:
    if capture.record.encoding.decode_parameters == (SCALE,):
        return _Stored(capture.raw_block(layer, block, site), capture.block_parameter(SCALE, layer, block, site))
    return _Stored(read_values(capture, layer, block, site))


def decode_steps(steps: Tensor, scale: Tensor, *, has_infinite: bool) -> Tensor:
    """The float32 values [neuron, slot] of int8 steps and their scale [neuron]: the bits that `pack.steps.decode` gives.

    `has_infinite`: whether any scale is marked, so that its largest steps are infinities.
    """
    import torch

    bits = scale.view(torch.int32)
    values = steps.float() * (bits & ~MARK).view(torch.float32)[:, None]
    values.masked_fill_(steps == NO_VALUE, torch.nan)
    if has_infinite:
        infinite = (bits & MARK).bool()[:, None] & (steps.abs() == INFINITE)
        values = torch.where(infinite, torch.copysign(torch.full_like(values, torch.inf), steps.float()), values)
    return values


def _upload(reads: Iterable[Callable[[], _Stored]], device: torch.device) -> Iterator[Tensor]:
    """What each of `reads` reads, as tensors on `device`, in order; the next is read while the caller has one."""
    stream = _stream_of(device)
    buffers = cycle([_PinnedBuffer(device, stream) for _ in range(N_BUFFERS)])
    coming: deque[Future[_Uploaded]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="upload") as thread:
        try:
            for read, buffer in zip(reads, buffers, strict=False):
                coming.append(thread.submit(buffer.upload, read))
                if len(coming) > 1:
                    yield coming.popleft().result().taken()
            while coming:
                yield coming.popleft().result().taken()
        finally:
            for future in coming:  # the caller has stopped, or a block could not be read
                future.cancel()


def _stream_of(device: torch.device) -> Any:
    """A stream beside the one that computes; None where the device has no streams, as in tests."""
    import torch

    stream: Any = torch.cuda.Stream  # torch's streams have no types
    return stream(device) if device.type == "cuda" else None


class _Uploaded(NamedTuple):
    """A block on the device, and when it has been copied."""

    tensor: Tensor
    copied: torch.cuda.Event | None
    scale: NDArray[np.float32] | None = None

    def taken(self) -> Tensor:
        """The values for the stream that computes: what that is given from now on waits for the copy, nothing else does."""
        import torch

        if self.copied is not None:
            compute = torch.cuda.current_stream(self.tensor.device)
            compute.wait_event(self.copied)
            # It was allocated on the other stream, which may not use its memory again before this one is done with it.
            self.tensor.record_stream(compute)
        if self.scale is None:
            return self.tensor
        has_infinite = bool((self.scale.view(np.uint32) & MARK).any())
        return decode_steps(self.tensor, as_tensor(self.scale).to(self.tensor.device), has_infinite=has_infinite)


class _PinnedBuffer:
    """Host memory that a GPU copies from by itself; it grows with what it is given."""

    def __init__(self, device: torch.device, stream: Any) -> None:
        self._device, self._stream = device, stream
        self._memory: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def upload(self, read: Callable[[], _Stored]) -> _Uploaded:
        """What `read` reads, on its way to the device."""
        import torch

        stored = read()
        source = as_tensor(stored.values)
        if self._copied is not None:
            self._copied.synchronize()  # the copy before, out of the same memory
        if self._memory is None or self._memory.numel() < source.nbytes:
            self._memory = torch.empty(max(source.nbytes, 1), dtype=torch.uint8, pin_memory=self._stream is not None)
        staged = self._memory[: source.nbytes].view(source.dtype).view(source.shape)
        staged.copy_(source)
        with ExitStack() as queued:
            if self._stream is not None:
                queued.enter_context(torch.cuda.stream(self._stream))
            tensor = torch.empty(source.shape, dtype=source.dtype, device=self._device)
            tensor.copy_(staged, non_blocking=True)
            self._copied = None if self._stream is None else self._stream.record_event()
        return _Uploaded(tensor, self._copied, stored.scale)
