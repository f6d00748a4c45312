"""Tokens on one line, coloured by activation, one of them marked: as many of its neighbours as the line holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from actstore.display import terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

_ELLIPSIS: Final = "…"


def strength(value: float | None, scale: float) -> float:
    """How strongly a token is coloured, -1 to 1: its activation as a share of `scale`; 0 where it is too little to see."""
    if value is None or not scale > 0 or not abs(value) >= 0.08 * scale:
        return 0.0
    return max(-1.0, min(1.0, value / scale))


def highlighted(
    tokens: Sequence[str],
    activations: Sequence[float | None] | None,
    pivot: int,
    scale: float,
    width: int | None = None,
) -> Text:
    """Tokens on a background that grows redder with the activation, bluer below zero; the pivot underlined.

    `width`: cells that there is room for; the tokens farthest from the pivot are left out.
    """
    texts = [terminal.visible(token) for token in tokens]
    shown = range(len(texts)) if width is None else window_around([cell_len(one) for one in texts], pivot, width)
    text = Text()
    for i in shown:
        value = activations[i] if activations is not None else None
        style = "underline bold " if i == pivot else ""
        if share := strength(value, scale):
            # Dark to bright, so that the text stays readable in white on either theme.
            level = int(60 + 150 * abs(share))
            style += f"white on rgb({level},30,30)" if share > 0 else f"white on rgb(30,30,{level})"
        text.append(texts[i], style=style.strip() or None)
    if width is None:
        return text
    if text.cell_len > width:  # the pivot alone is too long
        return Text(set_cell_size(text.plain, max(width - 1, 1)) + _ELLIPSIS * (width > 1), style=text.spans[0].style)
    before, after = Text(_ELLIPSIS if shown.start else ""), Text(_ELLIPSIS if shown.stop < len(texts) else "")
    return before + text + after if text.cell_len + len(before) + len(after) <= width else text


def window_around(cells: Sequence[int], pivot: int, room: int) -> range:
    """The longest run of tokens around `pivot` that fits, evenly to either side, with a sign where tokens are left out.

    `cells`: the width of each token. The pivot is in it, whatever its width.
    """
    first, last, taken = pivot, pivot, [0, 0]
    while True:
        # The side with less beside the pivot comes first; where its next token is too long, the other side may have one.
        steps = [(taken[0], 0, first - 1, last), (taken[1], 1, first, last + 1)]
        for _, side, a, b in sorted(steps):
            if a >= 0 and b < len(cells) and sum(cells[a : b + 1]) + (a > 0) + (b < len(cells) - 1) <= room:
                taken[side] += cells[a if side == 0 else b]
                first, last = a, b
                break
        else:
            return range(first, last + 1)


def marked(tokens: Sequence[str], pivot: int) -> str:
    """The same without colours: the pivot between « and »."""
    return "".join(f"«{terminal.visible(t)}»" if i == pivot else terminal.visible(t) for i, t in enumerate(tokens))
