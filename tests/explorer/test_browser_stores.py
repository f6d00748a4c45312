"""Stores of every kind in Chromium: of images, of one neuron, by URL, without graphs, being written; and their sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from static_server import StaticServer

import actstore
from actstore.engine.capture.progress import CaptureProgress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

browser_support = pytest.importorskip("explorer_browser", reason="no server")
exploring, Tab = browser_support.exploring, browser_support.Tab

pytestmark = pytest.mark.slow


@pytest.fixture
def from_disk(chromium: Any) -> Iterator[Any]:
    """Opens a site's folder as a file; a tab must not have complained."""
    tabs = []

    def open_site(folder: Path) -> Any:
        context = chromium.new_context(viewport={"width": 1200, "height": 900})
        tabs.append((context, tab := Tab(context.new_page(), (folder / "index.html").as_uri())))
        return tab

    yield open_site
    for context, tab in tabs:
        context.close()
        assert tab.complaints == []


def check_images(tab: Any) -> None:
    """Both images with the map over each, and the patch where it is highest."""
    tab.open("#/0/neuron/corpus/mlp.post/L1.N3")
    assert tab.page.locator(".maps figure").count() == 2
    assert "a red circle above a small blue square" in tab.text(".maps")
    assert "the map alone" not in tab.text(".maps")
    links = tab.page.locator(".maps image").evaluate_all("(images) => images.map((image) => image.href.baseVal)")
    assert len(links) == 4  # of each image the whole, and the patch
    for link in set(links):
        size = tab.page.evaluate(
            "(link) => { const image = new Image(); image.src = link; return image.decode().then(() => image.naturalWidth); }",
            link,
        )
        assert size == 40
    assert tab.page.locator(".crop rect.frame").count() == 2
    assert tab.page.locator(".excerpts .patch").count() > 5
    tab.open("#/0/text/corpus/mlp.post/0")
    shown = tab.page.locator(".document-image")
    shown.wait_for()
    assert shown.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 40


@pytest.mark.usefixtures("pictures")
def test_images_are_shown_with_maps_and_crops(chromium: Any, image_path: Path, tmp_path: Path, from_disk: Any) -> None:
    with exploring(chromium, [image_path]) as tab:
        check_images(tab)
    actstore.site(image_path, tmp_path / "site", capture="corpus")
    check_images(from_disk(tmp_path / "site"))


def test_a_site_has_what_a_server_has(text_path: Path, tmp_path: Path, from_disk: Any) -> None:
    actstore.site(text_path, tmp_path / "site", capture="corpus", without=["coactive"])
    tab = from_disk(tmp_path / "site")
    tab.open("#/0/neuron/corpus/mlp.post/L1.N3")
    highest = tab.text(".excerpts")
    for kind in ("Lowest", "At random"):
        tab.page.get_by_role("button", name=kind).click()
        tab.settled()
        assert tab.text(".excerpts") != highest
    assert tab.page.locator("[aria-label='neurons with similar graphs'] tbody tr").count() > 0
    assert "made without neurons that fire together" in tab.text()
    tab.page.get_by_role("button", name="Highest").click()
    tab.page.locator(".excerpts a.where").first.click()
    tab.page.locator("h1", has_text="Texts").wait_for()
    tab.settled()
    assert tab.page.locator(".text .token").count() > 10
    tab.open("#/0/text/corpus/mlp.post")
    rows = tab.page.locator("tbody tr").count()
    assert rows == 9
    tab.page.locator("main input[type=search]").fill("jsonl:3")
    tab.page.locator("main input[type=search]").press("Enter")
    tab.page.wait_for_function("() => document.querySelectorAll('tbody tr').length === 1")
    tab.page.locator("tbody a").first.click()
    tab.settled()
    held = tab.page.locator("[aria-label='which neuron'] button")
    held.first.wait_for()
    strengths = "[...document.querySelectorAll('.text .token')].map((one) => one.style.getPropertyValue('--strength'))"
    colours = f"() => {strengths}.join()"
    before = tab.page.evaluate(colours)
    if held.count() > 1:
        held.nth(1).click()
        tab.page.wait_for_function(f"(before) => ({colours})() !== before", arg=before)
    tab.open("#/0/text/corpus/mlp.post/2?neurons=L0.N999")
    assert "do not hold what L0.N999 does" in tab.text()


def test_a_site_compares_two_captures(tmp_path: Path, from_disk: Any) -> None:
    values = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    with actstore.CaptureBuilder(tmp_path / "pair.actstore", model_name="pair") as builder:
        builder.add({("resid.post", 0): values}, texts=list("abcdef"), source="s")
    with actstore.CaptureBuilder(tmp_path / "pair.actstore", "later", tokens_of="corpus") as builder:
        builder.add({("resid.post", 0): values + np.array([0, 0, 2, 0], np.float32)})
    actstore.site(tmp_path / "pair.actstore", tmp_path / "site", capture="corpus", site="resid.post", compare="later")
    tab = from_disk(tmp_path / "site")
    tab.open("#/0/compare/corpus/resid.post")
    assert "Farthest apart" in tab.text()
    assert tab.text("[aria-label='change scores'] tbody tr").split() == ["L0.N2", "2"]
    tab.open("#/0")
    assert tab.page.locator("tbody tr").count() == 1  # the other capture is there to compare with, and has no pages


def test_a_store_of_one_neuron(chromium: Any, tmp_path: Path, from_disk: Any) -> None:
    with actstore.CaptureBuilder(tmp_path / "one.actstore", model_name="one") as builder:
        builder.add(
            {("resid.post", 0): np.linspace(-1, 2, 6, dtype=np.float32)[:, None]}, texts=list("abcdef"), source="s"
        )
    actstore.site(tmp_path / "one.actstore", tmp_path / "site", site="resid.post")
    with exploring(chromium, [tmp_path / "one.actstore"]) as served:
        for tab in (served, from_disk(tmp_path / "site")):
            tab.open("#/0/neuron/corpus/resid.post/L0.N0")
            assert "+2" in tab.text(".facts")
            assert tab.page.locator(".steps a").count() == 0
            assert "1 neuron" in tab.open("#/0/overview/corpus/resid.post").text()
            assert tab.page.locator("tbody a").count() == 1
            tab.open("#/0/text/corpus/resid.post/0?neurons=L0.N0")
            assert tab.page.locator(".text .token").count() == 6


def test_a_store_without_graphs_says_how_they_are_made(chromium: Any, planted_path: Path) -> None:
    with exploring(chromium, [planted_path]) as tab:
        tab.open("#/0/neuron/corpus/mlp.post/L1.N3")
        assert "actstore graphs build STORE" in tab.text()
        tab.open("#/0/token/corpus/mlp.post/2")
        assert "no neuron graphs" in tab.text()


def test_several_stores_some_of_them_on_a_web_server(
    chromium: Any, text_path: Path, planted_path: Path, tmp_path: Path
) -> None:
    """A store by URL is read like any; one that a web server cannot give is said, and keeps none of the others away."""
    with actstore.CaptureBuilder(tmp_path / "built.actstore", model_name="built") as builder:
        builder.add({("resid.post", 0): np.eye(4, dtype=np.float32)}, texts=list("abcd"), source="s")
    server, old = StaticServer(tmp_path), StaticServer(text_path.parent)
    try:
        with exploring(chromium, [planted_path, f"{server.url}/built.actstore", f"{old.url}/text"]) as tab:
            tab.open("#/0")
            assert "planted" in tab.text("h1")
            tab.page.locator("header select").first.select_option(label="built.actstore")
            tab.page.locator("a.brand", has_text="built").wait_for()
            tab.settled()
            tab.open("#/1/neuron/corpus/resid.post/L0.N3")
            assert "Distribution" in tab.text()
            assert tab.page.locator(".excerpts li").count() == 1
            tab.open("#/2")
            assert "cannot be listed" in tab.text()
    finally:
        server.close()
        old.close()


def test_a_store_is_looked_at_while_it_is_written(
    chromium: Any, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    path, seen = tmp_path / "growing.actstore", []

    class Looking(CaptureProgress):
        def filled(self, n_tokens: int) -> None:
            if len(seen) < 2 and actstore.open(path).peek("corpus").blocks:
                with exploring(chromium, [path]) as tab:
                    seen.append(tab.open("#/0/overview/corpus/mlp.post").text(".notice"))
                    tab.open("#/0/neuron/corpus/mlp.post/L1.N3")
                    seen.append(tab.text(".facts"))

    actstore.capture(str(tiny_model), corpus, path, context=32, max_tokens=1200, block_tokens=256, progress=Looking())
    assert "blocks are written" in seen[0]
    with exploring(chromium, [path]) as tab:
        tab.open("#/0/neuron/corpus/mlp.post/L1.N3")
        assert tab.text(".facts") != seen[1]
        assert tab.open("#/0/overview/corpus/mlp.post").page.locator(".notice").count() == 0


def test_questions_show_what_was_asked_and_answered(
    chromium: Any, text_path: Path, tmp_path: Path, from_disk: Any
) -> None:
    actstore.site(text_path, tmp_path / "site", ["L1.N3"], capture="questions")
    with exploring(chromium, [text_path]) as served:
        for tab in (served, from_disk(tmp_path / "site")):
            tab.open("#/0/question/questions/mlp.post?by=animal")
            assert "Relevant neurons by layer" in tab.text()
            tab.page.locator("button.link").first.click()
            tab.page.locator(".prompt").first.wait_for()
            tab.settled()
            assert "(right)" in tab.text(".prompt")
            assert "query=0" in tab.page.url
