"""What graphs cost with probes: text sampled from the model, and requests about exemplars, against the published procedure."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.engine.capture_run import capture
from actstore.engine.graph.build import BuildOptions, build_graphs
from actstore.engine.graph.probe_rounds import probe
from actstore.engine.graph.probe_run import sample_probes
from actstore.engine.graph.sampling import SampleSettings
from actstore.engine.models import load_model
from actstore.engine.run import RunOptions
from actstore.store.folder import Folder
from actstore.store.reader import Store
from benchmarks.graphs import (
    MODEL,
    SAMPLED,
    TESTS,
    WINDOW,
    one_thread,
    read_exemplars,
    sample_neurons,
    standard_library,
)
from benchmarks.published_n2g import Published
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLED_TOKENS = 87_000
"""Three batches of the demo model's windows."""
SHARE = 4
"""One neuron in so many is asked about: all would take minutes more."""


@contextmanager
def prepare(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The demo model over 100,000 tokens of the standard library; a quick run leaves this row out."""
    n_tokens, options = 100_000, RunOptions(threads=1)
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        path = Path(name)
        standard_library(path / "corpus", 5 * n_tokens)
        captured = capture(
            str(MODEL), path / "corpus", path / "store", context=WINDOW, max_tokens=n_tokens, precision="half"
        )
        store, folder = Store(path / "store"), Folder(path / "store", read_only=False)
        widths = captured.record.layers("mlp.post")
        everyone = [(layer, neuron) for layer, width in sorted(widths.items()) for neuron in range(width)]
        exemplars = {neuron: read_exemplars(captured, *neuron) for neuron in sample_neurons(widths)}
        loaded = load_model(MODEL, dtype="float32")
        projections = [loaded.model.get_submodule(layer.module) for layer in store.model.layers]
        procedure = Published(loaded.model, projections, mask=1, n_vocabulary=int(store.model.n_vocabulary or 0))

        def sampled(n_tokens: int = SAMPLED_TOKENS, name: str = "sampled") -> None:
            settings = SampleSettings(n_tokens=n_tokens, seed=0)
            sample_probes(str(MODEL), path / "store", name=name, settings=settings, options=options)

        def built(also: str = "sampled", **asked: Any) -> None:
            build_graphs(
                captured, folder, name=f"with-{also}", also=[Store(folder).capture(also)],
                options=BuildOptions(threads=1), **asked,
            )  # fmt: skip

        chosen = everyone[::SHARE]

        def asked(neurons: list[tuple[int, int]] = chosen, name: str = "asked") -> None:
            probe(str(MODEL), path / "store", name=name, neurons=neurons, options=options)

        def published() -> None:
            for (layer, neuron), texts in exemplars.items():
                procedure.run(layer, neuron, texts[::2], texts[1::2])

        with one_thread():
            # What follows runs once each, so everything is compiled and loaded by something small.
            sampled(WINDOW, "sampled-first")
            built("sampled-first", neurons=everyone[:1])
            asked(everyone[:1], "asked-first")
            published()
            yield {
                f"{SAMPLED_TOKENS:,} sampled tokens, drawn and captured": Candidate(sampled),
                f"graphs of all {len(everyone):,} neurons with them": Candidate(built),
                f"exemplars of {len(chosen):,} neurons asked about": Candidate(asked),
                f"as published, for the {len(chosen):,}; {SAMPLED} neurons × {len(chosen) // SAMPLED}": Candidate(
                    published, times=len(chosen) // SAMPLED
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
