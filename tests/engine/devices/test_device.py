"""Which device a name means, and what is said where there is none; torch is not loaded to find out that there is none."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from actstore.engine.devices import device as devices
from actstore.engine.devices.device import HOST, Device, find_device
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path


def gpus(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    assert find_device() == find_device("auto") == find_device("cpu") == HOST
    assert not HOST.is_gpu
    gpus(monkeypatch, 2)
    assert find_device("auto") == find_device("cuda") == Device("cuda")
    assert find_device("cuda:1") == Device("cuda:1")
    assert find_device("cuda:1").torch == torch.device("cuda:1")
    assert find_device("cpu") == HOST
    # Workers of a scan have no GPU on Ray.
    assert find_device("auto", on="ray") == find_device("cpu", on="ray://head:10001") == HOST


@pytest.mark.parametrize(
    ("name", "n", "on", "sentence"),
    [
        ("tpu", 0, "local", "Expected `device` to be auto, cpu, cuda or a GPU's number as in cuda:1, found 'tpu'."),
        ("cuda:", 1, "local", "Expected `device` to be auto, cpu, cuda or a GPU's number as in cuda:1, found 'cuda:'."),
        ("cuda", 0, "local", "There is no device cuda here: torch finds no GPU. Leave `device` out, or pass"),
        (
            "cuda:1",
            1,
            "local",
            "There is no device cuda:1 here: torch finds 1 GPU, numbered from 0. Leave `device` out,",
        ),
        ("cuda:9", 4, "local", "There is no device cuda:9 here: torch finds 4 GPUs, numbered from 0."),
        ("cuda", 1, "ray", "Scans on Ray compute on CPUs: leave `device` out"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    name: str, n: int, on: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, n)
    with pytest.raises(InvalidInputError) as raised:
        find_device(name, on)
    assert str(raised.value).startswith(sentence)


def test_torch_is_asked_only_where_the_driver_counts_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(devices, "_driver_has_gpu", lambda: False)
    assert not devices._has_gpu()
    assert "torch" not in sys.modules
    monkeypatch.setattr(devices, "_driver_has_gpu", lambda: True)
    monkeypatch.setattr(devices, "find_spec", lambda name: None)  # as in an installation without torch
    assert find_device("auto") == HOST
    assert "torch" not in sys.modules


@pytest.mark.skipif(devices._driver_has_gpu(), reason="torch is loaded where there is a GPU")
def test_without_a_gpu_auto_loads_no_torch(tmp_path: Path) -> None:
    script = "import sys\nfrom actstore.engine.devices.device import find_device\nprint(find_device(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "Device(name='cpu') False\n", done.stderr
