"""The way from each output projection of a block to the residual stream, found in the records of one run without weights.

Goes back from what is added to the stream over sums, views, norms and factors to the projections. Whatever else it meets ends
the way: what the neurons behind it add to a logit is then not a product of known numbers, and is said to be unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from actstore.engine.models.provenance import PASS_THROUGH, Product, is_weightless

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from actstore.engine.models.provenance import Provenance, Step
    from actstore.engine.models.sites import HookPoint

WRITE_SCALE = "write.scale"
"""Under this name a forward pass hands over the factors of `WritePath.scaled_by`, [row, 1]; no site that can be captured."""
NORM, WEIGHT, UNKNOWN = "norm", "weight", "unknown"


@dataclass(frozen=True)
class WritePath:
    """What a projection's output is multiplied with before it is added to the stream."""

    norm: HookPoint | None = None
    """Where the norm is handed its input."""
    is_weighted: bool = False
    """Whether each row is multiplied by a number of its own: a routing weight, or the gate of a shared expert."""
    factor: float = 1.0
    """A number, the same at all positions (Granite)."""
    is_known: bool = True

    @property
    def scaled_by(self) -> tuple[str, ...]:
        """The factors that differ from position to position: of `WEIGHT` and `NORM`, or `UNKNOWN`."""
        if not self.is_known:
            return (UNKNOWN,)
        return (*([WEIGHT] if self.is_weighted else []), *([NORM] if self.norm is not None else []))


UNKNOWN_PATH = WritePath(is_known=False)


def is_scaled(scaled_by: tuple[str, ...]) -> bool:
    """Whether there is a scale per position that can be read."""
    return scaled_by not in ((), (UNKNOWN,))


class CallRecords(Protocol):
    """What a walk records of the modules' calls."""

    provenance: Provenance

    def norm_of(self, tensor: Tensor) -> tuple[HookPoint, Tensor] | None:
        """Where the norm that made a tensor is handed its input, and that input; None where no norm made it."""


@dataclass
class WritePaths:
    """The path of each of some projections."""

    records: CallRecords
    feed_forwards: Collection[Product]
    paths: dict[Product, WritePath] = field(default_factory=dict)

    def follow(self, terms: Iterable[Tensor]) -> dict[Product, WritePath]:
        """The paths from all projections to the terms that are added to the stream; unknown where none leads there."""
        for term in terms:
            self._follow(term, WritePath())
        return {product: self.paths.get(product, UNKNOWN_PATH) for product in self.feed_forwards}

    def _follow(self, tensor: Tensor, path: WritePath) -> None:
        origin = self.records.provenance.origin(tensor)
        behind = [product for product in origin.sources if product in self.feed_forwards]
        if not behind:
            return
        norm = self.records.norm_of(tensor)
        if norm is not None:
            is_first = path.norm is None
            self._follow(norm[1], replace(path, norm=norm[0], is_known=path.is_known and is_first))
            return
        # Known by the tensor itself: one that was written into afterwards (Falcon) has another step by now.
        product = next((product for product in behind if product.output is tensor), None)
        if product is not None:
            # One that is used twice adds to the stream twice.
            self.paths[product] = UNKNOWN_PATH if product in self.paths else path
            return
        step = origin.step
        ways = None if step is None else self._steps_back(step, path)
        if ways is None:
            self.paths.update(dict.fromkeys(behind, UNKNOWN_PATH))
        for source, before in ways or ():
            self._follow(source, before)

    def _steps_back(self, step: Step, path: WritePath) -> list[tuple[Tensor, WritePath]] | None:
        """The tensors that an operation made its result of, and the way from each; None for one that is no such operation."""
        arguments = step.arguments
        tensors = [value for value in arguments if isinstance(value, Tensor) and not is_weightless(value)]
        if step.name in PASS_THROUGH or (step.name == "sum" and _keeps_rows(arguments)):
            return [(tensors[0], path)]
        if step.name == "add":
            return [(tensor, path) for tensor in tensors]
        if step.name == "index_add" and len(tensors) == 3:
            return [(tensors[0], path), (tensors[2], path)]
        if step.name in ("mul", "div") and isinstance(arguments[1], int | float) and tensors:
            number = float(arguments[1])
            return [(tensors[0], replace(path, factor=path.factor * (number if step.name == "mul" else 1 / number)))]
        if step.name == "mul" and len(tensors) == 2:
            weights, others = ([t for t in tensors if (t.shape[-1] == 1) is is_one] for is_one in (True, False))
            if len(weights) == len(others) == 1:
                return [(others[0], replace(path, is_weighted=True, is_known=path.is_known and not path.is_weighted))]
        return None


def _keeps_rows(arguments: tuple[Any, ...]) -> bool:
    """Whether a sum leaves the last axis as it is: one over experts that each saw all rows."""
    axes = arguments[1] if len(arguments) > 1 else None
    return isinstance(axes, list | tuple) and bool(axes) and all(0 <= axis < arguments[0].dim() - 1 for axis in axes)
