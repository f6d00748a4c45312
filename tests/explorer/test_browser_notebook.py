"""The widget in Chromium, on a page that does what a notebook does: it imports the module, and passes messages on."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import actstore

if TYPE_CHECKING:
    from pathlib import Path

browser_support = pytest.importorskip("explorer_browser", reason="no server")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("anywidget") is None, reason="anywidget is not installed"),
]

NOTEBOOK = """async ({ esm, state }) => {
  const listeners = {};
  const fire = (name, value) => (listeners[name] ?? []).forEach((listen) => listen(value));
  window.kernel = { state, answered: (text) => fire("msg:custom", JSON.parse(text)),
    set: (name, value) => { state[name] = value; fire(`change:${name}`); } };
  const model = {
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; },
    save_changes: () => {},
    on: (name, listen) => (listeners[name] ??= []).push(listen),
    off: (name, listen) => { listeners[name] = (listeners[name] ?? []).filter((one) => one !== listen); },
    send: (message) => window.askKernel(JSON.stringify(message)),
  };
  const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
  const widget = (await import(url)).default;
  const el = document.querySelector("#cell");
  window.close = widget.render({ model, el });
}"""


class Notebook:
    """A page with the widget on it."""

    def __init__(self, page: Any, widget: Any) -> None:
        self.page, self.complaints = page, []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda one: one.type in ("error", "warning") and self.complaints.append(one.text))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.set_default_timeout(browser_support.WAIT_MS)
        page.goto("about:blank")
        page.set_content("<body data-jp-theme-light='false'><div id='cell'></div></body>")
        self.questions: list[Any] = []
        widget.send = lambda content, buffers=None: page.evaluate(
            "(text) => window.kernel.answered(text)", json.dumps(content)
        )
        page.expose_function("askKernel", lambda text: self.questions.append(text))
        state = {name: getattr(widget, name) for name in ("page", "route", "height", "card")}
        page.evaluate(NOTEBOOK, {"esm": widget._esm, "state": state})
        self.widget = widget
        self.frame = page.frame_locator("iframe")

    def answered(self, selector: str) -> Any:
        """Answer what is asked until something is there."""
        for _ in range(600):
            while self.questions:
                self.widget._handle_custom_msg(json.loads(self.questions.pop(0)), [])
            if self.frame.locator(selector).count() and not self.frame.locator(".loading").count():
                return self.frame.locator(selector).first
            self.page.wait_for_timeout(20)
        raise AssertionError(f"{selector} did not come")


@pytest.fixture
def page(chromium: Any) -> Any:
    context = chromium.new_context(viewport={"width": 1000, "height": 900})
    yield context.new_page()
    context.close()


def test_the_explorer_is_used_below_a_cell(page: Any, text_path: Path) -> None:
    notebook = Notebook(page, actstore.open(text_path).explore(capture="corpus"))
    first = notebook.answered("main td a")
    name = first.inner_text()
    first.click()
    assert notebook.answered(f"h1:has-text('{name}')").inner_text().startswith(name)
    notebook.answered(".excerpts")
    assert page.evaluate("() => window.kernel.state.route") == f"#/0/neuron/corpus/mlp.post/{name}"
    assert page.url == "about:blank"  # the notebook's address is its own
    notebook.answered("header button:has-text('back')").click()
    notebook.answered("h1:has-text('Neurons')")
    page.evaluate("() => window.kernel.set('route', '#/0/neuron/corpus/mlp.post/L0.N1')")
    notebook.answered("h1:has-text('L0.N1')")
    notebook.frame.locator("header input[type=search]").fill("the")
    notebook.frame.locator("header input[type=search]").press("Enter")
    notebook.answered("main .token-link")
    assert notebook.complaints == []


def test_a_card_has_the_notebook_s_theme_and_is_as_high_as_it_must(page: Any, text_path: Path) -> None:
    notebook = Notebook(page, actstore.open(text_path).neuron("L1.N3").explore("corpus", height=5000))
    notebook.answered(".excerpts")
    notebook.answered(".paths")
    assert notebook.frame.locator("header, nav").count() == 0
    assert notebook.frame.locator("html[data-theme=dark]").count() == 1
    page.wait_for_timeout(200)
    inside = notebook.frame.locator("body").evaluate("(body) => body.scrollHeight")
    outside = page.locator("iframe").bounding_box()["height"]
    assert inside <= outside <= inside + 10
    page.evaluate("() => { document.body.dataset.jpThemeLight = 'true'; }")
    notebook.frame.locator("html[data-theme=light]").wait_for(state="attached")
    assert notebook.complaints == []


def test_an_error_of_the_kernel_is_a_sentence(page: Any, text_path: Path) -> None:
    widget = actstore.open(text_path).explore()
    widget.route = "#/0/neuron/corpus/mlp.post/L9.N9"
    notebook = Notebook(page, widget)
    notebook.page.evaluate("() => window.kernel.set('route', '#/0/neuron/corpus/mlp.post/L9.N9')")
    assert "layers 0 to 1" in notebook.answered("[role=alert]").inner_text()


def test_a_store_s_texts_reach_nothing_of_the_notebook(page: Any, tmp_path: Path) -> None:
    """Even a script that ran in the frame would have no origin, and the policy lets none run."""
    with actstore.CaptureBuilder(tmp_path / "x.actstore", model_name="m", label_columns=()) as builder:
        payload = "<img src=x onerror=parent.stolen=1><script>parent.stolen=1</script>"
        builder.add({("resid.post", 0): np.eye(3, dtype=np.float32)}, texts=[payload, "b", "c"], source=payload)
    notebook = Notebook(page, actstore.open(tmp_path / "x.actstore").neuron("L0.N0").explore("corpus", "resid.post"))
    assert "<script>" in notebook.answered(".excerpts").inner_text()
    ran = notebook.frame.locator("body").evaluate(
        """(body) => new Promise((resolve) => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          body.append(script);
          let reached = true;
          try { reached = Boolean(parent.document); } catch { reached = false; }
          setTimeout(() => resolve([Boolean(window.ran), reached]), 200);
        })"""
    )
    assert ran == [False, False]
    assert page.evaluate("() => window.stolen") is None


def test_a_widget_that_is_closed_listens_no_more(page: Any, text_path: Path) -> None:
    notebook = Notebook(page, actstore.open(text_path).explore())
    notebook.answered("main h1")
    page.evaluate("() => { window.close(); window.kernel.set('route', '#/0/sql/corpus/mlp.post'); }")
    page.wait_for_timeout(200)
    assert notebook.frame.locator("h1").inner_text() != "SQL"
