"""The picture of what sets of neurons share: every pair, its share by the formula, names as they were written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest

from actstore.display.overlap_map import draw_overlap, write_overlap
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import overlap_shares

if TYPE_CHECKING:
    from pathlib import Path

SETS = {
    "en": np.array([3, 5, 7, 9]),
    "fr & <co>": np.array([9, 5]),
    "nothing": np.array([], np.int64),
    "a label that is far too long for the width of a column": np.array([100]),
}


def test_shares_are_those_of_both_among_those_of_either() -> None:
    lists = [set(neurons.tolist()) for neurons in SETS.values()]
    expected = [[len(a & b) / len(a | b) if a | b else 0 for b in lists] for a in lists]
    np.testing.assert_allclose(overlap_shares([*SETS.values()]), expected)
    assert expected[0][1] == 0.5
    assert overlap_shares([np.array([1, 1, 2]), np.array([2])]).tolist() == [[1, 0.5], [0.5, 1]]


def test_every_pair_has_a_cell() -> None:
    image = draw_overlap(SETS, "Neurons that languages share", "tiny")
    root = ElementTree.fromstring(image)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sum(1 for box in root.iter("{http://www.w3.org/2000/svg}rect") if box.get("height") == "25") == 16
    assert texts.count("50") == 2
    assert texts.count("100") == 3
    assert "fr & <co>" in texts
    assert any((text.text or "").endswith("…") for text in root.iter("{http://www.w3.org/2000/svg}text"))


def test_pages_and_other_files(tmp_path: Path) -> None:
    write_overlap(tmp_path / "x.html", SETS, "Shared")
    assert re.match(r"<!doctype html>\n.*<svg", (tmp_path / "x.html").read_text(), re.DOTALL)
    with pytest.raises(InvalidInputError, match=r"ending in \.svg or \.html"):
        write_overlap(tmp_path / "x.png", SETS, "Shared")
