"""What people see: tables, highlighted text, histograms, progress. Nothing here computes.

Whatever is printed may hold names from outside (folders, models, labels, column headings): `out` and `err` print every text
as it is, without markup, and control characters as signs, so that no name can move the cursor or set the window's title.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from actstore.display.progress_log import ProgressLog
from actstore.engine.capture.progress import CaptureProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray
    from rich.console import ConsoleOptions, RenderableType
    from rich.progress import Task


# Of the controls from 0x7f, some terminals obey the later ones as they do ESC [.
_SIGNS = (
    {code: chr(0x2400 + code) for code in range(32)}
    | {code: "\ufffd" for code in (*range(0x80, 0xA0), *range(0xD800, 0xE000))}
    | {ord("\n"): "↵", ord("\t"): "→", ord("\r"): "␍", 0x7F: "␡", 0x2028: "↵", 0x2029: "↵"}
)
_SIGNS_IN_LINES = {code: sign for code, sign in _SIGNS.items() if code != ord("\n")}


def visible(token: str) -> str:
    """A token as one line of printable text: line breaks and tabs become signs, other control characters their pictures."""
    return token.translate(_SIGNS)


class Screen(Console):
    """A console on which texts are never markup unless the call asks for it, and control characters show as signs.

    rich's own control sequences (colours, moving bars) are no text, and pass.
    """

    def __init__(self, **settings: Any) -> None:
        # Nor emoji nor highlights: 0:100:0 is a place, not a sign.
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | settings)

    def render_str(self, text: str, **how: Any) -> Text:
        """A plain text before it is laid out, so that signs count in the width of a column."""
        return super().render_str(text.translate(_SIGNS_IN_LINES), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """What is printed in the end, whatever it was made of."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(text.translate(_SIGNS_IN_LINES), style)


class _Output(Screen):
    """Standard output; a reader of the pipe who has seen enough ends the program without complaint."""

    def on_broken_pipe(self) -> None:
        # What is still buffered goes nowhere, so that Python has nothing to complain of when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)


# A pipe has no width; tables that wrap could not be read or searched there.
out = _Output(width=None if sys.stdout.isatty() else 1 << 16)
err = Screen(stderr=True)


phrase: Callable[[str], str] = str
"""How a sentence is put; the command line names options in place of the Python parameters that it speaks of."""


def say(*sentences: str) -> None:
    """Print sentences for the user on standard error, beside the answer."""
    for sentence in sentences:
        err.print(phrase(sentence), soft_wrap=True)


warned: set[str] = set()
"""What `warn` has said since the command began."""


def warn(sentences: Iterable[str]) -> None:
    """The same for what may make the answer misleading; a sentence that several parts of a command have to say, once."""
    for sentence in sentences:
        if sentence not in warned:
            warned.add(sentence)
            say(f"Warning: {sentence}")


class WarningsOnTerminal(logging.Handler):
    """Says what the logger `actstore` warns of, as `warn` does."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Say one message."""
        warn([record.getMessage()])


def percent(share: float) -> str:
    """A share as every table shows it: "12.3 %"."""
    return f"{100 * share:.1f} %"


def verdict(right: bool) -> Text:
    """Whether an answer is right, as every table of queries says it."""
    return Text("right" if right else "wrong", style="" if right else "red")


def plural(n: int, noun: str, many: str | None = None) -> str:
    """A number and what it counts: "1 query", "1,234 queries"."""
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"


def format_bytes(nbytes: float) -> str:
    """`nbytes` in the largest unit that leaves a number of one digit or more: "3.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def table(title: str | None, columns: Sequence[str | Sequence[str]], rows: Sequence[Sequence[object]]) -> Table:
    """A rich table; a column is a name, or a name and its justification; floats get four significant digits."""
    result = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        name, justify = (column, "left") if isinstance(column, str) else column
        result.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        result.add_row(*(value if isinstance(value, Text) else Text(cell(value)) for value in row))
    return result


def cell(value: object) -> str:
    """A value as every table shows it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(": ".join(map(cell, item)) if isinstance(item, tuple) else cell(item) for item in value)
    return visible(str(value))


def merged_bins(counts: NDArray[np.int64], edges: NDArray[np.float32]) -> list[tuple[int, float, float]]:
    """How many values lie between which two: the histogram's occupied range, neighbouring bins merged to a dozen or so."""
    occupied = np.flatnonzero(counts)
    if not len(occupied):
        return []
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    middle = len(counts) // 2
    # Merging outwards from zero keeps both signs alike.
    step = max(1, -(-(last - first) // 12))
    borders = sorted({first, last} | {b for b in range(middle % step, len(counts), step) if first < b < last})
    return [(int(counts[a:b].sum()), float(edges[a]), float(edges[b])) for a, b in pairwise(borders)]


def histogram(counts: NDArray[np.int64], edges: NDArray[np.float32], width: int = 40) -> Table:
    """One bar per range of `merged_bins`."""
    merged = merged_bins(counts, edges)
    if not merged:
        return table(None, ["no finite value"], [])
    total, largest = int(counts.sum()), max(n for n, _, _ in merged)
    rows = [
        (
            f"{low:.3g}",
            f"{high:.3g}",
            percent(n / total),
            "█" * round(width * n / largest) or ("▏" if n else ""),
        )
        for n, low, high in merged
    ]
    return table(None, [("from", "right"), ("to", "right"), ("share", "right"), ""], rows)


class _Rate(ProgressColumn):
    """Tokens a second, and the bytes they are expected to take."""

    def render(self, task: Task) -> Text:
        nbytes = task.fields.get("nbytes", 0)
        size = f", about {format_bytes(nbytes)}" if nbytes else ""
        return Text(f"{task.completed:,.0f} tokens, {task.speed or 0:,.0f}/s{size}", style="dim", no_wrap=True)


class CaptureBar(CaptureProgress):
    """A progress bar on standard error: planning counts up, filling runs to the end. Without a terminal, a log."""

    doing, unit = "capturing", "tokens"

    def __init__(self, *, enabled: bool) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not _shown(enabled),
        )
        self._planning = self._progress.add_task("planning", total=None)
        self._answering = self._progress.add_task("answering", total=None, visible=False)
        self._n_answered = 0
        self._stage = ""
        self._filling = self._progress.add_task(self.doing, total=None, visible=False)
        self._log = _log(enabled)

    def __enter__(self) -> CaptureBar:
        self._progress.start()
        self._log.begin("preparing")
        self._log.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.__exit__(kind, error, trace)
        self._progress.stop()

    def planned(self, n_documents: int, n_tokens: int) -> None:
        """Count up."""
        self._count_planned(f"planning, {n_documents:,} documents", n_tokens)

    def _count_planned(self, what: str, n_tokens: int) -> None:
        self._progress.update(self._planning, completed=n_tokens, description=what)
        self._log_stage("planning", self.unit)
        self._log.update(n_tokens, what=what)

    def _log_stage(self, stage: str, unit: str) -> None:
        if self._stage != stage:
            self._stage = stage
            self._log.begin(stage, unit)

    def answered(self, n_prompts: int, n_tokens: int) -> None:
        """Count up."""
        self._n_answered += n_prompts
        self._progress.update(self._planning, visible=False)
        self._progress.update(
            self._answering, visible=True, advance=n_tokens, description=f"answering, {self._n_answered:,} prompts"
        )
        self._log_stage("answering", "prompts")
        self._log.advance(n_prompts)

    def started(self, n_tokens: int, n_done: int, nbytes: int) -> None:
        """Show how much there is to do."""
        self._progress.update(self._planning, visible=False)
        self._progress.update(self._answering, visible=False)
        self._progress.reset(self._filling, total=n_tokens, completed=n_done, visible=True, nbytes=nbytes)
        self._log.begin(self.doing, self.unit, n_done, n_tokens)

    def filled(self, n_tokens: int) -> None:
        """Advance."""
        self._progress.advance(self._filling, n_tokens)
        self._log.advance(n_tokens)


def _log(enabled: bool) -> ProgressLog:
    """What says how far the work is where progress is wanted and no bar is drawn."""
    return ProgressLog(say, enabled=enabled and not err.is_terminal)


def _shown(enabled: bool) -> bool:
    """Whether a bar is drawn: where it is wanted and somebody looks."""
    return enabled and err.is_terminal


@contextmanager
def spinner(what: str, *, enabled: bool) -> Iterator[None]:
    """A sign on standard error that something is done, of which nobody can say how long it takes."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", style="dim", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not _shown(enabled)) as progress, _log(enabled) as log:
        progress.add_task(visible(what), total=None)
        log.begin(what)
        yield


@contextmanager
def counting_bar(what: str, *, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; entered, it gives what to call with `what` done and to do."""
    progress = Progress(
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        MofNCompleteColumn(),  # before the total is known it says so
        TextColumn("{task.description}", style="dim", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not _shown(enabled),
    )
    with progress, _log(enabled) as log:
        task = progress.add_task(visible(what), total=None)
        log.begin("", what)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            log.update(done, total)

        yield advance
