"""What only a terminal shows: bars, of which tests that capture their output never see a thing."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from actstore import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a terminal would be sent."""
    sent = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=sent, force_terminal=True, width=100))
    return sent


def test_a_bar_shows_what_is_done_before_and_after_the_total_is_known(shown: io.StringIO) -> None:
    with terminal.counting_bar("prompts", enabled=True) as advance:
        advance(3, 12)
    assert "prompts" in shown.getvalue()
    assert "3/12" in shown.getvalue()


def test_a_bar_that_is_switched_off_shows_nothing(shown: io.StringIO) -> None:
    with terminal.counting_bar("prompts", enabled=False) as advance:
        advance(3, 12)
    assert shown.getvalue() == ""


def test_a_capture_shows_planning_and_then_filling(shown: io.StringIO) -> None:
    with terminal.CaptureBar(enabled=True) as bar:
        bar.planned(4, 900)
        bar.started(900, 100, 5_000_000)
        bar.filled(800)
    assert "capturing" in shown.getvalue()
