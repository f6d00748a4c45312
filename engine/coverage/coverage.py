"""The coverage of one population of samples: its states layer by layer, their merging, and the results."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.coverage.criteria import CRITERIA, CoverageSettings, LayerScope
from actstore.engine.coverage.state import LayerSamples, Patterns, Ranges, mix_pattern
from actstore.engine.devices.device import HOST, Device
from actstore.kernels.top_k.api import top_k
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from actstore.engine.coverage.state import LayerState
    from actstore.engine.coverage.surprise import Piece, SurpriseReference


@dataclass(frozen=True)
class CriterionResult:
    """The result of one criterion with one parameter."""

    criterion: str
    parameter: float | None
    """t of nc; k of kmnc, tknc and tknp; the distance of tfc; the width of a bucket of lsc, dsc and mdsc."""
    covered: int | float
    """A number of what is covered; for nlc a magnitude."""
    of: int | None
    """What could be covered; for tknp the samples; None where there is no bound."""
    by_layer: dict[int, tuple[int | float, int | None]]
    """Layer → covered, of; empty for criteria that span the layers."""

    @property
    def share(self) -> float | None:
        """The share of what could be covered; None where there is no bound."""
        return self.covered / self.of if self.of else None


@dataclass
class Coverage:
    """What the samples of one population (all of a capture, or those of one label) have covered."""

    settings: CoverageSettings
    widths: dict[int, int]
    """Layer → neurons."""
    ranges: dict[int, Ranges]
    """Of the reference; empty where no criterion needs them."""
    n_samples: int = 0
    states: dict[str, dict[int, LayerState]] = field(default_factory=dict)
    """Measurement → layer → its state."""
    patterns: Patterns = field(default_factory=Patterns.empty)
    surprise: SurpriseReference | None = None
    """What samples are compared with for lsc, dsc and mdsc; not needed to merge."""
    surprise_of: str = ""
    """Its fingerprint."""
    buckets: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """lsc, dsc, mdsc → the buckets met, ascending."""

    def __post_init__(self) -> None:
        if self.surprise is not None:
            self.surprise_of = self.surprise.fingerprint
        for name in self.settings.surprises:
            self.buckets.setdefault(name, np.empty(0, np.int64))
        for criterion in (CRITERIA[name] for name in self.settings.criteria):
            if criterion.empty is not None and criterion.measurement not in self.states:
                self.states[criterion.measurement] = {
                    layer: criterion.empty(width, self.settings) for layer, width in self.widths.items()
                }

    def add(
        self,
        layer: int,
        values: NDArray[np.float32],
        mixed: NDArray[np.uint64],
        slack: NDArray[np.float32],
        device: Device = HOST,
        piece: Piece | None = None,
    ) -> None:
        """Add samples [neuron, sample] of a layer; call it for every layer with the same `mixed`, then `end_samples`.

        `mixed` [sample, 2], zeros before the first layer, collects the patterns of tknp over the layers. `slack` [neuron] is
        the largest difference between stored and true values. `device` looks for the largest neurons of tknc and tknp. `piece`
        collects what lsc, dsc and mdsc need over the layers.
        """
        has_patterns = "tknp" in self.settings.criteria
        top = self._top_neurons(values, device) if has_patterns or "top" in self.states else np.empty((0, 0), np.int64)
        samples = LayerSamples(values, top, slack, self.ranges.get(layer, Ranges.none()))
        for layers in self.states.values():
            layers[layer].add(samples)
        if has_patterns:
            mix_pattern(mixed, layer, top)
        if piece is not None and self.surprise is not None:
            self.surprise.add_layer(piece, layer, values)

    def _top_neurons(self, values: NDArray[np.float32], device: Device) -> NDArray[np.int64]:
        """The largest neurons of each sample [sample, k], ties to the earlier neuron, -1 where there are fewer."""
        # The kernel finds the k largest tokens of each neuron: handed the transpose, the k largest neurons of each sample.
        by_sample = np.ascontiguousarray(values.T)
        k = min(self.settings.top, max(1024, *self.widths.values()))  # no columns that no layer can fill
        return top_k(device.put(by_sample), np.arange(len(values)), k).tokens

    def end_samples(self, mixed: NDArray[np.uint64], piece: Piece | None = None) -> None:
        """Count samples that every layer has been given."""
        self.n_samples += len(mixed)
        if piece is not None and self.surprise is not None:
            self._add_buckets(self.surprise.buckets(piece))
        if "tknp" in self.settings.criteria:
            self.patterns.add(mixed)

    def _add_buckets(self, buckets: Mapping[str, NDArray[np.int64]]) -> None:
        for name, known in self.buckets.items():
            self.buckets[name] = np.union1d(known, buckets[name])

    def merge(self, other: Coverage) -> None:
        """Add in place what other samples have covered; `InvalidInputError` unless settings, layers and ranges agree."""
        check_alike(self, other)
        self.n_samples += other.n_samples
        self.patterns.merge(other.patterns)
        self._add_buckets(other.buckets)
        for name, layers in self.states.items():
            for layer, state in layers.items():
                state.merge(other.states[name][layer])

    def results(self) -> list[CriterionResult]:
        """One result for each criterion and parameter, in the order of the settings."""
        return [result for name in self.settings.criteria for result in self._results(name)]

    def _results(self, name: str) -> list[CriterionResult]:
        criterion = CRITERIA[name]
        if criterion.is_surprise:
            (width,) = criterion.parameters(self.settings)
            return [CriterionResult(name, width, len(self.buckets[name]), None, {})]
        if criterion.count is None:
            return [CriterionResult(name, self.settings.top, len(self.patterns.hashes), self.n_samples, {})]
        results = []
        for parameter in criterion.parameters(self.settings):
            by_layer = {}
            for layer, state in self.states[criterion.measurement].items():
                ranges = self.ranges.get(layer, Ranges.none())
                scope = LayerScope(self.widths[layer], ranges, math.nan if parameter is None else parameter)
                by_layer[layer] = criterion.count(state, scope)
            n_covered: int | float = sum(n for n, _ in by_layer.values())
            bounds = [bound for _, bound in by_layer.values()]
            of = None if None in bounds else sum(bound or 0 for bound in bounds)
            results.append(CriterionResult(name, parameter, n_covered, of, by_layer))
        return results


def check_alike(one: Coverage, other: Coverage) -> None:
    """Raise `InvalidInputError` unless two coverages have the same settings, layers and ranges."""
    for item in dataclasses.fields(CoverageSettings):
        a, b = getattr(one.settings, item.name), getattr(other.settings, item.name)
        if a != b:
            raise InvalidInputError(
                f"Only coverages with the same settings can be merged, and {item.name} is {a} in one and {b} in the other. "
                "Measure both with the same settings."
            )
    if one.widths != other.widths:
        raise InvalidInputError(
            "Only coverages of the same layers can be merged, and these differ. Measure captures of one model."
        )
    same = (
        one.surprise_of == other.surprise_of
        and one.ranges.keys() == other.ranges.keys()
        and all(
            np.array_equal(getattr(mine, side), getattr(other.ranges[layer], side), equal_nan=True)
            for layer, mine in one.ranges.items()
            for side in ("low", "high")
        )
    )
    if not same:
        raise InvalidInputError(
            "Only coverages with the ranges of the same reference can be merged, and these differ. Measure both with the same "
            "`reference`."
        )
