"""The functions behind `methods.METHODS`: NA-ICA and the baselines of the paper, all from the same stored attributions.

Chen, Dejl and Toni (arXiv 2406.10868), tables 1 and 2. Each takes the attributions, the settings of NA-ICA, a random seed,
an executor and a device for what NA-ICA reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.devices.device import HOST, Device
from actstore.engine.naica.knowledge import knowledge_neurons
from actstore.engine.naica.methods import METHODS, resolve_method
from actstore.engine.naica.naica import NaicaSettings, find_naica, normalise
from actstore.engine.naica.selection import join_queries
from actstore.engine.workers.scan import HERE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.naica.naica import Naica
    from actstore.engine.naica.selection import SelectedNeurons
    from actstore.engine.workers.executor import Executor
    from actstore.store.capture.questions.attributions import Attributions

    NeuronScores = tuple[NDArray[np.int64], NDArray[np.float32]]  # flat ids and scores, the largest first


def choose_neurons(
    attributions: Attributions,
    method: str = "naica",
    settings: NaicaSettings | None = None,
    seed: int = 0,
    executor: Executor = HERE,
    device: Device = HOST,
) -> SelectedNeurons:
    """The neurons of every query as one of `methods.METHODS`, or an alias of one, selects them.

    settings: of NA-ICA; `kn` reads its attribution only. seed: of `random`. executor: its workers divide the queries of NA-ICA.
    device: what looks for the neurons with large scores.

    >>> choose_neurons(open_attributions(store), "without-ica").of(0)
    """
    return METHODS[resolve_method(method)].select(attributions, settings or NaicaSettings(), seed, executor, device)


def select_naica(
    attributions: Attributions, settings: NaicaSettings, _seed: int, executor: Executor, device: Device
) -> Naica:
    """NA-ICA as the settings say."""
    return find_naica(attributions, settings, executor, device)


def select_without_ica(
    attributions: Attributions, settings: NaicaSettings, _seed: int, executor: Executor, device: Device
) -> Naica:
    """NA-ICA with neurons ordered by na alone."""
    return find_naica(attributions, replace(settings, ica=False), executor, device)


def select_with_common(
    attributions: Attributions, settings: NaicaSettings, _seed: int, executor: Executor, device: Device
) -> Naica:
    """NA-ICA with common neurons kept."""
    return find_naica(attributions, replace(settings, u=1.0), executor, device)


def select_largest_activations(
    attributions: Attributions, settings: NaicaSettings, _seed: int, executor: Executor, device: Device
) -> SelectedNeurons:
    """The largest activations, signed, summed over a query's prompts; as many neurons per query as NA-ICA selects.

    The number of neurons is that of NA-ICA so that neither method has an advantage by number.
    """
    naica = find_naica(attributions, settings, executor, device)
    queries = []
    for rows, scores in attributions.query_scores("activation"):
        for row, values in zip(rows.tolist(), scores, strict=True):
            neurons = largest(values, int(naica.n_neurons[row]))
            queries.append((neurons, values[neurons]))
    return join_queries(attributions.queries, queries, warnings=naica.warnings)


def select_random(
    attributions: Attributions, settings: NaicaSettings, seed: int, executor: Executor, device: Device
) -> SelectedNeurons:
    """Random neurons, as many per query as NA-ICA selects.

    Scores are drawn from (0, 1], so that pooling them favours no layer.
    """
    naica = find_naica(attributions, settings, executor, device)
    queries = []
    for query, n_neurons in enumerate(naica.n_neurons.tolist()):
        # One generator per query: the neurons of a query do not depend on what the other queries have.
        generator = np.random.default_rng([seed, query])
        neurons = generator.choice(attributions.n_neurons, n_neurons, replace=False)
        scores = np.sort(1 - generator.random(n_neurons, np.float32))[::-1]
        queries.append((neurons.astype(np.int64), scores))
    return join_queries(attributions.queries, queries, warnings=naica.warnings)


def select_knowledge_neurons(
    attributions: Attributions, settings: NaicaSettings, _seed: int, _executor: Executor, _device: Device
) -> SelectedNeurons:
    """Knowledge neurons with multiple choice (KN*): those that most of a query's prompts agree on, with na for scores."""
    query_of_prompt = attributions.prompts["query"].to_numpy()
    n_prompts = np.bincount(query_of_prompt, minlength=attributions.queries.num_rows)
    no_neurons: NeuronScores = np.empty(0, np.int64), np.empty(0, np.float32)
    queries = [no_neurons] * attributions.queries.num_rows
    weights = np.ones(len(queries))
    incomplete: dict[int, list[NDArray[np.float32]]] = {}  # queries whose prompts lie in two blocks
    for rows, scores in attributions.prompt_scores(settings.attribution):
        for query, values in zip(query_of_prompt[rows].tolist(), scores, strict=True):
            prompts = incomplete.setdefault(query, [])
            prompts.append(values)
            if len(prompts) == n_prompts[query]:
                queries[query], weights[query] = _agreed_neurons(np.stack(incomplete.pop(query)))
        # Copies: a view would keep the whole block in memory for one row of it.
        incomplete = {query: [values.copy() for values in prompts] for query, prompts in incomplete.items()}
    return join_queries(attributions.queries, queries, weights)


def largest(values: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """The indices of the n largest values, the largest first; ties go to the earlier, and NaN comes last."""
    comparable = np.where(np.isnan(values), -np.inf, values)
    cutoff = np.partition(comparable, -n)[-n] if 0 < n < len(comparable) else -np.inf
    candidates = np.flatnonzero(comparable >= cutoff)
    return candidates[np.argsort(-comparable[candidates], kind="stable")][:n]


def _agreed_neurons(scores: NDArray[np.float32]) -> tuple[NeuronScores, float]:
    """The knowledge neurons of one query's prompts [prompt, neuron] and their na, ordered by it; the query's weight."""
    neurons = knowledge_neurons(scores).neurons
    summed = scores.sum(axis=0)
    divisor, weight, _ = normalise(summed[None])
    na = (summed[neurons] / divisor).astype(np.float32)
    order = np.argsort(-na, kind="stable")
    return (neurons[order], na[order]), float(weight[0])
