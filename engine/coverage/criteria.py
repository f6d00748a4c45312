"""The coverage criteria as one table, and the settings of a measurement.

Definitions as in Zhou et al. (ICSE 2025, arXiv 2408.15207). A sample is a token position. Another criterion is another entry
here; one that measures something new needs a class in `state` beside it. The command line reads this table at every start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from actstore.engine.coverage.covariance import Covariance
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
    """The state of a layer of `width` neurons before any sample; None for patterns and buckets, which span the layers."""
    count: Callable[[State, LayerScope], tuple[int | float, int | None]] | None
    """What is covered in a layer, and what could be covered: None where there is no bound."""
    setting: str | None = None
    """The field of `CoverageSettings` with its parameter, or with several."""
    parameter_label: str | None = None
    """What tables call the parameter."""
    needs_reference: bool = False
    """Whether values are compared with the ranges of a reference capture."""
    is_count: bool = False
    """Whether the result is a number rather than a share."""
    by_order: bool = False
    """Whether the state depends on the order of samples, if only in its last bits."""
    is_surprise: bool = False
    """Whether it counts buckets of surprise against the samples of the reference, for which the reference must hold values."""

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


def _count_nlc(state: Covariance, _layer: LayerScope) -> tuple[float, None]:
    return state.mean_magnitude(), None


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
        empty=lambda width, settings: KeptVectors.empty(width, settings.kept_distance),
        count=_count_tfc,
        setting="distance",
        parameter_label="distance",
        is_count=True,
        by_order=True,
    ),
    "nlc": Criterion(
        "NLC",
        "the mean magnitude of the covariances of a layer's neurons, summed over the layers",
        measurement="covariance",
        empty=lambda width, _settings: Covariance.empty(width),
        count=_count_nlc,
        is_count=True,
        by_order=True,
    ),
    "lsc": Criterion(
        "LSC",
        "buckets of surprise by likelihood, given the reference's samples of the class",
        measurement="likelihood",
        empty=None,
        count=None,
        setting="lsc_width",
        parameter_label="width",
        needs_reference=True,
        is_count=True,
        is_surprise=True,
    ),
    "dsc": Criterion(
        "DSC",
        "buckets of surprise by distance to the class, relative to that of the other classes",
        measurement="distance",
        empty=None,
        count=None,
        setting="dsc_width",
        parameter_label="width",
        needs_reference=True,
        is_count=True,
        is_surprise=True,
    ),
    "mdsc": Criterion(
        "MDSC",
        "buckets of surprise by Mahalanobis distance to the class",
        measurement="mahalanobis",
        empty=None,
        count=None,
        setting="mdsc_width",
        parameter_label="width",
        needs_reference=True,
        is_count=True,
        is_surprise=True,
    ),
}
"""Name → criterion, in the order of the tables; the names that `criteria` takes."""


@dataclass(frozen=True)
class Metric:
    """What the distance of tfc is."""

    help: str


METRICS: Final[dict[str, Metric]] = {
    "euclidean": Metric("the Euclidean distance"),
    "squared": Metric("its square, as in the authors' code"),
}
"""Name → distance; the values that `metric` takes."""


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
    metric: str = "euclidean"
    """What `distance` is: a key of `METRICS`."""
    classes: str | None = None
    """The label column whose values are the classes of lsc, dsc and mdsc; None: all samples are of one class."""
    lsc_width: float = 10.0
    """Width of a bucket of lsc."""
    dsc_width: float = 0.1
    """Width of a bucket of dsc."""
    mdsc_width: float = 10.0
    """Width of a bucket of mdsc."""
    bandwidth: float = 0.2
    """Of the Gaussian kernel of lsc, as in the authors' code."""
    min_variance: float = 1e-5
    """Neurons that vary less over the reference are left out of lsc, dsc and mdsc."""

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
        if self.metric not in METRICS:
            raise InvalidInputError(f"`metric` must be one of {', '.join(METRICS)}, found {self.metric!r}.")
        for name in ("lsc_width", "dsc_width", "mdsc_width", "bandwidth"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"`{name}` must be above 0, found {getattr(self, name)}.")
        if "tfc" in self.criteria and (self.distance is None or not self.distance > 0):
            raise InvalidInputError(
                "The criterion tfc needs the distance beyond which a vector is new: set `distance`, above 0."
            )

    @property
    def kept_distance(self) -> float:
        """The Euclidean distance that `distance` amounts to."""
        distance = self.distance or 0.0
        return distance if self.metric == "euclidean" else distance**0.5

    @property
    def surprises(self) -> tuple[str, ...]:
        """Those of the criteria that count buckets of surprise."""
        return tuple(name for name in self.criteria if CRITERIA[name].is_surprise)


def applicable_criteria(*, has_reference: bool, has_distance: bool) -> tuple[str, ...]:
    """The criteria of one pass that can be measured, in the order of the table: without a reference, or a distance, fewer.

    Those that hold samples of the reference, or a matrix per layer, in memory are measured where they are named.
    """
    return tuple(
        name
        for name, criterion in CRITERIA.items()
        if (has_reference or not criterion.needs_reference)
        and (has_distance or name != "tfc")
        and not (criterion.is_surprise or name == "nlc")
    )
