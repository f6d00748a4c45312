"""Drawing: what is shown of a graph, how it reads, and that no token can break a picture."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actstore.display.graphs.branches import Branch, Drawing, make_drawing
from actstore.display.graphs.draw import draw_dot, write_picture
from actstore.display.graphs.html import draw_html
from actstore.display.graphs.labels import cut_label, token_label
from actstore.display.graphs.svg import draw_svg, ink_on, mix
from actstore.display.graphs.terminal import draw_tree
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.nodes import BOUNDARY, IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Store

CAT, THE, BLACK, NOT = range(4)
RULES = [
    ((CAT,), 0.12, 900, 210),
    ((CAT, THE), 0.05, 300, 100),
    ((CAT, THE, BLACK), 0.97, 100, 97, 0.9),
    ((CAT, IGNORE, IGNORE, NOT), 0.01, 50, 0),
    ((CAT, BOUNDARY), 0.5, 5, 3),
]
"""Fires on "cat" after "black the" and at the beginning of a text, not where "not" stands three tokens before."""


def text_of(drawing: Drawing) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(draw_tree(drawing))
    console.file.close()
    return console.export_text()


def flat(branch: Branch) -> list[Branch]:
    return [branch, *(b for child in branch.children for b in flat(child))]


def make_branch(label: str, *children: Branch, **given: Any) -> Branch:
    """A branch as `make_drawing` makes them, with defaults for the fields that a test does not use."""
    numbers = {"probability": 0.5, "value": 0.5, "count": 9, "fires": 5, "own_count": 4, "own_fires": 2}
    rest = {"token": 0, "skipped": 0, "importance": math.nan, "strength": 0.5, "is_silent": False}
    return Branch(label=label, children=list(children), **numbers | rest | given)


@pytest.fixture
def drawn(planting: Callable[..., Graphs], store: Store) -> Callable[..., Drawing]:
    """drawn(paths, **options): the drawing of one planted neuron."""

    def draw(planted: Any, **options: Any) -> Drawing:
        graphs = planting({(1, 17): planted}, name=f"g{np.random.default_rng().integers(1 << 60)}")
        return make_drawing(graphs.graph(1, 17), store.token_bytes, **options)

    return draw


def test_a_graph_is_shown_as_it_is(drawn: Callable[..., Drawing]) -> None:
    (root,) = drawn(RULES).roots
    assert (root.label, root.count, root.fires, root.skipped) == ("·cat", 900, 210, 0)
    assert math.isclose(root.highest, 0.97, abs_tol=1e-6)
    shown = {(b.label, b.skipped, round(b.probability, 2), b.is_silent) for b in flat(root)}
    assert shown == {
        ("·cat", 0, 0.12, True), ("·the", 0, 0.05, True), ("·black", 0, 0.97, False), ("not", 2, 0.01, True),
        ("(start)", 0, 0.5, False),
    }  # fmt: skip


def test_blue_is_the_measured_importance_or_what_the_token_could_change(drawn: Callable[..., Drawing]) -> None:
    strengths = {b.label: round(b.strength, 2) for b in flat(drawn(RULES).roots[0])}
    assert strengths["·black"] == 0.9  # measured
    assert strengths["·the"] == 0.85  # with "black" before it: from 0.12 to 0.97
    assert strengths["not"] == 0.11
    assert strengths["(start)"] == 0.38


def test_without_ignore_skipped_tokens_are_left_out_and_like_lines_are_one(drawn: Callable[..., Drawing]) -> None:
    paths = [
        ((CAT,), 0.1, 99, 9),
        ((CAT, THE), 0.3, 9, 3),
        ((CAT, IGNORE, THE), 0.8, 8, 6),
        ((CAT, IGNORE, THE, NOT), 0.9, 4, 4),
    ]
    (root,) = drawn(paths, with_ignore=False).roots
    (the,) = root.children
    assert (the.label, the.skipped, the.count, the.fires) == ("·the", 0, 17, 9)
    assert round(the.probability, 2) == 0.8
    assert [c.label for c in the.children] == ["not"]
    (root,) = drawn(paths, with_ignore=True).roots
    assert sorted((c.label, c.skipped) for c in root.children) == [("·the", 0), ("·the", 1)]


def test_the_lines_that_matter_are_drawn_and_the_rest_counted(drawn: Callable[..., Drawing]) -> None:
    paths = [((t,), 0.9, 10 * (t + 1), 9 * (t + 1)) for t in range(20)]
    drawing = drawn(paths, paths=3)
    assert [root.count for root in drawing.roots] == [200, 190, 180]
    assert (drawing.n_paths, drawing.n_hidden) == (20, 17)
    for said in (text_of(drawing), draw_svg(drawing), draw_html(drawing), draw_dot(drawing)):
        assert "17" in said
    assert drawn(paths, paths=0).n_hidden == 0


def test_an_exception_is_drawn_before_a_rule_that_matters_less(drawn: Callable[..., Drawing]) -> None:
    paths = [((CAT,), 0.9, 1000, 800), ((CAT, NOT), 0.0, 100, 0), ((CAT, THE), 0.95, 5, 5)]
    labels = [b.label for b in flat(drawn(paths, paths=2).roots[0])]
    assert labels == ["·cat", "not"]


def test_only_what_never_fires_is_dashed(drawn: Callable[..., Drawing]) -> None:
    drawing = drawn(
        [((CAT,), 0.1, 90, 21), ((CAT, THE), 0.05, 30, 10), ((CAT, THE, BLACK), 0.97, 9, 9), ((CAT, NOT), 0.0, 9, 0)]
    )
    assert {b.label: b.fires_nowhere for b in flat(drawing.roots[0])} == {
        "·cat": False, "·the": False, "·black": False, "not": True,
    }  # fmt: skip
    svg = draw_svg(drawing)
    assert svg.count('stroke-dasharray="4 3"') == 1  # a box
    assert svg.count('stroke-dasharray="3 3"') == 1  # its arrow
    assert draw_dot(drawing).count("dashed") == 1
    assert draw_html(drawing).count('class="token silent"') == 1


def test_the_terminal_tree_reads_outwards_in(drawn: Callable[..., Drawing]) -> None:
    rows = [re.sub(r"[│├└─ ]+", " ", row).strip() for row in text_of(drawn(RULES)).splitlines()[4:]]
    assert rows[0] == "·cat P 0.12 fired 107 of 545 (210 of 900 in all)"
    the = rows.index("← ·the P 0.05 fired 3 of 200 (100 of 300 in all)")
    assert rows[the + 1] == "← ·black P 0.97 fired 97 of 100 importance 0.90"
    assert "← … ×2 ← not P 0.01 fired 0 of 50" in rows


def test_a_probability_and_the_counts_beside_it_are_of_the_same_occurrences(drawn: Callable[..., Drawing]) -> None:
    # Of 4,664 occurrences almost all are answered for by a longer path, in which the neuron does not fire.
    drawing = drawn([((CAT,), 0.96, 4664, 126), ((CAT, NOT), 0.0, 4530, 2), ((CAT, THE), 0.3, 9, 3)])
    (root,) = drawing.roots
    assert (root.own_fires, root.own_count, root.fires, root.count) == (121, 125, 126, 4664)
    assert "P 0.96  fired 121 of 125 (126 of 4,664 in all)" in text_of(drawing)
    assert '<span class="n">fired 121 of 125 (126 of 4,664 in all)</span>' in draw_html(drawing)
    for picture in (draw_svg(drawing), draw_dot(drawing)):
        assert "P 0.96 · 121/125" in picture
        assert "126/4,664" not in picture
        assert (
            "fired 126 times of 4,664 in all; P of firing where no longer path matches 0.960, at 121 of 125" in picture
        )


def test_where_longer_lines_answer_for_all_the_counts_are_those_of_all(drawn: Callable[..., Drawing]) -> None:
    drawing = drawn([((CAT,), 0.5, 20, 10), ((CAT, THE), 0.9, 10, 9), ((CAT, NOT), 0.1, 10, 1)])
    assert "P 0.50  fired 10 of 20 in all, never seen without a longer path" in text_of(drawing)
    assert "P 0.50 · 10/20" in draw_svg(drawing)


def test_lines_drawn_as_one_keep_a_probability_and_its_counts_together(drawn: Callable[..., Drawing]) -> None:
    paths = [((CAT,), 0.1, 99, 9), ((CAT, THE), 0.3, 9, 3), ((CAT, IGNORE, THE), 0.8, 8, 6)]
    assert "P 0.80  fired 6 of 8 (9 of 17 in all)" in text_of(drawn(paths, with_ignore=False))


def test_a_neuron_that_never_fires_is_an_empty_graph_that_says_so(drawn: Callable[..., Drawing]) -> None:
    drawing = drawn([])
    assert (drawing.roots, drawing.status) == ((), "never fires")
    for said in (text_of(drawing), draw_svg(drawing), draw_html(drawing), draw_dot(drawing)):
        assert "never fires" in said
    ElementTree.fromstring(draw_svg(drawing))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (b" the", "·the"), (b"\xe2", r"\xE2"), (b"\n\t\r", r"↵→\x0D"), (b"\x00\x1b[31m\x7f", r"\x00\x1B[31m\x7F"),
        ("\u202eabc".encode(), r"\u202Eabc"), (b"  ", "··"), (b"", "(empty)"), ("\u0301".encode(), "◌\u0301"),
        (b"a  b ", "a··b·"), ("東京".encode(), "東京"), ("\ufffe".encode(), r"\uFFFE"), (b"\xe6\x9d\xb1\xe4", r"東\xE4"),
        ("\U000e0001".encode(), r"\U000E0001"), (b"\xc2\xa0", r"\u00A0"),
    ],
)  # fmt: skip
def test_labels_are_one_line_of_printable_text(text: bytes, label: str) -> None:
    assert token_label(5, text) == label


@given(st.binary(max_size=80))
def test_any_bytes_make_a_printable_label(text: bytes) -> None:
    label = token_label(0, text)
    assert label
    assert label.isprintable()
    assert len(cut_label(label)) <= 32


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@given(
    st.lists(
        st.one_of(st.binary(max_size=20), st.text("\"\\<>&'\n{}]!-N", max_size=12).map(str.encode)),
        min_size=1,
        max_size=5,
    )
)
def test_no_token_breaks_a_picture(texts: list[bytes]) -> None:
    def branch(i: int) -> Branch:
        below = [branch(i + 1)] if i + 1 < len(texts) else []
        return make_branch(token_label(i, texts[i]), *below, token=i, skipped=i % 2)

    drawing = Drawing("L0.N0", "", (branch(0),), 5, 5, 0, 'a < b & "c"')
    svg = ElementTree.fromstring(draw_svg(drawing))
    labels = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {cut_label(token_label(i, text)) for i, text in enumerate(texts)} <= set(labels)
    page = _Tags()
    page.feed(draw_html(drawing))
    tags = [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "p",
        "main",
        "details",
        "summary",
        "div",
        "span",
        "bdi",
        "ul",
        "li",
    ]
    assert page.tags <= set(tags)
    assert page.attributes <= {"lang", "charset", "name", "content", "open", "class", "style", "title"}
    for row in draw_dot(drawing).splitlines()[1:-1]:
        # Outside quoted strings, in which only quotes and backslashes are escaped, nothing of a token is left.
        bare = re.sub(r'"(?:[^"\\]|\\["\\n])*"', "", row)
        assert re.fullmatch(r"[\w\s=;,.\[\]>-]*", bare), row


def test_nothing_lies_on_anything_else(drawn: Callable[..., Drawing]) -> None:
    rng = np.random.default_rng(0)
    paths = {
        tuple(path[: n + 1]): (tuple(path[: n + 1]), float(rng.random()), 50, 20)
        for path in rng.integers(0, 9, (40, 4)).tolist()
        for n in range(4)
    }
    svg = ElementTree.fromstring(draw_svg(drawn([*paths.values(), ((CAT, IGNORE, NOT), 0.4, 9, 3)], paths=0)))
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    boxes = [[float(r.attrib[a]) for a in ("x", "y", "width", "height")] for r in svg.iter("{http://www.w3.org/2000/svg}rect")
             if r.attrib.get("rx") == "6" and "x" in r.attrib]  # fmt: skip
    assert len(boxes) == len(paths) + 1
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    for i, (x, y, w, h) in enumerate(boxes):
        for other_x, other_y, other_w, other_h in boxes[:i]:
            assert x >= other_x + other_w or other_x >= x + w or y >= other_y + other_h or other_y >= y + h


@pytest.mark.parametrize("strength", np.linspace(0, 1, 11))
@pytest.mark.parametrize("colour", [(214, 39, 40), (65, 125, 215)])
def test_text_is_readable_on_every_colour(strength: float, colour: tuple[int, int, int]) -> None:
    def luminance(rgb: tuple[int, ...]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    fill = mix(colour, strength)
    ink = tuple(bytes.fromhex(ink_on(fill)[1:]))
    light, dark = sorted((luminance(fill), luminance(ink)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4  # WCAG asks 3 of bold and large text, 4.5 of the rest


def test_the_same_graph_is_the_same_bytes(drawn: Callable[..., Drawing]) -> None:
    first, second = drawn(RULES), drawn(list(reversed(RULES)))
    for draw in (draw_svg, draw_html, draw_dot):
        assert draw(first) == draw(second)


def test_pictures_are_refused_where_they_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = Drawing("L0.N0", "never fires", (), 0, 0, 0)
    with pytest.raises(InvalidInputError, match=r"end in \.svg, \.png, \.html or \.dot, found .*x\.gif"):
        write_picture(tmp_path / "x.gif", drawing)
    with pytest.raises(InvalidInputError, match="does not exist"):
        write_picture(tmp_path / "none" / "x.svg", drawing)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InvalidInputError, match=r"Install Graphviz, or write \.svg"):
        write_picture(tmp_path / "x.png", drawing)


def test_png_goes_through_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[bytes]:
        assert command[:2] == ["dot", "-Tpng"]
        seen.append(given["input"])
        return subprocess.CompletedProcess(command, 0, b"PNG", b"")

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/dot")
    monkeypatch.setattr(subprocess, "run", run)
    drawing = Drawing("L0.N0", "never fires", (), 0, 0, 0)
    write_picture(tmp_path / "x.png", drawing)
    assert (tmp_path / "x.png").read_bytes() == b"PNG"
    assert seen == [draw_dot(drawing).encode()]
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, b"", b"bad\nsyntax")
    )
    with pytest.raises(InvalidInputError, match="could not draw the graph: bad syntax"):
        write_picture(tmp_path / "x.png", drawing)
