"""Stores, captures and neurons in other processes: pickled by where they are, before and after they were used."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Planting = Callable[..., dict[int, NDArray[np.float32]]]


def _used(path: Path) -> tuple[Any, ...]:
    store = Store(path)
    capture, neuron = store.capture(), store.neuron(1, 7)
    neuron.activations()
    neuron.exemplars(3)
    capture.tokens()
    return store, capture, neuron


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("used", [False, True])
def test_what_reads_a_store_can_be_pickled_and_copied(
    planted_path: tuple[Path, dict[int, NDArray[np.float32]]], again: Callable[[Any], Any], used: bool
) -> None:
    path, _ = planted_path
    fresh = Store(path)
    store, capture, neuron = _used(path) if used else (fresh, fresh.capture(), fresh.neuron(1, 7))
    assert again(store).captures == store.captures == ("corpus",)
    assert again(capture).blocks == capture.blocks
    found = again(neuron)
    assert (found.name, len(found.activations())) == ("L1.N7", len(neuron.activations()))
    np.testing.assert_array_equal(found.activations(), neuron.activations())


def test_a_relative_path_is_found_from_another_folder(
    planted_path: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(planted_path[0].parent)
    pickled = pickle.dumps(Store(planted_path[0].name).neuron("L0.N1"))
    monkeypatch.chdir(tmp_path)
    assert len(pickle.loads(pickled).activations()) > 0


def test_a_folder_to_write_to_stays_one(tmp_path: Path) -> None:
    folder = pickle.loads(pickle.dumps(Folder(tmp_path, read_only=False)))
    folder.write("a", b"x")
    assert (folder.location, folder.read("a")) == (str(tmp_path), b"x")


def test_a_store_in_memory_is_of_its_process(planting: Planting, somewhere: str) -> None:
    planting(somewhere)
    store = Store(somewhere)
    with pytest.raises(InvalidInputError, match="lives in the memory of this process, and another cannot open it"):
        pickle.dumps(store.neuron(0, 1))
    assert len(copy.deepcopy(store.neuron(0, 1)).activations()) > 0


def test_that_a_capture_is_unfinished_is_said_once(
    planting: Planting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planting(tmp_path / "store", blocks=(0, 2), finish=False)
    capture = Store(tmp_path / "store").capture()
    assert [record.name for record in caplog.records] == ["actstore"]
    assert pickle.loads(pickle.dumps(capture)).blocks == capture.blocks
    assert len(caplog.records) == 1


POOL = """
import multiprocessing, sys
from actstore import Neuron, open

if __name__ == "__main__":
    store = open(sys.argv[1])
    neurons = [store.neuron(1, i) for i in range(4)]
    here = [neuron.activations().sum() for neuron in neurons]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(Neuron.activations, neurons)
    print([float(values.sum()) for values in there] == [float(total) for total in here])
"""


def test_neurons_are_mapped_over_processes(planted_path: tuple[Path, Any], tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(planted_path[0])], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
