"""A neuron's trie and its predictions: the specification, in plain Python."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from actstore.kernels.suffix_trie.trie import BOUNDARY, IGNORE, Settings

LOWEST = 1e-4
"""Probabilities are kept this far from 0 and 1 before their logarithm is taken."""
ROUNDS = 3
SKIP_FIRES = 4
"""A node with fewer that fire does not look past the next token: so few have some earlier token in common by chance."""
SAME = 1e-9
"""Gains that differ by less are the same: what two ways of computing leave between them."""

Context = tuple[int, ...]
"""The tokens of a position and before it, backwards, `BOUNDARY` to the largest depth where the window ends."""


@dataclass
class Node:
    """A node of a neuron's trie."""

    token: int
    count: int
    fires: int
    ends: bool = False
    probability: float = math.nan
    value: float = math.nan
    children: "list[Node]" = field(default_factory=list)


class Event(NamedTuple):
    """A position: its context, its activation in shares of the maximum, or None where it does not fire."""

    context: Context
    value: float | None


class Belief(NamedTuple):
    """What is expected at a node: the probability of firing, and the same as if one position had not been seen."""

    p: float
    without_firing: float
    without_silent: float
    value: float
    """Mean activation of the firing ones."""

    def after(self, n: int, f: int, total: float, kappa: float) -> "Belief":
        """Having seen n positions more closely, of which f fire with activations that add up to `total`."""
        rest = n - 1 + kappa
        return Belief(
            (f + kappa * self.p) / (n + kappa),
            (f - 1 + kappa * self.without_firing) / rest,
            (f + kappa * self.without_silent) / rest,
            (total + kappa * self.value) / (f + kappa),
        )

    def likelihood(self, n: int, f: int) -> float:
        """Log likelihood of n positions, f of them firing, each left out of what is known of it."""
        firing = f * math.log(min(max(self.without_firing, LOWEST), 1 - LOWEST)) if f else 0.0
        return firing + ((n - f) * math.log(min(max(1 - self.without_silent, LOWEST), 1 - LOWEST)) if n > f else 0.0)


def build(events: list[Event], rest: float, settings: Settings) -> list[Node]:
    """The nodes at depth 0; `rest` is the mean activation of positions that do not fire."""
    n, (f, total) = len(events), _count(events)
    if f == 0:
        return []
    known = Belief(f / n, (f - 1) / max(n - 1, 1), f / max(n - 1, 1), total / f)
    grown = [_grow(t, g, 0, known, rest, settings) for t, g in _group(events, 0).items() if _count(g)[0]]
    kept, _ = _choose(n, f, [worth for worth, _ in grown], [node for _, node in grown], known, settings)
    return [grown[i][1] for i in kept]


def _grow(token: int, events: list[Event], depth: int, prior: Belief, rest: float, s: Settings) -> tuple[float, Node]:
    """The log likelihood of the events, less what nodes cost, and the node with what is kept below it."""
    n, (f, total) = len(events), _count(events)
    known = prior.after(n, f, total, s.kappa)
    worth, end, children = known.likelihood(n, f), known, list[Node]()
    if 0 < f < n and depth < s.max_depth and token != BOUNDARY:
        found, kept, other = _branch(events, depth + 1, known, rest, s)
        if found > worth + SAME or s.gain < 0:
            worth, children, end = found, kept, other
        skips = _skips(events, depth, known, worth + s.margin, s)
        if skips and max(skips.values()) > worth + s.margin:
            skip = max(skips, key=lambda skip: skips[skip])
            worth, children, end = _branch(events, depth + 1 + skip, known, rest, s)
            worth -= skip * s.gain
            for _ in range(skip):
                children = [Node(IGNORE, n, f, children=children)]
    value = end.p * end.value + (1 - end.p) * rest
    return worth, Node(token, n, f, True, end.p, value, children)


def _branch(
    events: list[Event], depth: int, known: Belief, rest: float, s: Settings
) -> tuple[float, list[Node], Belief]:
    """What telling the events apart by their tokens at `depth` is worth, the children kept, and the belief for all others."""
    n, (f, total) = len(events), _count(events)
    worths, children = _grow_children(events, depth, known, rest, s)
    kept, worth = _choose(n, f, worths, children, known, s)
    groups = _group(events, depth)
    others = [e for i, group in enumerate(groups.values()) if i not in kept for e in group]
    f, total = _count(others)
    return worth, [children[i] for i in kept], known.after(len(others), f, total, s.kappa) if others else known


def _grow_children(
    events: list[Event], depth: int, known: Belief, rest: float, s: Settings
) -> tuple[list[float], list[Node]]:
    grown = [_grow(token, group, depth, known, rest, s) for token, group in _group(events, depth).items()]
    return [worth for worth, _ in grown], [node for _, node in grown]


def _choose(
    n: int, f: int, worths: list[float], children: list[Node], known: Belief, s: Settings
) -> tuple[list[int], float]:
    """Which children stand out of all the others taken together, and what the branching is worth with these.

    Others are first taken to be all children, then those of which none fires, then those of which all do: a few children that
    fire stand out of many that do not only once those are together, and the other way round.
    """
    silent = sum(child.count for child in children if child.fires == 0)
    firing = sum(child.count for child in children if child.fires == child.count)
    found: tuple[list[int], float] = ([], -math.inf)
    for others_n, others_f in ((n, f), (silent, 0), (firing, firing)):
        kept: list[int] = []
        for _ in range(ROUNDS):
            others = known.after(others_n, others_f, 0, s.kappa) if others_n else known
            kept = [
                i
                for i, child in enumerate(children)
                if s.gain < 0 or worths[i] - others.likelihood(child.count, child.fires) > s.gain + SAME
            ]
            others_n = n - sum(children[i].count for i in kept)
            others_f = f - sum(children[i].fires for i in kept)
        others = known.after(others_n, others_f, 0, s.kappa) if others_n else known
        worth = sum(worths[i] - s.gain for i in kept) + others.likelihood(others_n, others_f)
        if worth > found[1] + SAME:
            found = kept, worth
    return found


def _skips(events: list[Event], depth: int, known: Belief, least: float, s: Settings) -> dict[int, float]:
    """What branching after 1, 2, … ignored tokens is worth, if nothing were told apart below.

    Only where it would be worth more than `least` if nothing silent had a token in common with what fires.
    """
    worths: dict[int, float] = {}
    n, (f, _) = len(events), _count(events)
    if s.gain < 0 or f < SKIP_FIRES:
        return worths
    for skip in range(1, min(s.max_skip, s.max_depth - depth - 1) + 1):
        groups = _group(events, depth + 1 + skip)
        children = [Node(token, len(group), _count(group)[0]) for token, group in groups.items()]
        cost = skip * s.gain
        firing = [c.fires for c in children if c.fires]
        if sum(known.after(f_c, f_c, 0, s.kappa).likelihood(f_c, f_c) for f_c in firing) - cost > least:
            alone = [known.after(c.count, c.fires, 0, s.kappa).likelihood(c.count, c.fires) for c in children]
            worths[skip] = _choose(n, f, alone, children, known, s)[1] - cost
    return worths


def _group(events: list[Event], depth: int) -> dict[int, list[Event]]:
    """The events by their token at `depth`, tokens ascending."""
    groups: dict[int, list[Event]] = {}
    for event in events:
        groups.setdefault(event.context[depth], []).append(event)
    return dict(sorted(groups.items()))


def _count(events: list[Event]) -> tuple[int, float]:
    """How many fire, and the sum of their activations."""
    values = [event.value for event in events if event.value is not None]
    return len(values), sum(values)


def predict(roots: list[Node], context: Context) -> tuple[float, float]:
    """Probability and value of the longest line that the context has and that ends; 0 and 0 where there is none."""
    best: tuple[int, Node | None] = (-1, None)
    waiting = [(0, roots)]
    while waiting:
        depth, nodes = waiting.pop()
        token = context[depth] if depth < len(context) else BOUNDARY
        matching = [node for node in nodes if node.token == token] + [node for node in nodes if node.token == IGNORE]
        for node in matching:
            if node.ends and depth > best[0]:
                best = (depth, node)
        # The exact child's subtree is looked through first, so that it wins where lines are equally long.
        waiting += [(depth + 1, node.children) for node in reversed(matching)]
    return (best[1].probability, best[1].value) if best[1] else (0.0, 0.0)
