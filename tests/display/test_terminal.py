"""What only a terminal shows: bars, of which tests that capture their output never see a thing."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from actstore.display import terminal
from actstore.display.progress_log import ProgressLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a terminal would be sent."""
    sent = io.StringIO()
    monkeypatch.setattr(terminal, "err", terminal.Screen(file=sent, force_terminal=True, width=100))
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


# Without a terminal


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> list[ProgressLog]:
    """The logs that are begun where standard error is a file; at each look at their clock half a minute has passed."""
    made: list[ProgressLog] = []

    class Recorded(ProgressLog):
        def __init__(self, say: Callable[[str], None], *, enabled: bool) -> None:
            super().__init__(say, enabled=enabled, clock=iter(range(0, 10_000, 30)).__next__)
            made.append(self)

        def tick(self) -> None:
            if self._enabled:
                super().tick()

    monkeypatch.setattr(terminal, "ProgressLog", Recorded)
    return made


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a file gets that standard error is sent to."""
    sent = io.StringIO()
    monkeypatch.setattr(terminal, "err", terminal.Screen(file=sent, force_terminal=False, width=40))
    return sent


def test_without_a_terminal_a_capture_says_in_plain_lines_how_far_it_is(
    piped: io.StringIO, logs: list[ProgressLog]
) -> None:
    with terminal.CaptureBar(enabled=True) as bar:
        bar.planned(4, 900)
        logs[0].tick()
        bar.answered(3, 30)
        logs[0].tick()
        bar.started(900, 100, 5_000_000)
        bar.filled(400)
        logs[0].tick()
    planned, answered, captured = piped.getvalue().splitlines()
    assert planned == "planning, 4 documents: 900 tokens, 30/s."
    assert answered == "answering: 3 prompts, 0.1/s."
    assert captured == "capturing: 500 of 900 tokens (56 %), 13/s, about 30 s left."


def test_so_do_counts_and_work_of_unknown_length(piped: io.StringIO, logs: list[ProgressLog]) -> None:
    with terminal.counting_bar("blocks", enabled=True) as advance:
        advance(3, 12)
        logs[0].tick()
    with terminal.spinner("loading [gpt2]", enabled=True):
        logs[1].tick()
    assert piped.getvalue().splitlines() == [
        "3 of 12 blocks (25 %), 0.1/s, about 90 s left.", "loading [gpt2]: 30 s so far.",
    ]  # fmt: skip


@pytest.mark.parametrize("fixture", ["piped", "shown"])
def test_neither_quiet_nor_a_terminal_gets_lines(
    request: pytest.FixtureRequest, logs: list[ProgressLog], fixture: str
) -> None:
    sent: io.StringIO = request.getfixturevalue(fixture)
    with (
        terminal.CaptureBar(enabled=fixture == "shown"),
        terminal.counting_bar("blocks", enabled=fixture == "shown"),
        terminal.spinner("loading", enabled=fixture == "shown"),
    ):
        for log in logs:
            log.tick()
    assert len(logs) == 3
    assert "so far" not in sent.getvalue()


HOSTILE = "a[/a] [bold]b[/bold] \x1b]0;x\x07\x9b31m\x7f\u2028 :smile:"
SIGNS = "a[/a] [bold]b[/bold] ␛]0;x␇�31m␡↵ :smile:"


def _printed(**how: Any) -> tuple[terminal.Screen, io.StringIO]:
    sent = io.StringIO()
    return terminal.Screen(file=sent, width=200, **how), sent


def _tree(text: str) -> Tree:
    tree = Tree(text)
    tree.add(text)
    return tree


@pytest.mark.parametrize(
    "made",
    [
        str,
        lambda text: Group(text, text),
        _tree,
        lambda text: terminal.table(text, [text, (text, "right")], [[text, text]]),
    ],
    ids=["text", "group", "tree", "table"],
)
def test_what_is_printed_is_no_markup_and_no_control_sequence(made: Callable[[str], RenderableType]) -> None:
    screen, sent = _printed()
    screen.print(made(HOSTILE))
    assert SIGNS in sent.getvalue()
    assert not set(sent.getvalue()) & set("\x1b\x07\x9b\x7f\u2028\r")


def test_texts_of_rich_are_made_visible_too() -> None:
    screen, sent = _printed()
    screen.print(Text(HOSTILE), Text.assemble((HOSTILE, "bold")), sep="\n")
    # What rich takes out of its own texts (the bell) is gone; the rest is shown.
    assert sent.getvalue() == f"{SIGNS.replace('␇', '')}\n" * 2


def test_line_breaks_colours_and_markup_that_is_asked_for_stay() -> None:
    screen, sent = _printed(force_terminal=True, color_system="standard")
    screen.print("one\ntwo", style="red")
    screen.print("[bold]x[/bold]", markup=True)
    assert sent.getvalue() == "\x1b[31mone\x1b[0m\n\x1b[31mtwo\x1b[0m\n\x1b[1mx\x1b[0m\n"


def test_both_outputs_of_the_program_are_such_screens() -> None:
    assert isinstance(terminal.out, terminal.Screen)
    assert isinstance(terminal.err, terminal.Screen)


def test_bars_and_spinners_show_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, sent = _printed(force_terminal=True)
    monkeypatch.setattr(terminal, "err", screen)
    name = "m[/a]{0}\x1b]0;x\x07"
    with terminal.spinner(f"loading {name}", enabled=True):
        pass
    with terminal.counting_bar(name, enabled=True) as advance:
        advance(1, 2)
    assert "loading m[/a]{0}␛]0;x" in sent.getvalue()
    assert "\x1b]0" not in sent.getvalue()
