"""A pool gives each of its buffers to one owner at a time, and no more buffers than it may have."""

from __future__ import annotations

import pytest

from actstore.engine.capture.buffers import BufferPool


def test_a_buffer_has_one_owner_until_it_is_released() -> None:
    made: list[dict[str, int]] = []
    pool = BufferPool(lambda: made.append({}) or made[-1], 2)  # type: ignore[func-returns-value]
    assert made == [], "memory is taken when it is needed"
    first, second = pool.acquire(), pool.acquire()
    assert first is not second
    with pytest.raises(RuntimeError, match="all 2 buffers of the pool are acquired, and none has been released"):
        pool.acquire()
    pool.release(first)
    assert pool.acquire() is first
    assert len(made) == 2


def test_what_is_not_acquired_cannot_be_released() -> None:
    pool: BufferPool[dict[str, int]] = BufferPool(dict, 1)
    buffer = pool.acquire()
    with pytest.raises(RuntimeError, match="not acquired"):
        pool.release({})
    pool.release(buffer)
    with pytest.raises(RuntimeError, match="not acquired"):
        pool.release(buffer)
