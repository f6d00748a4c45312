"""Sites: named places in a transformer block where activations are read, and hooks that read them during a forward pass.

A *tap* is where a module hands a site's tensor over: one of its arguments or results, in its n-th run of the pass. What no
module hands over (the factors of a gated product, the rows of one routed expert) is read by `actstore.engine.models.products`.
Knows nothing about model families, weights or stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Sink = Callable[[int, str, Tensor, "Tensor | None"], None]
"""`sink(layer, site, values [row, neuron], rows [row] or None)`; see `LoadedModel.forward`."""


@dataclass(frozen=True)
class Tap:
    """Where a tensor is read: an argument (`side` "input") or a result ("output") of `module` in its run `run` of a pass.

    `index` is the position or keyword of the argument, or the place in the results; None is the only result. The tensor is
    multiplied by `scale` where a block scales what a module returned before adding it (Granite).
    """

    module: str
    side: Literal["input", "output"]
    index: int | str | None = 0
    run: int = 0
    scale: float | None = None

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """The site's values as [row, neuron], from one call of the module."""
        if self.side == "output":
            value = output if self.index is None else output[self.index]
        else:
            value = kwargs[self.index] if isinstance(self.index, str) else args[self.index or 0]
        if self.scale is not None:
            value = value * self.scale
        return as_rows(value)


class LastLayerReached(Exception):
    """Raised inside a forward pass when nothing that follows is wanted."""


def as_rows(values: Tensor) -> Tensor:
    """The values as [row, neuron], rows in row-major order of the leading axes; a view wherever strides allow."""
    return values.reshape(-1, values.shape[-1])


def tokens_only(sink: Sink, n_windows: int, n_positions: int, where: Literal["first", "last"]) -> Sink:
    """A sink that is handed the rows of tokens only, where a model keeps positions of its own before or behind a window's."""

    def select(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
        if rows is None and len(values) != n_windows * n_positions:
            by_window = values.reshape(n_windows, -1, values.shape[-1])
            values = as_rows(by_window[:, :n_positions] if where == "first" else by_window[:, -n_positions:])
        sink(layer, site, values, rows)

    return select


@contextmanager
def tapped(
    model: nn.Module,
    taps: Mapping[Tap, Iterable[tuple[int, str]]],
    sink: Sink,
    stop: tuple[str, int] | None = None,
) -> Iterator[None]:
    """While open, a forward pass hands the tensors at `taps` to `sink` under their (layer, site) names.

    After the run `stop` (module, run) has ended, the pass is broken off by `LastLayerReached`. One pass per opening: runs are
    counted from there.
    """
    by_module: dict[str, dict[Tap, Iterable[tuple[int, str]]]] = {}
    for tap, names in taps.items():
        by_module.setdefault(tap.module, {})[tap] = names
    handles = []
    try:
        for path in by_module.keys() | ({stop[0]} if stop else set()):
            reader = _Reader(by_module.get(path, {}), sink, stop[1] if stop and stop[0] == path else None)
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(reader.before, with_kwargs=True))
            handles.append(module.register_forward_hook(reader.after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reader:
    """The pair of hooks of one module; counts its runs."""

    def __init__(self, taps: Mapping[Tap, Iterable[tuple[int, str]]], sink: Sink, stop_after: int | None) -> None:
        self._taps: dict[tuple[str, int], list[tuple[Tap, list[tuple[int, str]]]]] = {}
        for tap, names in taps.items():
            self._taps.setdefault((tap.side, tap.run), []).append((tap, list(names)))
        self._sink, self._stop_after = sink, stop_after
        self._begun: Counter[str] = Counter()

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._read("input", args, kwargs, None)

    def after(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._read("output", args, kwargs, output) == self._stop_after:
            raise LastLayerReached

    def _read(self, side: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
        run = self._begun[side]
        self._begun[side] += 1
        for tap, names in self._taps.get((side, run), ()):
            values = tap.read(args, kwargs, output)
            for layer, site in names:
                self._sink(layer, site, values, None)
        return run
