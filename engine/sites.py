"""Sites: named places in a transformer block where activations are read, and how to read them during a forward pass.

A *tap* is where one site of one layer can be read: the input or the output of a module, in its n-th run of the pass. Taps on
modules are hooks; what no module hands over (the two factors of a gated product, the rows of one routed expert) is read by
watching the torch functions that `actstore.engine.products` sees. Knows nothing about model families, weights or stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

SITES = ("mlp.post", "mlp.gate", "mlp.up", "resid.pre", "resid.mid", "resid.post", "attn.out")
"""Every site there is, `mlp.post` (A_post, the input of the MLP's output projection) first."""

Sink = Callable[[int, str, Tensor, "Tensor | None"], None]
"""`sink(layer, site, values [row, neuron], rows [row] or None)`; see `LoadedModel.forward`."""


@dataclass(frozen=True)
class Tap:
    """The place a tensor is read: an argument (`side` "input") or a result ("output") of `module` in its run `run`.

    `index` is the position or keyword of the argument, or the place in a tuple of results; None is the only result.
    """

    module: str
    side: Literal["input", "output"]
    index: int | str | None = 0
    run: int = 0


class LastLayerReached(Exception):  # noqa: N818 - a signal, not an error
    """Raised inside a forward pass when nothing that follows is wanted."""


def read_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int | str | None) -> Tensor:
    """The tensor at a tap's `index` in a module's call."""
    value = kwargs[index] if isinstance(index, str) else args[index or 0]
    if not isinstance(value, Tensor):
        raise TypeError(f"a module was expected to take a tensor at argument {index!r}, and took {type(value).__name__}")
    return value


def read_result(output: Any, index: int | str | None) -> Tensor:
    """The tensor at a tap's `index` in a module's result."""
    value = output if index is None else output[index]
    if not isinstance(value, Tensor):
        raise TypeError(f"a module was expected to return a tensor at {index!r}, and returned {type(value).__name__}")
    return value


def as_rows(values: Tensor) -> Tensor:
    """The values as [row, neuron], rows in row-major order of the leading axes; a view wherever strides allow."""
    return values.reshape(-1, values.shape[-1])


@contextmanager
def tapped(
    model: nn.Module, taps: Mapping[Tap, Iterable[tuple[int, str]]], sink: Sink, last: Tap | None = None
) -> Iterator[None]:
    """While open, every forward pass hands the tensors at `taps` to `sink` under their (layer, site) names.

    After `last` has been read the pass is ended by `LastLayerReached`. The pass must be a single one: runs are counted from
    the opening.
    """
    by_module: dict[str, list[Tap]] = {}
    for tap in {**dict.fromkeys(taps), **({last: None} if last else {})}:
        by_module.setdefault(tap.module, []).append(tap)
    handles = []
    for path, wanted in by_module.items():
        module = model.get_submodule(path)
        reader = _Reader(wanted, taps, sink, last)
        handles.append(module.register_forward_pre_hook(reader.before, with_kwargs=True))
        handles.append(module.register_forward_hook(reader.after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reader:
    """The pair of hooks of one module; counts its runs."""

    def __init__(
        self, wanted: list[Tap], taps: Mapping[Tap, Iterable[tuple[int, str]]], sink: Sink, last: Tap | None
    ) -> None:
        self.taps: dict[tuple[str, int], list[Tap]] = {}
        for tap in wanted:
            self.taps.setdefault((tap.side, tap.run), []).append(tap)
        self.names, self.sink, self.last = taps, sink, last
        self.runs: Counter[str] = Counter()

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run = self.runs["input"]
        self.runs["input"] += 1
        for tap in self.taps.get(("input", run), ()):
            self._emit(tap, read_argument(args, kwargs, tap.index))

    def after(self, _module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], output: Any) -> None:
        run = self.runs["output"]
        self.runs["output"] += 1
        for tap in self.taps.get(("output", run), ()):
            self._emit(tap, read_result(output, tap.index))

    def _emit(self, tap: Tap, values: Tensor) -> None:
        for layer, site in self.names.get(tap, ()):
            self.sink(layer, site, as_rows(values), None)
        if tap == self.last:
            raise LastLayerReached


def inference() -> torch.inference_mode:
    """The mode every capture runs in: no graph, no version counters."""
    return torch.inference_mode()
