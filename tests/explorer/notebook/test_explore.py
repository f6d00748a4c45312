"""The explorer in a notebook: what the widget holds, what the kernel answers, and what is shown without anywidget."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from actstore.explorer.bundle_files import bundle_text
from actstore.explorer.notebook.answers import answer
from actstore.explorer.notebook.page import notebook_page
from actstore.explorer.pages.table import PAGES
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import actstore

    PageOf = Callable[..., dict[str, Any]]

needs_anywidget = pytest.mark.skipif(importlib.util.find_spec("anywidget") is None, reason="anywidget is not installed")


@pytest.fixture
def without_anywidget(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "actstore.explorer.notebook.explore.find_spec", lambda name: None if name == "anywidget" else real(name)
    )


class Comm:
    """What a widget sends, caught on its way to the notebook."""

    def __init__(self, widget: Any) -> None:
        self.sent: list[Any] = []
        widget.send = lambda content, buffers=None: self.sent.append(content)

    def ask(self, widget: Any, message: Any) -> Any:
        widget._handle_custom_msg(message, [])
        return self.sent[-1] if self.sent else None


@needs_anywidget
def test_a_widget_answers_with_the_documents_of_the_pages(text: actstore.Store, page: PageOf) -> None:
    widget = text.explore("L1.N3", capture="corpus")
    comm = Comm(widget)
    reply = comm.ask(widget, {"view": "v", "id": 7, "address": "0/neuron/corpus/mlp.post/L1.N3"})
    assert (reply["view"], reply["id"]) == ("v", 7)
    assert json.loads(reply["document"]) == json.loads(json.dumps(page(text, "neuron/corpus/mlp.post/L1.N3")))
    stores = json.loads(comm.ask(widget, {"view": "v", "id": 8, "address": "stores"})["document"])
    assert (stores["form"], stores["pages"]) == ("notebook", list(PAGES))
    assert stores["stores"][0] == json.loads(json.dumps({"number": 0, **page(text, "store")}))


@needs_anywidget
def test_what_is_no_question_is_left_alone(text: actstore.Store) -> None:
    widget = text.explore()
    comm = Comm(widget)
    for message in ("stores", None, {"address": 3}, {"id": 1}):
        assert comm.ask(widget, message) is None


@needs_anywidget
def test_a_widget_opens_where_it_is_told(text: actstore.Store) -> None:
    assert text.explore().route == "#/0"
    assert text.explore(capture="corpus").route == "#/0/overview/corpus/mlp.post"
    assert text.explore((1, 3), capture="corpus", site="resid.post").route == "#/0/neuron/corpus/resid.post/L1.N3"
    card = text.neuron("L1.N3").explore("corpus", height=500)
    assert (card.route, card.height, card.card) == ("#/0/neuron/corpus/mlp.post/L1.N3", 500, True)
    assert " data-card" in card.page
    assert " data-card" not in text.explore().page
    assert 'data-route="#/0/neuron/corpus/mlp.post/L1.N3"' in card.page
    assert card._esm == bundle_text("widget.js")
    assert "L1.N3" in repr(card)


@needs_anywidget
def test_a_notebook_without_a_kernel_shows_the_table(text: actstore.Store) -> None:
    bundle, _ = text.neuron("L1.N3").explore("corpus")._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/html"] == text.neuron("L1.N3").show(5, "corpus", context=12).html()
    assert text.explore()._repr_mimebundle_()[0]["text/html"] == text._repr_html_()


@pytest.mark.usefixtures("without_anywidget")
def test_without_anywidget_the_table_is_shown_and_the_way_to_more(text: actstore.Store) -> None:
    shown = text.explore()
    assert shown._repr_html_().startswith(text._repr_html_())
    assert "pip install 'actstore[notebook]'" in shown._repr_html_()
    assert "pip install 'actstore[notebook]'" in repr(shown)
    card = text.neuron("L1.N3").explore("corpus")
    assert card._repr_html_().startswith(text.neuron("L1.N3").show(5, "corpus", context=12).html())


def test_nothing_imports_anywidget_before_it_is_asked_for(text_path: Path) -> None:
    code = (
        "import sys, actstore\n"
        f"store = actstore.open({str(text_path)!r}); store._repr_html_(); store.neuron('L1.N3')._repr_html_()\n"
        "assert not {'anywidget', 'ipywidgets', 'IPython'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_errors_are_sentences(text: actstore.Store) -> None:
    assert "layers 0 to 1" in answer(text, "0/neuron/corpus/mlp.post/L9.N9")["error"]
    assert "store 0" in answer(text, "1/store")["error"]
    assert "no page" in answer(text, "0/nothing")["error"]
    with pytest.raises(NotFoundError, match="no capture"):
        text.explore(capture="nothing")
    with pytest.raises(NotFoundError, match="Layer 1 has neurons 0 to 11"):
        text.explore("L1.N99", capture="corpus")
    with pytest.raises(NotFoundError, match="no site"):
        text.neuron("L1.N3").explore("corpus", site="mlp.pre")
    with pytest.raises(InvalidInputError, match=r"`height` .* 200 or more, found 3"):
        text.explore(height=3)


def test_the_page_runs_the_bundle_and_nothing_else() -> None:
    page = notebook_page('#/0/neuron/"><script>alert(1)</script>/mlp.post', card=False)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script == bundle_text("explorer.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page
    assert "default-src 'none'" in page
    assert "unsafe" not in page.partition("<style>")[0]
    assert "</style" not in bundle_text("explorer.css")
