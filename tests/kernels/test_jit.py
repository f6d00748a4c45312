"""Compiling, and keeping machine code on disk: safe for concurrent processes, and where nothing can be written."""

import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.caching import CacheImpl
from numpy.typing import NDArray

from actstore.kernels import jit as compiler
from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.pack.cpu import _pack
from actstore.kernels.top_k.cpu import insert

PACK = """
import sys
import numpy as np
from actstore.kernels.pack.api import Columns, pack
columns = Columns(np.arange(9), np.arange(9), np.array([0, 9]), np.zeros((1, 0)), np.ones(9), 0)
values = np.arange(45).reshape(9, 5)
for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    out = np.zeros((5, 9), target)
    pack(values.astype(source), columns, out, None)
    assert (out == values.T).all(), (source, target)
"""


def double(first: int, stop: int, values: NDArray[np.float64]) -> None:
    for i in range(first, stop):
        values[i] *= 2


def test_a_kernel_is_compiled_even_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    values = np.ones(3)
    jit(double)(0, 2, values)
    assert values.tolist() == [2, 2, 1]


def test_checkouts_share_machine_code_in_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "code"))
    for checkout in ("one", "other"):
        source = tmp_path / checkout / "cpu.py"
        source.parent.mkdir()
        source.write_text(Path(__file__).read_text())
        function = FunctionType(double.__code__.replace(co_filename=str(source)), globals())
        dispatcher: Any = jit(function)
        values = np.ones(3)
        dispatcher(0, 2, values)
        assert values.tolist() == [2, 2, 1]
        assert sum(dispatcher.stats.cache_hits.values()) == (checkout == "other")
    (folder,) = (tmp_path / "code").glob("actstore-*")
    assert compiler._fingerprint().startswith(folder.name.removeprefix("actstore-"))
    assert [path.suffix for path in sorted(folder.iterdir())] == [".nbc", ".nbi"]


def test_a_kernel_is_compiled_once_for_all_that_call_it() -> None:
    """Whatever width of integers they have: fails if numba changes what we build on."""

    @jit
    def add(values: NDArray[np.float64], i: int, is_negative: bool) -> float:
        return -values[i] if is_negative else values[i]

    @jit
    def add_all(values: NDArray[np.float64], indices: NDArray[np.int32], bits: NDArray[np.uint8]) -> float:
        total = add(values, 0, True) + add(values, bits[0], False)
        for i in range(len(indices)):
            total += add(values, indices[i], i > 0) + add(values, i, indices[i] > 1)
        return total

    function: Any = add
    values = np.array([1.0, 20, 300])
    assert add_all(values, np.array([2, 1], np.int32), np.array([1], np.uint8)) == -1 + 20 + (300 - 1) + (-20 + 20)
    signatures = [tuple(str(kind) for kind in signature[1:]) for signature in function.signatures]
    assert sorted(signatures) == [("int64", "bool"), ("uint8", "bool")]


def test_where_the_folder_that_is_named_cannot_be_made_the_code_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file"))
    dispatcher: Any = jit(double)
    assert not dispatcher._cache.cache_path.startswith(str(tmp_path))
    assert dispatcher._cache._cache_file._cache_path == dispatcher._cache.cache_path


@pytest.fixture(params=["in torch's threads", "in our own"])
def threads_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test in the threads of torch's OpenMP library, which is loaded here, and in those of the pool."""
    if request.param == "in our own":
        monkeypatch.setattr(compiler, "_PROCESS", -1)
    elif compiler._torch_team() is None:
        pytest.skip("torch brings no OpenMP library of that name here")
    return str(request.param)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("n_neurons", [0, 1, 4, 9, 10])
@pytest.mark.usefixtures("threads_of")
def test_every_neuron_is_in_one_range(threads: int, n_neurons: int) -> None:
    seen = np.zeros(n_neurons, np.int64)
    starts = []

    def kernel(first: int, stop: int) -> None:
        starts.append(first)
        seen[first:stop] += 1

    over_neurons(kernel, n_neurons, 4, threads)
    assert (seen == 1).all()
    assert all(first % 4 == 0 for first in starts)


@pytest.mark.usefixtures("threads_of")
@pytest.mark.parametrize("kind", [ArithmeticError, IndexError, KeyboardInterrupt])
def test_an_error_in_any_range_reaches_the_caller(kind: type[BaseException]) -> None:
    def kernel(first: int, stop: int) -> None:
        if first:
            raise kind(first)

    with pytest.raises(kind):
        over_neurons(kernel, 10, 1, 3)


@pytest.mark.usefixtures("threads_of")
def test_the_ranges_run_in_several_threads() -> None:
    together = threading.Barrier(3, timeout=30)
    over_neurons(lambda first, stop: together.wait(), 3, 1, 3)


def test_a_kernel_runs_in_a_fork_and_beside_the_main_thread() -> None:
    """A fork inherits no threads, and a second leader of a team would double them: both must take the pool."""
    over_neurons(lambda first, stop: None, 3, 1, 3)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(compiler._torch_team).result() is None
        pool.submit(over_neurons, lambda first, stop: None, 3, 1, 3).result()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork of a process with threads
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        over_neurons(lambda first, stop: None, 3, 1, 3)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_the_stamp_of_kept_code_is_that_of_all_kernels() -> None:
    """Else code inlined from another file would outlive its source; fails if numba changes what we build on."""
    dispatchers: list[Any] = [_pack, insert]
    stamps = {dispatcher._cache._cache_file._source_stamp for dispatcher in dispatchers}
    assert len(stamps) == 1
    assert len(stamps.pop()) == 64


@pytest.mark.slow
def test_processes_that_compile_at_once_do_not_run_each_others_code(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    pairs = [("float32", "float32"), ("float16", "float16"), ("float32", "float16"), ("float16", "float32")]

    def start(*formats: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", PACK, *formats], env=environment, stderr=subprocess.PIPE)

    for process in [start(*pair) for pair in pairs]:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    after = start(*(name for pair in pairs for name in pair))
    _, errors = after.communicate()
    assert after.returncode == 0, errors.decode()
