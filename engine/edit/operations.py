"""Operations on activations, as one table, and as they are specified: which neurons, at which positions, and what happens.

A new kind of operation is a function and a row of `OPERATIONS`; its parameters are fields of `Operation`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.edit.positions import check_positions
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import Record
from actstore.store.neurons import parse_neuron

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.edit.passes import Passes


@dataclass(frozen=True, eq=False)
class Target:
    """The activations that an operation changes: those of one layer, in the present pass."""

    layer: int
    passes: Passes
    source: NDArray[np.float32] | None = None
    """The values that a patch puts in place: [neuron] for all positions, or [position, neuron] with NaN where there is none."""


@dataclass(frozen=True)
class OperationKind:
    """One way to change activations."""

    help: str
    parameters: tuple[str, ...]
    """The fields of `Operation` that it reads, other than neurons and positions."""
    apply: Callable[[Operation, Target, Tensor], Tensor]
    """(operation, target, activations [window, position, neuron]) → the activations after it, at every position."""
    reads_capture: bool = False


def _suppress(operation: Operation, target: Target, activations: Tensor) -> Tensor:
    import torch  # only here: what a specification says is read without it

    return torch.zeros_like(activations)


def _boost(operation: Operation, target: Target, activations: Tensor) -> Tensor:
    return activations * operation.factor


def _set(operation: Operation, target: Target, activations: Tensor) -> Tensor:
    import torch  # only here: what a specification says is read without it

    return torch.full_like(activations, operation.value)


def _add_noise(operation: Operation, target: Target, activations: Tensor) -> Tensor:
    return activations + operation.sigma * _normal_numbers(operation.seed, target, activations)


def _patch(operation: Operation, target: Target, activations: Tensor) -> Tensor:
    import torch  # only here: what a specification says is read without it

    assert target.source is not None
    source = torch.from_numpy(target.source).to(activations)
    if source.dim() == 1:
        return source.expand_as(activations)
    position = target.passes.present().position.to(activations.device)
    inside = (position >= 0) & (position < len(source))
    values = source[position.clamp(0, max(0, len(source) - 1))]
    # Positions that the source did not read, or did not capture, stay as they are.
    return torch.where(inside[..., None] & ~values.isnan(), values, activations)


def _normal_numbers(seed: int, target: Target, like: Tensor) -> Tensor:
    """Standard normal numbers that depend on seed, layer, window's row and position only.

    Not on how many positions a pass reads: with a cache and without one, a position gets the same noise.
    """
    import torch

    n_windows, n_positions, n = like.shape
    now = target.passes.present()
    is_whole = now.position.shape == (n_windows, n_positions)
    numbers = np.empty((n_windows, n_positions, n), np.float32)
    for window in range(n_windows):
        for row in range(n_positions):
            position = int(now.position[window, row]) if is_whole else row
            rng = np.random.default_rng([seed, target.layer, window, position & 0xFFFFFFFF])
            numbers[window, row] = rng.standard_normal(n, np.float32)
    return torch.from_numpy(numbers).to(like)


OPERATIONS: Final = {
    "suppress": OperationKind("activations become 0", (), _suppress),
    "boost": OperationKind("activations are multiplied by `factor`", ("factor",), _boost),
    "set": OperationKind("activations become `value`", ("value",), _set),
    "noise": OperationKind(
        "`sigma` times a standard normal number is added, another one at each position", ("sigma", "seed"), _add_noise
    ),
    "patch": OperationKind(
        "activations become those at the same position of document `source` of a capture, or those at one position, DOC:POS",
        ("capture", "source"),
        _patch,
        reads_capture=True,
    ),
}


@dataclass(frozen=True)
class Operation(Record, Typed):
    """One change of some neurons at some positions."""

    kind: str
    """A key of `OPERATIONS`."""
    neurons: tuple[str, ...]
    """Such as L3.N17."""
    positions: str | tuple[int, ...] = "all"
    """A key of `passes.POSITIONS`, or positions; negative ones count from the prompt's end."""
    factor: float = 2.0
    value: float = 0.0
    sigma: float = 1.0
    seed: int = 0
    capture: str | None = None
    source: str | None = None
    """Of a patch: the number of a document, or DOC:POS, one position whose values are put at all positions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in OPERATIONS:
            raise InvalidInputError(f"An intervention is one of {', '.join(OPERATIONS)}, found {self.kind!r}.")
        if not self.neurons:
            raise InvalidInputError(f"Expected at least one neuron to {self.kind}, found none.")
        check_positions(self.positions)
        for name in ("factor", "value", "sigma"):
            if not np.isfinite(getattr(self, name)):
                raise InvalidInputError(f"Expected a finite {name} of an intervention, found {getattr(self, name)}.")
        if OPERATIONS[self.kind].reads_capture and self.source is None:
            raise InvalidInputError(
                "A patch needs the document, or the position DOC:POS, that it takes activations from."
            )

    def by_layer(self) -> dict[int, list[int]]:
        """Layer → neurons in it, ascending, each once; `InvalidInputError` for a name that is none."""
        by_layer: dict[int, set[int]] = defaultdict(set)
        for name in self.neurons:
            layer, neuron = parse_neuron(name)
            by_layer[layer].add(neuron)
        return {layer: sorted(neurons) for layer, neurons in sorted(by_layer.items())}

    @classmethod
    def from_json(cls, value: Any, where: str) -> Operation:
        """The operation in `value`; positions may be a name or a list."""
        if isinstance(value, dict) and isinstance(value.get("positions"), list):
            positions = tuple(value["positions"])
            check_positions(positions)
            others = super().from_json({k: v for k, v in value.items() if k != "positions"}, where)
            return cls(**{**vars(others), "positions": positions})
        return super().from_json(value, where)
