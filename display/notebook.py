"""What notebooks show of stores, captures and neurons: small tables, highlighted text, a histogram. Nothing here computes.

HTML without scripts or outside files, readable on light and dark pages; whatever comes from a store is escaped, whatever
it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from html import escape
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.text import Text

from actstore.display import terminal
from actstore.display.highlight import strength
from actstore.display.reports import exemplar_line, neuron_summary, state_of, summarise_capture
from actstore.display.tables import shortened, shown_rows, size_of, table_columns
from actstore.store.capture.reader import Capture
from actstore.store.errors import ActstoreError
from actstore.store.neuron import Neuron
from actstore.store.reader import Store
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


RED, BLUE = "220,50,47", "38,90,220"


class Html(str):
    """Text that is HTML already; every other is escaped."""

    __slots__ = ()


@singledispatch
def html(subject: object) -> str:
    """What a notebook shows of a store, a capture, a neuron or a table."""
    raise TypeError(f"a notebook shows stores, captures, neurons and tables, found {type(subject).__name__}")


@html.register
def _store_html(store: Store) -> str:
    """A store: its model, one row per capture."""
    opened, damaged = store.read_captures()
    captures = [summarise_capture(capture) for capture in opened.values()]
    rows = [
        (held["name"], held["tokens"], held["documents"], held["sites"], held["precision"], state_of(held))
        for held in captures
    ]
    rows += [(name, "", "", "", "", f"damaged: {reason}") for name, reason in damaged.items()]
    columns = ["capture", ("tokens", "right"), ("documents", "right"), "sites", "precision", "state"]
    model = store.model
    n_neurons = sum(layer.neurons for layer in model.layers)
    about = f"{model.name} ({model.model_type}), {len(model.layers)} layers, {terminal.plural(n_neurons, 'neuron')}"
    return _box(store.folder.location, about, _table(columns, rows))


@html.register
def _capture_html(capture: Capture) -> str:
    """A capture: what of a corpus is in it, and how it is kept."""
    summary = summarise_capture(capture)
    names = ("corpus", "tokens", "documents", "windows", "sites", "precision", "labels")
    rows = [(name, summary[name]) for name in names if summary[name] not in (None, {}, "")]
    about = f"capture of {capture.store.model.name}, {state_of(summary)}"
    return _box(summary["name"], about, _table(None, rows))


@html.register
def _table_html(table: Table) -> str:
    """A table: its first and last rows, all columns, and its size, in a box of its own that scrolls; long cells shortened."""
    first, last = shown_rows(table)
    columns = [(_short(name), justify) for name, justify in table_columns(table)]
    more = table.num_rows - len(first) - len(last)
    between = f"… {terminal.plural(more, 'more row')}" if more else None
    rows = [[_short(text) for text in row] for row in (*first, *last)]
    shown = _table(columns, rows, wraps=False, note=(len(first), between) if between else None)
    return _box("", size_of(table), f"<div style='overflow-x:auto;max-width:100%'>{shown}</div>")


@dataclass(frozen=True, repr=False)
class ShownNeuron:
    """A neuron's statistics, histogram and exemplars: `str()` is plain text, rich prints colours, a notebook this as HTML."""

    name: str
    module: str
    statistics: dict[str, Any]
    histogram: tuple[NDArray[np.int64], NDArray[np.float32]]
    exemplars: list[dict[str, Any]]

    def __str__(self) -> str:
        lines = (exemplar_line(e, self._scale, colours=False).plain for e in self.exemplars)
        return "\n".join([neuron_summary(self.name, self.statistics, bool(self.exemplars)), *lines])

    __repr__ = __str__

    def __rich__(self) -> Group:
        lines = (exemplar_line(e, self._scale, colours=True) for e in self.exemplars)
        summary = Text(neuron_summary(self.name, self.statistics, bool(self.exemplars)), style="bold")
        return Group(summary, *lines, Text(), terminal.histogram(*self.histogram))

    def _repr_html_(self) -> str:
        return self.html()

    def html(self) -> str:
        """The same as a fragment of a page."""
        rows = [
            (e["value"], _exemplar(e, self._scale), f"{e['source']}, token {e['position']}") for e in self.exemplars
        ]
        columns = [("value", "right"), "exemplar, tokens by activation", "where"]
        parts = [_histogram(*self.histogram), _table(columns, rows)] if rows else []
        summary = neuron_summary(self.name, self.statistics, bool(self.exemplars)).removeprefix(f"{self.name}: ")
        return _box(f"{self.name} {self.module}", summary, *parts)

    @property
    def _scale(self) -> float:
        return max((abs(e["value"]) for e in self.exemplars), default=0.0)


def show_neuron(neuron: Neuron, k: int, capture: str | None, site: str, context: int) -> ShownNeuron:
    """A neuron as a notebook shows it, with its k best exemplars."""
    return ShownNeuron(
        neuron.name,
        neuron.store.model.layers[neuron.layer].module,
        neuron.statistics(capture, site),
        neuron.histogram(capture, site),
        neuron.exemplars(k, capture, site, context).to_pylist(),
    )


@html.register
def _neuron_html(neuron: Neuron) -> str:
    """A neuron at the end of a cell; where its store cannot say which capture is meant, or has none, that is said."""
    try:
        return show_neuron(neuron, 5, None, "mlp.post", 12).html()
    except ActstoreError as error:
        return _box(repr(neuron), str(error))


def _box(title: str, about: str, *parts: str) -> str:
    heading = f"<div><b>{_text(title)}</b> <span style='opacity:.75'>{_text(about)}</span></div>"
    return f"<div style='font-size:13px;line-height:1.5'>{heading}{''.join(parts)}</div>"


def _table(
    columns: Sequence[str | Sequence[str]] | None,
    rows: Sequence[Sequence[object]],
    *,
    wraps: bool = True,
    note: tuple[int, str] | None = None,
) -> str:
    """A table like those of the terminal; without columns, a list of names and what they stand for.

    `wraps`: whether long cells go on in another line. `note`: a row of one text, before the row of this number.
    """
    given = [(c, "left") if isinstance(c, str) else tuple(c) for c in columns or ("", "")]
    style = "vertical-align:top;padding:1px 10px 1px 0" + ("" if wraps else ";white-space:nowrap")
    aligned = [f"text-align:{justify};{style}" for _, justify in given]
    lines = []
    if columns is not None:
        heads = (
            f"<th style='{how};opacity:.75'>{_cell(name)}</th>" for (name, _), how in zip(given, aligned, strict=True)
        )
        lines.append(f"<tr>{''.join(heads)}</tr>")
    for number, row in enumerate(rows):
        if note is not None and note[0] == number:
            lines.append(f"<tr><td colspan='{len(given)}' style='{style};opacity:.75'>{_text(note[1])}</td></tr>")
        cells = (f"<td style='{how}'>{_cell(value)}</td>" for value, how in zip(row, aligned, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table style='border-collapse:collapse'>{''.join(lines)}</table>"


def _cell(value: object) -> str:
    return value if isinstance(value, Html) else _text(terminal.cell(value))


_TITLE_LENGTH: Final = 2000
"""Characters of a pointer's text at most: lists may hold a number per token."""


def _short(text: str) -> Html:
    """A text that fits into a cell, and where it is shortened the whole at the pointer."""
    short, whole = shortened(terminal.visible(text)), terminal.visible(text)
    if short == whole:
        return Html(_text(text))
    title = whole if len(whole) <= _TITLE_LENGTH else f"{whole[:_TITLE_LENGTH]}…"
    return Html(f"<span title='{escape(title)}'>{escape(short)}</span>")


def _text(text: str) -> str:
    return escape(terminal.visible(text))


def _exemplar(exemplar: dict[str, Any], scale: float) -> Html:
    """Tokens on a background that grows redder with the activation, bluer below zero; the pivot underlined."""
    activations = exemplar["activations"] or [None] * len(exemplar["tokens"])
    parts = []
    for i, (token, value) in enumerate(zip(exemplar["tokens"], activations, strict=True)):
        # A token may hold half of a sign, or one that turns the direction of what follows: each stands for itself.
        style = "unicode-bidi:isolate"
        if i == exemplar["pivot"]:
            style += ";font-weight:bold;text-decoration:underline"
        if share := strength(value, scale):
            style += f";background:rgba({RED if share > 0 else BLUE},{abs(share):.2f})"
        title = "" if value is None else f" title='{value:.4g}'"
        parts.append(f"<span style='{style}'{title}>{_text(token)}</span>")
    return Html(f"<span style='white-space:pre-wrap;font-family:monospace'>{''.join(parts)}</span>")


def _histogram(counts: NDArray[np.int64], edges: NDArray[np.float32]) -> str:
    """One bar per range of values, as high as its share of the tokens; the pointer shows range and share."""
    bins = terminal.merged_bins(counts, edges)
    if not bins:
        return ""
    total, largest = sum(n for n, _, _ in bins), max(n for n, _, _ in bins)
    bars = []
    for i, (n, low, high) in enumerate(bins):
        height = max(1.0, 40 * n / largest) if n else 0.0
        title = f"<title>{low:.3g} … {high:.3g}: {terminal.percent(n / total)}</title>"
        bars.append(
            f"<rect x='{18 * i}' y='{40 - height:.1f}' width='16' height='{height:.1f}' "
            f"fill='rgb({RED if low >= 0 else BLUE})'>{title}</rect>"
        )
    return (
        f"<svg role='img' aria-label='histogram' width='{18 * len(bins)}' height='40' style='margin:4px 0'>"
        f"{''.join(bars)}</svg>"
    )
