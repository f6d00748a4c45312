"""Buffers that blocks are collected in: a fixed number of sets, each of which belongs to one block at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from actstore.store.files.block_arrays import block_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from actstore.store.files.records import CaptureRecord

Buffers = dict[str, "NDArray[Any]"]
"""Key of an array → what one block of it holds, [neuron, slot] or [neuron, slot / 8]."""
Buffer = TypeVar("Buffer")


class BufferPool(Generic[Buffer]):
    """At most `n_buffers` buffers (or sets of them), made when they are first needed and used again and again.

    A block acquires a buffer before anything is collected in it, and releases it when what it holds has been written. So a
    block is never overwritten while an encoder reads it, and memory stays bounded. To be used from one thread.
    """

    def __init__(self, make: Callable[[], Buffer], n_buffers: int) -> None:
        """`make` gives a buffer, contents undefined."""
        self._make, self.n_buffers = make, n_buffers
        self._free: list[Buffer] = []
        self._acquired: list[Buffer] = []

    def acquire(self) -> Buffer:
        """A buffer that nobody else has, contents undefined.

        RuntimeError where all are acquired: whoever shall release one runs in this thread, and waiting would be for ever.
        """
        if len(self._acquired) == self.n_buffers:
            raise RuntimeError(f"all {self.n_buffers} buffers of the pool are acquired, and none has been released")
        buffer = self._free.pop() if self._free else self._make()
        self._acquired.append(buffer)
        return buffer

    def release(self, buffer: Buffer) -> None:
        """Take back an acquired buffer, which may be overwritten from now on; RuntimeError for any other."""
        for i, acquired in enumerate(self._acquired):
            if acquired is buffer:
                self._free.append(self._acquired.pop(i))
                return
        raise RuntimeError("a buffer was released that is not acquired")


def staged_arrays(record: CaptureRecord) -> Iterator[tuple[str, tuple[int, int], np.dtype[Any]]]:
    """Key, shape and dtype of everything that is collected token by token, as one block holds it."""
    staging = record.encoding.staging_format
    for spec in block_arrays(record):
        if spec.dimension not in ("block", "position"):
            is_value = staging is not None and spec.dimension == "token"
            yield spec.key, (spec.rows, spec.columns), staging.dtype if staging and is_value else spec.dtype


def buffer_nbytes(record: CaptureRecord) -> int:
    """Host memory of one set of block buffers, and of the numbers that a block has beside them."""
    scales = 4 * len(record.write_scale) * record.plan.block_slots
    return scales + sum(rows * columns * dtype.itemsize for _, (rows, columns), dtype in staged_arrays(record))


def block_buffers(record: CaptureRecord, n_blocks: int) -> BufferPool[Buffers]:
    """Host memory for the blocks of a capture, of which `n_blocks` are in use at once."""
    staged = list(staged_arrays(record))
    return BufferPool(lambda: {key: np.empty(shape, dtype) for key, shape, dtype in staged}, n_blocks)
