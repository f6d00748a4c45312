"""A neuron's graph as a tree of text: the activating tokens, and from each of them the tokens before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from actstore.display.graphs.branch_numbers import READING_COUNTS, READING_P, counts_label, probability_label
from actstore.display.graphs.labels import cut_label

if TYPE_CHECKING:
    from actstore.display.graphs.branches import Branch, Drawing

READING = "Read from a token at which the neuron fires to the tokens before it (←); … ×2: any two tokens; · a space."


def draw_tree(drawing: Drawing, every: str = "paths = 0") -> Tree:
    """The tree under a heading that explains how to read it; `every`: what draws all paths."""
    heading = Text(drawing.name, style="bold")
    if drawing.caption:
        heading.append(f"  {drawing.caption}", style="not bold dim")
    tree = Tree(heading, guide_style="dim")
    if not drawing.roots:
        tree.add(Text(f"an empty graph: {drawing.status}", style="italic"))
        return tree
    heading.append(f"\n{READING}\n{READING_P};\n{READING_COUNTS}.", style="not bold dim")
    for root in drawing.roots:
        _add(tree, root, is_root=True)
    if drawing.n_hidden:
        tree.add(Text(_hidden_paths(drawing, every), style="dim italic"))
    return tree


def _hidden_paths(drawing: Drawing, every: str) -> str:
    what = "path that matters" if drawing.n_hidden == 1 else "paths that matter"
    return f"… {drawing.n_hidden:,} more {what} less ({every} draws all)"


def _add(tree: Tree, branch: Branch, *, is_root: bool = False) -> None:
    text = Text("" if is_root else "← ", style="dim")
    if branch.skipped:
        text.append(f"… ×{branch.skipped} ← ")
    strength = branch.highest if is_root else branch.strength
    text.append(f" {cut_label(branch.label)} ", style=f"not dim {_paint(strength, red=is_root)}")
    if branch.ends:
        level = int(90 + 165 * min(1.0, branch.probability))
        colour = "dim" if branch.is_silent else f"not dim bold rgb({level},60,60)"
        text.append(f"  {probability_label(branch)}", style=colour)
    text.append(f"  {counts_label(branch)}")
    if branch.importance == branch.importance:
        text.append(f"  importance {branch.importance:.2f}", style="not dim rgb(90,130,255)")
    below = tree.add(text)
    for child in branch.children:
        _add(below, child)


def _paint(strength: float, *, red: bool) -> str:
    """White text on a background that grows with the strength; dark to bright, so that it is readable on either theme."""
    if strength < 0.05:
        return "reverse"
    level = int(70 + 130 * min(1.0, strength))
    return f"white on rgb({level},25,25)" if red else f"white on rgb(25,45,{level})"
