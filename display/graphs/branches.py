"""A neuron's graph as the tree that is drawn: the paths that say most, the rest counted.

Knows nothing about terminals, pictures or pages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.display.graphs.labels import token_label
from actstore.store.graphs.forest import Forest
from actstore.store.graphs.nodes import COLUMNS, IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actstore.store.graphs.reader import NeuronGraph


@dataclass
class Branch:
    """A token and what may come before it."""

    token: int
    label: str
    skipped: int
    """How many tokens, whichever they are, lie between it and the one it hangs on."""
    probability: float
    """Of firing where nothing below matches; NaN where no path ends here."""
    value: float
    count: int
    fires: int
    own_count: int
    """Of the occurrences, those for which no longer path of the graph answers: those that `probability` speaks of."""
    own_fires: int
    importance: float
    """As measured by masking; NaN where no probe did."""
    strength: float
    """0 to 1: its measured importance, else how far it changes the probability, or with what stands before it could."""
    is_silent: bool
    """Whether a path ends here that says that the neuron does not fire."""
    children: list[Branch] = field(default_factory=list)

    @property
    def ends(self) -> bool:
        """Whether a path ends here."""
        return not math.isnan(self.probability)

    @property
    def fires_nowhere(self) -> bool:
        """Whether no path here or below says that the neuron fires."""
        return (self.is_silent or not self.ends) and all(child.fires_nowhere for child in self.children)

    @property
    def highest(self) -> float:
        """The largest probability of a path here or below."""
        own = self.probability if self.ends else 0.0
        return max([own, *(child.highest for child in self.children)])


@dataclass(frozen=True)
class Drawing:
    """What is drawn of one neuron."""

    name: str
    status: str
    """Why there is nothing to draw; empty where there is."""
    roots: tuple[Branch, ...]
    """A branch for each activating token, those that answer for most firings first."""
    n_nodes: int
    n_paths: int
    n_hidden: int
    """Lines left out."""
    caption: str = ""

    def captioned(self, caption: str) -> Drawing:
        """The same with a line of text under its name."""
        return replace(self, caption=caption)


def make_drawing(
    graph: NeuronGraph, token_bytes: Callable[[int], bytes], *, paths: int = 40, with_ignore: bool = True
) -> Drawing:
    """The tree of a neuron's graph, of its `paths` paths that change its predictions most (0: all of them).

    A path's weight is the occurrences that it alone answers for, times its probability or how far that lies from the one
    without it, whichever is more: an exception ("unless 'not' came before") counts like a rule. Without `with_ignore`, tokens
    that any token may stand for are left out, as in the published drawings, and paths that then read alike are one.
    """
    forest = Forest.of_one(graph)
    all_paths = np.flatnonzero(forest.ends)
    weights = path_weights(forest)
    order = all_paths[np.lexsort((all_paths, -weights[all_paths]))]
    chosen = order[: paths or None]
    marked = np.zeros(len(weights), bool)
    marked[chosen] = True
    drawn = forest.above(marked)
    n_hidden = int((forest.ends & ~drawn).sum())
    subtree = np.array([weights[a:b].sum() for a, b in zip(range(len(weights)), forest.stop.tolist(), strict=True)])
    tree = _Tree(forest, drawn, subtree, token_bytes, with_ignore)
    roots = tree.branches([int(n) for n in forest.levels[0] if drawn[n]]) if forest.levels else []
    status = graph.status or ("" if len(all_paths) else "has no path")
    return Drawing(graph.name, status, tuple(roots), len(weights), len(all_paths), n_hidden)


def path_weights(forest: Forest) -> NDArray[np.float64]:
    """[node] how much a path matters to what is predicted; 0 where none ends."""
    above = np.append(forest.probability, np.float32(0))[forest.end_above]
    change = np.maximum(forest.probability, np.abs(forest.probability - above)).astype(np.float64)
    return np.where(forest.ends, (forest.own_count + 0.5) * change, 0.0)


class _Tree:
    """Makes branches of nodes, biggest subtree first."""

    def __init__(
        self,
        forest: Forest,
        drawn: NDArray[np.bool_],
        weights: NDArray[np.float64],
        token_bytes: Callable[[int], bytes],
        with_ignore: bool,
    ) -> None:
        self._columns: dict[str, list[Any]] = {name: forest.nodes[name].tolist() for name in COLUMNS}
        self._ends = forest.ends.tolist()
        self._likely: list[float] = forest.probability.tolist()
        self._own_count: list[int] = forest.own_count.tolist()
        self._own_fires: list[int] = forest.own_fires.tolist()
        self._parent, self._weights = forest.parent.tolist(), weights.tolist()
        self._threshold, self._bytes, self._with_ignore = float(forest.threshold[0]), token_bytes, with_ignore
        self._children: dict[int, list[int]] = {}
        for node in np.flatnonzero(drawn & (forest.parent >= 0)).tolist():
            self._children.setdefault(self._parent[node], []).append(node)

    def branches(self, nodes: list[int]) -> list[Branch]:
        found = [self._branch(node, skipped) for node, skipped in self._without_skips(nodes)]
        return found if self._with_ignore else _merged(found)

    def _without_skips(self, nodes: list[int]) -> list[tuple[int, int]]:
        """Nodes of tokens, each with the number of ignored ones before it, biggest first."""
        found, waiting = [], [(node, 0) for node in nodes]
        while waiting:
            node, skipped = waiting.pop()
            below = self._children.get(node, [])
            ends_here = self._ends[node] and self._with_ignore
            if self._columns["token"][node] == IGNORE and below and not ends_here:
                waiting += [(child, skipped + 1) for child in below]
            else:
                found.append((node, skipped if self._with_ignore else 0))
        return sorted(found, key=lambda item: (-self._weights[item[0]], item[0]))

    def _branch(self, node: int, skipped: int) -> Branch:
        column = {name: values[node] for name, values in self._columns.items()}
        ends, probability = self._ends[node], column["probability"]
        importance, parent = column["importance"], self._parent[node]
        children = self.branches(self._children.get(node, []))
        likeliest = max([self._likely[node], *(child.highest for child in children)])
        without = self._likely[parent] if parent >= 0 else 0.0
        change = max(abs(self._likely[node] - without), likeliest - without)
        return Branch(
            token=column["token"],
            label=token_label(column["token"], self._bytes(column["token"]) if column["token"] >= 0 else b""),
            skipped=skipped,
            probability=probability,
            value=column["value"],
            count=column["count"],
            fires=column["fires"],
            own_count=self._own_count[node],
            own_fires=self._own_fires[node],
            importance=importance,
            strength=min(1.0, max(0.0, change if math.isnan(importance) else importance)),
            is_silent=ends and probability < self._threshold,
            children=children,
        )


def _merged(branches: list[Branch]) -> list[Branch]:
    """Branches of the same token as one, in the order of the first: what was seen added up, of two paths' ends the likelier.

    `own_count` and `own_fires` stay with the likelier path's probability, which is of these occurrences.
    """
    by_token: dict[int, Branch] = {}
    for branch in branches:
        same = by_token.setdefault(branch.token, branch)
        if same is branch:
            continue
        better = branch if not same.ends or (branch.ends and branch.probability > same.probability) else same
        by_token[branch.token] = replace(
            better,
            count=same.count + branch.count,
            fires=same.fires + branch.fires,
            strength=max(same.strength, branch.strength),
            children=_merged(same.children + branch.children),
        )
    return list(by_token.values())
