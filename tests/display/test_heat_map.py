"""The picture of layers: well-formed, complete, with every label readable as it was written."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest

from actstore.display.heat_map import colour, draw_svg, is_dark, percent, write_picture
from actstore.engine.naica.selection import LayerCounts
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"


def counts(labels: list[str], layers: tuple[int, ...], values: list[list[int]]) -> LayerCounts:
    shape = (len(labels), len(layers))
    return LayerCounts(
        "language", tuple(labels), layers, np.array(values, np.int64).reshape(shape), np.full(len(labels), 4)
    )


def read(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in read(svg).iter(f"{SVG}text")]


def boxes(svg: str, height: str = "25") -> list[ElementTree.Element]:
    return [box for box in read(svg).iter(f"{SVG}rect") if box.get("height") == height]


def test_every_cell_has_its_colour_and_number_and_every_axis_its_names() -> None:
    drawn = counts(["biology", "python"], (0, 1, 5), [[1, 0, 3], [0, 2, 0]])
    svg = draw_svg(drawn, "Neurons by layer", "fact-llama")
    cells = boxes(svg)
    assert len(cells) == 6
    fills = [box.get("fill") for box in cells]
    assert fills[1] == fills[3] == fills[5] == "#f7fbff"  # none
    assert fills[4] == "#08306b"  # all of a row's
    assert len(set(fills)) == 4
    assert [t for t in texts(svg) if t in ("25", "75", "100")] == ["25", "75", "100"]
    for text in (
        "Neurons by layer",
        "fact-llama",
        "biology",
        "python",
        "language",
        "layer",
        "0",
        "1",
        "5",
        "100 %",
        "1.0",
    ):
        assert text in texts(svg), text
    assert draw_svg(drawn, "Neurons by layer", "fact-llama") == svg


def test_labels_in_any_script_come_out_as_they_are() -> None:
    labels = ["العربية", "中文", "日本語", "Русский", 'a <b> & "c"', "tab\tand\x00null"]
    found = texts(draw_svg(counts(labels, (0,), [[1]] * 6), "T"))
    for label in labels[:5]:
        assert label in found
    assert "tab and null" in found


def test_a_long_label_is_cut_and_kept_whole_in_its_tooltip() -> None:
    label = "very " * 30
    svg = draw_svg(counts([label, "x"], (0,), [[1], [1]]), "T")
    shown = next(t for t in texts(svg) if t.startswith("very"))
    assert shown.endswith("…")
    assert label in [element.text for element in read(svg).iter(f"{SVG}title")]
    assert len(shown) < 40


@pytest.mark.parametrize("n_layers", [1, 5, 32, 96, 1000])
@pytest.mark.parametrize("labels", [["x"], ["一" * 40, "x" * 80]])
def test_nothing_lies_outside_and_no_numbers_overlap(n_layers: int, labels: list[str]) -> None:
    drawn = counts(labels, tuple(range(n_layers)), [[1] * n_layers] * len(labels))
    root = read(draw_svg(drawn, "A title of the picture", "a subtitle"))
    width, height = (float(v) for v in (root.get("viewBox") or "").split()[2:])
    ticks = []
    for text in root.iter(f"{SVG}text"):
        long = float(text.get("font-size") or 0) * sum(1.0 if ord(c) > 0x2E80 else 0.6 for c in text.text or "")
        start = float(text.get("x") or 0) - {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor") or ""] * long
        assert start >= -0.01
        assert start + long <= width + 0.01, text.text
        assert 0 < float(text.get("y") or 0) < height
        if text.get("y") == str(84 + 26 * len(labels) + 16):
            ticks.append((start, start + long))
    assert ticks
    assert all(a[1] < b[0] for a, b in pairwise(ticks))


def test_a_picture_of_nothing() -> None:
    assert len(boxes(draw_svg(counts(["x"], (0, 1), [[0, 0]]), "T"))) == 2
    assert boxes(draw_svg(counts([], (0, 1), []), "T")) == []


def test_colours_go_from_light_to_dark() -> None:
    ramp = [colour(i / 50) for i in range(51)]
    lightness = [sum(rgb) for rgb in ramp]
    assert lightness == sorted(lightness, reverse=True)
    assert [is_dark(ramp[0]), is_dark(ramp[-1])] == [False, True]
    assert colour(-1) == ramp[0]
    assert colour(7) == ramp[-1]
    assert [percent(share) for share in (0.0, 0.004, 0.006, 0.126, 1.0)] == ["", "<1", "1", "13", "100"]


def test_svg_and_html_files(tmp_path: Path) -> None:
    drawn = counts(["中文"], (0,), [[1]])
    write_picture(tmp_path / "a.svg", drawn, "A & B")
    write_picture(tmp_path / "a.HTML", drawn, "A & B")
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    page = (tmp_path / "a.HTML").read_text(encoding="utf-8")
    assert svg.startswith("<svg ")
    assert svg in page
    assert re.search(r"<!doctype html>.*charset=\"utf-8\".*<title>A &amp; B</title>", page, re.DOTALL)


def test_other_formats_and_missing_folders_are_refused(tmp_path: Path) -> None:
    drawn = counts(["x"], (0,), [[1]])
    with pytest.raises(
        InvalidInputError, match=r"Expected a heat map file ending in \.svg or \.html, found '.*a\.png'"
    ):
        write_picture(tmp_path / "a.png", drawn, "T")
    with pytest.raises(InvalidInputError, match=r"The folder of .* does not exist\. Make it"):
        write_picture(tmp_path / "no" / "a.svg", drawn, "T")
    assert not [*tmp_path.iterdir()]
