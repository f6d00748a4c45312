"""Words of the glossary are links where they first appear on a page of the documentation."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def links() -> Any:
    spec = importlib.util.spec_from_file_location("glossary_links", DOCS / "glossary_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_word_is_a_link_once_and_in_text_only(links: Any) -> None:
    page = (
        '<h2 id="x">Exemplars</h2><p>An <code>exemplar</code>, <a href="y">an exemplar</a>, Exemplars, exemplars; '
        'write vectors, <em>write vector</em>; non-exemplar, exemplary</p><pre><span class="k">write</span> exemplar</pre>'
        "<svg><text>context token</text></svg>"
    )
    place = 'class="term" href="../glossary.html#term-exemplar"'
    found = links.with_links(page, "../glossary.html")
    assert found.count("<a class=") == 2
    assert f'<a href="y">an exemplar</a>, <a {place}>Exemplars</a>, exemplars; <a class="term" ' in found
    assert "<em>write vector</em>; non-exemplar, exemplary" in found
    assert re.sub(r'<a class="term"[^>]*>([^<]*)</a>', r"\1", found) == page


def test_every_link_has_a_place_on_the_page_and_the_rest_of_it_is_as_it_was(links: Any) -> None:
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    page = links.with_anchors(glossary)
    places = re.findall(r'<span id="([^"]+)"></span>', page)
    assert len(places) == len(set(places)) > 50
    assert set(links.terms().values()) <= set(places)
    assert re.sub(r'<span id="[^"]+"></span>', "", page) == glossary


def test_words_of_everyday_english_are_no_links(links: Any) -> None:
    assert not links.EVERYDAY & set(links.terms())
    assert links.with_links("<p>The target of a plan is a store of statistics.</p>", "g") == (
        "<p>The target of a plan is a store of statistics.</p>"
    )
