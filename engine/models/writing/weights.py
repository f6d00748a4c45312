"""Weights of outputs: the number that a model multiplies each row of a projection's output with, read where it does so.

A mixture multiplies what an expert returns by the routing weight of each row, and Qwen's shared expert by a gate; neither is
handed to a module. The output is followed from the product that made it to that multiplication.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from actstore.engine.models.writing.path import WRITE_SCALE

if TYPE_CHECKING:
    from actstore.engine.models.sites import Sink

_ADD = {"add", "__add__", "__radd__", "add_", "__iadd__"}
_MULTIPLY = {"mul", "__mul__", "__rmul__", "mul_", "multiply", "__imul__"}
_PASS_THROUGH = {"to", "type_as", "dropout", "contiguous", "view", "reshape", "float", "half", "bfloat16", "unsqueeze"}


class _Followed(NamedTuple):
    layer: int
    rows: Tensor | None
    tensor: Tensor  # kept, so that its id is no other's


class OutputWeights:
    """The outputs that are being followed; the weights of their rows go to `sink` under the name `WRITE_SCALE`."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._followed: dict[int, list[_Followed]] = {}

    def follow(self, output: Tensor, layer: int, rows: Tensor | None) -> None:
        """Follow the output of a layer's projection, whose rows are those of the batch, or `rows` of it."""
        self._followed.setdefault(id(output), []).append(_Followed(layer, rows, output))

    def after(self, name: str, args: tuple[Any, ...], output: Any) -> None:
        """What a torch function has made of its arguments."""
        if not self._followed or not isinstance(output, Tensor) or not args:
            return
        if name in _MULTIPLY and len(args) > 1:
            for tensor, factor in ((args[0], args[1]), (args[1], args[0])):
                self._multiply(tensor, factor, output)
        elif name in _PASS_THROUGH:
            self._move(args[0], output)
        elif name in _ADD:
            for tensor in args[:2]:
                self._move(tensor, output)

    def check_finished(self) -> None:
        """RuntimeError where an output was never multiplied, which the walk over the model has seen to be."""
        layers = sorted({one.layer for entries in self._followed.values() for one in entries})
        if layers:
            raise RuntimeError(f"the outputs of layers {layers} were not multiplied by a weight per row")

    def _multiply(self, tensor: Any, factor: Any, output: Tensor) -> None:
        if not isinstance(factor, Tensor) or not factor.dim():
            self._move(tensor, output)
        elif factor.shape[-1] == 1:
            for layer, rows, followed in self._followed.pop(id(tensor), ()):
                weights = factor.expand(*followed.shape[:-1], 1).reshape(-1, 1)
                self._sink(layer, WRITE_SCALE, weights, rows)

    def _move(self, tensor: Any, output: Tensor) -> None:
        """Follow the result instead of an argument."""
        if output is not tensor:
            for layer, rows, _ in self._followed.pop(id(tensor), ()):
                self.follow(output, layer, rows)
