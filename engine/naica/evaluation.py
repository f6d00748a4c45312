"""Are query-relevant neurons relevant to their queries? What predictions become without them, or with twice as much of them.

Chen, Dejl and Toni (arXiv 2406.10868, sections 5.1, 5.3, 6): a query's neurons are suppressed (factor 0) or boosted (factor 2)
at the last position, and the relative change of P, the probability of the right option's letter, is compared with the change
that the same neurons make to queries of other fields:

    PCR = | mean change of P on related queries | / | mean change of P on unrelated queries |

Three protocols; in each the unrelated group is as large as the related one, a randomly drawn query of another label for
every query. In the last two no neuron is tested on what it was found with.

- `query`, the paper's: every query's neurons on the prompts they were found with.
- `prompt`: one prompt of every query is left out; neurons found with the others are tested on it, where the options stand in
  another order. What only knows a letter fails here.
- `label`: half of each label's queries find the label's neurons, the `pool` with the largest summed scores; they are tested
  on its other half.

A seed draws the unrelated queries, the prompts left out, the halves, and the neurons of the method `random`. Knows nothing
about presentation.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.attribution.scaled_last_position import LastPosition
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.naica.baselines import choose_neurons
from actstore.engine.naica.methods import ALIASES, METHODS
from actstore.engine.naica.naica import NaicaSettings
from actstore.engine.naica.prediction import Accuracy, accuracies
from actstore.engine.naica.protocols import PROTOCOLS
from actstore.engine.naica.selection import Chosen, label_of_queries, pool_by_label
from actstore.engine.naica.some_prompts import part_of
from actstore.engine.naica.trials import Asked, Measurement, Trials
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.models.load import LoadedModel
    from actstore.store.capture.attributions import Attributions


@dataclass(frozen=True)
class EvaluationSettings(Typed):
    """What is compared, how often."""

    label: str = "relation_name"
    """Queries with the same value of this label are of one field; those without are left out."""
    methods: tuple[str, ...] = ("random", "activation", "kn", "without-ica", "with-common", "naica")
    protocols: tuple[str, ...] = PROTOCOLS
    seeds: int = 5
    max_queries: int | None = None
    """Test on at most so many queries, of every label alike; neurons are found with all."""
    pool: int = 20
    """Neurons of a label in the protocol `label`."""
    naica: NaicaSettings = field(default_factory=NaicaSettings)
    max_rows: int = 160
    """How many token rows run at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "methods", tuple(ALIASES.get(method, method) for method in self.methods))
        for name, values, known in (("methods", self.methods, METHODS), ("protocols", self.protocols, PROTOCOLS)):
            if unknown := [value for value in values if value not in known] or not values:
                found = ", ".join(unknown) if isinstance(unknown, list) else "none"
                raise InvalidInputError(f"Expected {name} among {', '.join(known)}, found {found}.")
        for name in ("seeds", "pool", "max_rows"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"Expected {name} of 1 or more, found {getattr(self, name)}.")
        if self.max_queries is not None and self.max_queries < 2:
            raise InvalidInputError(f"Expected max_queries of 2 or more, found {self.max_queries}.")


@dataclass(frozen=True)
class NaicaEvaluation:
    """All measurements, in the order of protocols, methods, seeds."""

    measurements: list[Measurement]
    accuracies: list[Accuracy]
    warnings: tuple[str, ...]
    fallback: str | None
    """Why passes ran over the full sequence, if they did."""

    def summary(self) -> list[dict[str, Any]]:
        """A row per protocol, method and operation: means over seeds, and standard deviations as `…_sd`."""
        keys = ("protocol", "method", "operation")
        return _summary([m.as_row() for m in self.measurements], keys)

    def accuracy_summary(self) -> list[dict[str, Any]]:
        """A row per label: means over seeds, and standard deviations as `…_sd`."""
        return _summary([dict(vars(a)) for a in self.accuracies], ("label",))


def evaluate_naica(
    model: LoadedModel,
    attributions: Attributions,
    settings: EvaluationSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NaicaEvaluation:
    """Measure what the neurons of each method do to the queries they are of, and to others.

    Queries that the model answers wrongly are among them. A query without neurons is changed by nothing, and counts as such.
    progress: called with prompts done, and in all.

    Raises `InvalidInputError` for a store of another model, a label that the queries do not have, fewer than two values of
    it, and fewer than two queries of a value where they must be halved.
    """
    settings = settings or EvaluationSettings()
    labels, of_queries = check_labels(attributions, settings)
    store = attributions.store
    check_model(store.folder, store.model.fingerprint, fingerprint_of(model), model.spec.name)
    trials = Trials(attributions)
    asked: list[Asked] = []
    accurate: list[Accuracy] = []
    tested = _tested(of_queries, settings.max_queries)
    if "query" in settings.protocols:
        asked += _ask_queries(trials, attributions, of_queries, tested, settings)
    for seed in range(settings.seeds):
        if "prompt" in settings.protocols:
            asked += _ask_prompts(trials, attributions, of_queries, tested, (settings, seed))
        if "label" in settings.protocols:
            halves = _halves(of_queries, seed)
            part = part_of(attributions, halves[trials.query_of] == 0)
            chosen = {m: choose_neurons(part, m, settings.naica, seed) for m in {*settings.methods, "naica"}}
            of_tested = np.where(tested & (halves == 1), of_queries, -1)
            asked += _ask_labels(trials, chosen, (labels, of_tested), (settings, seed))
            accurate += accuracies(
                attributions, chosen["naica"], (settings.label, labels, of_queries), halves, settings.pool, seed
            )
    layers = list(attributions.capture.record.layers("mlp.post"))
    passes = LastPosition(model, layers, max_rows=settings.max_rows)
    trials.run(passes, progress or (lambda _done, _total: None))
    order = {method: i for i, method in enumerate(settings.methods)}
    asked.sort(key=lambda one: (PROTOCOLS.index(one.protocol), order[one.method], one.seed))
    measurements = [trials.measure(one) for one in asked]
    return NaicaEvaluation(measurements, accurate, _warnings(attributions, settings, asked), passes.fallback)


def _warnings(attributions: Attributions, settings: EvaluationSettings, asked: Sequence[Asked]) -> tuple[str, ...]:
    found = [*choose_neurons(attributions, "naica", settings.naica).warnings]
    if empty := sorted({one.protocol for one in asked if not one.sizes}):
        found.append(
            f"Nothing could be tested in the protocol {', '.join(empty)}: no two queries of different {settings.label!r} are"
            " left."
        )
    return tuple(found)


def check_labels(attributions: Attributions, settings: EvaluationSettings) -> tuple[list[str], NDArray[np.int64]]:
    """The values of the label, and which of them each query has, -1 for none; raises as `evaluate_naica` says."""
    labels, of_queries = label_of_queries(attributions.queries, settings.label)
    if len(labels) < 2:
        raise InvalidInputError(
            f"Expected queries of at least two values of {settings.label!r}, of which one is unrelated to the other, found "
            f"{len(labels)}{f': {labels[0]!r}' if labels else ''}. Choose another label with --by."
        )
    counts = np.bincount(of_queries[of_queries >= 0], minlength=len(labels))
    small = [label for label, n in zip(labels, counts, strict=True) if n < 2]
    if small and "label" in settings.protocols:
        raise InvalidInputError(
            f"Expected at least two queries of every {settings.label!r}, to find neurons with one half and test them on the "
            f"other, found one of {', '.join(map(repr, small[:5]))}. Choose another label with --by, or --protocol query."
        )
    return labels, of_queries


def _tested(of_queries: NDArray[np.int64], max_queries: int | None) -> NDArray[np.bool_]:
    """Which queries are tested [query]: all with a label, or so many, in turn of every label, drawn once for all seeds."""
    rng = np.random.default_rng(0)
    turn = np.full(len(of_queries), len(of_queries))
    for label in np.unique(of_queries[of_queries >= 0]):
        of_label = np.flatnonzero(of_queries == label)
        turn[rng.permutation(of_label)] = np.arange(len(of_label))
    chosen = np.lexsort((of_queries, turn))[: len(of_queries) if max_queries is None else max_queries]
    tested = np.zeros(len(of_queries), bool)
    tested[chosen] = True
    return tested & (of_queries >= 0)


def _halves(of_queries: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """0 for queries that neurons are found with, 1 for those they are tested on, half of each label; -1 without a label."""
    rng = np.random.default_rng([seed, 1])
    halves = np.full(len(of_queries), -1, np.int64)
    for label in np.unique(of_queries[of_queries >= 0]):
        of_label = rng.permutation(np.flatnonzero(of_queries == label))
        halves[of_label] = np.arange(len(of_label)) >= (len(of_label) + 1) // 2
    return halves


def _unrelated(of_queries: NDArray[np.int64], tested: NDArray[np.int64], seed: int) -> Iterator[tuple[int, int]]:
    """Each tested query and one with another label, drawn among the tested."""
    rng = np.random.default_rng([seed, 2])
    others = {label: tested[of_queries[tested] != label] for label in np.unique(of_queries[tested])}
    for query in tested.tolist():
        if len(pool := others[of_queries[query]]):
            yield query, int(rng.choice(pool))


def _ask_queries(
    trials: Trials,
    attributions: Attributions,
    of_queries: NDArray[np.int64],
    tested: NDArray[np.bool_],
    settings: EvaluationSettings,
) -> Iterator[Asked]:
    chosen: dict[str, Chosen] = {}
    for seed in range(settings.seeds):
        pairs = [*_unrelated(of_queries, np.flatnonzero(tested), seed)]
        for method in settings.methods:
            if method == "random" or method not in chosen:
                chosen[method] = choose_neurons(attributions, method, settings.naica, seed)
            groups = [
                (chosen[method].of(query)[0], trials.prompts_of[query], trials.prompts_of[other])
                for query, other in pairs
            ]
            yield from trials.ask("query", method, seed, groups)


def _ask_prompts(
    trials: Trials,
    attributions: Attributions,
    of_queries: NDArray[np.int64],
    tested: NDArray[np.bool_],
    run: tuple[EvaluationSettings, int],
) -> Iterator[Asked]:
    settings, seed = run
    rng = np.random.default_rng([seed, 4])
    # Every query draws, tested or not, so that --max-queries leaves the draws alone.
    left = {query: int(rng.choice(prompts)) for query, prompts in trials.prompts_of.items()}
    several = np.array([len(trials.prompts_of[query]) > 1 for query in range(len(of_queries))])
    kept = np.ones(len(trials.query_of), bool)
    kept[[left[query] for query in np.flatnonzero(several).tolist()]] = False
    part = part_of(attributions, kept)  # has every query, in the same order
    pairs = [*_unrelated(of_queries, np.flatnonzero(tested & several), seed)]
    for method in settings.methods:
        chosen = choose_neurons(part, method, settings.naica, seed)
        groups = [(chosen.of(query)[0], [left[query]], [left[other]]) for query, other in pairs]
        yield from trials.ask("prompt", method, seed, groups)


def _ask_labels(
    trials: Trials,
    chosen: dict[str, Chosen],
    labelled: tuple[list[str], NDArray[np.int64]],
    run: tuple[EvaluationSettings, int],
) -> Iterator[Asked]:
    (labels, of_tested), (settings, seed) = labelled, run
    pairs = [*_unrelated(of_tested, np.flatnonzero(of_tested >= 0), seed)]
    for method in settings.methods:
        pooled = pool_by_label(chosen[method], settings.label, settings.pool)
        sets = [np.array([neuron for neuron, _ in pooled.get(label, [])], np.int64) for label in labels]
        groups = [(sets[of_tested[q]], trials.prompts_of[q], trials.prompts_of[other]) for q, other in pairs]
        yield from trials.ask("label", method, seed, groups)


def _summary(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    found = []
    for key, members in groups.items():
        one = dict(zip(keys, key, strict=True)) | {"seeds": len(members)}
        for name in members[0]:
            if name in {*keys, "seed"}:
                continue
            values = [float(row[name]) for row in members]
            finite = bool(np.isfinite(values).all())
            one[name] = fmean(values) if finite else float(np.mean(values))
            one[f"{name}_sd"] = (stdev(values) if len(values) > 1 else 0.0) if finite else float("nan")
        found.append(one)
    return found
