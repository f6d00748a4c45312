"""A neuron's trie and its predictions: the specification, in plain Python."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from actstore.kernels.suffix_trie.trie import BOUNDARY, IGNORE, Settings

LOWEST = 1e-4
"""Probabilities are kept this far from 0 and 1 before their logarithm is taken."""
ROUNDS = 3
"""Times that the children kept and the rates of all others are computed from each other."""
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


class Posterior(NamedTuple):
    """What is expected at a node: the probability of firing, and the same as if one position had not been seen."""

    p: float
    without_firing: float
    without_silent: float
    value: float
    """Mean activation of the firing ones."""

    def after(self, n: int, f: int, total: float, kappa: float) -> "Posterior":
        """The posterior with n positions, of which f fire with activations adding up to `total`; this is the prior."""
        rest = n - 1 + kappa
        return Posterior(
            (f + kappa * self.p) / (n + kappa),
            (f - 1 + kappa * self.without_firing) / rest,
            (f + kappa * self.without_silent) / rest,
            (total + kappa * self.value) / (f + kappa),
        )

    def likelihood(self, n: int, f: int) -> float:
        """Leave-one-out log likelihood of n positions, f of them firing: each is predicted by all the others."""
        firing = f * math.log(min(max(self.without_firing, LOWEST), 1 - LOWEST)) if f else 0.0
        return firing + ((n - f) * math.log(min(max(1 - self.without_silent, LOWEST), 1 - LOWEST)) if n > f else 0.0)


def build(events: list[Event], rest: float, settings: Settings) -> list[Node]:
    """The nodes at depth 0; `rest` is the mean activation of positions that do not fire."""
    n, (f, total) = len(events), _count(events)
    if f == 0:
        return []
    posterior = Posterior(f / n, (f - 1) / max(n - 1, 1), f / max(n - 1, 1), total / f)
    grown = [_grow(t, g, 0, posterior, rest, settings) for t, g in _group(events, 0).items() if _count(g)[0]]
    kept_children, _ = _choose(n, f, [score for score, _ in grown], [node for _, node in grown], posterior, settings)
    return [grown[i][1] for i in kept_children]


def _grow(
    token: int, events: list[Event], depth: int, prior: Posterior, rest: float, settings: Settings
) -> tuple[float, Node]:
    """The score of a node, the log likelihood of its events less what nodes cost, and the node with what is kept below it."""
    n, (f, total) = len(events), _count(events)
    posterior = prior.after(n, f, total, settings.kappa)
    score, end_posterior, children = posterior.likelihood(n, f), posterior, list[Node]()
    if 0 < f < n and depth < settings.max_depth and token != BOUNDARY:
        branch_score, branch_children, others_posterior = _branch(events, depth + 1, posterior, rest, settings)
        if branch_score > score + SAME or settings.gain < 0:
            score, children, end_posterior = branch_score, branch_children, others_posterior
        skips = _skips(events, depth, posterior, score + settings.margin, settings)
        if skips and max(skips.values()) > score + settings.margin:
            skip = max(skips, key=lambda skip: skips[skip])
            score, children, end_posterior = _branch(events, depth + 1 + skip, posterior, rest, settings)
            score -= skip * settings.gain
            for _ in range(skip):
                children = [Node(IGNORE, n, f, children=children)]
    value = end_posterior.p * end_posterior.value + (1 - end_posterior.p) * rest
    return score, Node(token, n, f, True, end_posterior.p, value, children)


def _branch(
    events: list[Event], depth: int, posterior: Posterior, rest: float, settings: Settings
) -> tuple[float, list[Node], Posterior]:
    """The score of telling the events apart by their tokens at `depth`, the children kept, and the posterior of all others."""
    n, (f, total) = len(events), _count(events)
    scores, children = _grow_children(events, depth, posterior, rest, settings)
    kept_indices, score = _choose(n, f, scores, children, posterior, settings)
    groups = _group(events, depth)
    others = [e for i, group in enumerate(groups.values()) if i not in kept_indices for e in group]
    f, total = _count(others)
    return (
        score,
        [children[i] for i in kept_indices],
        posterior.after(len(others), f, total, settings.kappa) if others else posterior,
    )


def _grow_children(
    events: list[Event], depth: int, posterior: Posterior, rest: float, settings: Settings
) -> tuple[list[float], list[Node]]:
    grown = [_grow(token, group, depth, posterior, rest, settings) for token, group in _group(events, depth).items()]
    return [score for score, _ in grown], [node for _, node in grown]


def _choose(
    n: int, f: int, scores: list[float], children: list[Node], posterior: Posterior, settings: Settings
) -> tuple[list[int], float]:
    """Which children stand out of all the others taken together, and the score of the branching with these.

    Others are first taken to be all children, then those of which none fires, then those of which all do: a few children that
    fire stand out of many that do not only once those are together, and the other way round.
    """
    silent = sum(child.count for child in children if child.fires == 0)
    firing = sum(child.count for child in children if child.fires == child.count)
    best: tuple[list[int], float] = ([], -math.inf)
    for others_n, others_f in ((n, f), (silent, 0), (firing, firing)):
        kept_indices: list[int] = []
        for _ in range(ROUNDS):
            others = posterior.after(others_n, others_f, 0, settings.kappa) if others_n else posterior
            kept_indices = [
                i
                for i, child in enumerate(children)
                if settings.gain < 0 or scores[i] - others.likelihood(child.count, child.fires) > settings.gain + SAME
            ]
            others_n = n - sum(children[i].count for i in kept_indices)
            others_f = f - sum(children[i].fires for i in kept_indices)
        others = posterior.after(others_n, others_f, 0, settings.kappa) if others_n else posterior
        score = sum(scores[i] - settings.gain for i in kept_indices) + others.likelihood(others_n, others_f)
        if score > best[1] + SAME:
            best = kept_indices, score
    return best


def _skips(events: list[Event], depth: int, posterior: Posterior, least: float, settings: Settings) -> dict[int, float]:
    """The score of branching after 1, 2, … ignored tokens, by their number, if nothing were told apart below.

    Only where it would be more than `least` if nothing silent had a token in common with what fires.
    """
    scores: dict[int, float] = {}
    n, (f, _) = len(events), _count(events)
    if settings.gain < 0 or f < SKIP_FIRES:
        return scores
    for skip in range(1, min(settings.max_skip, settings.max_depth - depth - 1) + 1):
        groups = _group(events, depth + 1 + skip)
        children = [Node(token, len(group), _count(group)[0]) for token, group in groups.items()]
        cost = skip * settings.gain
        firing = [c.fires for c in children if c.fires]
        if sum(posterior.after(f_c, f_c, 0, settings.kappa).likelihood(f_c, f_c) for f_c in firing) - cost > least:
            child_scores = [
                posterior.after(c.count, c.fires, 0, settings.kappa).likelihood(c.count, c.fires) for c in children
            ]
            scores[skip] = _choose(n, f, child_scores, children, posterior, settings)[1] - cost
    return scores


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
    """Probability and value of the longest path that the context has and that ends; 0 and 0 where there is none."""
    best: tuple[int, Node | None] = (-1, None)
    pending = [(0, roots)]
    while pending:
        depth, nodes = pending.pop()
        token = context[depth] if depth < len(context) else BOUNDARY
        matching = [node for node in nodes if node.token == token] + [node for node in nodes if node.token == IGNORE]
        for node in matching:
            if node.ends and depth > best[0]:
                best = (depth, node)
        # The exact child's subtree is looked through first, so that it wins where paths are equally long.
        pending += [(depth + 1, node.children) for node in reversed(matching)]
    return (best[1].probability, best[1].value) if best[1] else (0.0, 0.0)
