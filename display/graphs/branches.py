"""The tree that is drawn of a neuron's graph in all formats: its paths of largest weight, and the number of the others."""

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
    """A token of the tree, and the tokens that may come before it."""

    token: int
    label: str
    skipped: int
    """Number of tokens, of any kind, between it and the token that it precedes."""
    probability: float
    """Of firing where none of the children matches; NaN where no path ends here."""
    value: float
    count: int
    fires: int
    own_count: int
    """Number of occurrences at which no longer path of the graph matches: those to which `probability` applies."""
    own_fires: int
    importance: float
    """Measured by masking; NaN where there is no probe of it."""
    strength: float
    """From 0 to 1: its measured importance, or else the largest change of the probability by it and the tokens before it."""
    is_silent: bool
    """Whether a path ends here that predicts that the neuron does not fire."""
    children: list[Branch] = field(default_factory=list)

    @property
    def ends(self) -> bool:
        """Whether a path ends here."""
        return not math.isnan(self.probability)

    @property
    def fires_nowhere(self) -> bool:
        """Whether no path here or below predicts that the neuron fires."""
        return (self.is_silent or not self.ends) and all(child.fires_nowhere for child in self.children)

    @property
    def highest(self) -> float:
        """The largest probability of a path here or below."""
        own = self.probability if self.ends else 0.0
        return max([own, *(child.highest for child in self.children)])


@dataclass(frozen=True)
class Drawing:
    """The drawing of one neuron's graph."""

    name: str
    status: str
    """Why there is nothing to draw; empty where there is."""
    roots: tuple[Branch, ...]
    """One branch per activating token, that of the largest weight first."""
    n_nodes: int
    n_paths: int
    n_hidden: int
    """Number of paths that are left out."""
    caption: str = ""

    def captioned(self, caption: str) -> Drawing:
        """The same drawing with a line of text under its name."""
        return replace(self, caption=caption)


def make_drawing(
    graph: NeuronGraph, token_bytes: Callable[[int], bytes], *, paths: int = 40, with_ignore: bool = True
) -> Drawing:
    """The tree of a neuron's graph with its `paths` paths of largest weight (0: with all of them).

    The weight of a path is the number of occurrences at which no longer path matches, times its probability or the change from
    the probability without the path, whichever is larger: an exception ("unless 'not' came before") has the weight of a rule.
    Without `with_ignore`, positions at which any token may stand are left out, as in the published drawings, and paths that
    then have the same tokens are merged.
    """
    forest = Forest.of_one(graph)
    all_paths = np.flatnonzero(forest.ends)
    weights = path_weights(forest)
    order = all_paths[np.lexsort((all_paths, -weights[all_paths]))]
    is_selected = np.zeros(len(weights), bool)
    is_selected[order[: paths or None]] = True
    drawn = forest.above(is_selected)
    n_hidden = int((forest.ends & ~drawn).sum())
    subtree = np.array([weights[a:b].sum() for a, b in zip(range(len(weights)), forest.stop.tolist(), strict=True)])
    tree = _Tree(forest, drawn, subtree, token_bytes, with_ignore)
    roots = tree.branches([int(n) for n in forest.levels[0] if drawn[n]]) if forest.levels else []
    status = graph.status or ("" if len(all_paths) else "has no path")
    return Drawing(graph.name, status, tuple(roots), len(weights), len(all_paths), n_hidden)


def path_weights(forest: Forest) -> NDArray[np.float64]:
    """[node] the weight of the path that ends there, as in `make_drawing`; 0 where none ends."""
    above = np.append(forest.probability, np.float32(0))[forest.end_above]
    change = np.maximum(forest.probability, np.abs(forest.probability - above)).astype(np.float64)
    return np.where(forest.ends, (forest.own_count + 0.5) * change, 0.0)


class _Tree:
    """Makes branches of the nodes that are drawn, the subtree of the largest weight first."""

    def __init__(
        self,
        forest: Forest,
        drawn: NDArray[np.bool_],
        weights: NDArray[np.float64],
        token_bytes: Callable[[int], bytes],
        with_ignore: bool,
    ) -> None:
        # Lists instead of arrays: the nodes are visited one by one.
        self._columns: dict[str, list[Any]] = {name: forest.nodes[name].tolist() for name in COLUMNS}
        self._ends = forest.ends.tolist()
        self._probability: list[float] = forest.probability.tolist()
        self._own_count: list[int] = forest.own_count.tolist()
        self._own_fires: list[int] = forest.own_fires.tolist()
        self._parent, self._weights = forest.parent.tolist(), weights.tolist()
        self._threshold, self._bytes, self._with_ignore = float(forest.threshold[0]), token_bytes, with_ignore
        self._children: dict[int, list[int]] = {}
        for node in np.flatnonzero(drawn & (forest.parent >= 0)).tolist():
            self._children.setdefault(self._parent[node], []).append(node)

    def branches(self, nodes: list[int]) -> list[Branch]:
        """The branches of sibling nodes."""
        branches = [self._branch(node, skipped) for node, skipped in self._without_skips(nodes)]
        return branches if self._with_ignore else _merged(branches)

    def _without_skips(self, nodes: list[int]) -> list[tuple[int, int]]:
        """The nodes of tokens at or below `nodes`, each with the number of ignored tokens above it; largest weight first."""
        tokens, pending = [], [(node, 0) for node in nodes]
        while pending:
            node, skipped = pending.pop()
            below = self._children.get(node, [])
            ends_here = self._ends[node] and self._with_ignore
            if self._columns["token"][node] == IGNORE and below and not ends_here:
                pending += [(child, skipped + 1) for child in below]
            else:
                tokens.append((node, skipped if self._with_ignore else 0))
        return sorted(tokens, key=lambda item: (-self._weights[item[0]], item[0]))

    def _branch(self, node: int, skipped: int) -> Branch:
        column = {name: values[node] for name, values in self._columns.items()}
        ends, probability = self._ends[node], column["probability"]
        importance, parent = column["importance"], self._parent[node]
        children = self.branches(self._children.get(node, []))
        highest = max([self._probability[node], *(child.highest for child in children)])
        without = self._probability[parent] if parent >= 0 else 0.0
        change = max(abs(self._probability[node] - without), highest - without)
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
    """Branches of the same token as one, in the order of the first of each: counts are added, and the likelier path is taken.

    `own_count` and `own_fires` are those of the likelier path, because its probability applies to these occurrences.
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
