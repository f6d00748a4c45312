"""The cost of graphs with probes: text sampled from the model, and probed exemplars, against the published procedure."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from actstore.engine.capture.run import RunOptions
from actstore.engine.graphs.build import BuildOptions, build_graphs
from actstore.engine.graphs.probes.rounds import probe
from actstore.engine.graphs.probes.sampled import sample_probes
from actstore.engine.graphs.probes.sampling import SampleSettings
from actstore.kernels.torch_threads import torch_threads
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from benchmarks.registry import Candidate, Row
from benchmarks.rows.graphs import MODEL, SAMPLED, TESTS, WINDOW, PublishedSample, captured_demo

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLED_TOKENS = 87_000
"""Three batches of windows of the demo model."""
SHARE = 4
"""One in `SHARE` neurons is probed: all of them would take minutes more."""


@contextmanager
def prepare(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The demo model over 100,000 tokens of the standard library; a quick run leaves this row out."""
    options = RunOptions(threads=1)
    with captured_demo(100_000) as captured, torch_threads(1):
        store, folder = captured.folder.location, Folder(captured.folder.location, read_only=False)
        widths = captured.record.layers("mlp.post")
        all_neurons = [(layer, neuron) for layer, width in sorted(widths.items()) for neuron in range(width)]
        sample = PublishedSample.of(captured)

        def sampled(n_tokens: int = SAMPLED_TOKENS, name: str = "sampled") -> None:
            settings = SampleSettings(n_tokens=n_tokens, seed=0)
            sample_probes(str(MODEL), store, name=name, settings=settings, options=options)

        def built(also: str = "sampled", **build_arguments: Any) -> None:
            build_graphs(
                captured, folder, name=f"with-{also}", also=[Store(folder).capture(also)],
                options=BuildOptions(threads=1), **build_arguments,
            )  # fmt: skip

        probed_neurons = all_neurons[::SHARE]

        def probe_exemplars(neurons: list[tuple[int, int]] = probed_neurons, name: str = "probed") -> None:
            probe(str(MODEL), store, name=name, neurons=neurons, options=options)

        # Every candidate runs only once, so a small run of each compiles and loads everything first.
        sampled(WINDOW, "sampled-first")
        built("sampled-first", neurons=all_neurons[:1])
        probe_exemplars(all_neurons[:1], "probed-first")
        sample.run()
        yield {
            f"{SAMPLED_TOKENS:,} sampled tokens, drawn and captured": Candidate(sampled),
            f"graphs of all {len(all_neurons):,} neurons with them": Candidate(built),
            f"exemplars of {len(probed_neurons):,} neurons probed": Candidate(probe_exemplars),
            f"as published, for the {len(probed_neurons):,}; {SAMPLED} neurons × {len(probed_neurons) // SAMPLED}": Candidate(
                sample.run, times=len(probed_neurons) // SAMPLED
            ),
        }


ROWS = (
    Row(
        "probes for the graphs of a model, demo model over the standard library, one thread",
        prepare,
        TESTS,
        repeats=1,
        warm_up=False,
        quick=False,
    ),
)
