"""A neuron's graph as an SVG image: context from the left, activating tokens on the right.

No plotting library and no Graphviz is needed, and the same graph gives the same bytes. The background is light, so that the
image is readable on dark pages, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from actstore.display.graphs.branch_numbers import short_numbers, tooltip
from actstore.display.graphs.labels import cut_label, label_width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.display.graphs.branches import Branch, Drawing

FONT = "'DejaVu Sans', 'Noto Sans', system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
INK, FAINT, PAPER, GREY = "#1a1a1a", "#5a5a5a", "#ffffff", "#9a9a9a"
RED, BLUE = (214, 39, 40), (65, 125, 215)
MARGIN, HEAD, BOX, ROW, APART, GAP = 24, 84, 36, 44, 12, 34
"""Pixels: around the picture, above the first row, of a box's height, from row to row, between activating tokens, from
column to column."""
LABEL, SMALL = 13, 10.5
"""Pixels: the text of a label, and of the numbers below it."""


@dataclass
class Placed:
    """A branch and its position in the image, in pixels."""

    branch: Branch
    depth: int
    width: float
    y: float = 0.0
    x: float = 0.0
    children: list[Placed] = field(default_factory=list)

    def all(self) -> Iterator[Placed]:
        """The branch and all below it."""
        yield self
        for child in self.children:
            yield from child.all()


def draw_svg(drawing: Drawing) -> str:
    """The image: red by the probability of firing, blue by the importance of a context token, dashed where it does not fire."""
    roots, width, bottom = _place(drawing)
    notes = [] if drawing.roots else [f"An empty graph: {drawing.name} {drawing.status}."]
    if drawing.n_hidden:
        notes.append(f"… {drawing.n_hidden:,} of {drawing.n_paths:,} paths, of smaller weight, are not drawn.")
    width = max(width, 680.0, 2 * MARGIN + label_width(drawing.caption) * 12)
    height = bottom + 26 * len(notes) + (92 if drawing.roots else 12)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" font-family="{FONT}" font-size="{LABEL}" fill="{INK}">',
        f"<title>{escape(drawing.name)}</title>",
        f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>',
        _text(MARGIN, 36, drawing.name, size=18, weight="600"),
        _text(MARGIN, 58, drawing.caption, size=12, fill=FAINT),
    ]
    placed = [p for root in roots for p in root.all()]
    parts += [_edge(parent, child) for parent in placed for child in parent.children]
    parts += [_box(p) for p in placed]
    parts += [_text(MARGIN, bottom + 14 + 26 * i, note, fill=FAINT) for i, note in enumerate(notes)]
    parts += _legend(bottom + 26 * len(notes) + 18) if drawing.roots else []
    return "\n".join(part for part in [*parts, "</svg>"] if part) + "\n"


def mix(rgb: tuple[int, int, int], strength: float) -> tuple[int, int, int]:
    """A colour at a strength from 0 (white) to 1."""
    strength = min(max(strength, 0.0), 1.0)
    red, green, blue = (round(255 + (channel - 255) * strength) for channel in rgb)
    return red, green, blue


def ink_on(rgb: tuple[int, int, int]) -> str:
    """White or black, whichever is easier to read on a colour."""
    # Relative luminance (WCAG): above 0.18 black has the larger contrast.
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return INK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.2 else PAPER


def fill_of(branch: Branch, *, is_root: bool) -> tuple[int, int, int]:
    """Red by the most probable path of an activating token, blue by the importance of a context token."""
    return mix(RED, branch.highest) if is_root else mix(BLUE, branch.strength)


def _place(drawing: Drawing) -> tuple[list[Placed], float, float]:
    """The branches with their positions, the width of the image, and the lower edge of the last row."""
    y = HEAD + BOX / 2

    def rows(branch: Branch, depth: int) -> Placed:
        nonlocal y
        text = max(label_width(cut_label(branch.label)) * LABEL, label_width(short_numbers(branch)) * SMALL)
        placed = Placed(branch, depth, max(44.0, text + 20))
        placed.children = [rows(child, depth + 1) for child in branch.children]
        if placed.children:
            placed.y = (placed.children[0].y + placed.children[-1].y) / 2
        else:
            placed.y, y = y, y + ROW
        return placed

    roots = []
    for root in drawing.roots:
        roots.append(rows(root, 0))
        y += APART
    placed = [p for root in roots for p in root.all()]
    columns: dict[int, float] = {}
    skips: dict[int, float] = {}
    for p in placed:
        columns[p.depth] = max(columns.get(p.depth, 0.0), p.width)
        skip = label_width(_skip_label(p.branch)) * SMALL + 14 if p.branch.skipped else 0.0
        skips[p.depth] = max(skips.get(p.depth, 0.0), skip)
    # Boxes end where their column ends, so that every arrow of a column has the same length.
    ends, at = {}, float(MARGIN)
    for depth in sorted(columns, reverse=True):
        at += columns[depth]
        ends[depth] = at
        at += GAP + skips[depth]
    for p in placed:
        p.x = ends[p.depth] - (columns[0] if p.depth == 0 else p.width)
    width = ends[0] + MARGIN if ends else 0.0
    return roots, width, (y - ROW / 2 if placed else HEAD)


def _edge(parent: Placed, child: Placed) -> str:
    """An arrow from a context token to the token that follows it, with the number of tokens between."""
    start, end = child.x + child.width, parent.x - 2
    label = _skip_label(child.branch)
    reach = label_width(label) * SMALL + 8 if label else 0.0
    text = _text(start + 4, child.y + 4, label, size=SMALL, fill=FAINT) if label else ""
    start += reach
    bend = min(GAP, end - start) * 0.55
    path = (
        f"M{start:.1f} {child.y:.1f}C{start + bend:.1f} {child.y:.1f} {end - bend:.1f} {parent.y:.1f} "
        f"{end - 5:.1f} {parent.y:.1f}"
    )
    head = f"M{end - 6:.1f} {parent.y - 3.5:.1f}L{end:.1f} {parent.y:.1f}L{end - 6:.1f} {parent.y + 3.5:.1f}z"
    dashes = ' stroke-dasharray="3 3"' if child.branch.fires_nowhere else ""
    return f'<path d="{path}" fill="none" stroke="{GREY}" stroke-width="1.2"{dashes}/><path d="{head}" fill="{GREY}"/>{text}'


def _skip_label(branch: Branch) -> str:
    return f"… ×{branch.skipped}" if branch.skipped else ""


def _box(placed: Placed) -> str:
    """A token, its numbers, and at its left side a bar that is red by the probability of the path that ends there."""
    branch, x, y, width = placed.branch, placed.x, placed.y - BOX / 2, placed.width
    fill = fill_of(branch, is_root=placed.depth == 0)
    ink = ink_on(fill)
    silent = branch.fires_nowhere
    border = f'stroke="{GREY}" stroke-dasharray="4 3"' if silent else 'stroke="#707070" stroke-width="0.8"'
    red, green, blue = fill
    parts = [
        f'<g><title>{escape(tooltip(branch))}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX}" '
        f'rx="6" fill="#{red:02x}{green:02x}{blue:02x}" {border}/>'
    ]
    if placed.depth and branch.ends:
        r, g, b = mix(RED, branch.probability)
        parts.append(
            f'<rect x="{x + 3:.1f}" y="{y + 4:.1f}" width="6" height="{BOX - 8}" rx="2" fill="#{r:02x}{g:02x}{b:02x}" '
            'stroke="#ffffff" stroke-width="0.8"/>'
        )
    middle = x + width / 2 + (3 if placed.depth and branch.ends else 0)
    parts.append(_text(middle, y + 15, cut_label(branch.label), anchor="middle", fill=ink, weight="600"))
    parts.append(_text(middle, y + 29, short_numbers(branch), anchor="middle", size=SMALL, fill=ink))
    return "".join([*parts, "</g>"])


def _legend(y: float) -> list[str]:
    """The meaning of colours, dashes and dots."""
    parts, x = [], float(MARGIN)
    for rgb, text in ((RED, "P of firing, 0 to 1"), (BLUE, "importance of a context token, 0 to 1")):
        n, width = 24, 4
        for i in range(n):
            r, g, b = mix(rgb, i / (n - 1))
            parts.append(
                f'<rect x="{x + i * width:g}" y="{y}" width="{width}" height="12" fill="#{r:02x}{g:02x}{b:02x}"/>'
            )
        parts.append(
            f'<rect x="{x:g}" y="{y}" width="{n * width}" height="12" fill="none" stroke="#cccccc" stroke-width="0.5"/>'
        )
        parts.append(_text(x + n * width + 8, y + 10, text, size=11, fill=FAINT))
        x += n * width + 8 + label_width(text) * 11 + 22
    parts.append(
        _text(
            MARGIN,
            y + 34,
            "P: of firing where no longer path matches, smoothed (the bar at a box's left; an activating token is red by its",
            size=11,
            fill=FAINT,
        )
    )
    parts.append(
        _text(
            MARGIN,
            y + 50,
            "likeliest path); then times fired / seen there. Dashed: does not fire; … ×2: any two tokens between; ·: a space.",
            size=11,
            fill=FAINT,
        )
    )
    return parts


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: float = LABEL,
    fill: str = INK,
    weight: str = "400",
) -> str:
    if not text:
        return ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" font-weight="{weight}" fill="{fill}">'
        f"{escape(text)}</text>"
    )
