"""Pictures of a neuron's graph as files: .svg, .html and .dot, and .png by Graphviz where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from itertools import count
from typing import TYPE_CHECKING, Final

from actstore.display.graphs.branch_numbers import short_numbers, tooltip
from actstore.display.graphs.html import draw_html
from actstore.display.graphs.labels import cut_label
from actstore.display.graphs.svg import draw_svg, fill_of, ink_on
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_file
from actstore.store.storage.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from actstore.display.graphs.branches import Branch, Drawing


def draw_dot(drawing: Drawing) -> str:
    """The graph in the language of Graphviz, with arrows from context tokens to the tokens that follow them."""
    lines = [
        "digraph {",
        '  rankdir=LR; bgcolor="#ffffff"; labelloc=t; labeljust=l; fontname="DejaVu Sans";',
        f"  label={_quoted(drawing.name, drawing.caption)};",
        '  node [shape=box, style="rounded,filled", fontname="DejaVu Sans", fontsize=12, margin="0.1,0.04"];',
        '  edge [color="#9a9a9a", fontname="DejaVu Sans", fontsize=9, fontcolor="#5a5a5a", arrowsize=0.6];',
    ]
    if not drawing.roots:
        lines.append(f"  empty [shape=plaintext, style=solid, label={_quoted('An empty graph: ' + drawing.status)}];")
    names = (f"n{number}" for number in count())
    for root in drawing.roots:
        _add_dot(lines, names, root, None)
    if drawing.n_hidden:
        lines.append(f"  hidden [shape=plaintext, style=solid, label={_quoted(f'… {drawing.n_hidden:,} more paths')}];")
    return "\n".join([*lines, "}"]) + "\n"


def check_picture(path: Path) -> None:
    """Raise `InvalidInputError` where no picture can be written to a path."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        *suffixes, last = FORMATS
        raise InvalidInputError(
            f"Expected a picture's name to end in {', '.join(suffixes)} or {last}, found {str(path)!r}."
        )
    output_file(path)
    if suffix == ".png" and shutil.which("dot") is None:
        raise InvalidInputError(
            "PNG pictures are made by Graphviz, whose program `dot` is not installed. Install Graphviz, or write .svg, "
            "which needs no other program."
        )


def write_picture(path: Path, drawing: Drawing) -> None:
    """Write the picture in the format of the file's suffix; `InvalidInputError` as by `check_picture`."""
    check_picture(path)
    data = FORMATS[path.suffix.lower()](drawing)
    with replacing(path) as partial:
        partial.write_bytes(data)


def _draw_png(drawing: Drawing) -> bytes:
    dot = draw_dot(drawing).encode()
    done = subprocess.run(["dot", "-Tpng", "-Gdpi=144"], input=dot, capture_output=True, check=False)
    if done.returncode != 0 or not done.stdout:
        reason = " ".join(done.stderr.decode(errors="replace").split()) or f"status {done.returncode}"
        raise InvalidInputError(f"Graphviz could not draw the graph: {reason}. Write .svg, which needs no Graphviz.")
    return done.stdout


FORMATS: Final[dict[str, Callable[[Drawing], bytes]]] = {
    ".svg": lambda drawing: draw_svg(drawing).encode(),
    ".png": _draw_png,
    ".html": lambda drawing: draw_html(drawing).encode(),
    ".dot": lambda drawing: draw_dot(drawing).encode(),
}
"""Suffix of a file → the picture as bytes."""


def _add_dot(lines: list[str], names: Iterator[str], branch: Branch, parent: str | None) -> None:
    """Append a branch and all below it to the lines of text; `parent` is the name of the token that it precedes."""
    name = next(names)
    red, green, blue = fill = fill_of(branch, is_root=parent is None)
    style = ', style="rounded,filled,dashed"' if branch.fires_nowhere else ""
    lines.append(
        f"  {name} [label={_quoted(cut_label(branch.label), short_numbers(branch))}, "
        f'fillcolor="#{red:02x}{green:02x}{blue:02x}", fontcolor="{ink_on(fill)}", tooltip={_quoted(tooltip(branch))}{style}];'
    )
    if parent is not None:
        skip = f" [label={_quoted(f'… ×{branch.skipped}')}]" if branch.skipped else ""
        lines.append(f"  {name} -> {parent}{skip};")
    for child in branch.children:
        _add_dot(lines, names, child, name)


def _quoted(*rows: str) -> str:
    """A quoted label of one or more rows, in which quotes, backslashes and entities stand for themselves."""
    escaped = (row.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;") for row in rows if row)
    return '"' + "\\n".join(escaped) + '"'
