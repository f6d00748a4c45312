"""Products: reads what no module hands over, by watching the torch functions of a forward pass as they are called.

Experts that share one 3-D parameter have no inner module to hook, and a gated MLP multiplies its gate and its up projection
inside its own forward. Both are read where they are used: a product with an output projection's matrix is recognised by the
memory of its weight (which also tells the expert), its rows by the last selection made from the block's rows, its gate and up
by the elementwise product that made its input, the weight of its output by the multiplication that follows. Models are run as
they are, and nothing is recomputed; experts must run in their library's eager form.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from actstore.engine.models.sites import Sink, as_rows
from actstore.engine.models.writing.path import WRITE_SCALE
from actstore.engine.models.writing.weights import OutputWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_LINEAR = {"linear": 0, "matmul": 0, "__matmul__": 0, "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Function name → index of the activations among its arguments; the weight is the argument after them."""
_PRODUCT = {"mul", "__mul__", "__rmul__", "mul_", "multiply", "__imul__"}
_PASS_THROUGH = {"to", "type_as", "dropout", "contiguous", "view", "reshape", "float", "half", "bfloat16"}
_SELECT = {"__getitem__", "index_select"}


@dataclass(frozen=True)
class WatchedProjection:
    """An output projection to watch: which layers its matrices are (by run, or by expert) and which sites to read of each."""

    weight: nn.Parameter
    n_matrices: int
    routed: bool
    gate: int | None  # the activated factor of the product that makes the input
    layers: tuple[int, ...]  # by expert; by run where the parameter is one matrix
    sites: Mapping[int, Iterable[str]]  # by layer


@dataclass
class _Factors:
    """The last elementwise product of a pass."""

    output: Tensor
    factors: tuple[Tensor, Tensor]


def factor_of(site: str, gate: int) -> int:
    """Which factor of the product that makes A_post a site is; `gate` is the activated one. KeyError for another site."""
    return {"mlp.gate": gate, "mlp.up": 1 - gate}[site]


class ProductWatch(TorchFunctionMode):
    """While active, hands the sites of the watched projections to `sink` as the model multiplies by them."""

    def __init__(self, watched: Iterable[WatchedProjection], sink: Sink) -> None:
        super().__init__()
        self._watched = sorted(watched, key=lambda entry: entry.weight.data_ptr())
        self._starts = [entry.weight.data_ptr() for entry in self._watched]
        self._sink = sink
        self._runs: Counter[int] = Counter()
        self._product: _Factors | None = None
        self._selected: Tensor | None = None
        self._taken = 0
        self._is_paused = False
        self._weights = OutputWeights(sink)

    def pausing(self, sink: Sink) -> Sink:
        """The same sink, which pauses the watch: its own torch calls are not taken for the model's."""

        def paused_sink(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
            self._is_paused = True
            try:
                sink(layer, site, values, rows)
            finally:
                self._is_paused = False

        return paused_sink

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_paused:
            return func(*args, **kwargs)
        name = func.__name__
        made_by = self._on_linear(args, _LINEAR[name]) if name in _LINEAR else None
        output = func(*args, **kwargs)
        if made_by is not None:
            self._weights.follow(output, *made_by)
        self._weights.after(name, args, output)
        if name in _PRODUCT:
            self._on_product(args, output)
        elif name in _SELECT:
            self._on_selection(args)
        elif name in _PASS_THROUGH and self._product is not None and args and args[0] is self._product.output:
            self._product.output = output
        return output

    def _on_product(self, args: tuple[Any, ...], output: Tensor) -> None:
        left, right = args[:2]
        if isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape and left.dim() > 1:
            self._product = _Factors(output, (left, right))

    def _on_selection(self, args: tuple[Any, ...]) -> None:
        base, index = args[0], args[-1]
        if isinstance(index, tuple):
            tensors = [entry for entry in index if isinstance(entry, Tensor)]
            if len(tensors) != 1 or any(isinstance(entry, int) for entry in index):
                return
            index = tensors[0]
        if not (isinstance(index, Tensor) and index.dim() == 1 and base.dim() == 2 and base.is_floating_point()):
            return
        self._selected = index.nonzero().flatten() if index.dtype == torch.bool else index
        self._taken = 0

    def check_finished(self) -> None:
        """RuntimeError where the weight of an output was asked for and not seen."""
        self._weights.check_finished()

    def _on_linear(self, args: tuple[Any, ...], first: int) -> tuple[int, Tensor | None] | None:
        """Hand over what is asked of a projection's input; its layer and rows, where the weight of its output is asked for."""
        if len(args) < first + 2:
            return None
        values, weight = args[first], args[first + 1]
        if not (isinstance(values, Tensor) and isinstance(weight, Tensor)):
            return None
        # The last watched weight that begins at or before this one: the one that it is a view of, if of any.
        index = bisect_right(self._starts, weight.data_ptr()) - 1
        if index < 0:
            return None
        watched = self._watched[index]
        offset = (weight.data_ptr() - self._starts[index]) // weight.element_size()
        if offset >= watched.weight.numel():
            return None
        if weight.dim() == 3:
            self._emit_all_experts(watched, values)
            return None
        if watched.n_matrices > 1:
            expert = offset // (watched.weight.numel() // watched.n_matrices)
            return self._emit(watched, watched.layers[expert], as_rows(values), self._rows(len(as_rows(values))))
        run = self._runs[index]
        self._runs[index] += 1
        rows = self._rows(len(as_rows(values))) if watched.routed else None
        return self._emit(watched, watched.layers[run], as_rows(values), rows) if run < len(watched.layers) else None

    def _rows(self, count: int) -> Tensor:
        """The rows a routed projection works on: the next `count` of the last selection."""
        if self._selected is None or self._taken + count > len(self._selected):
            raise RuntimeError(f"an expert was given {count} rows, and no selection of {count} rows came before it")
        rows = self._selected[self._taken : self._taken + count]
        self._taken += count
        return rows

    def _emit(
        self, watched: WatchedProjection, layer: int, values: Tensor, rows: Tensor | None
    ) -> tuple[int, Tensor | None] | None:
        sites = watched.sites.get(layer, ())
        for site in sites:
            if site == "mlp.post":
                self._sink(layer, site, values, rows)
            elif watched.gate is not None and site != WRITE_SCALE:
                self._sink(layer, site, self._factor(values, factor_of(site, watched.gate)), rows)
        return (layer, rows) if WRITE_SCALE in sites else None

    def _emit_all_experts(self, watched: WatchedProjection, values: Tensor) -> None:
        """One batched product over all experts, each over all rows (Llama 4): an expert's rows are those not all zero."""
        # Once for all experts: to know how many rows there are is to wait for the device.
        is_routed = values.any(-1).cpu()  # [expert, row]
        of_expert = torch.split(is_routed.nonzero()[:, 1].to(values.device), is_routed.sum(-1).tolist())
        for expert, layer in enumerate(watched.layers):
            rows = of_expert[expert]
            for site in watched.sites.get(layer, ()):
                if site == WRITE_SCALE:
                    continue  # Llama 4 weights what its experts are given, not what they return
                rows_of_all = values
                if site != "mlp.post":
                    if watched.gate is None:
                        continue
                    rows_of_all = self._factor(values, factor_of(site, watched.gate))
                self._sink(layer, site, rows_of_all.reshape(values.shape)[expert][rows], rows)

    def _factor(self, values: Tensor, which: int) -> Tensor:
        """The rows of one factor of the product that made `values`."""
        product = self._product
        if product is None or product.output.untyped_storage().data_ptr() != values.untyped_storage().data_ptr():
            raise RuntimeError("a gated projection's input was not the last elementwise product before it")
        rows = as_rows(product.factors[which])
        start = (values.data_ptr() - product.output.data_ptr()) // (values.element_size() * values.shape[-1])
        count = values.numel() // values.shape[-1]
        return rows[start : start + count]
