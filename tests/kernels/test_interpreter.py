"""What tests change of Triton's interpreter: how often it looks for what to replace, and nothing of what a kernel computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is for Linux")
tl = triton.language
interpreter = pytest.importorskip("triton.runtime.interpreter")

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not hasattr(interpreter, "_LangPatchScope"),
    reason="kernels are compiled here, or by a release whose interpreter is left as it is",
)


@triton.jit
def _double(x):  # type: ignore[no-untyped-def]
    return x + x


@triton.jit
def _double_often(source, target, N_TIMES: tl.constexpr):  # type: ignore[no-untyped-def]
    x = tl.load(source + tl.arange(0, 4))
    for _ in tl.static_range(N_TIMES):
        x = _double(x)
    tl.store(target + tl.arange(0, 4), x)


def test_names_are_replaced_once_per_launch_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[Any] = []
    scan = interpreter._patch_builtin

    def count(package: Any, *arguments: Any) -> None:
        scanned.append(package)
        scan(package, *arguments)

    monkeypatch.setattr(interpreter, "_patch_builtin", count)
    _double_often[(1,)](torch.arange(4.0), torch.zeros(4), N_TIMES=0)  # gives inherited methods to the class itself
    before = dict(vars(tl)), dict(vars(tl.tensor))
    numbers = []
    for n_times in (0, 3, 3):
        source, target = torch.arange(4.0), torch.zeros(4)
        scanned.clear()
        _double_often[(1,)](source, target, N_TIMES=n_times)
        assert target.tolist() == [0, 1 << n_times, 2 << n_times, 3 << n_times]
        assert (dict(vars(tl)), dict(vars(tl.tensor))) == before
        numbers.append(len(scanned))
    assert numbers[0] > 0
    assert len(set(numbers)) == 1


def test_names_are_given_back_after_an_error() -> None:
    before = dict(vars(tl))
    with pytest.raises(interpreter.InterpreterError):
        _double_often[(1,)](None, torch.zeros(4), N_TIMES=1)
    assert dict(vars(tl)) == before
    target = torch.zeros(4)
    _double_often[(1,)](torch.arange(4.0), target, N_TIMES=1)
    assert target.tolist() == [0, 2, 4, 6]
