"""NA-ICA, published as QRNCA: the neurons that are relevant to a query and not to every other query as well.

Chen, Dejl and Toni (AAAI 2025, arXiv 2406.10868). A query is asked in several prompts; a neuron's attribution na is the sum
over them, divided by the sum over all neurons. The neurons above a share t of a query's largest na are its cluster, and in how
few clusters a neuron is says how particular it is: ica = log(|C| / (df + 1)). Neurons in more than the share u of the clusters
are common and go; of the others the v with the largest na · ica are the query's.

All comes from attributions that are stored. Knows nothing about models, nor about how attributions are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.naica.selection import Chosen
from actstore.kernels.cluster_inverse.api import Clusters, Frequency, cluster_frequency, cluster_inverse, threshold
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa
    from numpy.typing import NDArray

    from actstore.store.capture.attributions import Attributions

KINDS = ("ig", "contribution", "activation", "gradient")
"""Integrated gradients; activation times the neuron's weight on the target's logit; activation; gradient times activation."""
ROUNDING = 1e-6
"""A sum over neurons that is a smaller share of the sum of their magnitudes says no more than how float32 rounds."""


@dataclass(frozen=True)
class NaicaSettings(Typed):
    """How neurons are scored and chosen; the defaults are the paper's."""

    attribution: str = "ig"
    """One of `KINDS`."""
    t: float = 0.2
    """A query's cluster is its neurons with more than this share of its largest attribution."""
    u: float = 0.3
    """A neuron in more than this share of the clusters is common and removed; 1 keeps all."""
    v: int = 20
    """At most so many neurons a query."""
    ica: bool = True
    """Whether attributions are weighed by ica; without, the paper's baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attribution not in KINDS:
            raise InvalidInputError(f"Expected an attribution of {', '.join(KINDS)}, found {self.attribution!r}.")
        if not 0 <= self.t < 1:
            raise InvalidInputError(
                f"Expected t, a share of a query's largest attribution, from 0 to below 1, found {self.t}."
            )
        if not 0 <= self.u <= 1:
            raise InvalidInputError(f"Expected u, a share of the queries, from 0 to 1, found {self.u}.")
        if self.v < 1:
            raise InvalidInputError(f"Expected v, a number of neurons a query, of 1 or more, found {self.v}.")


@dataclass(frozen=True)
class Naica(Chosen):
    """The query-relevant neurons of every query, scores being na · ica, and how they came about."""

    settings: NaicaSettings
    common: NDArray[np.int64]
    """Ascending flat ids of the neurons that were removed because they are in too many clusters."""
    clusters: Clusters
    """Of each query before common neurons went; scores are na."""
    frequency: Frequency
    """In how many clusters each neuron is."""
    totals: NDArray[np.float64]
    """[query] the sum of all neurons' scores, Z; what they were divided by where it is above zero."""


def find_naica(attributions: Attributions, settings: NaicaSettings | None = None) -> Naica:
    """The query-relevant neurons of every query whose prompts are all stored.

    Scores are read a block of queries at a time, and only clusters are kept; the result is that of all scores at once. A
    query that the model answers wrongly has neurons like any other.

    na: the sum over a query's prompts, divided by Z, the sum over all its neurons (both of finite scores). A divisor above
    zero changes neither a query's cluster, which is found before, nor the order in it. By a Z below zero the order would turn
    round, and the neurons that speak against the answer would be the relevant ones; a Z of rounding only (`ROUNDING`) has no
    meaning as a scale. There the divisor is S, the sum of magnitudes, instead.

    weights: Z / S, so that queries are pooled as if all had been divided by S. Where attributions cancel, Z is small, and the
    query would outweigh all others: on the demo fact model, one query of a label's 88 has 93 % of its sum, and weighted 3 %.

    Too few queries for any neuron not to be common are a warning in the result, not an error.
    """
    settings = settings or NaicaSettings()
    clusters, weights, totals = _read_clusters(attributions.query_scores(settings.attribution), settings.t)
    frequency = cluster_frequency(clusters, attributions.n_neurons)
    widest = int(np.diff(clusters.offsets).max(initial=0))
    found = cluster_inverse(clusters, frequency, u=settings.u, v=min(settings.v, widest), ica=settings.ica)
    held = found.neurons >= 0
    return Naica(
        queries=attributions.queries,
        offsets=np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(np.int64),
        neurons=found.neurons[held].astype(np.int64),
        scores=found.naica[held],
        weights=weights,
        warnings=_warnings(attributions, totals, settings),
        settings=settings,
        common=found.common.astype(np.int64),
        clusters=clusters,
        frequency=frequency,
        totals=totals,
    )


def normalise(scores: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What each query's scores are divided by, always above zero; its weight, that divisor's share of S; and Z; all [query].

    scores: [query, neuron], what is not finite being left out.
    """
    finite = np.isfinite(scores)
    known = scores if finite.all() else np.where(finite, scores, 0)
    total = known.sum(axis=1, dtype=np.float64)
    magnitude = np.abs(known).sum(axis=1, dtype=np.float64)
    magnitude[magnitude == 0] = 1  # nothing to divide
    divisor = np.where(total > ROUNDING * magnitude, total, magnitude)
    return divisor, divisor / magnitude, total


def _read_clusters(
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], t: float
) -> tuple[Clusters, NDArray[np.float64], NDArray[np.float64]]:
    """Clusters with na for scores; the weight and Z of each query."""
    parts: list[Clusters] = []
    weights, totals = [np.empty(0)], [np.empty(0)]
    for _, scores in blocks:
        divisor, weight, total = normalise(scores)
        found = threshold(scores, t)
        na = found.scores / np.repeat(divisor, np.diff(found.offsets))
        parts.append(Clusters(found.offsets, found.neurons, na.astype(np.float32)))
        weights.append(weight)
        totals.append(total)
    return Clusters.concatenate(parts), np.concatenate(weights), np.concatenate(totals)


def _warnings(attributions: Attributions, totals: NDArray[np.float64], settings: NaicaSettings) -> tuple[str, ...]:
    n = len(totals)
    if not n:
        return ("No query has all its prompts stored. Finish `actstore attribute`.",)
    found = [_too_few(n, settings), _guessing(attributions.prompts)]
    if n_below := int((totals < 0).sum()):
        found.append(
            f"In {_count(n_below)} the attributions of all neurons add up to less than zero, and are divided by the sum of "
            "their magnitudes instead."
        )
    return tuple(sentence for sentence in found if sentence)


def _too_few(n: int, settings: NaicaSettings) -> str:
    """What to say where the formula is not for so few queries."""
    if settings.u == 0:
        return "u = 0 makes every neuron common, and none is left. Take a share above 0 (--u)."
    if 1 / n > settings.u:
        enough = int(np.ceil(1 / settings.u - 1e-9))
        return (
            f"With {_count(n)}, a neuron of a single cluster is already in {100 / n:.0f} % of them, more than u = "
            f"{settings.u:g} allows: all neurons are common and none is left. Ask at least {enough} queries, or take u = 1 "
            "without ica (--u 1 --no-ica) to see the attributions as they are."
        )
    if settings.ica and n <= 2:
        return (
            f"With {_count(n)} no ica is above zero, and the order of neurons is not that of their attributions. Ask more "
            "queries, or leave ica out (--no-ica)."
        )
    return ""


def _guessing(prompts: pa.Table) -> str:
    """What to say where the model answers no better than by chance."""
    n = prompts.num_rows
    right = sum(prompts["correct"].to_pylist()) / n
    chance = sum(1 / len(options) for options in prompts["options"].to_pylist()) / n
    if right == 1 or right > chance + 2 * (chance * (1 - chance) / n) ** 0.5:
        return ""
    return (
        f"The model answers {100 * right:.0f} % of the prompts right, about what guessing gives ({100 * chance:.0f} %): its "
        "attributions say little of what it knows."
    )


def _count(n: int) -> str:
    return f"{n:,} {'query' if n == 1 else 'queries'}"
