"""The page of a graph: the position of each branch, by the nesting of elements and by the indentation of the style."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from rich.console import Console

from actstore.display.graphs.branches import Branch, Drawing
from actstore.display.graphs.draw import draw_dot
from actstore.display.graphs.html import STYLE, draw_html
from actstore.display.graphs.svg import draw_svg
from actstore.display.graphs.terminal import draw_tree

Element = tuple[str, frozenset[str]]
"""A tag and its classes."""


def branch(label: str, *children: Branch) -> Branch:
    return Branch(0, label, 0, 0.5, 0.5, 9, 5, 4, 2, math.nan, 0.5, False, list(children))


def chain(depth: int) -> Branch:
    result = branch(f"d{depth}")
    for level in reversed(range(depth)):
        result = branch(f"d{level}", result)
    return result


TREES: dict[str, tuple[Branch, ...]] = {
    "one node": (branch("a"),),
    "roots without children": (branch("a"), branch("b"), branch("c")),
    "root without children first": (branch("a"), branch("b", branch("c"))),
    "root without children last": (branch("a", branch("b")), branch("c")),
    "roots without children between": (branch("a", branch("b")), branch("c"), branch("d"), branch("e", branch("f"))),
    "leaf after an inner branch": (branch("a", branch("b", branch("c")), branch("d"), branch("e", branch("f"))), branch("g")),
    "deep": (branch("x"), chain(12), branch("y")),
}  # fmt: skip


class Page(HTMLParser):
    """Every branch of a page, in order: its label, the branch that it lies within, and the left edge of its box in pixels."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.path: list[Element] = []
        self.labels: list[str | None] = []  # of each open element, the branch that it holds
        self.found: list[tuple[str, str | None, float]] = []
        self.reading = False
        self.feed(html)
        assert self.path == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.path.append((tag, frozenset((dict(attrs).get("class") or "").split())))
            self.labels.append(None)
            self.reading = tag == "bdi"

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop()[0] == tag
        self.labels.pop()
        self.reading = False

    def handle_data(self, data: str) -> None:
        if self.reading:
            # The outermost element that holds no other branch: an item of a list, or what stands for a branch itself.
            own = max(i for i, (tag, classes) in enumerate(self.path) if tag in ("li", "details") or "leaf" in classes)
            while self.path[own - 1][0] == "li":
                own -= 1
            above = next((label for label in reversed(self.labels[:own]) if label is not None), None)
            self.labels[own] = data
            self.found.append((data, above, left_edge(self.path[: own + 1])))


def left_edge(path: list[Element]) -> float:
    """Margins, borders and paddings of all elements around the last one, and its margin."""
    edges = [_style(path[: i + 1]) for i in range(len(path))]
    return sum(sum(edge.values()) for edge in edges[:-1]) + edges[-1].get("margin-left", 0.0)


def _style(path: list[Element]) -> dict[str, float]:
    """What the style says of the left side of the last element: the most specific selector wins, then the later one."""
    result: dict[str, tuple[tuple[int, int, int], float]] = {}
    for order, (selectors, body) in enumerate(re.findall(r"([^{}]+)\{([^{}]*)\}", STYLE)):
        for selector in selectors.strip().split(","):
            if not _matches(re.findall(r">|[^\s>]+", selector), path):
                continue
            weight = (selector.count("."), len(re.findall(r"(?:^|[\s>])[a-z]", selector)), order)
            for name, value in _left(body):
                if name not in result or weight >= result[name][0]:
                    result[name] = (weight, value)
    return {name: value for name, (_, value) in result.items()}


def _matches(selector: list[str], path: list[Element]) -> bool:
    if not selector:
        return True
    if not path:
        return False
    tag, *classes = selector[-1].split(".")
    if (tag and tag != path[-1][0]) or not set(classes) <= path[-1][1]:
        return False
    if len(selector) > 1 and selector[-2] == ">":
        return bool(path[:-1]) and _matches(selector[:-2], path[:-1])
    return len(selector) == 1 or any(_matches(selector[:-1], path[:n]) for n in range(1, len(path)))


def _left(body: str) -> list[tuple[str, float]]:
    result = []
    for declaration in filter(None, body.replace("\n", "").split(";")):
        name, value = declaration.split(":", 1)
        if name in ("margin-left", "padding-left", "border-left"):
            result.append((name, _pixels(value.split()[0])))
        elif name in ("margin", "padding"):
            sides = value.split()
            result.append((f"{name}-left", _pixels(sides[3 if len(sides) > 3 else 1 if len(sides) > 1 else 0])))
        elif name == "border":
            result.append(("border-left", _pixels(value.split()[0])))
    return result


def _pixels(length: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+|auto)([a-z]*)", length).groups()  # type: ignore[union-attr]
    return 0.0 if number == "auto" else float(number) * {"rem": 16, "em": 16, "px": 1, "": 1}[unit]


@pytest.mark.parametrize("name", TREES)
def test_every_branch_lies_below_its_own_token_and_roots_stand_at_the_margin(name: str) -> None:
    roots = TREES[name]
    expected: list[tuple[str, str | None, int]] = []

    def walk(one: Branch, above: str | None, depth: int) -> None:
        expected.append((one.label, above, depth))
        for child in one.children:
            walk(child, one.label, depth + 1)

    for root in roots:
        walk(root, None, 0)
    result = Page(draw_html(Drawing("L0.N0", "", roots, len(expected), len(expected), 0))).found
    assert [(label, above) for label, above, _ in result] == [(label, above) for label, above, _ in expected]
    edges = [edge for _, _, edge in result]
    by_depth: dict[int, set[float]] = {}
    for (_, _, depth), edge in zip(expected, edges, strict=True):
        by_depth.setdefault(depth, set()).add(edge)
    assert all(len(of_depth) == 1 for of_depth in by_depth.values()), by_depth
    in_order = [by_depth[depth].pop() for depth in sorted(by_depth)]
    assert all(b - a > 10 for a, b in pairwise(in_order)), in_order


def depths_of(roots: tuple[Branch, ...], depth: int = 0) -> list[tuple[str, int]]:
    return [item for one in roots for item in ((one.label, depth), *depths_of(tuple(one.children), depth + 1))]


@pytest.mark.parametrize("name", TREES)
def test_so_they_do_in_the_other_drawings(name: str) -> None:
    roots = TREES[name]
    expected = depths_of(roots)
    drawing = Drawing("L0.N0", "", roots, len(expected), len(expected), 0)
    # Graphviz: an arrow from each branch to its own, none from a root.
    dot = draw_dot(drawing)
    labels = dict(re.findall(r'(n\d+) \[label="([a-z0-9]+)\\n', dot))
    arrows = {labels[child]: labels[parent] for child, parent in re.findall(r"(n\d+) -> (n\d+)", dot)}
    assert arrows == {child.label: one.label for root in roots for one in walk(root) for child in one.children}
    # Terminal: four characters deeper at each step.
    console = Console(width=200, file=io.StringIO())
    console.print(draw_tree(drawing))
    lines = console.file.getvalue().splitlines()[4:]  # type: ignore[attr-defined]
    shown = [re.match(r"([│├└─ ]*?)(?:← )? ([a-z0-9]+)  ", line) for line in lines]
    assert [(match[2], len(match[1]) // 4 - 1) for match in shown if match] == expected
    # SVG: a column for each depth, from the right.
    svg = ElementTree.fromstring(draw_svg(drawing))
    boxes = [g for g in svg.iter("{http://www.w3.org/2000/svg}g")]
    ends: dict[int, set[float]] = {}
    for box, (_, depth) in zip(boxes, expected, strict=True):
        outline = box.find("{http://www.w3.org/2000/svg}rect")
        assert outline is not None
        ends.setdefault(depth, set()).add(round(float(outline.attrib["x"]) + float(outline.attrib["width"]), 1))
    assert all(len(of_depth) == 1 for of_depth in ends.values())


def walk(one: Branch) -> list[Branch]:
    return [one, *(below for child in one.children for below in walk(child))]
