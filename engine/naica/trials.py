"""Trials: predictions with sets of neurons scaled at the last position, asked for in groups, and what each group comes to.

Collected first, so that the passes over one prompt share its keys and values and nothing runs twice. Knows nothing about how
neurons or groups are chosen.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.attribution.scaled_last_position import Variants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.attribution.scaled_last_position import LastPosition
    from actstore.store.capture.attributions import Attributions

OPERATIONS = {"boost": 2.0, "suppress": 0.0}
CERTAIN = 1e-6
"""Probabilities nearer than this to 0 or 1 have the log odds of this: float32 tells no more of them."""


@dataclass(frozen=True)
class Effect:
    """What an operation does to a group of queries; means over queries of the means over their prompts."""

    percent: float
    """Change of P in percent of P. Where P is 0 there is none, and the prompt is left out."""
    log_odds: float
    """Change of log(P / (1 - P)): unlike percents bounded by nothing where P is near 1, and not ruled by P near 0."""
    magnitude: float
    """As `percent`, of the change's magnitude: changes up and down do not cancel."""
    flips: float
    """Share whose prediction among the options changes between right and wrong, either way."""
    to_wrong: float
    """Of those predicted rightly before, the share predicted wrongly after; NaN where there are none."""
    to_right: float
    """The same the other way."""


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
        paper: where those of unrelated queries cancel, the ratio says little; look at both.
        """
        return _ratio(self.related.percent, self.unrelated.percent)

    @property
    def log_odds_ratio(self) -> float:
        """The same of the mean changes of log odds."""
        return _ratio(self.related.log_odds, self.unrelated.log_odds)

    def as_row(self) -> dict[str, Any]:
        """One flat row, for tables."""
        row: dict[str, Any] = {name: getattr(self, name) for name in ("protocol", "method", "seed", "operation")}
        row |= {"queries": self.queries, "neurons": self.neurons, "pcr": self.pcr}
        row["log_odds_ratio"] = self.log_odds_ratio
        for group in ("related", "unrelated"):
            row |= {f"{group}_{name}": value for name, value in vars(getattr(self, group)).items()}
        return row


@dataclass
class Asked:
    """The trials of one measurement: of each, which query of its group it is of, and its number."""

    protocol: str
    method: str
    seed: int
    operation: str
    sizes: list[int] = field(default_factory=list)
    related: list[tuple[int, int]] = field(default_factory=list)
    unrelated: list[tuple[int, int]] = field(default_factory=list)


class Trials:
    """Passes over prompts with sets of neurons scaled: collected first, each run once however often it is asked for."""

    def __init__(self, attributions: Attributions) -> None:
        self._attributions = attributions
        self.query_of: NDArray[np.int64] = attributions.prompts["query"].to_numpy().astype(np.int64)
        self.prompts_of: dict[int, list[int]] = defaultdict(list)
        for prompt, query in enumerate(self.query_of.tolist()):
            self.prompts_of[query].append(prompt)
        self._set_of: dict[bytes, int] = {}
        self._sets: list[NDArray[np.int64]] = []
        self._numbers: dict[tuple[int, int, float], int] = {}
        self._empty = self._set(np.empty(0, np.int64))

    def _set(self, neurons: NDArray[np.int64]) -> int:
        neurons = np.sort(neurons)
        number = self._set_of.setdefault(neurons.tobytes(), len(self._sets))
        if number == len(self._sets):
            self._sets.append(neurons)
        return number

    def ask(
        self, protocol: str, method: str, seed: int, groups: Sequence[tuple[NDArray[np.int64], list[int], list[int]]]
    ) -> Iterator[Asked]:
        """Ask for both operations on sets of neurons, in prompts related to each and in prompts that are not."""
        sizes = [len(neurons) for neurons, _, _ in groups]
        sets = [self._set(neurons) for neurons, _, _ in groups]
        for operation, factor in OPERATIONS.items():
            one = Asked(protocol, method, seed, operation, sizes)
            for i, (neurons, (_, related, unrelated)) in enumerate(zip(sets, groups, strict=True)):
                one.related += [(i, self._ask(prompt, neurons, factor)) for prompt in related]
                one.unrelated += [(i, self._ask(prompt, neurons, factor)) for prompt in unrelated]
            yield one

    def _ask(self, prompt: int, neurons: int, factor: float) -> int:
        # Of no neurons both operations are the same: none.
        key = (prompt, neurons, 1.0 if neurons == self._empty else factor)
        return self._numbers.setdefault(key, len(self._numbers))

    def run(self, passes: LastPosition, progress: Callable[[int, int], None]) -> None:
        """Run all that was asked for, a prompt at a time."""
        by_prompt: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
        for (prompt, neurons, factor), number in self._numbers.items():
            by_prompt[prompt].append((number, neurons, factor))
        shape = len(self._numbers)
        self._prompt = np.empty(shape, np.int64)
        self._p, self._right = np.empty(shape), np.empty(shape, bool)
        n_prompts = self._attributions.prompts.num_rows
        self._clean_p, self._clean_right = np.full(n_prompts, np.nan), np.zeros(n_prompts, bool)
        table = self._attributions.prompts.select(["options", "option_tokens", "answer"])
        for done, prompt in enumerate(sorted(by_prompt)):
            asked = by_prompt[prompt]
            row = {name: table[name][prompt].as_py() for name in table.column_names}
            answer = row["options"].index(row["answer"])
            variants = Variants.of([self._sets[neurons] for _, neurons, _ in asked], [f for _, _, f in asked])
            found = passes.predict(self._attributions.prompt_ids(prompt), variants, row["option_tokens"])
            numbers = [number for number, _, _ in asked]
            p, right = found.probabilities[:, answer], found.probabilities.argmax(axis=1) == answer
            self._clean_p[prompt], self._clean_right[prompt] = p[0], right[0]
            self._prompt[numbers], self._p[numbers], self._right[numbers] = prompt, p[1:], right[1:]
            progress(done + 1, len(by_prompt))

    def measure(self, one: Asked) -> Measurement:
        """What came out."""
        key = one.protocol, one.method, one.seed, one.operation
        size = fmean(one.sizes) if one.sizes else float("nan")
        return Measurement(*key, len(one.sizes), size, self._effect(one.related), self._effect(one.unrelated))

    def _effect(self, asked: Sequence[tuple[int, int]]) -> Effect:
        groups, numbers = np.array(asked, np.int64).reshape(-1, 2).T
        prompts = self._prompt[numbers]
        return effect(
            groups, (self._clean_p[prompts], self._p[numbers]), (self._clean_right[prompts], self._right[numbers])
        )


def effect(
    groups: NDArray[np.int64],
    p: tuple[NDArray[np.floating], NDArray[np.floating]],
    right: tuple[NDArray[np.bool_], NDArray[np.bool_]],
) -> Effect:
    """What trials [trial] come to: of which query each is, P before and after, and whether predictions were right."""
    before, after = (np.asarray(values, np.float64) for values in p)
    possible = before > 0
    percent = 100 * (after[possible] - before[possible]) / before[possible]
    odds = [np.log(q / (1 - q)) for q in (np.clip(values, CERTAIN, 1 - CERTAIN) for values in (before, after))]
    was, is_ = right
    return Effect(
        percent=_mean(groups[possible], percent),
        log_odds=_mean(groups, odds[1] - odds[0]),
        magnitude=_mean(groups[possible], np.abs(percent)),
        flips=_mean(groups, was != is_),
        to_wrong=_mean(groups[was], ~is_[was]),
        to_right=_mean(groups[~was], is_[~was]),
    )


def _mean(groups: NDArray[np.int64], values: NDArray[Any]) -> float:
    """The mean over groups of the means in a group; NaN of nothing."""
    _, rows = np.unique(groups, return_inverse=True)
    counts = np.bincount(rows)
    return float((np.bincount(rows, values.astype(np.float64)) / counts).mean()) if len(rows) else float("nan")


def _ratio(related: float, unrelated: float) -> float:
    if unrelated == 0:
        return float("nan") if related == 0 else float("inf")
    return abs(related) / abs(unrelated)
