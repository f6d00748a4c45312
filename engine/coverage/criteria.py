"""Coverage criteria over the stored samples of a capture: how much of what its neurons can do a corpus made them do.

A sample is a token position. Streams block by block and layer by layer; what is remembered (`coverage_state`) merges across
captures and machines. Definitions as in Zhou et al. (ICSE 2025, arXiv 2408.15207): see `CRITERIA`. Reads stores only; knows
nothing about models.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.coverage.names import CRITERIA, RANGED
from actstore.engine.coverage.state import (
    MOST,
    Extremes,
    KeptVectors,
    Patterns,
    ScaledMaxima,
    Sections,
    TopNeurons,
    mix_pattern,
)
from actstore.kernels.top_k.api import top_k
from actstore.store.arguments import Typed
from actstore.store.capture.positions import blocks_with, check_positions, check_values, windows_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

_MEASURED: Final = {
    "nc": "scaled",
    "kmnc": "sections",
    "nbc": "extremes",
    "snac": "extremes",
    "tknc": "top",
    "tfc": "kept",
}
SAMPLES_AT_ONCE: Final = 1024


@dataclass(frozen=True)
class CoverageSettings(Typed):
    """Which criteria, with what parameters, over which samples. States of different settings do not merge."""

    criteria: tuple[str, ...] = ("nc", "tknc", "tknp")
    thresholds: tuple[float, ...] = (0.25, 0.5, 0.75)
    """NC's t. One state serves all of them."""
    sections: int = 1000
    """KMNC's k."""
    top: int = 10
    """The k of TKNC and TKNP."""
    distance: float | None = None
    """TFC's threshold. There is no default: it depends on how large a layer's activations are."""
    site: str = "mlp.post"
    positions: str = "counted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.criteria if name not in CRITERIA]:
            raise InvalidInputError(f"Criteria are among {', '.join(CRITERIA)}: found {', '.join(unknown)}.")
        if not self.criteria:
            raise InvalidInputError(f"Name at least one criterion among {', '.join(CRITERIA)}.")
        for name in ("sections", "top"):
            if not 1 <= (k := getattr(self, name)) <= MOST:
                bound = "at least 1" if k < 1 else f"at most {MOST:,}"
                raise InvalidInputError(f"--{name} must be {bound}, found {k}.")
        if "tfc" in self.criteria and (self.distance is None or not self.distance > 0):
            raise InvalidInputError(
                "The criterion tfc needs the distance beyond which a vector is new: give --distance, above 0."
            )


@dataclass(frozen=True)
class Ranges:
    """What a reference capture saw of each neuron of a layer; NaN where it saw nothing."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]


@dataclass(frozen=True)
class Covered:
    """One criterion's result."""

    criterion: str
    parameter: float | None
    """t of nc; k of kmnc, tknc and tknp; the distance of tfc."""
    covered: int
    of: int | None
    """What could be covered; for tknp the samples; None for tfc, which has no bound."""
    by_layer: dict[int, tuple[int, int | None]]
    """Layer → covered, of; none for tknp, whose patterns span the layers."""

    @property
    def share(self) -> float | None:
        """The covered part of what could be; None where that means nothing."""
        return self.covered / self.of if self.of else None


@dataclass
class Coverage:
    """What the samples of one population (a capture, or one label's) have covered."""

    settings: CoverageSettings
    widths: dict[int, int]
    """Layer → neurons."""
    ranges: dict[int, Ranges]
    """Of the reference; empty where no criterion needs them."""
    n_samples: int = 0
    states: dict[str, dict[int, Any]] = field(default_factory=dict)
    """Measurement → layer → its state."""
    patterns: Patterns = field(default_factory=Patterns.empty)

    def __post_init__(self) -> None:
        made: dict[str, Callable[[int], Any]] = {
            "scaled": ScaledMaxima.empty,
            "sections": lambda width: Sections.empty(width, self.settings.sections),
            "extremes": Extremes.empty,
            "top": TopNeurons.empty,
            "kept": lambda width: KeptVectors.empty(width, self.settings.distance or 0.0),
        }
        for name in {_MEASURED[c] for c in self.settings.criteria if c in _MEASURED}:
            self.states.setdefault(name, {layer: made[name](width) for layer, width in self.widths.items()})

    def add(
        self, layer: int, values: NDArray[np.float32], mixed: NDArray[np.uint64], slack: NDArray[np.float32]
    ) -> None:
        """Add samples [neuron, sample] of a layer; `mixed` [sample, 2] goes on to their next layer, then `end_samples`.

        `slack` [neuron] is how far stored values may be from true ones.
        """
        at = {name: layers[layer] for name, layers in self.states.items()}
        if "scaled" in at:
            at["scaled"].add(values)
        if "extremes" in at:
            at["extremes"].add(values, slack)
        if "sections" in at:
            at["sections"].add(values, self.ranges[layer].low, self.ranges[layer].high, slack)
        if "kept" in at:
            at["kept"].add(values)
        if "top" in at or "tknp" in self.settings.criteria:
            # The kernel's neurons are our samples: of each it finds the k largest, ties to the earlier neuron.
            by_sample = np.ascontiguousarray(values.T)
            n_top = min(self.settings.top, max(1024, *self.widths.values()))  # no room for places no layer can fill
            top = top_k(by_sample, np.arange(len(values)), n_top).tokens
            if "top" in at:
                at["top"].add(top)
            if "tknp" in self.settings.criteria:
                mix_pattern(mixed, layer, top)

    def end_samples(self, mixed: NDArray[np.uint64]) -> None:
        """Count samples that all layers have been given of."""
        self.n_samples += len(mixed)
        if "tknp" in self.settings.criteria:
            self.patterns.add(mixed)

    def merge(self, other: Coverage) -> None:
        """Add in place what other samples have covered; `InvalidInputError` unless both are measured alike."""
        check_alike(self, other)
        self.n_samples += other.n_samples
        self.patterns.merge(other.patterns)
        for name, layers in self.states.items():
            for layer, state in layers.items():
                state.merge(other.states[name][layer])

    def results(self) -> list[Covered]:
        """A row for each criterion and parameter, in the order of the settings."""
        return [row for name in self.settings.criteria for row in self._results(name)]

    def _results(self, name: str) -> list[Covered]:
        if name == "tknp":
            return [Covered(name, self.settings.top, len(self.patterns.hashes), self.n_samples, {})]
        layers = self.states[_MEASURED[name]]
        parameters: dict[str, tuple[float | None, ...]] = {
            "nc": self.settings.thresholds,
            "kmnc": (self.settings.sections,),
            "tknc": (self.settings.top,),
            "tfc": (self.settings.distance,),
        }
        rows = []
        for parameter in parameters.get(name, (None,)):
            by_layer = {layer: self._covered(name, parameter, layer, state) for layer, state in layers.items()}
            of = None if name == "tfc" else sum(of or 0 for _, of in by_layer.values())
            rows.append(Covered(name, parameter, sum(n for n, _ in by_layer.values()), of, by_layer))
        return rows

    def _covered(self, name: str, parameter: float | None, layer: int, state: Any) -> tuple[int, int | None]:
        width = self.widths[layer]
        if name == "nc":
            return int(state.covered(parameter).sum()), width
        if name == "tknc":
            return int(state.ever.sum()), width
        if name == "tfc":
            return len(state.vectors), None
        ranges = self.ranges[layer]
        if name == "kmnc":
            return int(state.counts().sum()), self.settings.sections * int((ranges.high > ranges.low).sum())
        n_above, n_below = int((state.highest > ranges.high).sum()), int((state.lowest < ranges.low).sum())
        n_known = int((ranges.high >= ranges.low).sum())
        return (n_above, n_known) if name == "snac" else (n_above + n_below, 2 * n_known)


def check_alike(one: Coverage, other: Coverage) -> None:
    """Raise `InvalidInputError` unless two coverages have the same settings, layers and ranges."""
    for item in dataclasses.fields(CoverageSettings):
        a, b = getattr(one.settings, item.name), getattr(other.settings, item.name)
        if a != b:
            raise InvalidInputError(
                f"Coverages of the same settings are merged, and {item.name} is {a} in one and {b} in the other. Measure both "
                "with the same options."
            )
    if one.widths != other.widths:
        raise InvalidInputError("Coverages of the same layers are merged, and these are of others. Measure both alike.")
    same = one.ranges.keys() == other.ranges.keys() and all(
        np.array_equal(getattr(mine, side), getattr(other.ranges[layer], side), equal_nan=True)
        for layer, mine in one.ranges.items()
        for side in ("low", "high")
    )
    if not same:
        raise InvalidInputError(
            "Coverages against the ranges of the same reference are merged, and these have others. Measure both with the "
            "same --reference."
        )


def reference_ranges(reference: Capture, site: str, widths: dict[int, int]) -> dict[int, Ranges]:
    """Layer → the ranges of its neurons over a reference capture's counted positions, from its statistics alone."""
    found = {}
    if not reference.blocks:
        raise InvalidInputError(f"The reference {reference.record.name!r} has no committed block. Resume it first.")
    for layer, width in widths.items():
        statistics = reference.layer_statistics(layer, site)
        if len(statistics.minimum) != width:
            raise InvalidInputError(
                f"Layer {layer} has {width} neurons in the capture and {len(statistics.minimum)} in the reference "
                f"{reference.record.name!r}: expected captures of one model."
            )
        seen = statistics.count > 0
        low, high = (
            np.where(seen, side, np.nan).astype(np.float32) for side in (statistics.minimum, statistics.maximum)
        )
        found[layer] = Ranges(low, high)
    return found


def measure_coverage(
    capture: Capture,
    settings: CoverageSettings | None = None,
    *,
    reference: Capture | None = None,
    by: str | None = None,
    on_block: Callable[[int, int], None] = lambda done, n_blocks: None,
) -> dict[str, Coverage]:
    """What a capture's samples cover: label value → its coverage with `by`, else "" → that of all.

    kmnc, nbc and snac hold the samples against the ranges of `reference`. One layer of one block is in memory at a time.

    Raises `InvalidInputError` for captures without values, sites, positions or labels that are asked for, and where a
    criterion lacks its reference.
    """
    settings = settings or CoverageSettings()
    check_values(capture, settings.site)
    check_positions(capture, settings.positions)
    widths = dict(sorted(capture.record.layers(settings.site).items()))
    ranges: dict[int, Ranges] = {}
    if needing := [name for name in settings.criteria if name in RANGED]:
        if reference is None:
            raise InvalidInputError(
                f"For {', '.join(needing)} the ranges are needed that neurons had before: name a capture for them with "
                "--reference, such as one of training data."
            )
        ranges = reference_ranges(reference, settings.site, widths)
    names = _populations(capture, by)
    found = {name: Coverage(settings, widths, ranges) for name in names}
    for done, (block, slots) in enumerate(blocks_with(capture, settings.positions, capture.blocks)):
        _add_block(capture, block, _split(capture, block, slots, by), found)
        on_block(done + 1, len(capture.blocks))
    return found


def _populations(capture: Capture, by: str | None) -> list[str]:
    if by is None:
        return [""]
    record = capture.record.plan
    if by not in record.label_columns:
        known = ", ".join(record.label_columns) or "none"
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has no label {by!r}. Its labels are: {known}. Capture again with --label {by}."
        )
    return [value for column, value in record.labels if column == by]


def _split(
    capture: Capture, block: int, slots: NDArray[np.int64], by: str | None
) -> Iterable[tuple[str, NDArray[np.int64]]]:
    """(population, its slots) of a block."""
    if by is None:
        return [("", slots)]
    plan, record = capture.block_plan(block), capture.record.plan
    label = plan.labels[:, record.label_columns.index(by)][windows_of(plan)[slots]]
    return [(record.labels[i][1], slots[label == i]) for i in np.unique(label).tolist()]


def _add_block(
    capture: Capture, block: int, parts: Iterable[tuple[str, NDArray[np.int64]]], found: dict[str, Coverage]
) -> None:
    pieces = [
        (found[name], slots[start : start + SAMPLES_AT_ONCE])
        for name, slots in parts
        for start in range(0, len(slots), SAMPLES_AT_ONCE)
    ]
    mixed = [np.zeros((len(slots), 2), np.uint64) for _, slots in pieces]
    any_one = next(iter(found.values()))
    for layer in any_one.widths:
        values = capture.block_values(layer, block, any_one.settings.site, saturated=True)
        slack = _slack(capture, layer, block, any_one)
        for (coverage, slots), so_far in zip(pieces, mixed, strict=True):
            chosen = values[:, slots]
            if not np.isfinite(chosen).all():
                chosen[~np.isfinite(chosen)] = np.nan
            coverage.add(layer, chosen, so_far, slack)
    for (coverage, _), so_far in zip(pieces, mixed, strict=True):
        coverage.end_samples(so_far)


def _slack(capture: Capture, layer: int, block: int, coverage: Coverage) -> NDArray[np.float32]:
    """How far a stored value may lie from the true one of which the reference's statistics speak; shape [neuron]."""
    if layer not in coverage.ranges:
        return np.zeros(coverage.widths[layer], np.float32)
    ranges, site = coverage.ranges[layer], coverage.settings.site
    largest = np.fmax(np.abs(ranges.low), np.abs(ranges.high))
    return capture.record.encoding.rounding(largest, lambda name: capture.block_parameter(name, layer, block, site))
