"""Sites: named positions in a transformer block where activations are read, and hooks that read them during a forward pass.

A *hook point* is where a module hands a site's tensor over: one of its arguments or results, in its n-th run of the pass. What
no module hands over (the factors of a gated product, the rows of one routed expert) is read by `engine.models.products`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

Sink = Callable[[int, str, Tensor, "Tensor | None"], None]
"""`sink(layer, site, values [row, neuron], rows [row] or None)`; see `LoadedModel.forward`."""


@dataclass(frozen=True)
class Features:
    """Entries of a tensor's last axis: `n_runs` runs of `size` neighbours, `step` apart, from `first` on.

    So heads lie in a projection that makes queries, keys and values at once, side by side or head by head.
    """

    first: int
    size: int
    step: int
    n_runs: int

    @classmethod
    def of(cls, entries: Sequence[int], width: int) -> Features | None:
        """Those that `entries`, ascending, are of an axis of `width`; None where they are no such runs, or there are none."""
        if not entries:
            return None
        ends = [i + 1 for i, (a, b) in enumerate(pairwise(entries)) if b != a + 1]
        starts = [entries[i] for i in (0, *ends)]
        sizes = {b - a for a, b in pairwise((0, *ends, len(entries)))}
        steps = {b - a for a, b in pairwise(starts)} or {width}
        if len(sizes) > 1 or len(steps) > 1:
            return None
        return cls(starts[0], sizes.pop(), steps.pop(), len(starts))

    def __len__(self) -> int:
        return self.size * self.n_runs

    def index(self, device: torch.device) -> Tensor:
        """The entries [feature]."""
        starts = self.first + self.step * torch.arange(self.n_runs, device=device)
        return (starts[:, None] + torch.arange(self.size, device=device)).reshape(-1)

    def take(self, values: Tensor) -> Tensor:
        """The entries of the last axis of a tensor; a view where they are one run."""
        if self.n_runs == 1:
            return values[..., self.first : self.first + self.size]
        return values[..., self.index(values.device)]


@dataclass(frozen=True)
class HookPoint:
    """Where a tensor is read: an argument (`side` "input") or a result ("output") of `module` in its run `run` of a pass.

    `index` is the position or keyword of the argument, or the index or key of the result; None where there is one result. The
    tensor is multiplied by `scale` where a block scales what a module returned before adding it (Granite). Of its last axis the
    site is `features`, all where None.
    """

    module: str
    side: Literal["input", "output"]
    index: int | str | None = 0
    run: int = 0
    scale: float | None = None
    features: Features | None = None

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """The site's values as [row, neuron], from one call of the module."""
        if self.side == "output":
            value = output if self.index is None else output[self.index]
        else:
            value = kwargs[self.index] if isinstance(self.index, str) else args[self.index or 0]
        if self.scale is not None:
            value = value * self.scale
        if self.features is not None:
            value = self.features.take(value)
        return as_rows(value)


class LastLayerReached(Exception):
    """Raised inside a forward pass when no site that follows is to be read."""


def as_rows(values: Tensor) -> Tensor:
    """The values as [row, neuron], rows in row-major order of the leading axes; a view wherever strides allow."""
    return values.reshape(-1, values.shape[-1])


def tokens_only(sink: Sink, n_windows: int, n_positions: int, token_rows: Literal["first", "last"]) -> Sink:
    """A sink that gets the rows of tokens only, where a model adds positions of its own before or after a window's."""

    def select(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
        if rows is None and len(values) != n_windows * n_positions:
            by_window = values.reshape(n_windows, -1, values.shape[-1])
            values = as_rows(by_window[:, :n_positions] if token_rows == "first" else by_window[:, -n_positions:])
        sink(layer, site, values, rows)

    return select


def results_of(output: Any) -> list[tuple[int | str | None, Tensor]]:
    """The tensors that a module returned, with their index or key."""
    if isinstance(output, dict):
        results: list[tuple[int | str | None, Any]] = list(output.items())
    elif isinstance(output, (tuple, list)):
        results = list(enumerate(output))
    else:
        results = [(None, output)]
    return [(index, value) for index, value in results if isinstance(value, Tensor)]


def same_rows(left: Tensor, right: Tensor | None) -> bool:
    """Whether one tensor is the other, perhaps with its leading axes merged."""
    if right is None:
        return False
    return left.data_ptr() == right.data_ptr() and left.numel() == right.numel() and left.shape[-1] == right.shape[-1]


@contextmanager
def reading_sites(
    model: nn.Module,
    hook_points: Mapping[HookPoint, Iterable[tuple[int, str]]],
    sink: Sink,
    stop: tuple[str, int] | None = None,
) -> Iterator[None]:
    """While open, a forward pass hands the tensors at `hook_points` to `sink` under their (layer, site) names.

    After the run `stop` (module, run) has ended, the pass is ended by `LastLayerReached`. One pass per opening: runs are
    counted from it.
    """
    by_module: dict[str, dict[HookPoint, Iterable[tuple[int, str]]]] = {}
    for point, names in hook_points.items():
        by_module.setdefault(point.module, {})[point] = names
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

    def __init__(
        self, hook_points: Mapping[HookPoint, Iterable[tuple[int, str]]], sink: Sink, stop_after: int | None
    ) -> None:
        self._hook_points: dict[tuple[str, int], list[tuple[HookPoint, list[tuple[int, str]]]]] = {}
        for point, names in hook_points.items():
            self._hook_points.setdefault((point.side, point.run), []).append((point, list(names)))
        self._sink, self._stop_after = sink, stop_after
        self._runs: Counter[str] = Counter()

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._read("input", args, kwargs, None)

    def after(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._read("output", args, kwargs, output) == self._stop_after:
            raise LastLayerReached

    def _read(self, side: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
        run = self._runs[side]
        self._runs[side] += 1
        for point, names in self._hook_points.get((side, run), ()):
            values = point.read(args, kwargs, output)
            for layer, site in names:
                self._sink(layer, site, values, None)
        return run
