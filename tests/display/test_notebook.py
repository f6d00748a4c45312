"""What notebooks show: well-formed, everything of the store's escaped, and the same numbers as anywhere else."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
import types
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

import actstore
from actstore.display import notebook, terminal
from actstore.store.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

NASTY = [
    "<script>alert('x')</script>",
    "\"quoted\" & 'single'",
    "\x1b[31m",
    "\x9b",
    "�",
    "\n",
    "\u202edrawkcab",
    "</span>",
]


class Page(HTMLParser):
    """The tags, attributes and text of a fragment; an assertion fails where a tag is closed that is not open."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def shown(tokens: list[str], activations: list[float | None] | None, pivot: int = 0) -> notebook.ShownNeuron:
    statistics = {"mean": 0.1, "std": 1.0, "max": 4.0, "positive": 0.25, "count": 1000}
    exemplar = {
        "value": 4.0, "tokens": tokens, "activations": activations, "pivot": pivot, "source": "<a>&b", "position": 7,
    }  # fmt: skip
    counts, edges = np.array([1, 0, 3]), np.array([-2, -1, 1, 2], np.float32)
    return notebook.ShownNeuron("L3.N17", "<module>", statistics, (counts, edges), [exemplar])


def test_whatever_a_token_is_it_is_text() -> None:
    page = Page(shown(NASTY, [4.0] + [None] * (len(NASTY) - 1)).html())
    tags = {tag for tag, _ in page.tags}
    assert tags == {"div", "b", "span", "svg", "rect", "title", "table", "tr", "th", "td"}
    for token in NASTY:
        assert terminal.visible(token) in page.text
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in page.text)
    assert "<a>&b, token 7" in page.text
    assert "L3.N17 <module>" in page.text


def test_colours_follow_the_activations() -> None:
    page = Page(shown(["a", "b", "c", "d"], [4.0, -2.0, 0.1, None], pivot=1).html())
    spans = {s["title"]: s["style"] or "" for s in page.named("span") if "title" in s}
    assert f"rgba({notebook.RED},1.00)" in spans["4"]
    assert f"rgba({notebook.BLUE},0.50)" in spans["-2"]
    assert "background" not in spans["0.1"]
    assert [text for text in spans if "underline" in spans[text]] == ["-2"]
    assert [title for title in spans] == ["4", "-2", "0.1"]


def test_where_no_values_are_stored_tokens_stand_uncoloured() -> None:
    page = Page(shown(["a", "b"], None).html())
    assert "ab" in page.text
    assert "background" not in str(page.named("span"))


def test_a_histograms_bars_are_shares() -> None:
    page = Page(shown(["a"], [4.0]).html())
    heights = [float(rect["height"] or 0) for rect in page.named("rect")]
    assert heights == [pytest.approx(40 / 3, abs=0.05), 0, 40]
    assert "1 … 2: 75.0 %" in page.text


@pytest.fixture(scope="module")
def store(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> actstore.Store:
    target = tmp_path_factory.mktemp("notebook") / "<b>&.actstore"
    options = {"context": 32, "max_tokens": 300, "label_columns": ("language",)}
    actstore.capture(str(tiny_model), corpus, target, **options)
    return actstore.open(target)


def test_a_store_shows_its_model_and_captures(store: actstore.Store) -> None:
    page = Page(store._repr_html_())
    assert "<b>&.actstore" in page.text
    assert "2 layers, 48 neurons" in page.text
    assert f"{store.capture().record.plan.n_tokens:,}" in page.text
    assert "complete" in page.text


def test_a_capture_shows_what_is_in_it(store: actstore.Store) -> None:
    text = Page(store.capture()._repr_html_()).text
    for said in ("corpus", "mlp.post", "exact (float32)", "language (3 values)", "complete"):
        assert said in text


def test_a_neuron_shows_its_exemplars(store: actstore.Store) -> None:
    neuron = store.neuron("L1.N7")
    best = neuron.exemplars(k=5, context=12).to_pylist()
    page = Page(neuron._repr_html_())
    assert neuron.name in page.text
    for exemplar in best:
        assert f"{exemplar['value']:.4g}" in page.text
        assert "".join(map(terminal.visible, exemplar["tokens"])) in page.text
    assert sum("underline" in (span["style"] or "") for span in page.named("span")) == len(best)


def test_a_shown_neuron_is_text_in_a_terminal_and_in_colours_for_rich(store: actstore.Store) -> None:
    found = store.neuron("L1.N7").show(k=3, context=4)
    lines = str(found).splitlines()
    assert lines[0].startswith("L1.N7: mean ")
    assert len(lines) == 4
    assert all("«" in line for line in lines[1:])
    console = Console(record=True, width=200, force_terminal=True, file=io.StringIO())
    console.print(found)
    assert "█" in console.export_text()
    with pytest.raises(NotFoundError, match="no capture 'other'"):
        store.neuron("L1.N7").show(capture="other")


def test_a_neuron_of_a_store_that_cannot_say_which_capture_says_so(
    store: actstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise NotFoundError("no capture <here>")

    monkeypatch.setattr(actstore.Store, "capture", none)
    page = Page(store.neuron("L1.N7")._repr_html_())
    assert "L1.N7" in page.text
    assert "no capture <here>" in page.text


def test_a_graph_shows_its_picture(store: actstore.Store) -> None:
    from actstore.engine.graphs.build import build_graphs
    from actstore.store.storage.folder import Folder

    build_graphs(store.capture(), Folder(store.folder.location, read_only=False), name="graphs", neurons=[(1, 7)])
    page = Page(store.graph("L1.N7")._repr_html_())
    assert page.tags[0][0] == "svg"


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """As in a Jupyter kernel, by all that rich can see of one; what is displayed beside a cell's own value."""
    sent: list[object] = []

    class ZMQInteractiveShell:
        pass

    display = types.ModuleType("IPython.display")
    display.display = sent.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    return sent


def test_every_view_is_shown_once_in_a_notebook(store: actstore.Store, displayed: list[object]) -> None:
    from actstore.engine.graphs.build import build_graphs
    from actstore.store.storage.folder import Folder

    build_graphs(store.capture(), Folder(store.folder.location, read_only=False), name="once", neurons=[(1, 7)])
    Console().print("a kernel is recognised")
    assert len(displayed) == 1
    displayed.clear()
    graph = store.graph("L1.N7", name="once")
    neuron = store.neuron("L1.N7")
    views = [store, store.capture(), neuron, neuron.show(k=2), graph, graph.draw(), graph.graphs]
    for view in views:
        # What IPython asks of a cell's value: its text, and each form that a browser can show.
        assert str(view).strip()
        assert repr(view).strip()
        for form in ("_repr_html_", "_repr_svg_"):
            if hasattr(view, form):
                assert getattr(view, form)().startswith("<")
    assert displayed == []


# The public names


def test_the_public_names_are_documented_and_listed() -> None:
    assert actstore.__doc__
    for name in actstore.__all__:
        assert name in dir(actstore)
        assert (getattr(actstore, name).__doc__ or "").strip(), name
        assert f"`actstore.{name}`" in actstore.__doc__ or f"`{name}`" in actstore.__doc__, name


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'captured'"):
        _ = actstore.captured


def test_reading_and_showing_loads_neither_torch_nor_transformers(store: actstore.Store) -> None:
    script = (
        "import sys, actstore\n"
        f"store = actstore.open({store.folder.location!r})\n"
        "store._repr_html_(); store.capture()._repr_html_(); store.neuron('L1.N7')._repr_html_()\n"
        "print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
