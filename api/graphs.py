"""`store.graphs`: neuron graphs (N2G), built, searched, compared, evaluated; and the model asked about exemplars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actstore.api.light import explains
from actstore.api.neurons import chosen_neurons, neuron_pairs
from actstore.api.results import Answer
from actstore.store.neurons import neuron_names
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from actstore.api.neurons import NeuronInput
    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.capture.run import RunOptions
    from actstore.engine.graphs.evaluate import Evaluation
    from actstore.engine.graphs.probes.evidence import Probes
    from actstore.engine.graphs.repeats import Repeats
    from actstore.engine.graphs.search import Result
    from actstore.engine.graphs.similar import Pairs
    from actstore.store.capture.reader import Capture
    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Store

    Progress = Callable[[int, int], None]


@explains
class GraphsMethod:
    """The neuron graphs of a store (Foote et al. 2023, arXiv 2305.19911). One neuron's: `store.graph("L3.N17")`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sets of graphs that the store holds."""
        from actstore.store.graphs.record import graph_names

        return graph_names(self._store.folder)

    def open(self, name: str = "graphs") -> Graphs:
        """A set of graphs: `len`, iteration, `.graph("L3.N17")`, tables `.neurons` and `.nodes`."""
        from actstore.store.graphs.reader import open_graphs

        return open_graphs(self._store, name)

    def build(
        self,
        *,
        name: str | None = None,
        method: str = "corpus",
        probes: str = "probes",
        neurons: NeuronInput | Iterable[NeuronInput] | None = None,
        layers: Sequence[int] | None = None,
        leave_out: Iterable[int] = (),
        also: Sequence[str] = (),
        share: float = 0.5,
        gain: float = 0.5,
        kappa: float = 1.0,
        threshold: float = 0.4,
        max_depth: int = 12,
        memory: int = 1 << 30,
        resume: bool = False,
        site: str = "mlp.post",
        capture: str | None = None,
        progress: Progress | None = None,
    ) -> Graphs:
        """Makes a graph of every neuron: which tokens it fires at, and which tokens before them decide. No model runs.

        - `name`: name of the set; `graphs`, or `published` for that method, unless given.
        - `method`: `corpus`, from the captured text; `published`, as Foote et al. (2023), from probes.
        - `probes`: of which probes the published method builds.
        - `neurons`: names or (layer, index); all unless `neurons` or `layers` are given.
        - `leave_out`: windows that are not evidence.
        - `also`: further captures of the store that are evidence.
        - `share`: a neuron fires from this share of its maximum over the capture.
        - `gain`: nats of leave-one-out likelihood that a node must add.
        - `kappa`: pseudo-count with which a longer context starts from what the shorter one says.
        - `threshold`: least probability at which a graph says that the neuron fires.
        - `max_depth`: maximum number of tokens before the activating one.
        - `memory`: bytes for the activations of neurons that are built together.
        - `resume`: go on with an interrupted build.
        - `progress`: called with the neurons done and their number.

        >>> graphs = store.graphs.build(layers=[0, 1])
        """
        from actstore.engine.graphs.build import BuildOptions, GraphSettings, build_graphs
        from actstore.engine.graphs.probes.evidence import Probes
        from actstore.engine.graphs.probes.published import build_published
        from actstore.store.errors import InvalidInputError
        from actstore.store.storage.folder import Folder

        folder = Folder(self._store.folder.location, read_only=False)
        if method == "published":
            return build_published(Probes(self._store, probes), folder, name=name or "published")
        if method != "corpus":
            raise InvalidInputError(f"method is corpus or published, found {method!r}.")
        opened = self._store.capture(capture)
        options = BuildOptions(memory, resume, progress=progress or (lambda done, n_neurons: None))
        return build_graphs(
            opened,
            folder,
            name=name or "graphs",
            site=site,
            neurons=chosen_neurons(opened, site, neurons, layers),
            leave_out=leave_out,
            also=[self._store.capture(other) for other in also],
            settings=GraphSettings(share, threshold, gain, kappa, max_depth),
            options=options,
        )

    def search(
        self,
        activating: str | int | Sequence[str | int] = (),
        context: str | int | Sequence[str | int] = (),
        *,
        match: str = "normalised",
        silent: bool = False,
        k: int = 20,
        paths: int = 3,
        name: str = "graphs",
    ) -> Answer[Result]:
        """Neurons that fire on a token, or on it after another: those whose paths explain most firings first.

        - `activating`: the token at which a neuron fires, as text or id; one of several.
        - `context`: a token before it.
        - `match`: how texts match tokens: `normalised`, `exact`, `contains` or `regex`.
        - `silent`: include paths on which a neuron does not fire.
        - `k`: maximum number of neurons.
        - `paths`: maximum number of paths per neuron.

        Columns: neuron, score (of the neuron), path (its text), probability, fires, count.

        >>> store.graphs.search("York", context="New").table
        """
        from actstore.engine.graphs.search import search

        tokens = [_listed(activating), _listed(context)]
        result = search(
            self._store, self.open(name), activating=tokens[0], context=tokens[1], match=match, silent=silent, k=k,
            n_lines=paths,
        )  # fmt: skip
        rows = [
            {
                "neuron": found.neuron,
                "score": found.score,
                "path": "".join(
                    "…" if token == -1 else "" if token < 0 else self._store.token_text(token)
                    for token in reversed(line.tokens)
                ),
                "probability": line.probability,
                "fires": line.fires,
                "count": line.count,
            }
            for found in result.neurons
            for line in found.lines
        ]
        kinds = (pa.string(), pa.float64(), pa.string(), pa.float64(), pa.int64(), pa.int64())
        names = ("neuron", "score", "path", "probability", "fires", "count")
        return Answer(Table(pa.Table.from_pylist(rows, pa.schema(list(zip(names, kinds, strict=True))))), result)

    def similar(
        self,
        neuron: NeuronInput | None = None,
        *,
        k: int = 20,
        least: float = 0.9,
        normalise: bool = True,
        name: str = "graphs",
    ) -> Answer[Pairs]:
        """Neurons whose graphs are like a neuron's, or without one all pairs of like neurons.

        - `k`: maximum number of rows.
        - `least`: of pairs, the least overlap, subset or prediction, a share.
        - `normalise`: tokens that differ in case and outer spaces only count as one.

        Columns: neuron, other, overlap (share of activating and context tokens in common, of the larger set), subset (of the
        smaller), prediction (cosine of the predicted probabilities).
        """
        from actstore.engine.graphs.similar import Similarity, compare, same_tokens
        from actstore.store.graphs.forest import Forest

        graphs = self.open(name)
        classes = same_tokens(self._store) if normalise else None
        if neuron is not None:
            ((layer, index),) = neuron_pairs(neuron)
            rows, pairs = compare(graphs, layer, index, classes)
            first = np.full(len(pairs.second[:k]), rows[pairs.first[0]] if len(pairs.first) else 0)
            names = [f"L{layer}.N{index}"] * len(first)
            others = _names_of(graphs, rows[pairs.second[:k]])
        else:
            pairs = Similarity(Forest.of(graphs), classes).all(least)
            names, others = _names_of(graphs, pairs.first[:k]), _names_of(graphs, pairs.second[:k])
        measures = {measure: getattr(pairs, measure)[:k] for measure in ("overlap", "subset", "prediction")}
        columns = {"neuron": pa.array(names, pa.string()), "other": pa.array(others, pa.string())}
        return Answer(Table(pa.table(columns | measures)), pairs)

    def repeats(
        self,
        *,
        share: float = 0.5,
        k: int = 20,
        least_fires: int = 20,
        site: str = "mlp.post",
        capture: str | None = None,
    ) -> Answer[Repeats]:
        """In-context neurons: those that fire on a token because it came before in the same window.

        - `share`: a neuron fires from this share of its maximum.
        - `least_fires`: leave out neurons that fire less often.

        Columns: neuron, layer, index, score (how many times as likely repetition makes firing, at the least), probabilities
        of firing on repeated and on first occurrences.
        """
        from actstore.engine.graphs.repeats import measure_repeats
        from actstore.store.capture.saturation import overflow_sentences

        opened = self._store.capture(capture)
        repeats = measure_repeats(opened, site=site, share=share)
        rows = repeats.ranked(least_fires)[:k]
        layers, indices = repeats.layer[rows], repeats.neuron[rows]
        names = ("score", "repeated", "first", "fires_repeated", "fires_first", "same_repeated", "same_first")
        table = pa.table(
            {
                "neuron": pa.array(neuron_names(layers.tolist(), indices.tolist()), pa.string()),
                "layer": layers,
                "index": indices,
                **{name: getattr(repeats, name)[rows] for name in names},
            }
        )
        return Answer(Table(table), repeats, tuple(overflow_sentences(opened, [site])))

    def evaluate(
        self,
        *,
        graphs: Sequence[str] = (),
        neurons: NeuronInput | Iterable[NeuronInput] | None = None,
        layers: Sequence[int] | None = None,
        also: Sequence[str] = (),
        exemplars: int = 20,
        ordinary: int = 40,
        seed: int = 0,
        curve: Sequence[float] = (),
        share: float = 0.5,
        gain: float = 0.5,
        kappa: float = 1.0,
        threshold: float = 0.4,
        max_depth: int = 12,
        site: str = "mlp.post",
        capture: str | None = None,
        progress: Progress | None = None,
    ) -> Answer[Evaluation]:
        """Builds every neuron's graph without its test windows, and measures how well it predicts firing there.

        - `graphs`: names of sets of the store that are evaluated beside.
        - `also`: further captures that are evidence, never tested on.
        - `exemplars`: number of windows with a neuron's largest activations; half of them test.
        - `ordinary`: number of windows of any kind that test every neuron.
        - `seed`: random seed of the windows.
        - `curve`: further values of `gain`, for F1 against the number of nodes: `details.curve`.

        Other parameters as for `build`.

        Columns: method, windows (`exemplars` or `ordinary`), precision, recall, f1, correlation: means over neurons.
        """
        from actstore.engine.graphs.build import GraphSettings
        from actstore.engine.graphs.evaluate import EvaluationSettings, describe_leak, evaluate
        from actstore.engine.graphs.split import Protocol
        from actstore.store.graphs.reader import Graphs

        asked = EvaluationSettings(
            GraphSettings(share, threshold, gain, kappa, max_depth),
            Protocol(exemplars, ordinary, seed),
            site,
            tuple(curve),
        )
        opened = self._store.capture(capture)
        sets = [Graphs(self._store, name) for name in dict.fromkeys(graphs)]
        leaks = [describe_leak(one, opened, asked) for one in sets]
        evaluation = evaluate(
            opened,
            neurons=chosen_neurons(opened, site, neurons, layers),
            also=[self._store.capture(other) for other in also],
            graphs=sets,
            settings=asked,
            progress=progress or (lambda done, n_neurons: None),
        )
        measures = ("precision", "recall", "f1", "correlation")
        rows = [
            {"method": method, "windows": windows}
            | {measure: getattr(scores, windows).summary()[measure] for measure in measures}
            for method, scores in ({"graphs": evaluation.method} | evaluation.baselines).items()
            for windows in ("exemplars", "ordinary")
        ]
        warnings = tuple(sentence for sentence in leaks if sentence is not None)
        return Answer(Table(pa.Table.from_pylist(rows)), evaluation, warnings)

    def probe(
        self,
        model: str | None = None,
        *,
        name: str = "probes",
        neurons: NeuronInput | Iterable[NeuronInput] | None = None,
        layers: Sequence[int] | None = None,
        n_exemplars: int = 20,
        mask: str = "auto",
        n_substitutes: int = 5,
        substitutes_model: str | None = None,
        seed: int = 0,
        annotate: str | None = None,
        precision: str = "half",
        site: str = "mlp.post",
        capture: str | None = None,
        options: RunOptions | None = None,
        progress: CaptureProgress | None = None,
    ) -> Probes:
        """Asks a model about every neuron's exemplars, shortened, their tokens masked and substituted; kept in the store.

        - `model`: a name or path; the store's own unless given.
        - `name`: name of the probes.
        - `n_exemplars`: number of windows with a neuron's largest activations; half of them are asked about.
        - `mask`: what stands for a masked token: `auto`, `mask`, `unk`, `pad`, `typical` or `delete`.
        - `n_substitutes`: number of substitutes per important token.
        - `substitutes_model`: a masked language model that names substitutes; the captured text itself unless given.
        - `seed`: random seed of the exemplars.
        - `annotate`: a set of graphs; one called `{annotate}-probed` notes the measured importance.
        - `precision`: precision of the probes' activations.

        >>> store.graphs.probe(layers=[0]); store.graphs.build(method="published")
        """
        from actstore.engine.graphs.probes.evidence import annotate_graphs
        from actstore.engine.graphs.probes.plan import ProbeSettings
        from actstore.engine.graphs.probes.rounds import probe
        from actstore.engine.models.fingerprint import location_of
        from actstore.store.graphs.reader import Graphs
        from actstore.store.storage.folder import Folder

        opened = self._store.capture(capture)
        graphs = Graphs(self._store, annotate) if annotate is not None else None  # refused before the model runs
        probes = probe(
            location_of(self._store.model) if model is None else model,
            self._store.folder.location,
            name=name,
            capture=capture,
            site=site,
            neurons=chosen_neurons(opened, site, neurons, layers),
            settings=ProbeSettings(
                n_exemplars=n_exemplars,
                seed=seed,
                n_substitutes=n_substitutes,
                mask=mask,
                substitutes_model=substitutes_model,
            ),
            precision=precision,
            options=options,
            progress=progress,
        )
        if graphs is not None:
            annotate_graphs(graphs, probes, Folder(self._store.folder.location, read_only=False), f"{annotate}-probed")
        return probes

    def sample(
        self,
        model: str | None = None,
        *,
        sample: int = 300_000,
        name: str = "probes-sampled",
        window: int = 128,
        temperature: float = 1.0,
        prompt: int = 2,
        seed: int = 0,
        capture: str | None = None,
        options: RunOptions | None = None,
        progress: CaptureProgress | None = None,
    ) -> Capture:
        """Draws text from a model and captures it, as more evidence: `store.graphs.build(also=["probes-sampled"])`.

        - `sample`: number of tokens.
        - `window`: maximum number of tokens per window.
        - `temperature`: at which text is drawn.
        - `prompt`: number of tokens that a window takes from the beginning of another.
        - `seed`: random seed.
        """
        from actstore.engine.graphs.probes.run import sample_probes
        from actstore.engine.graphs.probes.sampling import SampleSettings
        from actstore.engine.models.fingerprint import location_of

        place = location_of(self._store.model) if model is None else model
        return sample_probes(
            place, self._store.folder.location, name=name, capture=capture,
            settings=SampleSettings(sample, window, temperature, seed, prompt), options=options, progress=progress,
        )  # fmt: skip


def _listed(tokens: str | int | Sequence[str | int]) -> list[str | int]:
    return [tokens] if isinstance(tokens, str | int) else list(tokens)


def _names_of(graphs: Graphs, rows: np.ndarray) -> list[str]:
    layers, indices = (graphs.neurons[column].to_numpy()[rows].tolist() for column in ("layer", "neuron"))
    return neuron_names(layers, indices)
