"""How the CPU kernels are compiled and spread over threads.

A kernel is a numba function over a range of neurons, `kernel(first, stop, *arguments)`, that releases the GIL. Every neuron
belongs to one range and every range runs in one thread, so no result depends on the number of threads. numba's own
`parallel=True` is not used: it compiles about twice as long, and its threading layers deadlock or abort when they meet a
thread pool or a fork. Knows nothing about what the kernels compute.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled on first use; the machine code is kept on disk for the next process.

    numba keeps it beside the source, or in the user's cache folder when that cannot be written. Where neither can be written
    numba refuses to cache at all, and the function is compiled anew in every process.

    The code on disk is renewed when the function's own file changes, not when a file it calls into does: after editing a
    kernel that others import, clear `__pycache__`.
    """
    try:
        return numba.njit(function, nogil=True, cache=True)  # type: ignore[no-any-return]
    except RuntimeError:  # "no locator available": there is no folder to write to
        return numba.njit(function, nogil=True)  # type: ignore[no-any-return]


def default_threads() -> int:
    """The number of threads a kernel uses unless told: the cores of this process, or NUMBA_NUM_THREADS."""
    return int(numba.config.NUMBA_NUM_THREADS)


def over_neurons(kernel: Callable[..., Any], n_neurons: int, width: int, threads: int, *arguments: Any) -> None:
    """Run `kernel(first, stop, *arguments)` over all neurons, in ranges that start at multiples of `width`."""
    n_tiles = -(-n_neurons // width)
    n_ranges = max(1, min(threads, n_tiles))
    borders = [min(n_neurons, n_tiles * i // n_ranges * width) for i in range(n_ranges + 1)]
    others = [
        _pool(threads - 1, os.getpid()).submit(kernel, first, stop, *arguments)
        for first, stop in zip(borders[1:-1], borders[2:], strict=True)
    ]
    try:
        kernel(borders[0], borders[1], *arguments)
    finally:
        for other in others:
            other.result()


@cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """The threads beside the caller's own; one pool per process, because a fork copies a pool without its threads."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix=f"actstore-kernel-{process}")
