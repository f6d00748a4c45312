"""What neurons are compared by, and the other settings; importing it does not load the compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError


@dataclass(frozen=True)
class Measure:
    """One measure of how two neurons go together."""

    label: str
    """What tables call it."""
    help: str
    """One phrase for the command line and the documentation."""


MEASURES: Final[dict[str, Measure]] = {
    "correlation": Measure("correlation", "Pearson's correlation of activations"),
    "jaccard": Measure("Jaccard", "Jaccard's index of the tokens on which the neurons fire"),
}
"""Measure → what it is; the values that `sort` takes, and the columns of every answer."""

LARGEST: Final = 3.4028234e38
"""The largest finite float32."""


@dataclass(frozen=True)
class CoactivationSettings(Typed):
    """Which neurons are compared, over which positions, and what the nearest are."""

    sort: str = "correlation"
    """A key of `MEASURES`: the nearest neurons are those with its largest values."""
    k: int = 20
    """Number of nearest neurons."""
    threshold: float = 0.0
    """A neuron fires where its activation is larger."""
    layers: tuple[int, ...] | None = None
    """The layers whose neurons are looked through; all for None."""
    within_layers: bool = False
    """Only neurons of a neuron's own layer."""
    site: str = "mlp.post"
    positions: str = "counted"
    """A key of `store.capture.positions.POSITIONS`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sort not in MEASURES:
            raise InvalidInputError(f"Expected `sort` to be one of {', '.join(MEASURES)}, found {self.sort!r}.")
        if self.k < 1:
            raise InvalidInputError(f"At least one neuron must be asked for, found {self.k}. Pass `k` of 1 or more.")
        if not abs(self.threshold) <= LARGEST:
            raise InvalidInputError(
                f"Expected `threshold`, an activation, to be a number that float32 holds, found {self.threshold}."
            )
