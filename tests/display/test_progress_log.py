"""Progress as plain lines: what they say, when they come, and that nothing comes where a bar is drawn or nobody asked."""

from __future__ import annotations

import threading

import pytest

from actstore.display import progress_log
from actstore.display.progress_log import ProgressLog, duration


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def log(lines: list[str], clock: Clock) -> ProgressLog:
    return ProgressLog(lines.append, enabled=True, clock=clock)


def test_a_line_says_how_much_of_what_how_fast_and_how_long_still(log: ProgressLog, clock: Clock) -> None:
    log.begin("capturing", "tokens", 0, 100_000)
    clock.now += 30
    log.advance(12_000)
    assert log.line() == "capturing: 12,000 of 100,000 tokens (12 %), 400/s, about 4 min left."
    clock.now += 30
    log.advance(12_000)
    assert log.line() == "capturing: 24,000 of 100,000 tokens (24 %), 400/s, about 3 min left."


def test_what_an_earlier_run_did_is_not_counted_as_speed(log: ProgressLog, clock: Clock) -> None:
    log.begin("capturing", "tokens", 90_000, 100_000)
    clock.now += 60
    log.advance(600)
    assert log.line() == "capturing: 90,600 of 100,000 tokens (91 %), 10/s, about 16 min left."


def test_without_a_total_there_is_no_time_left(log: ProgressLog, clock: Clock) -> None:
    log.begin("planning", "tokens")
    clock.now += 40
    log.update(8000, what="planning, 12 documents")
    assert log.line() == "planning, 12 documents: 8,000 tokens, 200/s."


def test_before_anything_is_done_only_the_time_is_said(log: ProgressLog, clock: Clock) -> None:
    log.begin("loading gpt2")
    clock.now += 150
    assert log.line() == "loading gpt2: 2 min so far."
    log.begin("", "blocks")
    clock.now += 31
    assert log.line() == "blocks: 31 s so far."
    log.update(0, 160)
    assert log.line() == "0 of 160 blocks (0 %)."
    log.update(4, 160)
    assert log.line() == "4 of 160 blocks (2 %), 0.13/s, about 20 min left."


def test_counting_anew_begins_the_clock_anew(log: ProgressLog, clock: Clock) -> None:
    log.begin("", "layers")
    log.update(30, 32)
    clock.now += 1000
    log.update(0, 32)
    clock.now += 10
    log.update(1, 32)
    assert log.line() == "1 of 32 layers (3 %), 0.1/s, about 5 min left."


def test_lines_come_from_a_thread_of_its_own_until_the_work_ends(
    lines: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_log, "INTERVAL_S", 0.001)
    said = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        said.set()

    with ProgressLog(say, enabled=True, clock=clock) as log:
        log.begin("waiting")
        assert said.wait(60)
    n = len(lines)
    assert n
    assert not any(thread.name == "actstore-progress" for thread in threading.enumerate())
    assert len(lines) == n


def test_nothing_is_said_before_the_first_interval_nor_where_it_is_not_wanted(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProgressLog(lines.append, enabled=True) as log:
        log.begin("waiting", "tokens", 0, 10)
        log.advance(10)
    monkeypatch.setattr(progress_log, "INTERVAL_S", 0.0)
    with ProgressLog(lines.append, enabled=False) as log:
        log.advance(10)
        assert not any(thread.name == "actstore-progress" for thread in threading.enumerate())
    assert lines == []


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (45, "45 s"),
        (99, "99 s"),
        (150, "2 min"),
        (5000, "83 min"),
        (12600, "3.5 h"),
        (181_440, "2.1 days"),
    ],
)
def test_a_time_is_one_number(seconds: float, said: str) -> None:
    assert duration(seconds) == said
