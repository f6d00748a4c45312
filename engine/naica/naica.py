"""NA-ICA, published as QRNCA: the neurons that are relevant to a query and not to every other query as well.

Chen, Dejl and Toni (AAAI 2025, arXiv 2406.10868). A query is asked in several prompts; a neuron's attribution na is the sum
over them, divided by the sum over all neurons. The neurons above a share t of a query's largest na are its cluster; the fewer
clusters a neuron is in, the more specific it is: ica = log(|C| / (df + 1)). The v neurons with the largest na · ica are the
query's, without those that are common: in more than the share u of the clusters.

Everything is computed from stored attributions, without a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from actstore.engine.devices.device import HOST, Device
from actstore.engine.naica.protocols import REMOVALS
from actstore.engine.naica.selection import SelectedNeurons
from actstore.engine.workers.scan import HERE, Scan, is_here
from actstore.kernels.cluster_inverse.api import Clusters, Frequency, cluster_frequency, cluster_inverse, threshold
from actstore.store.arguments import Typed
from actstore.store.capture.questions.attribution_kinds import KINDS
from actstore.store.capture.tokens.write_scale import scale_sentences
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from actstore.engine.workers.executor import Executor
    from actstore.store.capture.questions.attributions import Attributions

ROUNDING = 1e-6
"""A sum over neurons that is a smaller share of the sum of their magnitudes is float32 rounding."""
ENOUGH_PROMPTS: Final = 3
"""Prompts per query, as in the paper: with one, nothing tells what is due to its wording."""
PARTS_PER_WORKER: Final = 4
"""Parts of the queries per worker: few, as the block on a border is read twice."""


@dataclass(frozen=True)
class NaicaSettings(Typed):
    """How neurons are scored and selected; the defaults are the paper's."""

    attribution: str = "ig"
    """One of `attribution_kinds.KINDS`."""
    t: float = 0.2
    """The cluster of a query is its neurons with more than this share of its largest attribution."""
    u: float = 0.3
    """A neuron in more than this share of the clusters is common and removed; 1 keeps all."""
    v: int = 20
    """Maximum number of neurons per query."""
    ica: bool = True
    """Whether attributions are weighted by ica; False is a baseline of the paper."""
    removal: str = "after"
    """When common neurons are removed: one of `protocols.REMOVALS`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attribution not in KINDS:
            raise InvalidInputError(
                f"Expected `attribution` to be one of {', '.join(KINDS)}, found {self.attribution!r}."
            )
        if not 0 <= self.t < 1:
            raise InvalidInputError(
                f"Expected `t`, a share of a query's largest attribution, from 0 to below 1, found {self.t}."
            )
        if not 0 <= self.u <= 1:
            raise InvalidInputError(f"Expected `u`, a share of the queries, from 0 to 1, found {self.u}.")
        if self.removal not in REMOVALS:
            raise InvalidInputError(f"Expected `removal` to be one of {', '.join(REMOVALS)}, found {self.removal!r}.")
        if self.v < 1:
            raise InvalidInputError(f"Expected `v`, the number of neurons per query, to be 1 or more, found {self.v}.")


@dataclass(frozen=True)
class Naica(SelectedNeurons):
    """The query-relevant neurons of every query, with scores na · ica, and the intermediate results.

    As published, a query has fewer than v neurons where common ones are among its v largest.
    """

    settings: NaicaSettings
    common: NDArray[np.int64]
    """Flat ids, ascending, of the neurons that were removed because they are in too many clusters."""
    clusters: Clusters
    """Of each query, before common neurons were removed; scores are na."""
    frequency: Frequency
    """The number of clusters that each neuron is in."""
    totals: NDArray[np.float64]
    """[query] The sum of all neurons' scores, Z; the divisor where it is above zero."""


def find_naica(
    attributions: Attributions,
    settings: NaicaSettings | None = None,
    executor: Executor = HERE,
    device: Device = HOST,
) -> Naica:
    """The query-relevant neurons of every query whose prompts are all stored.

    Scores are read one block of queries at a time, by the workers of `executor`, and only clusters are kept, which `device`
    finds; the result equals that of all scores at once.
    A query that the model answers wrongly has neurons like any other.

    na: the sum over a query's prompts, divided by Z, the sum over all its neurons (both of finite scores). A divisor above
    zero changes neither a query's cluster, which is formed before, nor the order in it. A Z below zero would reverse the
    order, and the neurons that lower the answer's probability would be the relevant ones; a Z of rounding only (`ROUNDING`)
    is meaningless as a scale. In both cases the divisor is S, the sum of magnitudes, instead.

    weights: Z / S, so that queries are pooled as if all had been divided by S. Where attributions cancel, Z is small, and the
    query would outweigh all others: on the demo fact model, one query of a label's 88 has 93 % of its sum, and weighted 3 %.

    Too few queries for any neuron not to be common are a warning in the result, not an error.

    >>> find_naica(open_attributions(store), NaicaSettings(v=10)).of(0)
    """
    settings = settings or NaicaSettings()
    clusters, weights, totals = _read_clusters(attributions, settings, executor, device)
    frequency = cluster_frequency(clusters, attributions.n_neurons)
    largest_cluster = int(np.diff(clusters.offsets).max(initial=0))
    v = min(settings.v, largest_cluster)  # the kernel's result has v columns: no more than can be filled
    # The kernel removes common neurons before it selects: with u = 1 none, so that they take places of the v.
    u = settings.u if settings.removal == "before" else 1.0
    inverse = cluster_inverse(clusters, frequency, u=u, v=v, ica=settings.ica)
    common = frequency.common(settings.u)
    filled = (inverse.neurons >= 0) & ~np.isin(inverse.neurons, common)
    return Naica(
        queries=attributions.queries,
        offsets=np.concatenate([[0], np.cumsum(filled.sum(axis=1))]).astype(np.int64),
        neurons=inverse.neurons[filled].astype(np.int64),
        scores=inverse.naica[filled],
        weights=weights,
        warnings=_warnings(attributions, totals, settings),
        settings=settings,
        common=common.astype(np.int64),
        clusters=clusters,
        frequency=frequency,
        totals=totals,
    )


def normalise(scores: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The divisor of each query's scores, always above zero; its weight, the divisor's share of S; and Z; all [query].

    scores: [query, neuron]; values that are not finite are left out.
    """
    finite = np.isfinite(scores)
    summands = scores if finite.all() else np.where(finite, scores, 0)
    total = summands.sum(axis=1, dtype=np.float64)
    magnitude = np.abs(summands).sum(axis=1, dtype=np.float64)
    magnitude[magnitude == 0] = 1  # nothing to divide
    divisor = np.where(total > ROUNDING * magnitude, total, magnitude)
    return divisor, divisor / magnitude, total


class _Queries(NamedTuple):
    """The queries that a worker takes at once."""

    first: int
    stop: int

    def __str__(self) -> str:
        return f"queries {self.first} to {self.stop - 1}"


def _read_clusters(
    attributions: Attributions, settings: NaicaSettings, executor: Executor, device: Device
) -> tuple[Clusters, NDArray[np.float64], NDArray[np.float64]]:
    """Clusters with na for scores; the weight and Z of each query."""
    n = attributions.queries.num_rows
    n_parts = min(n, PARTS_PER_WORKER * executor.n_workers)
    parts = (
        [None] if is_here(executor) else [_Queries(n * i // n_parts, n * (i + 1) // n_parts) for i in range(n_parts)]
    )
    clusters: list[Clusters] = []
    weights, totals = [np.empty(0)], [np.empty(0)]
    for part in Scan(executor)(partial(_cluster_queries, attributions, settings, device), parts):
        for block, weight, total in part:
            clusters.append(block)
            weights.append(weight)
            totals.append(total)
    return Clusters.concatenate(clusters), np.concatenate(weights), np.concatenate(totals)


def _cluster_queries(
    attributions: Attributions, settings: NaicaSettings, device: Device, queries: _Queries | None
) -> list[tuple[Clusters, NDArray[np.float64], NDArray[np.float64]]]:
    """As `_read_clusters`, of each block of some queries; of all for None."""
    kind, found = settings.attribution, []
    blocks = attributions.query_scores(kind) if queries is None else attributions.query_scores(kind, range(*queries))
    for _, scores in blocks:
        divisor, weight, total = normalise(scores)
        block = threshold(device.put(scores), settings.t)
        na = block.scores / np.repeat(divisor, np.diff(block.offsets))
        found.append((Clusters(block.offsets, block.neurons, na.astype(np.float32)), weight, total))
    return found


def _warnings(attributions: Attributions, totals: NDArray[np.float64], settings: NaicaSettings) -> tuple[str, ...]:
    n = len(totals)
    if not n:
        return ("No query has all its prompts stored. Finish `actstore.attribute(…)` with `resume=True`.",)
    warnings = [
        _warn_of_few_queries(n, settings),
        _warn_of_one_prompt(attributions.queries["n_prompts"].to_numpy()),
        _warn_of_guessing(attributions.prompts),
    ]
    if n_below := int((totals < 0).sum()):
        warnings.append(
            f"In {_count(n_below)} the attributions of all neurons add up to less than zero, and are divided by the sum of "
            "their magnitudes instead."
        )
    if KINDS[settings.attribution].uses_weights:
        warnings += scale_sentences(attributions.capture)
    return tuple(sentence for sentence in warnings if sentence)


def _warn_of_few_queries(n: int, settings: NaicaSettings) -> str:
    """A warning where the formula gives nothing useful for n queries; empty otherwise."""
    if settings.u == 0:
        return "u = 0 makes every neuron common, and none is left. Set `u` above 0."
    if 1 / n > settings.u:
        enough = int(np.ceil(1 / settings.u - 1e-9))
        return (
            f"With {_count(n)}, a neuron of a single cluster is already in {100 / n:.0f} % of them, more than u = "
            f"{settings.u:g} allows: all neurons are common and none is left. Ask at least {enough} queries, or take u = 1 "
            "without ica (`u=1`, `ica=False`) to see the attributions as they are."
        )
    if settings.ica and n <= 2:
        return (
            f"With {_count(n)} no ica is above zero, and the order of neurons is not that of their attributions. Ask more "
            "queries, or set `ica=False`."
        )
    return ""


def _warn_of_one_prompt(n_prompts: NDArray[np.integer]) -> str:
    """A warning where queries were asked in one prompt [query]; empty otherwise."""
    if not (n_single := int((n_prompts == 1).sum())):
        return ""
    return (
        f"{n_single:,} of {_count(len(n_prompts))} were asked in one prompt only: there the neurons of its wording, and of the "
        f"order of its options, count as the query's. Ask each query in {ENOUGH_PROMPTS} prompts or more."
    )


def _warn_of_guessing(prompts: pa.Table) -> str:
    """A warning where the model answers no better than by chance; empty otherwise."""
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
