"""The ways to choose neurons for queries that the paper compares with NA-ICA, all from the same stored attributions.

Chen, Dejl and Toni (arXiv 2406.10868), tables 1 and 2. Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.naica.knowledge import knowledge_neurons
from actstore.engine.naica.methods import ALIASES, METHODS
from actstore.engine.naica.naica import NaicaSettings, find_naica, normalise
from actstore.engine.naica.selection import join
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.naica.selection import Chosen
    from actstore.store.capture.attributions import Attributions


def choose_neurons(
    attributions: Attributions, method: str = "naica", settings: NaicaSettings | None = None, seed: int = 0
) -> Chosen:
    """The neurons of every query as one of `METHODS` chooses them.

    naica (also: qrnca): `find_naica`. without-ica: the same, ordered by na. with-common: the same, common neurons kept.
    kn: knowledge neurons with multiple choice (KN*), those that most of a query's prompts agree on, with na for scores.
    activation: the largest activations, signed, summed over a query's prompts. random: any, with scores drawn from (0, 1], so
    that pooling them favours no layer. The last two take as many neurons for a query as naica does, so that none has an
    advantage by number.

    settings: of naica; kn reads its attribution only. seed: of random.
    """
    settings = settings or NaicaSettings()
    method = ALIASES.get(method, method)
    if method == "naica":
        return find_naica(attributions, settings)
    if method == "without-ica":
        return find_naica(attributions, replace(settings, ica=False))
    if method == "with-common":
        return find_naica(attributions, replace(settings, u=1.0))
    if method == "kn":
        return _knowledge(attributions, settings)
    if method not in METHODS:
        raise InvalidInputError(f"Expected a method of {', '.join(METHODS)}, found {method!r}.")
    found = find_naica(attributions, settings)
    parts = (
        _random(attributions.n_neurons, found.n_neurons, seed)
        if method == "random"
        else _largest_activations(attributions, found.n_neurons)
    )
    return join(attributions.queries, parts, warnings=found.warnings)


def largest(values: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Where the n largest values are, the largest first; ties go to the earlier, and NaN comes last."""
    known = np.where(np.isnan(values), -np.inf, values)
    cutoff = np.partition(known, -n)[-n] if 0 < n < len(known) else -np.inf
    candidates = np.flatnonzero(known >= cutoff)
    return candidates[np.argsort(-known[candidates], kind="stable")][:n]


def _largest_activations(
    attributions: Attributions, n_neurons: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    parts = []
    for rows, scores in attributions.query_scores("activation"):
        for row, values in zip(rows.tolist(), scores, strict=True):
            neurons = largest(values, int(n_neurons[row]))
            parts.append((neurons, values[neurons]))
    return parts


def _random(n_all: int, n_neurons: NDArray[np.int64], seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    parts = []
    for query, n in enumerate(n_neurons.tolist()):
        # A generator for each query: what the others have does not change its neurons.
        generator = np.random.default_rng([seed, query])
        neurons = generator.choice(n_all, n, replace=False)
        scores = np.sort(1 - generator.random(n, np.float32))[::-1]
        parts.append((neurons.astype(np.int64), scores))
    return parts


def _knowledge(attributions: Attributions, settings: NaicaSettings) -> Chosen:
    queries_of = attributions.prompts["query"].to_numpy()
    n_prompts = np.bincount(queries_of, minlength=attributions.queries.num_rows)
    empty = np.empty(0, np.int64), np.empty(0, np.float32)
    parts = [empty] * attributions.queries.num_rows
    weights = np.ones(len(parts))
    waiting: dict[int, list[NDArray[np.float32]]] = {}  # queries whose prompts lie in two blocks
    for rows, scores in attributions.prompt_scores(settings.attribution):
        for query, values in zip(queries_of[rows].tolist(), scores, strict=True):
            seen = waiting.setdefault(query, [])
            seen.append(values)
            if len(seen) == n_prompts[query]:
                parts[query], weights[query] = _agreed(np.stack(waiting.pop(query)))
        # Not the block itself, which would be kept whole for one row of it.
        waiting = {query: [values.copy() for values in seen] for query, seen in waiting.items()}
    return join(attributions.queries, parts, weights)


def _agreed(scores: NDArray[np.float32]) -> tuple[tuple[NDArray[np.int64], NDArray[np.float32]], float]:
    """The knowledge neurons of one query's prompts [prompt, neuron] and their na, ordered by it; the query's weight."""
    neurons = knowledge_neurons(scores).neurons
    summed = scores.sum(axis=0)
    divisor, weight, _ = normalise(summed[None])
    na = (summed[neurons] / divisor).astype(np.float32)
    order = np.argsort(-na, kind="stable")
    return (neurons[order], na[order]), float(weight[0])
