"""How the CPU kernels are compiled and spread over threads.

A kernel is a numba function over a range of neurons, `kernel(first, stop, *arguments)`, that releases the GIL. Every
neuron belongs to one range and every range runs in one thread, so no result depends on the number of threads. numba's
own `parallel=True` is not used: its threading layers deadlock or abort when they meet a thread pool or a fork.
"""

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numba
from numba.core import types
from numba.core.caching import IndexDataCacheFile

Kernel = TypeVar("Kernel", bound=Callable[..., object])
P = ParamSpec("P")


def jit(function: Kernel) -> Kernel:
    """`function` compiled on first use; the machine code is kept on disk for the next process.

    numba keeps it beside the source, or in the user's cache folder when that cannot be written. Where neither can be
    written, the function is compiled anew in every process. In NUMBA_CACHE_DIR, where that is set, all installations and
    checkouts with the same kernels share it.

    A kernel that calls another passes every signed integer as int64. A caller's types are where its numbers come from, a field
    of a record, an array or a constant, and a function would be compiled for each of their combinations.
    """
    # Kernels are called, never passed as pointers; numba's types do not have this option.
    dispatcher: Any = numba.njit(function, nogil=True, no_cfunc_wrapper=True)  # type: ignore[call-overload]
    _call_with_widest(dispatcher)
    try:
        dispatcher.enable_caching()
    except RuntimeError:  # "no locator available": there is no folder to write to
        return dispatcher  # type: ignore[no-any-return]
    # Without types, and private: numba has no other way to name the files of its cache.
    files = dispatcher._cache
    path, name = _shared_folder(), files._impl.filename_base
    if path is None:
        path = files.cache_path
    else:  # the name has the last part of the module's, as cpu._pack-88.py311
        name = f"{function.__module__.rpartition('.')[0]}.{name}"
    files._cache_file = _CacheFile(path, name, _fingerprint())  # type: ignore[no-untyped-call]
    return dispatcher  # type: ignore[no-any-return]


def _call_with_widest(dispatcher: Any) -> None:
    """Let compiled code call `dispatcher` with its integers widened; calls from Python keep their types, which are int64."""
    find = dispatcher.get_call_template

    def get_call_template(arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        return find(tuple(map(_widest, arguments)), {name: _widest(kind) for name, kind in keywords.items()})

    dispatcher.get_call_template = get_call_template


def _widest(kind: Any) -> Any:
    """int64 for a type of signed integers, or of one constant; any other type as it is."""
    kind = types.unliteral(kind)  # type: ignore[no-untyped-call]
    is_signed = isinstance(kind, types.Integer) and kind.signed  # type: ignore[attr-defined]
    return types.int64 if is_signed else kind


def default_threads() -> int:
    """The number of threads a kernel uses unless told: the cores of this process, or NUMBA_NUM_THREADS."""
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def over_neurons(
    kernel: Callable[Concatenate[int, int, P], object],
    n_neurons: int,
    width: int,
    threads: int,
    *arguments: P.args,
    **keywords: P.kwargs,
) -> None:
    """Run `kernel(first, stop, *arguments)` over all neurons, in at most `threads` ranges of about the same size.

    Ranges start at multiples of `width`, the neurons that a kernel takes together. The caller's thread takes the first
    range, so that one range costs no start of a thread. Returns when every range has ended; raises the first error of any.
    """
    n_tiles = -(-n_neurons // width)
    n_ranges = max(1, min(threads, n_tiles))
    borders = [min(n_neurons, n_tiles * i // n_ranges * width) for i in range(n_ranges + 1)]
    calls = [partial(kernel, first, stop, *arguments, **keywords) for first, stop in pairwise(borders)]
    team = _torch_team() if n_ranges > 1 else None
    if team is not None:
        _run_in_team(team, calls)
        return
    futures = [_pool(threads - 1, os.getpid()).submit(call) for call in calls[1:]]
    try:
        calls[0]()
    finally:  # after an error too: a range that still runs writes to arrays that the caller may give up
        for future in futures:
            future.result()


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()


def _torch_team() -> ctypes.CDLL | None:
    """The OpenMP library whose threads torch computes with, where this is the thread that leads them; else None.

    After each of its operations they spin for a while, waiting for the next, and on as many cores as there are. A pool of
    our own beside them gets half a core each: between the layers of a forward pass, `pack` took 1.8 times as long.
    """
    if os.getpid() != _PROCESS or threading.current_thread() is not threading.main_thread():
        return None  # a fork has the team's memory without its threads; other threads would lead teams of their own
    try:
        return ctypes.CDLL("libgomp.so.1", os.RTLD_NOW | os.RTLD_NOLOAD)
    except (OSError, AttributeError):
        return None


def _run_in_team(team: ctypes.CDLL, calls: Sequence[Callable[[], object]]) -> None:
    """Run every call in a thread of the team; the first error of any is raised when all have ended."""
    errors: list[BaseException] = []
    remaining = iter(calls)  # of a list: two threads never get the same

    def run(_: int | None) -> None:
        try:
            for call in remaining:
                call()
        except BaseException as error:  # nothing may unwind through the library
            errors.append(error)

    team.GOMP_parallel(_CALLBACK(run), None, ctypes.c_uint(len(calls)), ctypes.c_uint(0))
    if errors:
        raise errors[0]


class _CacheFile(IndexDataCacheFile):
    """numba's index of one function's machine code, safe for kernels that call each other and for concurrent processes.

    numba renews code when the function's own file changes, not when one that it calls into does, so that an update
    could leave old code running: here the stamp is that of all kernels. numba numbers its data files, so that two
    processes compiling different signatures take the same number and one later runs the other's code: here the name is
    the signature's.
    """

    def save(self, key: Any, data: Any) -> None:  # numba's types, which it does not export
        """Write `data`, the machine code of the signature `key`, and its name into the index."""
        digest = hashlib.sha256(repr((self._source_stamp, key)).encode()).hexdigest()[:16]
        name = f"{self._index_name.removesuffix('.nbi')}.{digest}.nbc"
        self._save_data(name, data)  # type: ignore[no-untyped-call]
        self._save_index({**self._load_index(), key: name})  # type: ignore[no-untyped-call]


@cache
def _fingerprint() -> str:
    """One digest of the source of every kernel."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _shared_folder() -> str | None:
    """The folder in NUMBA_CACHE_DIR of the machine code of these kernels, wherever their source is; None without one."""
    root = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    if not root:
        return None
    folder = Path(root) / f"actstore-{_fingerprint()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # numba has chosen another place for itself too
        return None
    return str(folder)


@cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """The threads beside the caller's own; one pool per process, because a fork copies a pool without its threads."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix=f"actstore-kernel-{process}")
