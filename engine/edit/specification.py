"""Interventions as JSON can hold them: a specification is several operations, in order.

No model is needed to write or read one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actstore.engine.edit.operations import Operation
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Operation", "Specification", "check_neurons"]


@dataclass(frozen=True)
class Specification(Record, Typed):
    """Operations in order: each sees what those before it left."""

    operations: tuple[Operation, ...]

    def neurons(self) -> dict[int, list[int]]:
        """Layer → neurons that any operation changes, ascending."""
        by_layer: dict[int, set[int]] = defaultdict(set)
        for operation in self.operations:
            for layer, neurons in operation.by_layer().items():
                by_layer[layer].update(neurons)
        return {layer: sorted(neurons) for layer, neurons in sorted(by_layer.items())}


def check_neurons(neurons: Mapping[int, Sequence[int]], widths: Mapping[int, int], name: str) -> None:
    """Raise `InvalidInputError` for a neuron that the model `name` does not have; `widths`: layer → number of its neurons."""
    for layer, indices in neurons.items():
        if layer not in widths:
            raise InvalidInputError(f"{name} has layers 0 to {len(widths) - 1}, found layer {layer}.")
        if outside := [n for n in indices if not 0 <= n < widths[layer]]:
            raise InvalidInputError(
                f"Layer {layer} of {name} has neurons 0 to {widths[layer] - 1}, found neuron {outside[0]}."
            )
