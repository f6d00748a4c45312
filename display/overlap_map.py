"""The picture of what sets of neurons have in common: sets by sets, as SVG or a page around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.display.heat_map import (
    FAINT,
    FONT,
    HEAD,
    INK,
    MARGIN,
    PAPER,
    ROW,
    as_page,
    as_text,
    cell,
    check_picture,
    fitting,
    text_at,
    width_of,
)
from actstore.store.neurons import overlap_shares
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

CELL = 46
"""Pixels of a cell's width."""


def draw_overlap(sets: Mapping[str, NDArray[np.int64]], title: str, subtitle: str = "") -> str:
    """An SVG image: a row and a column per set; in each cell the share of two sets' neurons that both have, in percent."""
    names, shares = [*sets], overlap_shares([*sets.values()])
    rows, columns = [fitting(name) for name in names], [fitting(name, CELL) for name in names]
    left = MARGIN + max([60, *map(width_of, rows)]) + 10
    right, bottom = left + CELL * len(names), HEAD + ROW * len(names)
    size = (
        max(right + 100, MARGIN * 2 + width_of(title) * 1.35, MARGIN * 2 + width_of(subtitle), left + 420),
        bottom + 52,
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:.0f} {size[1]}" width="{size[0]:.0f}" '
        f'height="{size[1]}" role="img" font-family="{FONT}" font-size="13" fill="{INK}">',
        f"<title>{as_text(title)}</title>",
        f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>',
        text_at(MARGIN, 32, title, size=17, weight="600"),
        text_at(MARGIN, 53, subtitle, fill=FAINT),
        text_at(right + 80, HEAD - 8, "neurons", anchor="end", fill=FAINT, size=11),
    ]
    parts += [
        text_at(left + (j + 0.5) * CELL, HEAD - 8, shown, anchor="middle", size=11, tooltip=name)
        for j, (shown, name) in enumerate(zip(columns, names, strict=True))
    ]
    for i, (name, shown) in enumerate(zip(names, rows, strict=True)):
        y = HEAD + i * ROW
        parts.append(text_at(left - 10, y + 17, shown, anchor="end", tooltip=name))
        parts += (cell(left + j * CELL, y, CELL, float(share), 1.0) for j, share in enumerate(shares[i]))
        parts.append(text_at(right + 80, y + 17, f"{len(sets[name]):,}", anchor="end", fill=FAINT))
    note = "numbers: neurons that both have, % of those that one of the two has"
    parts.append(text_at(left, bottom + 26, note, size=12, fill=FAINT))
    return "\n".join([*parts, "</svg>"]) + "\n"


def write_overlap(path: Path, sets: Mapping[str, NDArray[np.int64]], title: str, subtitle: str = "") -> None:
    """Write the picture of some sets of neurons, by flat id, in the format that the file's name ends in."""
    check_picture(path)
    image = draw_overlap(sets, title, subtitle)
    with replacing(path) as partial:
        partial.write_text(as_page(image, title) if path.suffix.lower() == ".html" else image, encoding="utf-8")
