"""What graphs cost with probes: text sampled from the model, and requests about exemplars, against the published procedure."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from actstore.engine.capture.run import RunOptions
from actstore.engine.graphs.build import BuildOptions, build_graphs
from actstore.engine.graphs.probes.rounds import probe
from actstore.engine.graphs.probes.run import sample_probes
from actstore.engine.graphs.probes.sampling import SampleSettings, one_core_each
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from benchmarks.registry import Candidate, Row
from benchmarks.rows.graphs import MODEL, SAMPLED, TESTS, WINDOW, PublishedSample, captured_demo

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLED_TOKENS = 87_000
"""Three batches of the demo model's windows."""
SHARE = 4
"""One neuron in so many is asked about: all would take minutes more."""


@contextmanager
def prepare(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The demo model over 100,000 tokens of the standard library; a quick run leaves this row out."""
    options = RunOptions(threads=1)
    with captured_demo(100_000) as captured, one_core_each():
        store, folder = captured.folder.location, Folder(captured.folder.location, read_only=False)
        widths = captured.record.layers("mlp.post")
        everyone = [(layer, neuron) for layer, width in sorted(widths.items()) for neuron in range(width)]
        sample = PublishedSample.of(captured)

        def sampled(n_tokens: int = SAMPLED_TOKENS, name: str = "sampled") -> None:
            settings = SampleSettings(n_tokens=n_tokens, seed=0)
            sample_probes(str(MODEL), store, name=name, settings=settings, options=options)

        def built(also: str = "sampled", **asked: Any) -> None:
            build_graphs(
                captured, folder, name=f"with-{also}", also=[Store(folder).capture(also)],
                options=BuildOptions(threads=1), **asked,
            )  # fmt: skip

        chosen = everyone[::SHARE]

        def asked(neurons: list[tuple[int, int]] = chosen, name: str = "asked") -> None:
            probe(str(MODEL), store, name=name, neurons=neurons, options=options)

        # What follows runs once each, so everything is compiled and loaded by something small.
        sampled(WINDOW, "sampled-first")
        built("sampled-first", neurons=everyone[:1])
        asked(everyone[:1], "asked-first")
        sample.run()
        yield {
            f"{SAMPLED_TOKENS:,} sampled tokens, drawn and captured": Candidate(sampled),
            f"graphs of all {len(everyone):,} neurons with them": Candidate(built),
            f"exemplars of {len(chosen):,} neurons asked about": Candidate(asked),
            f"as published, for the {len(chosen):,}; {SAMPLED} neurons × {len(chosen) // SAMPLED}": Candidate(
                sample.run, times=len(chosen) // SAMPLED
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
