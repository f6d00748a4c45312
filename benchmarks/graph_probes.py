"""What graphs cost with probes: text sampled from the model, and requests about exemplars, against the published procedure."""

from __future__ import annotations

import itertools
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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

SAMPLED_TOKENS, SHARE_OF_TOKENS = 261_000, 9
"""Tokens to be sampled, of which a run draws one part of so many: one batch of windows of the demo model."""
SHARE_OF_NEURONS = 4
"""A run asks about one neuron in so many; windows that it would share with the others' are asked for again."""


@contextmanager
def prepare(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The demo model over the standard library."""
    n_tokens, options = 20_000 if quick else 100_000, RunOptions(threads=1)
    of_tokens, of_neurons = (90, 96) if quick else (SHARE_OF_TOKENS, SHARE_OF_NEURONS)
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        path = Path(name)
        standard_library(path / "corpus", 5 * n_tokens)
        captured = capture(
            str(MODEL), path / "corpus", path / "store", context=WINDOW, max_tokens=n_tokens, precision="half"
        )
        store, folder, number = Store(path / "store"), Folder(path / "store", read_only=False), itertools.count()
        widths = captured.record.layers("mlp.post")
        everyone = [(layer, neuron) for layer, width in sorted(widths.items()) for neuron in range(width)]
        chosen = sample_neurons(widths)
        exemplars = {neuron: read_exemplars(captured, *neuron) for neuron in chosen}
        loaded = load_model(MODEL, dtype="float32")
        projections = [loaded.model.get_submodule(layer.module) for layer in store.model.layers]
        procedure = Published(loaded.model, projections, mask=1, n_vocabulary=int(store.model.n_vocabulary or 0))

        def sampled() -> None:
            settings = SampleSettings(n_tokens=SAMPLED_TOKENS // of_tokens, seed=next(number))
            sample_probes(
                str(MODEL), path / "store", name=f"sampled-{settings.seed}", settings=settings, options=options
            )

        def built() -> None:
            known = [one for one in Store(folder).captures if one.startswith("sampled-")][:2]
            also = [Store(folder).capture(one) for one in known]
            build_graphs(captured, folder, name=f"built-{next(number)}", also=also, options=BuildOptions(threads=1))

        def asked() -> None:
            probe(
                str(MODEL),
                path / "store",
                name=f"asked-{next(number)}",
                neurons=everyone[::of_neurons],
                options=options,
            )

        def published() -> None:
            for (layer, neuron), texts in exemplars.items():
                procedure.run(layer, neuron, texts[::2], texts[1::2])

        with one_thread():
            yield {
                f"{SAMPLED_TOKENS // of_tokens:,} sampled tokens, drawn and captured × {of_tokens}": Candidate(
                    sampled, times=of_tokens
                ),
                f"graphs of all {len(everyone):,} neurons with some of them": Candidate(built),
                f"exemplars of {len(everyone[::of_neurons]):,} neurons asked about × {of_neurons}": Candidate(
                    asked, times=of_neurons
                ),
                f"as published; {SAMPLED} neurons × {len(everyone) // SAMPLED}": Candidate(
                    published, times=len(everyone) // SAMPLED
                ),
            }


ROWS = (
    Row(
        "probes for the graphs of a model, demo model over the standard library, one thread", prepare, TESTS, repeats=1
    ),
)
