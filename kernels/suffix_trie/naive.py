"""A neuron's trie and its predictions: the specification, in plain Python."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from actstore.kernels.suffix_trie.trie import BOUNDARY, IGNORE, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    total: float = 0.0
    """Activations where it fires, added up."""
    mean: float = math.nan
    """Mean activation where it fires, smoothed: from this starts that of the contexts for which it stands."""
    mass: int = 0
    """Number of further positions that are looked ahead to: as many as it has, and those in contexts that no position has."""
    expected: float = 0.0
    """How many of these would fire, by the longest contexts."""
    score: float = 0.0
    """What of this the subtree tells: its `expected_likelihood`, less the cost of the nodes below."""
    left_out: float = 0.0
    """Leave-one-out log likelihood of the best subtree, less what that costs."""


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

    def after(self, n: int, f: int, total: float, kappa: float, weights: tuple[float, float]) -> "Posterior":
        """The posterior with n positions, of which f fire with activations adding up to `total`; this is the prior.

        weights: what n and f count in p, by `_weigh`.
        """
        rest = n - 1 + kappa
        return Posterior(
            (weights[1] + kappa * self.p) / (weights[0] + kappa),
            (f - 1 + kappa * self.without_firing) / rest,
            (f + kappa * self.without_silent) / rest,
            (total + kappa * self.value) / (f + kappa),
        )

    def likelihood(self, n: int, f: int) -> float:
        """Leave-one-out log likelihood of n positions, f of them firing: each is predicted by all the others."""
        firing = f * math.log(min(max(self.without_firing, LOWEST), 1 - LOWEST)) if f else 0.0
        return firing + ((n - f) * math.log(min(max(1 - self.without_silent, LOWEST), 1 - LOWEST)) if n > f else 0.0)


def expected_likelihood(n: int, expected: float, p: float) -> float:
    """Log likelihood, under the probability p, to be expected of n further positions of which `expected` fire."""
    p = min(max(p, LOWEST), 1 - LOWEST)
    return expected * math.log(p) + (n - expected) * math.log(1 - p)


def build(events: list[Event], rest: float, settings: Settings) -> list[Node]:
    """The nodes at depth 0; `rest` is the mean activation of positions that do not fire."""
    n, (f, total) = len(events), _count(events)
    if f == 0:
        return []
    posterior = Posterior(f / n, (f - 1) / max(n - 1, 1), f / max(n - 1, 1), total / f)
    roots = [_grow(t, g, 0, posterior, rest, settings) for t, g in _group(events, 0).items() if _count(g)[0]]
    mass, expected = n + sum(root.mass - root.count for root in roots), sum(root.expected for root in roots)
    kept_indices, _ = _choose((mass, expected), (0, 0.0), roots, settings)
    above = Node(IGNORE, n, f, True, total=total, mass=mass, expected=expected)
    above.children = [roots[i] for i in kept_indices]
    trim(above, rest, settings)
    return above.children


def _grow(token: int, events: list[Event], depth: int, prior: Posterior, rest: float, settings: Settings) -> Node:
    """A node with what is kept below it."""
    n, (f, total) = len(events), _count(events)
    is_mixed = 0 < f < n and depth < settings.max_depth and token != BOUNDARY
    weights = _weigh(events, depth + 1, settings.kappa) if is_mixed else (n, f)
    posterior = prior.after(n, f, total, settings.kappa, weights)
    node = Node(token, n, f, True, total=total, mean=posterior.value, left_out=posterior.likelihood(n, f))
    if is_mixed:
        _branch(node, events, depth + 1, 0, posterior, rest, settings)
        skips = _skips(events, depth, posterior, node.left_out + settings.margin, settings)
        if skips and max(skips.values()) > node.left_out + settings.margin:
            _branch(node, events, depth + 1, max(skips, key=lambda skip: skips[skip]), posterior, rest, settings)
    else:
        node.mass, node.expected = n, n * posterior.p
        node.score = expected_likelihood(n, node.expected, posterior.p)
        _end(node, posterior.p, posterior.value, rest)
    return node


def _weigh(events: list[Event], depth: int, kappa: float) -> tuple[float, float]:
    """What some positions, and those of them that fire, count in the probability of the context that they share.

    Positions alike up to `depth` are not independent of each other: n of them count `kappa * n / (n + kappa)`, never more
    than `kappa`. This is what n observations of a child tell of its parent if p of the child varies around that of the parent
    as `kappa` supposes, and what Kneser and Ney do by counting contexts instead of positions.
    """
    weighed_n = weighed_f = 0.0
    for group in _group(events, depth).values():
        n, f = len(group), _count(group)[0]
        weighed_n += kappa * n / (n + kappa)
        weighed_f += kappa * f / (n + kappa)
    return weighed_n, weighed_f


def _branch(
    node: Node, events: list[Event], depth: int, skip: int, posterior: Posterior, rest: float, settings: Settings
) -> None:
    """Let a node tell its events apart by their tokens at `depth`, after `skip` ignored ones, as far as that is worth it."""
    n, f, cost = node.count, node.fires, skip * settings.gain
    children = [_grow(t, g, depth + skip, posterior, rest, settings) for t, g in _group(events, depth + skip).items()]
    left_out = _left_out(n, f, children, posterior, settings) - cost
    if skip or left_out > node.left_out + SAME:
        node.left_out = left_out
    # A further position is in a context that has not been seen as often as one was seen for the first and only time so far
    # (Good and Turing). The node's own probability is all that is known there, whatever its other contexts say.
    n_new = sum(child.count == 1 for child in children)
    new = n_new, n_new * posterior.p
    node.mass, node.expected = new[0] + sum(c.mass for c in children), new[1] + sum(c.expected for c in children)
    kept_indices, score = _choose((node.mass, node.expected), new, children, settings)
    merged = _alone(node.mass, node.expected)
    if score - cost > merged + SAME or settings.gain < 0:
        node.score, node.children = score - cost, [children[i] for i in kept_indices]
    else:
        node.score, node.children = merged, []
    others_n, others_expected, others_f, others_total = own(node)
    for _ in range(skip if node.children else 0):
        node.children = [Node(IGNORE, n, f, children=node.children)]
    mean = (others_total + settings.kappa * node.mean) / (others_f + settings.kappa)
    # A context that no position has: nothing but the node's own probability is known of it.
    _end(node, others_expected / others_n if others_n else posterior.p, mean if others_n else node.mean, rest)


def _end(node: Node, p: float, mean: float, rest: float) -> None:
    node.probability = min(max(p, 0.0), 1.0)
    node.value = node.probability * mean + (1 - node.probability) * rest


def own(node: Node) -> tuple[int, float, int, float]:
    """Mass, `expected`, fires and total of a node's positions that have no longer path."""
    left = node.mass, node.expected, node.fires, node.total
    below = list(node.children)
    while below:
        child = below.pop()
        if child.ends:
            left = left[0] - child.mass, left[1] - child.expected, left[2] - child.fires, left[3] - child.total
        else:
            below += child.children
    return left


def trim(above: Node, rest: float, settings: Settings) -> None:
    """Remove, from the tries below `above`, the leaf whose contexts are told apart for the least, until there are `nodes`.

    That is the expected log likelihood of a leaf and of what the path above it stands for, less that of both together. Tokens
    that are ignored go with what is below them; of equal leaves goes the first.
    """
    while 0 < settings.nodes < sum(1 for _ in _walk(above, [])):
        worst: tuple[float, list[Node]] = (math.inf, [])
        for path in _walk(above, [above]):
            if path[-1].children:
                continue
            n, expected, _, _ = own(path[-1])
            others_n, others_expected, _, _ = own(next(node for node in path[-2::-1] if node.ends))
            both = n + others_n, expected + others_expected
            loss = _alone(n, expected) + _alone(others_n, others_expected) - _alone(*both)
            if loss < worst[0] - SAME:
                worst = loss, path
        path = worst[1]
        while True:
            leaf = path.pop()
            path[-1].children = [child for child in path[-1].children if child is not leaf]
            if path[-1].ends or path[-1].children:
                break
        ending = next(node for node in path[::-1] if node.ends)
        n, expected, f, total = own(ending)
        if ending is not above:
            mean = (total + settings.kappa * ending.mean) / (f + settings.kappa)
            _end(ending, expected / n, mean, rest)


def _alone(n: int, expected: float) -> float:
    return expected_likelihood(n, expected, expected / n) if n else 0.0


def _walk(node: Node, path: list[Node]) -> "Iterator[list[Node]]":
    """The path to each node below a node, depth first."""
    for child in node.children:
        yield [*path, child]
        yield from _walk(child, [*path, child])


def _choose(
    of_all: tuple[int, float], new: tuple[int, float], children: list[Node], settings: Settings
) -> tuple[list[int], float]:
    """Which children stand out of all the others taken together, and the score of the branching with these.

    of_all, new: mass and `expected` of all that is told apart, and of contexts that no child has: they are always among the
    others.

    Others are first taken to be all children, then those of which none fires, then those of which all do: a few children that
    fire stand out of many that do not only once those are together, and the other way round.
    """
    silent = [child for child in children if child.fires == 0]
    firing = [child for child in children if child.fires == child.count]
    best: tuple[list[int], float] = ([], -math.inf)
    for others_n, others_expected in (
        of_all,
        *((new[0] + sum(c.mass for c in g), new[1] + sum(c.expected for c in g)) for g in (silent, firing)),
    ):
        kept_indices: list[int] = []
        for _ in range(ROUNDS):
            p = others_expected / others_n if others_n else of_all[1] / of_all[0]
            kept_indices = [
                i
                for i, child in enumerate(children)
                if settings.gain < 0
                or child.score - expected_likelihood(child.mass, child.expected, p) > settings.gain + SAME
            ]
            others_n = of_all[0] - sum(children[i].mass for i in kept_indices)
            others_expected = of_all[1] - sum(children[i].expected for i in kept_indices)
        score = sum(children[i].score - settings.gain for i in kept_indices) + _alone(others_n, others_expected)
        if score > best[1] + SAME:
            best = kept_indices, score
    return best


def _left_out(n: int, f: int, children: list[Node], posterior: Posterior, settings: Settings) -> float:
    """The leave-one-out log likelihood of the best branching, less what its nodes cost; others are taken to be as above."""
    silent = sum(child.count for child in children if child.fires == 0)
    firing = sum(child.count for child in children if child.fires == child.count)
    best = -math.inf
    for others_n, others_f in ((n, f), (silent, 0), (firing, firing)):
        kept_children: list[Node] = []
        for _ in range(ROUNDS):
            others = _without(posterior, others_n, others_f, settings)
            kept_children = [
                child
                for child in children
                if settings.gain < 0
                or child.left_out - others.likelihood(child.count, child.fires) > settings.gain + SAME
            ]
            others_n = n - sum(child.count for child in kept_children)
            others_f = f - sum(child.fires for child in kept_children)
        others = _without(posterior, others_n, others_f, settings)
        score = sum(child.left_out - settings.gain for child in kept_children) + others.likelihood(others_n, others_f)
        best = score if score > best + SAME else best
    return best


def _without(posterior: Posterior, n: int, f: int, settings: Settings) -> Posterior:
    """The posterior with n further positions, of which f fire; only for the likelihood of leaving one out."""
    return posterior.after(n, f, 0, settings.kappa, (n, f)) if n else posterior


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
        if sum(_without(posterior, f_c, f_c, settings).likelihood(f_c, f_c) for f_c in firing) - cost > least:
            for c in children:
                c.left_out = _without(posterior, c.count, c.fires, settings).likelihood(c.count, c.fires)
            scores[skip] = _left_out(n, f, children, posterior, settings) - cost
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
