"""Interventions said in a few words that JSON can hold: which neurons, at which positions, and what happens to them.

An `Operation` suppresses, boosts, sets, shakes or replaces some neurons; a specification is several of them, in order. No model
is needed to write or read one. Knows nothing about how they are carried out (`interventions`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.edit.passes import check_positions
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import Record
from actstore.store.neurons import parse_neuron

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


KINDS: Final = {
    "suppress": "activations become 0",
    "boost": "activations are multiplied by `factor`",
    "set": "activations become `value`",
    "noise": "`sigma` times a standard normal number is added, its own at each position",
    "patch": "activations become those at the same position of document `source` of a capture, or at one place, DOC:POS",
}


@dataclass(frozen=True)
class Operation(Record, Typed):
    """One change of some neurons at some positions."""

    kind: str
    """A key of `KINDS`."""
    neurons: tuple[str, ...]
    """Such as L3.N17."""
    positions: str | tuple[int, ...] = "all"
    """A name of `positions.NAMED`, or positions; negative ones count from the prompt's end."""
    factor: float = 2.0
    value: float = 0.0
    sigma: float = 1.0
    seed: int = 0
    capture: str | None = None
    source: str | None = None
    """Of a patch: a document's number, or a place DOC:POS whose values serve all positions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise InvalidInputError(f"An intervention is one of {', '.join(KINDS)}, found {self.kind!r}.")
        if not self.neurons:
            raise InvalidInputError(f"Expected at least one neuron to {self.kind}, found none.")
        check_positions(self.positions)
        for name in ("factor", "value", "sigma"):
            if not np.isfinite(getattr(self, name)):
                raise InvalidInputError(f"Expected a finite {name} of an intervention, found {getattr(self, name)}.")
        if self.kind == "patch" and self.source is None:
            raise InvalidInputError("A patch needs the document, or the place DOC:POS, that it takes activations from.")

    def by_layer(self) -> dict[int, list[int]]:
        """Layer → neurons in it, ascending, each once; `InvalidInputError` for a name that is none."""
        found: dict[int, set[int]] = defaultdict(set)
        for name in self.neurons:
            layer, neuron = parse_neuron(name)
            found[layer].add(neuron)
        return {layer: sorted(neurons) for layer, neurons in sorted(found.items())}

    @classmethod
    def from_json(cls, value: Any, where: str) -> Operation:
        """The operation in `value`; positions may be a name or a list."""
        if isinstance(value, dict) and isinstance(value.get("positions"), list):
            positions = tuple(value["positions"])
            check_positions(positions)
            rest = super().from_json({k: v for k, v in value.items() if k != "positions"}, where)
            return cls(**{**vars(rest), "positions": positions})
        return super().from_json(value, where)


@dataclass(frozen=True)
class Specification(Record, Typed):
    """Operations in order: each sees what those before it left."""

    operations: tuple[Operation, ...]

    def neurons(self) -> dict[int, list[int]]:
        """Layer → neurons that any operation changes, ascending."""
        found: dict[int, set[int]] = defaultdict(set)
        for operation in self.operations:
            for layer, neurons in operation.by_layer().items():
                found[layer].update(neurons)
        return {layer: sorted(neurons) for layer, neurons in sorted(found.items())}


def check_neurons(neurons: Mapping[int, Sequence[int]], widths: Mapping[int, int], name: str) -> None:
    """Raise `InvalidInputError` for a neuron that the model does not have; `widths` are the neurons of each layer."""
    for layer, chosen in neurons.items():
        if layer not in widths:
            raise InvalidInputError(f"{name} has layers 0 to {len(widths) - 1}, found layer {layer}.")
        if outside := [n for n in chosen if not 0 <= n < widths[layer]]:
            raise InvalidInputError(
                f"Layer {layer} of {name} has neurons 0 to {widths[layer] - 1}, found neuron {outside[0]}."
            )
