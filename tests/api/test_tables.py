"""Every table that lists neurons names them in the same columns: `name`, `layer`, and `neuron`, the index in the layer."""

from __future__ import annotations

import functools
import inspect
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

import actstore
from actstore.api.change import ChangeMethod
from actstore.api.coverage import CoverageMethod
from actstore.api.edit import EditsMethod
from actstore.api.graphs import GraphsMethod
from actstore.api.multimodal import MultimodalMethod
from actstore.api.naica import NaicaMethod
from actstore.api.neurons import label_column
from actstore.api.selectivity import SelectivityMethod

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parents[1] / "store" / "data"
NAME = re.compile(r"L(\d+)\.N(\d+)")
KINDS = (
    actstore.Store, actstore.Capture, actstore.Neuron, actstore.NeuronGraph, NaicaMethod, SelectivityMethod, ChangeMethod,
    CoverageMethod, GraphsMethod, MultimodalMethod, EditsMethod,
)  # fmt: skip


@functools.cache
def copies() -> tempfile.TemporaryDirectory[str]:
    """A folder for copies, removed at the end."""
    return tempfile.TemporaryDirectory()


def copy_of(store: actstore.Store) -> actstore.Store:
    """The same store in another place."""
    path = Path(copies().name) / Path(store.folder.location).name
    shutil.copytree(store.folder.location, path, dirs_exist_ok=True)
    return actstore.open(path)


TEXT: dict[str, Callable[[actstore.Store], Any]] = {
    "Store.neurons": lambda s: s.neurons("corpus"),
    "Store.sql": lambda s: s.sql("select * from neurons", "corpus"),
    "Store.contributions": lambda s: s.contributions(40, 5, capture="corpus", everywhere=True),
    "Store.coactivation": lambda s: s.coactivation(k=3, capture="corpus"),
    "Store.knowledge": lambda s: s.knowledge(),
    "Capture.neurons": lambda s: s.capture("corpus").neurons(),
    "Capture.tokens": lambda s: s.capture("corpus").tokens(),
    "Capture.documents": lambda s: s.capture("corpus").documents(),
    "Capture.windows": lambda s: s.capture("corpus").windows(),
    "Neuron.exemplars": lambda s: s.neuron("L1.N3").exemplars(2, "corpus"),
    "Neuron.excerpts": lambda s: s.neuron("L1.N3").excerpts([5, 9], capture="corpus"),
    "NeuronGraph.predict": lambda s: s.graph("L1.N3").predict("the fox"),
    "NeuronGraph.similar": lambda s: s.graph("L1.N3").similar(3),
    "NaicaMethod.__call__": lambda s: s.naica(u=1.0, ica=False, method="without-ica"),
    "SelectivityMethod.__call__": lambda s: s.selectivity(
        "language", share=0.2, activation_quantile=0.5, capture="corpus"
    ),
    "ChangeMethod.__call__": lambda s: s.change(copy_of(s), share=0.5, capture="corpus"),
    "CoverageMethod.__call__": lambda s: s.coverage(capture="corpus"),
    "GraphsMethod.search": lambda s: s.graphs.search(context="the"),
    "GraphsMethod.similar": lambda s: s.graphs.similar("L1.N3"),
    "GraphsMethod.repeats": lambda s: s.graphs.repeats(least_fires=0, capture="corpus"),
    "EditsMethod.table": lambda s: s.edits.table(),
}
IMAGES: dict[str, Callable[[actstore.Store], Any]] = {
    "Capture.patches": lambda s: s.capture(captured_images(s)).patches(),
    "MultimodalMethod.__call__": lambda s: s.multimodal(k=2, nouns="content", capture=captured_images(s)),
    "MultimodalMethod.map": lambda s: s.multimodal.map("L1.N3", 0, capture=captured_images(s)),
}
ABOUT_OTHER_THINGS = {
    "SelectivityMethod.evaluate", "SelectivityMethod.lens", "SelectivityMethod.lens_tokens",
    "ChangeMethod.patch", "CoverageMethod.probe",
    "GraphsMethod.evaluate", "MultimodalMethod.properties", "MultimodalMethod.causal", "MultimodalMethod.saliency",
    "NaicaMethod.evaluate",
    "EditsMethod.evaluate",
}  # fmt: skip
"""Methods that run a model or measure methods: one row per method, layer or label, none per neuron."""
LISTING = {
    "Store.neurons", "Store.sql", "Store.contributions", "Store.knowledge", "Store.coactivation", "Capture.neurons",
    "NeuronGraph.similar", "NaicaMethod.__call__", "SelectivityMethod.__call__", "ChangeMethod.__call__",
    "GraphsMethod.search", "GraphsMethod.similar", "GraphsMethod.repeats", "MultimodalMethod.__call__",
}  # fmt: skip


@pytest.fixture(scope="module")
def text() -> actstore.Store:
    return actstore.open(DATA / "format-1-step-2" / "text")


@pytest.fixture(scope="module")
def images() -> actstore.Store:
    return actstore.open(DATA / "format-1-step-2" / "images")


def captured_images(store: actstore.Store) -> str:
    """The name of a capture of images with activations of neurons."""
    return next(n for n in store.captures if (r := store.capture(n).record).of_images and "mlp.post" in r.sites)


def check_columns(table: pa.Table) -> bool:
    """Whether the table lists neurons; an assertion fails where it does so in other columns than all others."""
    names = table.column_names
    assert "index" not in names
    for name in names:
        values = table[name].to_pylist()
        if values and all(isinstance(value, str) and NAME.fullmatch(value) for value in values):
            assert name.endswith("name"), f"column {name!r} holds names of neurons"
    lists_neurons = [name for name in names if re.fullmatch(r"(.*_)?neuron", name)]
    for name in lists_neurons:
        prefix = name.removesuffix("neuron")
        assert pa.types.is_integer(table.schema.field(name).type), name
        assert pa.types.is_integer(table.schema.field(f"{prefix}layer").type)
        assert table[f"{prefix}name"].to_pylist() == [
            f"L{layer}.N{neuron}"
            for layer, neuron in zip(table[f"{prefix}layer"].to_pylist(), table[name].to_pylist(), strict=True)
        ]
    return bool(lists_neurons)


def arrow(answer: Any) -> pa.Table:
    return getattr(answer, "table", answer).to_arrow()


def methods() -> set[str]:
    """The public methods whose annotation says that they give a table or an answer."""
    found = set()
    for kind in KINDS:
        for name in dir(kind):
            if name.startswith("_") and name != "__call__":
                continue
            member = inspect.unwrap(getattr(kind, name))
            returns = getattr(member, "__annotations__", {}).get("return", "")
            if re.match(r"(Table|Answer)\b", str(returns)):
                found.add(f"{kind.__name__}.{name}")
    return found


def test_every_method_that_gives_a_table_is_here() -> None:
    assert methods() == {*TEXT, *IMAGES, *ABOUT_OTHER_THINGS}


@pytest.mark.parametrize("method", TEXT)
def test_neurons_of_text_are_named_in_the_same_columns(method: str, text: actstore.Store) -> None:
    assert check_columns(arrow(TEXT[method](text))) == (method in LISTING)


@pytest.mark.parametrize("method", IMAGES)
def test_neurons_of_images_are_named_in_the_same_columns(method: str, images: actstore.Store) -> None:
    assert check_columns(arrow(IMAGES[method](images))) == (method in LISTING)


def test_a_table_of_changed_neurons_has_the_columns(text: actstore.Store) -> None:
    """Of a store from its copy nothing changed: the names that the table gives are seen in no row."""
    assert text.change(copy_of(text), share=0.5, capture="corpus").table.column_names == [
        "name",
        "layer",
        "neuron",
        "score",
    ]


def test_views_of_sql_name_neurons_in_the_same_columns(text: actstore.Store) -> None:
    listing = {
        view
        for view in ("neurons", "model", "graph_nodes", "graph_lines", "tokens", "documents", "windows", "vocabulary")
        if check_columns(text.sql(f"select * from {view} limit 50", "corpus").to_arrow())
    }
    assert listing == {"neurons", "model", "graph_nodes", "graph_lines"}


@pytest.mark.parametrize("store", ["format-1", "format-1-step-2/text"])
def test_stores_of_earlier_versions_are_no_exception(store: str) -> None:
    opened = actstore.open(DATA / store)
    assert check_columns(opened.neurons(next(iter(opened.captures))).to_arrow())


def test_a_label_that_is_called_as_a_column_does_not_hide_it() -> None:
    assert label_column("language", ("name", "layer")) == "language"
    assert label_column("name", ("name", "layer")) == "label"
