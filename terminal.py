"""What people see: tables, highlighted text, histograms, progress. Nothing here computes.

Knows nothing about stores beyond the values it is handed.
"""

from __future__ import annotations

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
from rich.table import Table
from rich.text import Text

from actstore.engine.progress import CaptureProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray
    from rich.progress import Task


class _Output(Console):
    """Standard output; a reader of the pipe who has seen enough ends the program without complaint."""

    def on_broken_pipe(self) -> None:
        # What is still buffered goes nowhere, so that Python has nothing to complain of when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)


# A pipe has no width; tables that wrap could not be read or searched there.
out = _Output(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 1 << 16)
err = Console(stderr=True, highlight=False, emoji=False)  # 0:100:0 is a place, not a sign


def format_bytes(nbytes: float) -> str:
    """`nbytes` in the largest unit that leaves a number of one digit or more: "3.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def visible(token: str) -> str:
    """A token as one line of printable text: line breaks and tabs become signs, other control characters their pictures."""
    signs = {"\n": "↵", "\t": "→", "\r": "␍"}
    return "".join(signs.get(c) or (chr(0x2400 + ord(c)) if ord(c) < 32 else c) for c in token)


def table(title: str | None, columns: Sequence[str | Sequence[str]], rows: Sequence[Sequence[Any]]) -> Table:
    """A rich table; a column is a name, or a name and its justification; floats get four significant digits."""
    result = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        name, justify = (column, "left") if isinstance(column, str) else column
        result.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else Text(_cell(cell)) for cell in row))
    return result


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(": ".join(map(_cell, item)) if isinstance(item, tuple) else _cell(item) for item in value)
    return visible(str(value))


def highlighted(tokens: Sequence[str], activations: Sequence[float | None] | None, pivot: int, scale: float) -> Text:
    """Tokens on a background that grows redder with the activation, bluer below zero; the pivot underlined."""
    text = Text()
    for i, token in enumerate(tokens):
        value = activations[i] if activations is not None else None
        style = "underline bold " if i == pivot else ""
        if value is not None and scale > 0:
            strength = min(1.0, abs(value) / scale)
            if strength >= 0.08:
                # Dark to bright, so that the text stays readable in white on either theme.
                level = int(60 + 150 * strength)
                style += f"white on rgb({level},30,30)" if value > 0 else f"white on rgb(30,30,{level})"
        text.append(visible(token), style=style.strip() or None)
    return text


def marked(tokens: Sequence[str], pivot: int) -> str:
    """The same without colours: the pivot between « and »."""
    return "".join(f"«{visible(t)}»" if i == pivot else visible(t) for i, t in enumerate(tokens))


def histogram(counts: NDArray[np.int64], edges: NDArray[np.float32], width: int = 40) -> Table:
    """A bar per occupied range of the histogram, neighbouring bins merged to at most a dozen or so."""
    occupied = np.flatnonzero(counts)
    if not len(occupied):
        return table(None, ["no finite value"], [])
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    middle = len(counts) // 2
    # Merging outwards from zero keeps both signs alike.
    step = max(1, -(-(last - first) // 12))
    borders = sorted({first, last} | {b for b in range(middle % step, len(counts), step) if first < b < last})
    merged = [(int(counts[a:b].sum()), float(edges[a]), float(edges[b])) for a, b in pairwise(borders)]
    total, largest = int(counts.sum()), max(n for n, _, _ in merged)
    rows = [
        (
            f"{low:.3g}",
            f"{high:.3g}",
            f"{100 * n / total:.2f} %",
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
    """A progress bar on standard error: planning counts up, filling runs to the end."""

    def __init__(self, *, enabled: bool) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not enabled,
        )
        self._planning = self._progress.add_task("planning", total=None)
        self._answering = self._progress.add_task("answering", total=None, visible=False)
        self._n_answered = 0
        self._filling = self._progress.add_task("capturing", total=None, visible=False)

    def __enter__(self) -> CaptureBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def planned(self, n_documents: int, n_tokens: int) -> None:
        """Count up."""
        self._progress.update(self._planning, completed=n_tokens, description=f"planning, {n_documents:,} documents")

    def answered(self, n_prompts: int, n_tokens: int) -> None:
        """Count up."""
        self._n_answered += n_prompts
        self._progress.update(self._planning, visible=False)
        self._progress.update(
            self._answering, visible=True, advance=n_tokens, description=f"answering, {self._n_answered:,} images"
        )

    def started(self, n_tokens: int, n_done: int, nbytes: int) -> None:
        """Show how much there is to do."""
        self._progress.update(self._planning, visible=False)
        self._progress.update(self._answering, visible=False)
        self._progress.reset(self._filling, total=n_tokens, completed=n_done, visible=True, nbytes=nbytes)

    def filled(self, n_tokens: int) -> None:
        """Advance."""
        self._progress.advance(self._filling, n_tokens)


@contextmanager
def counting_bar(what: str, *, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; entered, it gives what to call with `what` done and to do."""
    progress = Progress(
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        MofNCompleteColumn(),  # before the total is known it says so
        TextColumn(what, style="dim"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not enabled,
    )
    with progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
