"""The picture of where query-relevant neurons lie: labels by layers, as SVG or a page around it.

Written by hand, so that it needs no plotting library and the same counts give the same bytes. It brings its own light
background and is readable on dark pages, too.
"""

from __future__ import annotations

import unicodedata
from html import escape
from typing import TYPE_CHECKING

from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_file
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actstore.engine.naica.selection import LayerCounts

SUFFIXES = (".svg", ".html")
RAMP = ((247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
"""From no neuron to the largest share; lightness falls all the way, which survives print and colour blindness."""

FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif"
INK, FAINT, PAPER = "#1a1a1a", "#555555", "#ffffff"
MARGIN, HEAD, ROW, EM = 20, 84, 26, 13
"""Pixels: around the picture, above the first row, of a row, of the text."""


def colour(strength: float) -> tuple[int, int, int]:
    """The colour of a share of the largest share, from 0 to 1, as red, green and blue from 0 to 255."""
    place = min(max(strength, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True))
    return red, green, blue


def is_dark(rgb: tuple[int, int, int]) -> bool:
    """Whether white text is easier to read on a colour than black text is."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 120


def percent(share: float) -> str:
    """A share in a cell: nothing for none, "<1" for what rounds to none."""
    rounded = f"{100 * share:.0f}" if share else ""
    return "<1" if rounded == "0" else rounded


def draw_svg(counts: LayerCounts, title: str, subtitle: str = "") -> str:
    """An SVG image: one row per label, one column per layer, and in each cell the share of the label's neurons, in percent."""
    shares = counts.shares
    largest = float(shares.max(initial=0.0))
    layers = counts.layers
    wide = [fitting(label) for label in counts.labels]
    left = MARGIN + max([60, *(width_of(text) for text in (*wide, fitting(counts.label)))]) + 10
    cell_width = min(46, max(6, 900 // max(len(layers), 1)))
    right = left + cell_width * len(layers)
    columns = (right + 66, right + 150)
    bottom = HEAD + ROW * len(wide)
    size = (
        max(columns[1] + MARGIN, MARGIN * 2 + width_of(title) * 1.35, MARGIN * 2 + width_of(subtitle), left + 420),
        bottom + 96,
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:.0f} {size[1]}" width="{size[0]:.0f}" '
        f'height="{size[1]}" role="img" font-family="{FONT}" font-size="{EM}" fill="{INK}">',
        f"<title>{as_text(title)}</title>",
        f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>',
        text_at(MARGIN, 32, title, size=17, weight="600"),
        text_at(MARGIN, 53, subtitle, fill=FAINT),
        text_at(left - 10, HEAD - 8, fitting(counts.label), anchor="end", fill=FAINT, size=11) if counts.label else "",
        text_at(columns[0], HEAD - 8, "queries", anchor="end", fill=FAINT, size=11),
        text_at(columns[1], HEAD - 8, "neurons each", anchor="end", fill=FAINT, size=11),
    ]
    for i, (label, shown) in enumerate(zip(counts.labels, wide, strict=True)):
        y = HEAD + i * ROW
        n_queries, n_neurons = int(counts.n_queries[i]), int(counts.counts[i].sum())
        parts.append(text_at(left - 10, y + 17, shown, anchor="end", tooltip=label))
        parts += (
            cell(left + j * cell_width, y, cell_width, float(share), largest) for j, share in enumerate(shares[i])
        )
        parts.append(text_at(columns[0], y + 17, f"{n_queries:,}", anchor="end", fill=FAINT))
        parts.append(text_at(columns[1], y + 17, f"{n_neurons / max(n_queries, 1):.1f}", anchor="end", fill=FAINT))
    parts += _axis(layers, left, cell_width, bottom)
    parts += _legend(left, bottom + 62, largest)
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw_html(counts: LayerCounts, title: str, subtitle: str = "") -> str:
    """A page with the image in it."""
    return as_page(draw_svg(counts, title, subtitle), title)


def as_page(image: str, title: str) -> str:
    """A page around an SVG image."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{as_text(title)}</title>'
        '<meta name="viewport" content="width=device-width"><style>svg{max-width:100%;height:auto}</style></head>\n<body>\n'
        f"{image}</body></html>\n"
    )


def check_picture(path: Path) -> None:
    """Raise `InvalidInputError` where no picture can be written to a path."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInputError(
            f"Expected a heat map file ending in {' or '.join(SUFFIXES)}, found {str(path)!r}. "
            "Write .svg; browsers and converters make any other format of it."
        )
    output_file(path)


def write_picture(path: Path, counts: LayerCounts, title: str, subtitle: str = "") -> None:
    """Write the picture in the format that the file's name ends in."""
    check_picture(path)
    draw = draw_html if path.suffix.lower() == ".html" else draw_svg
    with replacing(path) as partial:
        partial.write_text(draw(counts, title, subtitle), encoding="utf-8")


def cell(x: float, y: int, width: int, share: float, largest: float) -> str:
    """A cell whose colour is a share's part of the largest one, with the share in percent where there is room."""
    rgb = colour(share / largest if largest else 0.0)
    gap = 1 if width > 12 else 0
    box = (
        f'<rect x="{x}" y="{y}" width="{width - gap}" height="{ROW - 1}" fill="#{rgb[0]:02x}{rgb[1]:02x}{rgb[2]:02x}"/>'
    )
    text = percent(share)
    if width < 24 or not text:
        return box
    return box + text_at(x + width / 2, y + 17, text, anchor="middle", size=12, fill=PAPER if is_dark(rgb) else INK)


def _axis(layers: Sequence[int], left: float, cell: int, bottom: int) -> list[str]:
    """The layers' numbers, as many as there is room for, and what they are."""
    room = 8 * max((len(str(layer)) for layer in layers), default=1) + 6
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * cell >= room)
    ticks = [
        text_at(left + (i + 0.5) * cell, bottom + 16, str(layer), anchor="middle", size=12)
        for i, layer in enumerate(layers)
        if i % step == 0
    ]
    return [*ticks, text_at(left + cell * len(layers) / 2, bottom + 36, "layer", anchor="middle", fill=FAINT)]


def _legend(x: float, y: int, largest: float) -> list[str]:
    """Its colours, and what they stand for."""
    n, width = 40, 4
    steps = ((x + i * width, colour(i / (n - 1))) for i in range(n))
    boxes = [
        f'<rect x="{at}" y="{y}" width="{width}" height="12" fill="#{r:02x}{g:02x}{b:02x}"/>' for at, (r, g, b) in steps
    ]
    end = x + n * width
    return [
        *boxes,
        f'<rect x="{x}" y="{y}" width="{n * width}" height="12" fill="none" stroke="#cccccc" stroke-width="0.5"/>',
        text_at(x, y + 26, "0 %", size=11, fill=FAINT),
        text_at(end, y + 26, f"{100 * largest:.3g} %", anchor="end", size=11, fill=FAINT),
        text_at(end + 10, y + 10, "numbers: % of the row's neurons", size=12, fill=FAINT),
    ]


def text_at(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = EM,
    fill: str = INK,
    weight: str = "400",
    tooltip: str = "",
) -> str:
    """A line of text at a place."""
    hover = f"<title>{as_text(tooltip)}</title>" if tooltip not in ("", text) else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{fill}">'
        f"{as_text(text)}{hover}</text>"
    )


def as_text(text: str) -> str:
    """`text` as XML takes it: without the control characters that it has no way to say."""
    return escape(
        "".join(c if c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff" else " " for c in text)
    )


def width_of(text: str) -> float:
    """About how many pixels a line of text takes, Chinese and its like being wider."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in text) * EM


def fitting(label: str, most: int = 260) -> str:
    """A label cut to what there is room for."""
    label = " ".join(label.split()) or "(empty)"
    if width_of(label) <= most:
        return label
    end = len(label)
    while width_of(label[:end]) + EM > most:
        end -= 1
    return label[:end].rstrip() + "…"
