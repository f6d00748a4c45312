"""The stack on which a neuron's trie grows: nodes, what is believed of them, and which children are kept; compiled."""

import math
from typing import Any, NamedTuple

import numpy as np

from actstore.kernels.jit import jit
from actstore.kernels.suffix_trie.naive import LOWEST, ROUNDS, SAME

NODE = np.dtype(
    [
        ("worth", "f8"),
        ("total", "f8"),
        ("probability", "f8"),
        ("value", "f8"),
        ("token", "i4"),
        ("depth", "i4"),
        ("size", "i4"),
        ("count", "i4"),
        ("fires", "i4"),
        ("kept", "i4"),
    ]
)
"""A node on the stack: `total` are the activations where it fires added up, `size` counts it and all below it."""


class Belief(NamedTuple):
    """As `naive.Belief`."""

    p: float
    without_firing: float
    without_silent: float
    value: float


@jit
def after(prior: Any, n: int, f: int, total: float, kappa: float) -> Any:
    """As `naive.Belief.after`."""
    rest = n - 1 + kappa
    return Belief(
        (f + kappa * prior.p) / (n + kappa),
        (f - 1 + kappa * prior.without_firing) / rest,
        (f + kappa * prior.without_silent) / rest,
        (total + kappa * prior.value) / (f + kappa),
    )


@jit
def likelihood(known: Any, n: int, f: int) -> float:
    """As `naive.Belief.likelihood`."""
    total = 0.0
    if f:
        total += f * math.log(min(max(known.without_firing, LOWEST), 1 - LOWEST))
    if n > f:
        total += (n - f) * math.log(min(max(1 - known.without_silent, LOWEST), 1 - LOWEST))
    return total


@jit
def push(stack: Any, top: Any, token: int, depth: int, n: int, f: int, total: float) -> int:
    """The index of a new node on the stack, without an end; -1 where there is no room."""
    at = top[0]
    if at == stack.size:
        top[1] = 1
        return -1
    node = stack[at]
    node.token, node.depth, node.size = token, depth, 1
    node.count, node.fires, node.total = n, f, total
    node.probability, node.value = np.nan, np.nan
    top[0] = at + 1
    return int(at)


@jit
def push_known(
    stack: Any, top: Any, token: Any, depth: int, n: Any, f: Any, total: float, prior: Any, rest: float, kappa: float
) -> Any:
    """The index of a new node at which lines end, and what is believed there."""
    known = after(prior, n, f, total, kappa)
    at = push(stack, top, token, depth, n, f, total)
    if at >= 0:
        stack[at].worth = likelihood(known, n, f)
        end(stack[at], known, rest)
    return at, known


@jit
def end(node: Any, known: Any, rest: float) -> None:
    """Let lines end at a node."""
    node.probability = known.p
    node.value = known.p * known.value + (1 - known.p) * rest


@jit
def choose(stack: Any, first: int, top: int, n: Any, f: Any, known: Any, s: Any) -> Any:
    """What the children from `first` to the top are worth, marking those kept, and how many the others are."""
    silent_n, firing_n, at = n - n, n - n, first
    while at < top:
        silent_n += stack[at].count if stack[at].fires == 0 else 0
        firing_n += stack[at].count if stack[at].fires == stack[at].count else 0
        at += stack[at].size
    best, best_firing, best_silent = -np.inf, 0.0, 0.0
    for start in range(3):
        others_n, others_f = (n, f) if start == 0 else ((silent_n, n - n) if start == 1 else (firing_n, firing_n))
        firing, silent, gains = 0.0, 0.0, 0.0
        for _ in range(ROUNDS):
            firing, silent = _rates(known, others_n, others_f, s.kappa)
            gains, others_n, others_f = _mark(stack, first, top, n, f, firing, silent, s)
        left_firing, left_silent = _rates(known, others_n, others_f, s.kappa)
        worth = gains + others_f * left_firing + (others_n - others_f) * left_silent
        if worth > best + SAME:
            best, best_firing, best_silent = worth, firing, silent
    _, others_n, others_f = _mark(stack, first, top, n, f, best_firing, best_silent, s)
    return best, others_n, others_f


@jit
def _mark(stack: Any, first: int, top: int, n: Any, f: Any, firing: float, silent: float, s: Any) -> Any:
    """What the children add that stand out of others with these rates, marking them, and how many the others then are."""
    at, gains = first, 0.0
    while at < top:
        child = stack[at]
        among_others = child.fires * firing + (child.count - child.fires) * silent
        child.kept = s.gain < 0 or child.worth - among_others > s.gain + SAME
        if child.kept:
            n -= child.count
            f -= child.fires
            gains += child.worth - s.gain
        at += child.size
    return gains, n, f


@jit
def _rates(known: Any, n: int, f: int, kappa: float) -> Any:
    """Logarithms of the leave-one-out probabilities, among the others, that one fires and that one does not."""
    others = after(known, n, f, 0.0, kappa) if n else known
    firing = math.log(min(max(others.without_firing, LOWEST), 1 - LOWEST))
    return firing, math.log(min(max(1 - others.without_silent, LOWEST), 1 - LOWEST))


@jit
def keep(stack: Any, top: Any, first: int, total: float) -> float:
    """Take away the children from `first` to the top that are not kept; `total` less the activations of those that are."""
    at, to, stop = first, first, top[0]
    while at < stop:
        size = stack[at].size
        if stack[at].kept:
            total -= stack[at].total
            if to < at:
                for i in range(size):
                    stack[to + i] = stack[at + i]
            to += size
        at += size
    top[0] = to
    return total
