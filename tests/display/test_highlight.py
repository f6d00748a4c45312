"""An exemplar's tokens on a terminal: whatever its width, the token that fires is on the line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from actstore.display import terminal
from actstore.display.highlight import highlighted, window_around
from actstore.display.reports import exemplar_line, print_neuron

TOKENS = [f" word{i}" for i in range(40)]


def exemplar(tokens: list[str], pivot: int) -> dict[str, Any]:
    return {"value": 1.5, "tokens": tokens, "activations": [0.0] * len(tokens), "pivot": pivot}


def underlined(line: Any) -> str:
    """The part of a line that stands for the token that fires."""
    return "".join(line.plain[span.start : span.end] for span in line.spans if "underline" in str(span.style))


@pytest.mark.parametrize("width", range(1, 121))
@pytest.mark.parametrize("pivot", [0, 20, 39])
def test_the_token_that_fires_is_visible_at_any_width(width: int, pivot: int) -> None:
    line = exemplar_line(exemplar(TOKENS, pivot), 1.5, colours=True, width=width)
    shown = underlined(line)
    assert shown == TOKENS[pivot] or (shown and TOKENS[pivot].startswith(shown.rstrip("…")) and width < 8)
    assert cell_len(line.plain.splitlines()[-1]) <= width
    if width >= 40:  # value and tokens on one line, what is left out marked on its side
        text = line.plain[11:]
        assert "\n" not in line.plain
        assert text.startswith("…") == (pivot > 0)
        assert text.endswith("…") == (pivot < 39)
        assert cell_len(text) > width - 11 - 8, "no room is wasted"


def test_what_fits_is_shown_whole() -> None:
    line = exemplar_line(exemplar(TOKENS[:5], 2), 1.5, colours=True, width=80)
    assert line.plain == "      1.5  " + "".join(TOKENS[:5])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.data())
def test_a_window_is_the_longest_run_that_fits(cells: list[int], data: st.DataObject) -> None:
    pivot, room = data.draw(st.integers(0, len(cells) - 1)), data.draw(st.integers(1, 120))
    shown = window_around(cells, pivot, room)

    def needed(first: int, stop: int) -> int:
        return sum(cells[first:stop]) + (first > 0) + (stop < len(cells))

    assert pivot in shown
    assert len(shown) == 1 or needed(shown.start, shown.stop) <= room
    for first, stop in ((shown.start - 1, shown.stop), (shown.start, shown.stop + 1)):
        assert first < 0 or stop > len(cells) or needed(first, stop) > room


@given(st.lists(st.text(max_size=8), min_size=1, max_size=20), st.integers(2, 60), st.data())
def test_no_token_makes_a_line_too_long(tokens: list[str], width: int, data: st.DataObject) -> None:
    pivot = data.draw(st.integers(0, len(tokens) - 1))
    assert highlighted(tokens, None, pivot, 1.0, width).cell_len <= width


def test_a_terminal_of_80_columns_shows_where_the_neuron_fires(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "out", terminal.Screen(force_terminal=True, width=80))
    statistics = {"mean": 0.0, "std": 1.0, "max": 1.5, "positive": 0.5, "count": 9}
    print_neuron("L3.N17", statistics, [exemplar(TOKENS, 20)])
    line = capsys.readouterr().out.splitlines()[-1]
    assert "\x1b[1;4m word20\x1b[0m" in line
