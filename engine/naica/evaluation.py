"""Are query-relevant neurons relevant to their queries? The change of predictions with these neurons suppressed or boosted.

Chen, Dejl and Toni (arXiv 2406.10868, sections 5.1, 5.3, 6): a query's neurons are suppressed (factor 0) or boosted (factor 2)
at the last position, and the relative change of P, the probability of the right option's letter, is compared with the change
that the same neurons make to queries with another label:

    PCR = | mean change of P on related queries | / | mean change of P on unrelated queries |

There are three protocols (`protocols.PROTOCOLS`); in each the unrelated group is as large as the related one, with one randomly
drawn query of another label for every query. In the first two no neuron is tested on prompts that it was selected with.

- `prompt`: one prompt of every query is held out; neurons selected with the others are tested on it, where the options are in
  another order. Neurons that only encode a letter fail here.
- `label`: half of each label's queries select the label's neurons, the `pool` with the largest summed scores; they are tested
  on the other half.
- `query`, the paper's: every query's neurons on the prompts they were selected with.

A seed draws the unrelated queries, the prompts held out, the halves, and the neurons of the method `random`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.attribution.scaled_last_position import LastPosition
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.naica.baselines import choose_neurons
from actstore.engine.naica.methods import ALIASES, METHODS
from actstore.engine.naica.naica import NaicaSettings
from actstore.engine.naica.prediction import Accuracy, accuracies
from actstore.engine.naica.prompt_subset import subset_of_prompts
from actstore.engine.naica.protocols import PROTOCOLS
from actstore.engine.naica.selection import QueryLabels, label_of_queries, pool_by_label
from actstore.engine.naica.trials import Measurement, PlannedMeasurement, Trials
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.naica.selection import SelectedNeurons
    from actstore.engine.naica.trials import TableRow
    from actstore.store.capture.questions.attributions import Attributions


@dataclass(frozen=True)
class EvaluationSettings(Typed):
    """Which methods are compared, in which protocols, and how often."""

    label: str = "relation_name"
    """Queries with the same value of this label are related; queries without a value are left out."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Keys or aliases of `methods.METHODS`."""
    protocols: tuple[str, ...] = tuple(PROTOCOLS)
    """Keys of `protocols.PROTOCOLS`."""
    seeds: int = 5
    """How often unrelated queries, held-out prompts and halves are drawn."""
    max_queries: int | None = None
    """Maximum number of queries to test on, of every label alike; neurons are selected with all."""
    pool: int = 20
    """Number of neurons per label in the protocol `label`."""
    naica: NaicaSettings = field(default_factory=NaicaSettings)
    max_rows: int = 160
    """The memory bound: the number of token rows that run at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "methods", tuple(ALIASES.get(method, method) for method in self.methods))
        for name, values, known in (("methods", self.methods, METHODS), ("protocols", self.protocols, PROTOCOLS)):
            if unknown := [value for value in values if value not in known] or not values:
                shown = ", ".join(unknown) if isinstance(unknown, list) else "none"
                raise InvalidInputError(f"Expected `{name}` among {', '.join(known)}, found {shown}.")
        for name in ("seeds", "pool", "max_rows"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"Expected `{name}` of 1 or more, found {getattr(self, name)}.")
        if self.max_queries is not None and self.max_queries < 2:
            raise InvalidInputError(f"Expected `max_queries` of 2 or more, found {self.max_queries}.")


@dataclass(frozen=True)
class NaicaEvaluation:
    """All measurements, in the order of protocols, methods, seeds."""

    measurements: list[Measurement]
    accuracies: list[Accuracy]
    warnings: tuple[str, ...]
    fallback: str | None
    """Why passes ran over the full sequence, where they did."""

    def summary(self) -> list[TableRow]:
        """One row per protocol, method and operation: means over seeds, and standard deviations as `…_sd`."""
        keys = ("protocol", "method", "operation")
        return _summarise([m.as_row() for m in self.measurements], keys)

    def accuracy_summary(self) -> list[TableRow]:
        """One row per label: means over seeds, and standard deviations as `…_sd`."""
        return _summarise([dict(vars(a)) for a in self.accuracies], ("label",))


def evaluate_naica(
    model: LoadedModel,
    attributions: Attributions,
    settings: EvaluationSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NaicaEvaluation:
    """Measure the effect of each method's neurons on the queries they were selected for, and on unrelated ones.

    Queries that the model answers wrongly are included. A query without neurons does not change, and counts as such.
    progress: called with the number of prompts done, and of all.

    Raises `InvalidInputError` for a store of another model, a label that the queries do not have, fewer than two values of
    it, and fewer than two queries of a value where they must be halved.

    >>> evaluate_naica(model, open_attributions(store), EvaluationSettings(label="domain", seeds=3)).summary()
    """
    settings = settings or EvaluationSettings()
    values, of_queries = check_labels(attributions, settings)
    attributions.expect_neurons("MLP neurons are scaled to evaluate them")
    store = attributions.store
    check_model(store.folder, store.model.fingerprint, fingerprint_of(model), model.spec.name)
    trials = Trials(attributions)
    labels = QueryLabels(settings.label, tuple(values), of_queries)
    tested = _tested_queries(of_queries, settings.max_queries)
    planner = _Planner(attributions, trials, settings, labels, tested)
    planned: list[PlannedMeasurement] = []
    measured_accuracies: list[Accuracy] = []
    if "query" in settings.protocols:
        planned += planner.plan_queries()
    for seed in range(settings.seeds):
        if "prompt" in settings.protocols:
            planned += planner.plan_prompts(seed)
        if "label" in settings.protocols:
            of_seed, accuracies_of_seed = planner.plan_labels(seed)
            planned += of_seed
            measured_accuracies += accuracies_of_seed
    layers = list(attributions.capture.record.layers("mlp.post"))
    passes = LastPosition(model, layers, max_rows=settings.max_rows)
    trials.run(passes, progress or (lambda _done, _total: None))
    protocol_order, method_order = [*PROTOCOLS], [*settings.methods]
    planned.sort(key=lambda one: (protocol_order.index(one.protocol), method_order.index(one.method), one.seed))
    measurements = [trials.measure(one) for one in planned]
    warnings = _collect_warnings(attributions, settings, planned)
    return NaicaEvaluation(measurements, measured_accuracies, warnings, passes.fallback)


def _collect_warnings(
    attributions: Attributions, settings: EvaluationSettings, planned: Sequence[PlannedMeasurement]
) -> tuple[str, ...]:
    warnings = [*choose_neurons(attributions, "naica", settings.naica).warnings]
    if empty := sorted({one.protocol for one in planned if not one.sizes}):
        warnings.append(
            f"Nothing could be tested in the protocol {', '.join(empty)}: no two queries of different {settings.label!r} are"
            " left."
        )
    return tuple(warnings)


def check_labels(attributions: Attributions, settings: EvaluationSettings) -> tuple[list[str], NDArray[np.int64]]:
    """The values of the label, and the index of each query's value, -1 for none; raises as `evaluate_naica` says."""
    labels, of_queries = label_of_queries(attributions.queries, settings.label)
    if len(labels) < 2:
        raise InvalidInputError(
            f"Expected queries of at least two values of {settings.label!r}, of which one is unrelated to the other, found "
            f"{len(labels)}{f': {labels[0]!r}' if labels else ''}. Check `label`."
        )
    counts = np.bincount(of_queries[of_queries >= 0], minlength=len(labels))
    small = [label for label, n in zip(labels, counts, strict=True) if n < 2]
    if small and "label" in settings.protocols:
        raise InvalidInputError(
            f"Expected at least two queries of every {settings.label!r}, to select neurons with one half and test them on the "
            f'other, found one of {", ".join(map(repr, small[:5]))}. Check `label`, or set `protocols=("query",)`.'
        )
    return labels, of_queries


def _tested_queries(of_queries: NDArray[np.int64], max_queries: int | None) -> NDArray[np.bool_]:
    """The mask [query] of the tested queries: all with a label, or `max_queries` of them.

    They are drawn once for all seeds, from each label in turn.
    """
    rng = np.random.default_rng(0)
    turn = np.full(len(of_queries), len(of_queries))
    for label in np.unique(of_queries[of_queries >= 0]):
        of_label = np.flatnonzero(of_queries == label)
        turn[rng.permutation(of_label)] = np.arange(len(of_label))
    selected = np.lexsort((of_queries, turn))[: len(of_queries) if max_queries is None else max_queries]
    tested = np.zeros(len(of_queries), bool)
    tested[selected] = True
    return tested & (of_queries >= 0)


def _draw_halves(of_queries: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """0 for queries that neurons are selected with, 1 for those tested on, half of each label; -1 without a label."""
    rng = np.random.default_rng([seed, 1])
    halves = np.full(len(of_queries), -1, np.int64)
    for label in np.unique(of_queries[of_queries >= 0]):
        of_label = rng.permutation(np.flatnonzero(of_queries == label))
        halves[of_label] = np.arange(len(of_label)) >= (len(of_label) + 1) // 2
    return halves


def _draw_unrelated(of_queries: NDArray[np.int64], tested: NDArray[np.int64], seed: int) -> Iterator[tuple[int, int]]:
    """Each tested query and one with another label, drawn among the tested."""
    rng = np.random.default_rng([seed, 2])
    others = {label: tested[of_queries[tested] != label] for label in np.unique(of_queries[tested])}
    for query in tested.tolist():
        if len(pool := others[of_queries[query]]):
            yield query, int(rng.choice(pool))


@dataclass(frozen=True)
class _Planner:
    """Plans the measurements of each protocol."""

    attributions: Attributions
    trials: Trials
    settings: EvaluationSettings
    labels: QueryLabels
    tested: NDArray[np.bool_]
    """[query]"""

    def plan_queries(self) -> Iterator[PlannedMeasurement]:
        """Protocol `query`, all seeds."""
        trials, settings = self.trials, self.settings
        selected: dict[str, SelectedNeurons] = {}
        for seed in range(settings.seeds):
            pairs = [*_draw_unrelated(self.labels.of_query, np.flatnonzero(self.tested), seed)]
            for method in settings.methods:
                if METHODS[method].is_random or method not in selected:
                    selected[method] = choose_neurons(self.attributions, method, settings.naica, seed)
                groups = [
                    (selected[method].of(query)[0], trials.prompts_of[query], trials.prompts_of[other])
                    for query, other in pairs
                ]
                yield from trials.plan("query", method, seed, groups)

    def plan_prompts(self, seed: int) -> Iterator[PlannedMeasurement]:
        """Protocol `prompt`, one seed."""
        trials, settings, of_queries = self.trials, self.settings, self.labels.of_query
        rng = np.random.default_rng([seed, 4])
        # Every query draws, tested or not, so that `max_queries` does not change the draws.
        held_out = {query: int(rng.choice(prompts)) for query, prompts in trials.prompts_of.items()}
        has_several = np.array([len(trials.prompts_of[query]) > 1 for query in range(len(of_queries))])
        included = np.ones(len(trials.query_of), bool)
        included[[held_out[query] for query in np.flatnonzero(has_several).tolist()]] = False
        subset = subset_of_prompts(self.attributions, included)  # has every query, in the same order
        pairs = [*_draw_unrelated(of_queries, np.flatnonzero(self.tested & has_several), seed)]
        for method in settings.methods:
            selected = choose_neurons(subset, method, settings.naica, seed)
            groups = [(selected.of(query)[0], [held_out[query]], [held_out[other]]) for query, other in pairs]
            yield from trials.plan("prompt", method, seed, groups)

    def plan_labels(self, seed: int) -> tuple[list[PlannedMeasurement], list[Accuracy]]:
        """Protocol `label`, one seed; and the accuracies of predictions from the neurons of the same halves."""
        trials, settings, of_queries = self.trials, self.settings, self.labels.of_query
        halves = _draw_halves(of_queries, seed)
        subset = subset_of_prompts(self.attributions, halves[trials.query_of] == 0)
        selected = {m: choose_neurons(subset, m, settings.naica, seed) for m in {*settings.methods, "naica"}}
        of_tested = np.where(self.tested & (halves == 1), of_queries, -1)
        pairs = [*_draw_unrelated(of_tested, np.flatnonzero(of_tested >= 0), seed)]
        planned: list[PlannedMeasurement] = []
        for method in settings.methods:
            pooled = pool_by_label(selected[method], settings.label, settings.pool)
            sets = [np.array([neuron for neuron, _ in pooled.get(v, [])], np.int64) for v in self.labels.values]
            groups = [(sets[of_tested[q]], trials.prompts_of[q], trials.prompts_of[other]) for q, other in pairs]
            planned += trials.plan("label", method, seed, groups)
        measured = accuracies(self.attributions, selected["naica"], self.labels, halves, settings.pool, seed)
        return planned, [*measured]


def _summarise(rows: Sequence[TableRow], keys: Sequence[str]) -> list[TableRow]:
    """One row for each combination of keys: means over its rows, and standard deviations as `…_sd`."""
    groups: dict[tuple[str | int | float, ...], list[TableRow]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    summary = []
    for key, members in groups.items():
        row = dict(zip(keys, key, strict=True)) | {"seeds": len(members)}
        for name in members[0]:
            if name in {*keys, "seed"}:
                continue
            values = [float(member[name]) for member in members]
            finite = bool(np.isfinite(values).all())
            row[name] = fmean(values) if finite else float(np.mean(values))
            row[f"{name}_sd"] = (stdev(values) if len(values) > 1 else 0.0) if finite else float("nan")
        summary.append(row)
    return summary
