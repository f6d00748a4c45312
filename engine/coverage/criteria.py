"""The coverage criteria as one table, and the settings of a measurement.

Definitions as in Zhou et al. (ICSE 2025, arXiv 2408.15207). A sample is a token position. Another criterion is another entry
here; one that measures something new needs a class in `state` beside it. The command line reads this table at every start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from actstore.engine.coverage.state import (
    MAX_K,
    Extremes,
    KeptVectors,
    LayerState,
    ScaledMaxima,
    Sections,
    TopNeurons,
)
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.engine.coverage.state import Ranges

State = TypeVar("State", bound=LayerState)


@dataclass(frozen=True)
class LayerScope:
    """What the count of a criterion in one layer depends on, beside the state."""

    width: int
    """Neurons."""
    ranges: Ranges
    """Of the reference; empty arrays where no criterion needs one."""
    parameter: float
    """The criterion's; NaN where it has none."""


@dataclass(frozen=True)
class Criterion(Generic[State]):
    """One coverage criterion."""

    label: str
    """What tables call it."""
    help: str
    """What it counts, as a phrase for the command line and the documentation."""
    measurement: str
    """The name of the state in files; criteria of one measurement share its states."""
    empty: Callable[[int, CoverageSettings], State] | None
    """The state of a layer of `width` neurons before any sample; None for patterns, which span the layers."""
    count: Callable[[State, LayerScope], tuple[int, int | None]] | None
    """What is covered in a layer, and what could be covered: None where there is no bound."""
    setting: str | None = None
    """The field of `CoverageSettings` with its parameter, or with several."""
    parameter_label: str | None = None
    """What tables call the parameter."""
    needs_reference: bool = False
    """Whether values are compared with the ranges of a reference capture."""
    is_count: bool = False
    """Whether the result is a number rather than a share."""

    def parameters(self, settings: CoverageSettings) -> tuple[float | None, ...]:
        """The parameters to give results for; (None,) for a criterion without one."""
        if self.setting is None:
            return (None,)
        value = getattr(settings, self.setting)
        return value if isinstance(value, tuple) else (value,)


def _count_nc(state: ScaledMaxima, layer: LayerScope) -> tuple[int, int]:
    return int(state.covered(layer.parameter).sum()), layer.width


def _count_kmnc(state: Sections, layer: LayerScope) -> tuple[int, int]:
    return int(state.counts().sum()), state.k * int((layer.ranges.high > layer.ranges.low).sum())


def _count_corners(state: Extremes, layer: LayerScope) -> tuple[int, int, int]:
    """Corners above and below the ranges, and the neurons that have a range."""
    n_above = int((state.highest > layer.ranges.high).sum())
    n_below = int((state.lowest < layer.ranges.low).sum())
    return n_above, n_below, int((layer.ranges.high >= layer.ranges.low).sum())


def _count_nbc(state: Extremes, layer: LayerScope) -> tuple[int, int]:
    n_above, n_below, n_ranges = _count_corners(state, layer)
    return n_above + n_below, 2 * n_ranges


def _count_snac(state: Extremes, layer: LayerScope) -> tuple[int, int]:
    n_above, _, n_ranges = _count_corners(state, layer)
    return n_above, n_ranges


def _count_tknc(state: TopNeurons, layer: LayerScope) -> tuple[int, int]:
    return int(state.ever.sum()), layer.width


def _count_tfc(state: KeptVectors, _layer: LayerScope) -> tuple[int, None]:
    return len(state.vectors), None


CRITERIA: Final[dict[str, Criterion[Any]]] = {
    "nc": Criterion(
        "NC",
        "neurons whose value, min-max scaled within the layer per sample, ever exceeds t",
        measurement="scaled",
        empty=lambda width, _settings: ScaledMaxima.empty(width),
        count=_count_nc,
        setting="thresholds",
        parameter_label="t",
    ),
    "kmnc": Criterion(
        "KMNC",
        "of the k equal sections of each neuron's range in the reference, those hit",
        measurement="sections",
        empty=lambda width, settings: Sections.empty(width, settings.sections),
        count=_count_kmnc,
        setting="sections",
        parameter_label="k",
        needs_reference=True,
    ),
    "nbc": Criterion(
        "NBC",
        "corners beyond the range in the reference, two per neuron, reached",
        measurement="extremes",
        empty=lambda width, _settings: Extremes.empty(width),
        count=_count_nbc,
        needs_reference=True,
    ),
    "snac": Criterion(
        "SNAC",
        "neurons that ever exceed their range in the reference",
        measurement="extremes",
        empty=lambda width, _settings: Extremes.empty(width),
        count=_count_snac,
        needs_reference=True,
    ),
    "tknc": Criterion(
        "TKNC",
        "neurons ever among their layer's k largest",
        measurement="top",
        empty=lambda width, _settings: TopNeurons.empty(width),
        count=_count_tknc,
        setting="top",
        parameter_label="k",
    ),
    "tknp": Criterion(
        "TKNP",
        "distinct patterns: which neurons are the k largest of every layer; of the samples",
        measurement="patterns",
        empty=None,
        count=None,
        setting="top",
        parameter_label="k",
        is_count=True,
    ),
    "tfc": Criterion(
        "TFC",
        "vectors farther than a distance from every vector kept before, over the layers",
        measurement="kept",
        empty=lambda width, settings: KeptVectors.empty(width, settings.distance or 0.0),
        count=_count_tfc,
        setting="distance",
        parameter_label="distance",
        is_count=True,
    ),
}
"""Name → criterion, in the order of the tables; the names that `criteria` takes."""


@dataclass(frozen=True)
class CoverageSettings(Typed):
    """Which criteria, with what parameters, over which samples. States of different settings do not merge."""

    criteria: tuple[str, ...] = ("nc", "tknc", "tknp")
    """Keys of `CRITERIA`."""
    thresholds: tuple[float, ...] = (0.25, 0.5, 0.75)
    """The t of nc. One state serves all of them."""
    sections: int = 1000
    """The k of kmnc."""
    top: int = 10
    """The k of tknc and tknp."""
    distance: float | None = None
    """The threshold of tfc. There is no default: it depends on the magnitude of a layer's activations."""
    site: str = "mlp.post"
    positions: str = "counted"
    """A key of `positions.POSITIONS`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.criteria if name not in CRITERIA]:
            raise InvalidInputError(
                f"Criteria are among {', '.join(CRITERIA)}: found {', '.join(unknown)}. Check `criteria`."
            )
        if not self.criteria:
            raise InvalidInputError(f"Name at least one criterion among {', '.join(CRITERIA)} in `criteria`.")
        for name in ("sections", "top"):
            if not 1 <= (k := getattr(self, name)) <= MAX_K:
                bound = "at least 1" if k < 1 else f"at most {MAX_K:,}"
                raise InvalidInputError(f"`{name}` must be {bound}, found {k}.")
        if "tfc" in self.criteria and (self.distance is None or not self.distance > 0):
            raise InvalidInputError(
                "The criterion tfc needs the distance beyond which a vector is new: set `distance`, above 0."
            )


def applicable_criteria(*, has_reference: bool, has_distance: bool) -> tuple[str, ...]:
    """The criteria that can be measured, in the order of the table: without a reference, or a distance, fewer."""
    return tuple(
        name
        for name, criterion in CRITERIA.items()
        if (has_reference or not criterion.needs_reference) and (has_distance or name != "tfc")
    )
