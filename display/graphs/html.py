"""A neuron's graph as one HTML page: a tree that folds, with all numbers in tooltips; no script and no other file is needed."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from actstore.display.graphs.branch_numbers import READING_COUNTS, READING_P, counts_label, probability_label, tooltip
from actstore.display.graphs.labels import cut_label
from actstore.display.graphs.svg import fill_of, ink_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.display.graphs.branches import Branch, Drawing

STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",Helvetica,Arial,sans-serif;margin:2rem auto;max-width:60rem;
padding:0 1rem}
h1{font-size:1.3rem;margin:0}
p{margin:.3rem 0;opacity:.75}
ul{list-style:none;margin:0;padding:0}
ul ul{margin-left:.45rem;padding-left:1rem;border-left:1px solid #8886}
.leaf{padding-left:1.1rem}
summary{cursor:pointer;padding:.1rem 0}
.token{font-weight:600;padding:.05rem .45rem;border-radius:.3rem;border:1px solid #777;
white-space:pre-wrap;overflow-wrap:anywhere}
.silent{border-style:dashed;border-color:#999}
.n{font-variant-numeric:tabular-nums;opacity:.75;font-size:.85em;margin-left:.5rem}
.p{font-variant-numeric:tabular-nums;font-weight:600;margin-left:.5rem}
.before{opacity:.6}
"""


def draw_html(drawing: Drawing) -> str:
    """The page; branches of the first two levels are unfolded."""
    name = escape(drawing.name)
    if drawing.roots:
        body = _list(drawing.roots, 0)
        reading = (
            "Read from a token at which the neuron fires to the tokens before it (←); red: an activating token by P of its "
            "likeliest path, blue: importance of a "
            f"context token, dashed: does not fire; … ×2: any two tokens; · a space. {READING_P}; {READING_COUNTS}."
        )
    else:
        body, reading = "", f"An empty graph: {drawing.name} {drawing.status}."
    hidden = (
        f"<p>… {drawing.n_hidden:,} of {drawing.n_paths:,} paths, of smaller weight, are left out.</p>"
        if drawing.n_hidden
        else ""
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
        f"<h1>{name}</h1>\n<p>{escape(drawing.caption)}</p>\n<p>{escape(reading)}</p>\n<main>\n{body}\n</main>\n{hidden}\n"
        "</body></html>\n"
    )


def _list(branches: Sequence[Branch], depth: int) -> str:
    """The branches of one depth as a list; only a list within a list is indented, so that a branch is below its own token."""
    items = "\n".join(f"<li>{_branch(branch, depth)}</li>" for branch in branches)
    return f"<ul>\n{items}\n</ul>"


def _branch(branch: Branch, depth: int) -> str:
    fill = fill_of(branch, is_root=depth == 0)
    before = f'<span class="before">← {f"… ×{branch.skipped} ← " if branch.skipped else ""}</span>' if depth else ""
    silent = " silent" if branch.fires_nowhere else ""
    p = f'<span class="p">{probability_label(branch)}</span>' if branch.ends else ""
    line = (
        f'{before}<span class="token{silent}" style="background:rgb{fill};color:{ink_on(fill)}">'
        f"<bdi>{escape(cut_label(branch.label, 200))}</bdi></span>{p}"
        f'<span class="n">{counts_label(branch)}</span>'
    )
    hover = f'title="{escape(tooltip(branch))}"'
    if not branch.children:
        return f'<div class="leaf" {hover}>{line}</div>'
    unfolded = " open" if depth < 2 else ""
    return f"<details{unfolded}><summary {hover}>{line}</summary>\n{_list(branch.children, depth + 1)}\n</details>"
