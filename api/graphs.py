"""`store.graphs`: neuron graphs (N2G), built, searched, compared, evaluated; and the model asked about exemplars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from actstore.api.graph_queries import GraphQueries
from actstore.api.light import explains
from actstore.api.neurons import chosen_neurons
from actstore.api.results import Answer
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from actstore.api.neurons import NeuronInput
    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.capture.run import RunOptions
    from actstore.engine.graphs.evaluate import Evaluation
    from actstore.engine.graphs.probes.evidence import Probes
    from actstore.store.capture.reader import Capture
    from actstore.store.graphs.reader import Graphs

    Progress = Callable[[int, int], None]


@explains
class GraphsMethod(GraphQueries):
    """The neuron graphs of a store (Foote et al. 2023, arXiv 2305.19911). One neuron's: `store.graph("L3.N17")`."""

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
        gain: float = 0.25,
        nodes: int | None = None,
        kappa: float = 1.0,
        threshold: float = 0.3,
        max_depth: int = 12,
        memory: int = 1 << 30,
        workers: int | None = None,
        on: str = "local",
        resume: bool = False,
        sync: bool = True,
        site: str = "mlp.post",
        capture: str | None = None,
        progress: Progress | None = None,
    ) -> Graphs:
        """Makes a graph of every neuron: which tokens it fires at, and which tokens before them decide. No model runs.

        - `name`: name of the set; `graphs`, or `published` for that method, unless given.
        - `method`: `corpus`, from the captured text; `published`, as Foote et al. (2023), from probes.
        - `probes`: of which probes the published method builds.
        - `neurons`: names or (layer, index); `layers`, in place of them: all of these; all unless either is given.
        - `leave_out`: windows that are not evidence.
        - `also`: further captures of the store that are evidence.
        - `share`: a neuron fires from this share of its maximum over the capture.
        - `gain`: nats of expected log-likelihood that a node must add.
        - `nodes`: maximum number of nodes per neuron: those that add most.
        - `kappa`: pseudo-count with which a longer context starts from what the shorter one says.
        - `threshold`: least probability at which a graph says that the neuron fires.
        - `max_depth`: maximum number of tokens before the activating one.
        - `memory`: bytes for the activations of neurons that are built together, by all workers.
        - `workers`: number of processes that neurons are divided among; the graphs are the same.
        - `on`: where they run: `local`, `ray` or `ray://HOST:PORT`.
        - `resume`: go on with an interrupted build.
        - `sync`: wait for the disk, so that nothing is lost in a power cut.
        - `progress`: called with the neurons done and their number.

        >>> graphs = store.graphs.build(layers=[0, 1])
        """
        from actstore.engine.graphs.build import BuildOptions, GraphSettings, build_graphs
        from actstore.engine.graphs.methods import METHODS, PUBLISHED
        from actstore.engine.graphs.probes.evidence import Probes
        from actstore.engine.graphs.probes.published import build_published
        from actstore.engine.workers.scan import executor_of
        from actstore.store.errors import InvalidInputError
        from actstore.store.storage.folder import Folder

        folder = Folder(self._store.folder, read_only=False, sync=sync)
        if method not in METHODS:
            raise InvalidInputError(f"`method` must be {' or '.join(METHODS)}, found {method!r}.")
        if method == PUBLISHED:
            return build_published(Probes(self._store, probes), folder, name=name or METHODS[method].set_name)
        opened = self._store.capture(capture)
        options = BuildOptions(memory, resume, progress=progress or (lambda done, n_neurons: None))
        return build_graphs(
            opened,
            folder,
            name=name or METHODS[method].set_name,
            site=site,
            neurons=chosen_neurons(opened, site, neurons, layers),
            leave_out=leave_out,
            also=[self._store.capture(other) for other in also],
            settings=GraphSettings(share, threshold, gain, kappa, max_depth, nodes),
            options=options,
            executor=executor_of(workers, on),
        )

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
        gain: float = 0.25,
        nodes: int | None = None,
        kappa: float = 1.0,
        threshold: float = 0.3,
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
        from actstore.engine.graphs.split import SplitSettings
        from actstore.store.graphs.reader import Graphs

        asked = EvaluationSettings(
            GraphSettings(share, threshold, gain, kappa, max_depth, nodes),
            SplitSettings(exemplars, ordinary, seed),
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
        warnings = tuple(sentence for sentence in leaks if sentence is not None)
        return Answer(_score_table(evaluation), evaluation, warnings)

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
        measure_variants: bool = True,
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
        - `measure_variants`: mask the tokens of substituted windows, too, as the published code does.
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
            self._store.folder,
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
                measure_variants=measure_variants,
            ),
            precision=precision,
            options=options,
            progress=progress,
        )
        if graphs is not None:
            folder = Folder(self._store.folder, read_only=False, sync=options is None or options.sync)
            annotate_graphs(graphs, probes, folder, f"{annotate}-probed")
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
        from actstore.engine.graphs.probes.sampled import sample_probes
        from actstore.engine.graphs.probes.sampling import SampleSettings
        from actstore.engine.models.fingerprint import location_of

        place = location_of(self._store.model) if model is None else model
        return sample_probes(
            place, self._store.folder, name=name, capture=capture,
            settings=SampleSettings(sample, window, temperature, seed, prompt), options=options, progress=progress,
        )  # fmt: skip


def _score_table(evaluation: Evaluation) -> Table:
    from actstore.engine.graphs.scores import MEASURES

    rows = [
        {"method": method, "windows": windows}
        | {measure: getattr(scores, windows).summary()[measure] for measure in MEASURES}
        for method, scores in ({"graphs": evaluation.method} | evaluation.baselines).items()
        for windows in ("exemplars", "ordinary")
    ]
    return Table(pa.Table.from_pylist(rows))
