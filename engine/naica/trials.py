"""Trials: predictions with sets of neurons scaled at the last position, planned in groups, and the mean effect of each group.

Trials are collected first, so that the passes over one prompt share its keys and values and nothing runs twice.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.attribution.scaled_last_position import Variants
from actstore.engine.naica.protocols import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.attribution.scaled_last_position import LastPosition
    from actstore.store.capture.questions.attributions import Attributions

    Group = tuple[NDArray[np.int64], list[int], list[int]]  # neurons, prompts related to them, prompts that are not

TableRow = dict[str, str | int | float]
"""Column → cell."""

MIN_PROBABILITY: Final = 1e-6
"""Log odds are those of probabilities clipped to this distance from 0 and 1: float32 resolves no more."""


@dataclass(frozen=True)
class Effect:
    """The effect of an operation on a group of queries; means over queries of the means over their prompts."""

    percent: float
    """Change of P in percent of P. Prompts with P = 0 are left out."""
    log_odds: float
    """Change of log(P / (1 - P)), which unlike a percentage is not bounded where P is near 1 nor dominated by P near 0."""
    magnitude: float
    """As `percent`, of the magnitude of the change: increases and decreases do not cancel."""
    flips: float
    """Share of prompts whose prediction among the options changes between right and wrong, in either direction."""
    to_wrong: float
    """Of the prompts predicted correctly before, the share predicted wrongly after; NaN where there are none."""
    to_right: float
    """Of the prompts predicted wrongly before, the share predicted correctly after; NaN where there are none."""


@dataclass(frozen=True)
class Measurement:
    """One operation on the neurons of one method, with one seed."""

    protocol: str
    method: str
    seed: int
    operation: str
    queries: int
    neurons: float
    """Mean number of neurons changed at once."""
    related: Effect
    unrelated: Effect

    @property
    def pcr(self) -> float:
        """|related| / |unrelated| of the mean percent changes.

        Infinite where unrelated queries do not change at all, NaN where no query does. Means are of signed changes, as in the
        paper: where the changes of unrelated queries cancel, the ratio is not informative; compare both means.
        """
        return _ratio(self.related.percent, self.unrelated.percent)

    @property
    def log_odds_ratio(self) -> float:
        """|related| / |unrelated| of the mean changes of log odds."""
        return _ratio(self.related.log_odds, self.unrelated.log_odds)

    def as_row(self) -> TableRow:
        """One flat row, for tables."""
        row: TableRow = {name: getattr(self, name) for name in ("protocol", "method", "seed", "operation")}
        row |= {"queries": self.queries, "neurons": self.neurons, "pcr": self.pcr}
        row["log_odds_ratio"] = self.log_odds_ratio
        for group in ("related", "unrelated"):
            row |= {f"{group}_{name}": value for name, value in vars(getattr(self, group)).items()}
        return row


@dataclass
class PlannedMeasurement:
    """The trials of one measurement: of each, the index of its group and the number of its pass."""

    protocol: str
    method: str
    seed: int
    operation: str
    sizes: list[int] = field(default_factory=list)
    related: list[tuple[int, int]] = field(default_factory=list)
    unrelated: list[tuple[int, int]] = field(default_factory=list)


class Trials:
    """Passes over prompts with sets of neurons scaled: collected first, then each run once, however often it was planned."""

    def __init__(self, attributions: Attributions) -> None:
        self._attributions = attributions
        self.query_of: NDArray[np.int64] = attributions.prompts["query"].to_numpy().astype(np.int64)
        self.prompts_of: dict[int, list[int]] = defaultdict(list)
        for prompt, query in enumerate(self.query_of.tolist()):
            self.prompts_of[query].append(prompt)
        self._index_of_set: dict[bytes, int] = {}
        self._sets: list[NDArray[np.int64]] = []
        self._pass_numbers: dict[tuple[int, int, float], int] = {}  # (prompt, set of neurons, factor) → pass
        self._empty_set = self._add_set(np.empty(0, np.int64))

    def _add_set(self, neurons: NDArray[np.int64]) -> int:
        """The index of a set of neurons, the same for equal sets."""
        neurons = np.sort(neurons)
        index = self._index_of_set.setdefault(neurons.tobytes(), len(self._sets))
        if index == len(self._sets):
            self._sets.append(neurons)
        return index

    def plan(self, protocol: str, method: str, seed: int, groups: Sequence[Group]) -> Iterator[PlannedMeasurement]:
        """Plan every operation on the neurons of each group, in its related and in its unrelated prompts."""
        sizes = [len(neurons) for neurons, _, _ in groups]
        sets = [self._add_set(neurons) for neurons, _, _ in groups]
        for name, operation in OPERATIONS.items():
            planned = PlannedMeasurement(protocol, method, seed, name, sizes)
            for i, (neurons, (_, related, unrelated)) in enumerate(zip(sets, groups, strict=True)):
                planned.related += [(i, self._add_pass(prompt, neurons, operation.factor)) for prompt in related]
                planned.unrelated += [(i, self._add_pass(prompt, neurons, operation.factor)) for prompt in unrelated]
            yield planned

    def _add_pass(self, prompt: int, neurons: int, factor: float) -> int:
        # An empty set gives the same pass with every factor.
        key = (prompt, neurons, 1.0 if neurons == self._empty_set else factor)
        return self._pass_numbers.setdefault(key, len(self._pass_numbers))

    def run(self, passes: LastPosition, progress: Callable[[int, int], None]) -> None:
        """Run every planned pass, one prompt at a time."""
        by_prompt: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
        for (prompt, neurons, factor), number in self._pass_numbers.items():
            by_prompt[prompt].append((number, neurons, factor))
        n_passes = len(self._pass_numbers)
        self._prompt = np.empty(n_passes, np.int64)
        self._p, self._right = np.empty(n_passes), np.empty(n_passes, bool)
        n_prompts = self._attributions.prompts.num_rows
        self._clean_p, self._clean_right = np.full(n_prompts, np.nan), np.zeros(n_prompts, bool)
        table = self._attributions.prompts.select(["options", "option_tokens", "answer"])
        for done, prompt in enumerate(sorted(by_prompt)):
            passes_of_prompt = by_prompt[prompt]
            row = {name: table[name][prompt].as_py() for name in table.column_names}
            answer = row["options"].index(row["answer"])
            sets = [self._sets[neurons] for _, neurons, _ in passes_of_prompt]
            variants = Variants.of(sets, [factor for _, _, factor in passes_of_prompt])
            predictions = passes.predict(
                self._attributions.prompt_ids(prompt),
                variants,
                row["option_tokens"],
                position=self._attributions.prompt_position(prompt),
            )
            numbers = [number for number, _, _ in passes_of_prompt]
            p, right = predictions.probabilities[:, answer], predictions.probabilities.argmax(axis=1) == answer
            self._clean_p[prompt], self._clean_right[prompt] = p[0], right[0]
            self._prompt[numbers], self._p[numbers], self._right[numbers] = prompt, p[1:], right[1:]
            progress(done + 1, len(by_prompt))

    def measure(self, planned: PlannedMeasurement) -> Measurement:
        """The result of a planned measurement, after `run`."""
        key = planned.protocol, planned.method, planned.seed, planned.operation
        size = fmean(planned.sizes) if planned.sizes else float("nan")
        related, unrelated = self._effect(planned.related), self._effect(planned.unrelated)
        return Measurement(*key, len(planned.sizes), size, related, unrelated)

    def _effect(self, trials: Sequence[tuple[int, int]]) -> Effect:
        groups, numbers = np.array(trials, np.int64).reshape(-1, 2).T
        prompts = self._prompt[numbers]
        return effect(
            groups, (self._clean_p[prompts], self._p[numbers]), (self._clean_right[prompts], self._right[numbers])
        )


def effect(
    groups: NDArray[np.int64],
    p: tuple[NDArray[np.floating], NDArray[np.floating]],
    right: tuple[NDArray[np.bool_], NDArray[np.bool_]],
) -> Effect:
    """The effect over trials [trial], from the group of each, P before and after, and whether predictions were right."""
    before, after = (np.asarray(values, np.float64) for values in p)
    possible = before > 0
    percent = 100 * (after[possible] - before[possible]) / before[possible]
    odds = [
        np.log(q / (1 - q))
        for q in (np.clip(values, MIN_PROBABILITY, 1 - MIN_PROBABILITY) for values in (before, after))
    ]
    right_before, right_after = right
    return Effect(
        percent=_mean(groups[possible], percent),
        log_odds=_mean(groups, odds[1] - odds[0]),
        magnitude=_mean(groups[possible], np.abs(percent)),
        flips=_mean(groups, right_before != right_after),
        to_wrong=_mean(groups[right_before], ~right_after[right_before]),
        to_right=_mean(groups[~right_before], right_after[~right_before]),
    )


def _mean(groups: NDArray[np.int64], values: NDArray[np.floating] | NDArray[np.bool_]) -> float:
    """The mean over groups of the means in a group; NaN of nothing."""
    _, rows = np.unique(groups, return_inverse=True)
    counts = np.bincount(rows)
    return float((np.bincount(rows, values.astype(np.float64)) / counts).mean()) if len(rows) else float("nan")


def _ratio(related: float, unrelated: float) -> float:
    if unrelated == 0:
        return float("nan") if related == 0 else float("inf")
    return abs(related) / abs(unrelated)
