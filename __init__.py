"""actstore: run the model once; ask forever.

Writing: `actstore.capture` runs a model over a corpus of text or images and stores the activations of its neurons;
`actstore.plan`, `actstore.fill` and `actstore.finish` do the same in three steps, of which many processes may take the second
(`FillOptions`);
`actstore.estimate` gives the size and time of a capture (a `CaptureEstimate`) and writes nothing, `actstore.sizes` what
captures of any number of tokens would take, by a model's configuration alone; `actstore.attribute` lets a model answer
multiple-choice questions and stores every neuron's attribution to the answers, and `actstore.questions` asks those of the
QRNCA paper. `RunOptions` say how a run is carried out: device, memory, resuming. `actstore.inspect` describes
what of a model would be captured (a `ModelSpec`). `actstore.copy` copies a store to another location (a `CopyReport`).
`actstore.CaptureBuilder` makes a capture of arrays, and `actstore.import_activations` of what other tools left. `actstore.mix`
mixes the batches of several captures, to train on.

Reading: `actstore.open` gives a `Store`, a store its captures (`Capture`), neurons (`Neuron`) and their graphs (`NeuronGraph`).
The methods of a store are the commands of the command line, under the same names. They return a `Table`, which is an Arrow
table that prints as one, or an `Answer`: a table, the method's own object, and warnings. `ModelOptions` say how a method that
runs a model loads it.

Looking: `actstore.serve` shows stores in a browser, `actstore.site` makes a folder of files of one, `store.explore()` shows one
in a notebook.

Trying: `actstore.write_demo` puts small models and a corpus into a folder.

What goes wrong is one of `actstore.errors`, all of them `actstore.errors.ActstoreError`.

>>> store = actstore.open("gpt2.actstore")
>>> store.neurons()                              # a table, one row per neuron
>>> store.neuron("L3.N17").activations()         # one number per token
>>> store.neuron("L3.N17").show()                # statistics, histogram, exemplars
>>> store.capture("corpus").tokens()             # one row per token
>>> store.contributions(" Paris", k=20)          # the neurons that write a token
>>> store.selectivity(by="language")             # the neurons of a label
>>> store.graph("L3.N17").draw()                 # the contexts in which a neuron fires
>>> store.sql("select layer, avg(positive) from neurons group by layer")

Importing this loads neither torch nor transformers; reading a store needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from actstore.api.light import explained
from actstore.api.models import ModelOptions
from actstore.api.results import Answer
from actstore.api.store import Store
from actstore.store import errors
from actstore.store import hooks as _hooks
from actstore.store.neuron import Neuron
from actstore.store.reader import Capture
from actstore.store.storage.folder import Folder as _Folder
from actstore.store.table import Table
from actstore.store.version import version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from actstore.api.batches import mix
    from actstore.api.copy import CopyReport, copy
    from actstore.api.naica import questions
    from actstore.engine.attribution.attribute import attribute
    from actstore.engine.building.builder import CaptureBuilder
    from actstore.engine.building.importing import import_activations
    from actstore.engine.capture.api import RunOptions, capture, plan
    from actstore.engine.capture.estimate import CaptureEstimate, estimate
    from actstore.engine.capture.scale import sizes
    from actstore.engine.filling.api import FillOptions, fill, finish
    from actstore.engine.inputs.embedded import write_demo
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.layers import ModelSpec
    from actstore.explorer.api import serve, site
    from actstore.store.graphs.graph import NeuronGraph
    from actstore.store.hooks import GraphViews, Shown

__all__ = [
    "Answer",
    "Capture",
    "CaptureBuilder",
    "CaptureEstimate",
    "CopyReport",
    "FillOptions",
    "ModelOptions",
    "ModelSpec",
    "Neuron",
    "NeuronGraph",
    "RunOptions",
    "Store",
    "Table",
    "attribute",
    "capture",
    "copy",
    "errors",
    "estimate",
    "fill",
    "finish",
    "import_activations",
    "inspect",
    "mix",
    "open",
    "plan",
    "questions",
    "serve",
    "site",
    "sizes",
    "write_demo",
]

_LATER = {
    "CaptureBuilder": "actstore.engine.building.builder",
    "CaptureEstimate": "actstore.engine.capture.estimate",
    "CopyReport": "actstore.api.copy",
    "FillOptions": "actstore.engine.filling.api",
    "ModelSpec": "actstore.engine.models.layers",
    "NeuronGraph": "actstore.store.graphs.graph",
    "RunOptions": "actstore.engine.capture.run",
    "attribute": "actstore.engine.attribution.attribute",
    "capture": "actstore.engine.capture.api",
    "copy": "actstore.api.copy",
    "estimate": "actstore.engine.capture.estimate",
    "fill": "actstore.engine.filling.api",
    "finish": "actstore.engine.filling.api",
    "import_activations": "actstore.engine.building.importing",
    "mix": "actstore.api.batches",
    "plan": "actstore.engine.capture.api",
    "questions": "actstore.api.naica",
    "serve": "actstore.explorer.api",
    "site": "actstore.explorer.api",
    "sizes": "actstore.engine.capture.scale",
    "write_demo": "actstore.engine.inputs.embedded",
}
"""Where the names are that load torch, transformers or the compiler: reading a store should not wait for them."""


@explained
def open(location: str | Path, *, storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store at a path or URL, for reading.

    `storage_options` of a URL are those of its driver, beyond what the environment says: address, credentials, timeouts.

    >>> actstore.open("stdlib.actstore").neuron("L3.N17").exemplars(k=5)
    >>> actstore.open("s3://bucket/gpt2.actstore", storage_options={"region": "eu-west-1"})
    """
    return Store(_Folder(location, storage_options=storage_options))


@explained
def inspect(model: ModelInput, *, trust_remote_code: bool = False) -> ModelSpec:
    """What of a model would be captured: its layers, their widths and sites. Weights are not loaded.

    `model`: a Hub id, a folder, or a loaded transformers model.
    """
    from actstore.engine.models.sources import ModelSource

    return ModelSource.of(model).inspect(trust_remote_code=trust_remote_code)


def _open_graph_views() -> GraphViews:
    from actstore.display.graphs import views

    return views


def _rank_contributions(
    store: Store, target: str | int | Sequence[str | int] | None, query: Mapping[str, object]
) -> pa.Table:
    from actstore.engine.contributions.rank import answer_question

    return answer_question(store, target, query)


def _notebook_html(subject: object) -> str:
    from actstore.display import notebook

    return notebook.html(subject)


def _show_neuron(neuron: Neuron, k: int, capture: str | None, site: str, context: int) -> Shown:
    from actstore.display import notebook

    return notebook.show_neuron(neuron, k, capture, site, context)


def _explore(store: Store, neuron: Neuron | None, capture: str | None, site: str, height: int, *, card: bool) -> Any:
    from actstore.explorer.notebook.explore import explore

    return explore(store, neuron, capture, site, height, card=card)


def _table_text(table: Table) -> str:
    from actstore.display import tables

    return tables.table_text(table)


# The store may import neither the engine, which computes and compares, nor what is shown of it.
_hooks.open_graph_views = _open_graph_views
_hooks.rank_contributions = _rank_contributions
_hooks.notebook_html = _notebook_html
_hooks.show_neuron = _show_neuron
_hooks.explore = _explore
_hooks.table_text = _table_text


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version()
    if name in _LATER:
        return explained(import_module)(_LATER[name]).__dict__[name]
    raise AttributeError(f"module 'actstore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
