"""The stack on which a neuron's trie grows: nodes, their posteriors, and which children are kept; compiled."""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit
from actstore.kernels.suffix_trie.naive import LOWEST, ROUNDS, SAME
from actstore.kernels.suffix_trie.trie import Settings

NODE = np.dtype(
    [
        ("score", "f8"),
        ("left_out", "f8"),
        ("expected", "f8"),
        ("total", "f8"),
        ("mean", "f8"),
        ("probability", "f8"),
        ("value", "f8"),
        ("token", "i4"),
        ("depth", "i4"),
        ("size", "i4"),
        ("count", "i4"),
        ("fires", "i4"),
        ("mass", "i4"),
        ("kept", "i4"),
    ]
)
"""A node on the stack: `size` counts it and all below it, `kept` is what `choose` has decided, the rest as in `naive.Node`.

A node comes before those below it, depth first, so that a subtree is `size` nodes side by side."""

Integer: TypeAlias = int | np.int64
"""What compiled code makes of either is the same."""
Node: TypeAlias = Any
"""A record of `NODE`: numpy has no type for one."""
Stack: TypeAlias = NDArray[Any]
"""[node] of `NODE`, of which `top[0]` are in use."""
Top: TypeAlias = NDArray[np.int64]
"""See `evidence.Scratch.top`."""


class Posterior(NamedTuple):
    """As `naive.Posterior`."""

    p: float
    without_firing: float
    without_silent: float
    value: float


@jit
def after(
    prior: Posterior, n: Integer, f: Integer, total: float, kappa: float, weights: tuple[float, float]
) -> Posterior:
    """As `naive.Posterior.after`."""
    rest = n - 1 + kappa
    return Posterior(
        (weights[1] + kappa * prior.p) / (weights[0] + kappa),
        (f - 1 + kappa * prior.without_firing) / rest,
        (f + kappa * prior.without_silent) / rest,
        (total + kappa * prior.value) / (f + kappa),
    )


@jit
def likelihood(posterior: Posterior, n: Integer, f: Integer) -> float:
    """As `naive.Posterior.likelihood`."""
    total = 0.0
    if f:
        total += f * math.log(min(max(posterior.without_firing, LOWEST), 1 - LOWEST))
    if n > f:
        total += (n - f) * math.log(min(max(1 - posterior.without_silent, LOWEST), 1 - LOWEST))
    return total


@jit
def push(stack: Stack, top: Top, token: Integer, depth: Integer, n: Integer, f: Integer, total: float) -> int:
    """The index of a new node on the stack, without an end; -1, and `top[1]` set, where there is no room."""
    index = top[0]
    if index == stack.size:
        top[1] = 1
        return -1
    node = stack[index]
    node.token, node.depth, node.size = token, depth, 1
    node.count, node.fires, node.total = n, f, total
    node.probability, node.value = np.nan, np.nan
    top[0] = index + 1
    return int(index)


@jit
def push_known(
    stack: Stack,
    top: Top,
    token: Integer,
    depth: Integer,
    n: Integer,
    f: Integer,
    total: float,
    prior: Posterior,
    rest: float,
    kappa: float,
    weights: tuple[float, float],
) -> tuple[int, Posterior]:
    """The index of a new node at which paths end, or -1, and its posterior; `weights` as of `after`."""
    posterior = after(prior, n, f, total, kappa, weights)
    index = push(stack, top, token, depth, n, f, total)
    if index >= 0:
        node = stack[index]
        node.left_out, node.expected, node.mean = likelihood(posterior, n, f), n * posterior.p, posterior.value
        node.mass, node.score = n, expected_likelihood(n, node.expected, posterior.p)
        end(node, posterior.p, posterior.value, rest)
    return index, posterior


@jit
def expected_likelihood(n: Integer, expected: float, p: float) -> float:
    """As `naive.expected_likelihood`."""
    p = min(max(p, LOWEST), 1 - LOWEST)
    return expected * math.log(p) + (n - expected) * math.log(1 - p)


@jit
def alone(n: Integer, expected: float) -> float:
    """The expected log likelihood of positions under their own probability; 0 of none."""
    return expected_likelihood(n, expected, expected / n) if n else 0.0


@jit
def end(node: Node, p: float, mean: float, rest: float) -> None:
    """Let paths end at a node, with a probability and the mean activation where it fires."""
    node.probability = min(max(p, 0.0), 1.0)
    node.value = node.probability * mean + (1 - node.probability) * rest


@jit
def look_ahead(stack: Stack, first: int, top: int) -> tuple[Integer, float, Integer, Integer]:
    """Of the children from `first` to the top: mass, how many are expected to fire, positions, and children that occur once."""
    mass, expected, n, n_once, child = np.int64(0), 0.0, np.int64(0), np.int64(0), first
    while child < top:
        node = stack[child]
        mass += node.mass
        expected += node.expected
        n += node.count
        n_once += node.count == 1
        child += node.size
    return mass, expected, n, n_once


@jit
def count_pure(stack: Stack, first: int, top: int) -> tuple[Integer, float, Integer, float]:
    """Positions and expected firing ones of the children of which none fires, and of those of which all do.

    These have no children, so that their mass is the number of their positions.
    """
    silent_n, silent, firing_n, firing, child = np.int64(0), 0.0, np.int64(0), 0.0, first
    while child < top:
        node = stack[child]
        if node.fires == 0:
            silent_n += node.count
            silent += node.expected
        elif node.fires == node.count:
            firing_n += node.count
            firing += node.expected
        child += node.size
    return silent_n, silent, firing_n, firing


@jit
def choose(
    stack: Stack, first: int, top: int, n: Integer, f: Integer, expected: float, new_n: Integer, new: float, gain: float
) -> tuple[float, Integer, Integer, float]:
    """The score of the children from `first` to the top, marking those kept; mass, f and `expected` of all the others.

    n, f, expected: mass of the node, how many of its positions fire, and `expected`. new_n, new: mass and `expected` of
    contexts that no child has. As `naive._choose`, with the same three starts in the same order: of scores that differ by less
    than `SAME` the first wins.
    """
    silent_n, silent, firing_n, firing = count_pure(stack, first, top)
    best, best_p = -np.inf, 0.0
    for start in range(3):
        # Which children the others are to begin with: all, the silent ones, those that always fire.
        others_n = np.int64(n) if start == 0 else new_n + (silent_n if start == 1 else firing_n)
        others = expected if start == 0 else new + (silent if start == 1 else firing)
        p, gains = 0.0, 0.0
        for _ in range(ROUNDS):
            p = others / others_n if others_n else expected / n
            gains, others_n, _, others = _mark(stack, first, top, n, f, expected, p, gain)
        score = gains + alone(others_n, others)
        if score > best + SAME:
            best, best_p = score, p
    # The marks are those of the last start: made again with the probability of the best.
    _, others_n, others_f, others = _mark(stack, first, top, n, f, expected, best_p, gain)
    return best, others_n, others_f, others


@jit
def _mark(
    stack: Stack, first: int, top: int, n: Integer, f: Integer, expected: float, p: float, gain: float
) -> tuple[float, Integer, Integer, float]:
    """The score of the children that stand out of others with probability p, marking them; mass, f, `expected` of others."""
    index, score = first, 0.0
    p = min(max(p, LOWEST), 1 - LOWEST)
    firing, silent = math.log(p), math.log(1 - p)
    others_n, others_f = np.int64(n), np.int64(f)
    while index < top:
        child = stack[index]
        among_others = child.expected * firing + (child.mass - child.expected) * silent
        # More than `gain` by `SAME`: a tie must fall alike here and in the specification.
        child.kept = gain < 0 or child.score - among_others > gain + SAME
        if child.kept:
            others_n -= child.mass
            others_f -= child.fires
            expected -= child.expected
            score += child.score - gain
        index += child.size
    return score, others_n, others_f, expected


@jit
def left_out_score(
    stack: Stack, first: int, top: int, n: Integer, f: Integer, posterior: Posterior, settings: Settings
) -> float:
    """As `naive._left_out`, of the children from `first` to the top; n, f: positions of the node, and how many fire."""
    silent_n, _, firing_n, _ = count_pure(stack, first, top)
    best = -np.inf
    for start in range(3):
        others_n = np.int64(n) if start == 0 else (silent_n if start == 1 else firing_n)
        others_f = np.int64(f) if start == 0 else (np.int64(0) if start == 1 else firing_n)
        gains = 0.0
        for _ in range(ROUNDS):
            firing, silent = _rates(posterior, others_n, others_f, settings.kappa)
            gains, others_n, others_f = _stand_out(stack, first, top, n, f, firing, silent, settings.gain)
        firing, silent = _rates(posterior, others_n, others_f, settings.kappa)
        score = gains + others_f * firing + (others_n - others_f) * silent
        if score > best + SAME:
            best = score
    return float(best)


@jit
def _stand_out(
    stack: Stack, first: int, top: int, n: Integer, f: Integer, firing: float, silent: float, gain: float
) -> tuple[float, Integer, Integer]:
    """The left-out score of the children that stand out of others with these rates, and n and f of the others then.

    firing, silent: logarithms, as from `_rates`.
    """
    index, score, others_n, others_f = first, 0.0, np.int64(n), np.int64(f)
    while index < top:
        child = stack[index]
        if gain < 0 or child.left_out - (child.fires * firing + (child.count - child.fires) * silent) > gain + SAME:
            others_n -= child.count
            others_f -= child.fires
            score += child.left_out - gain
        index += child.size
    return score, others_n, others_f


@jit
def _rates(posterior: Posterior, n: Integer, f: Integer, kappa: float) -> tuple[float, float]:
    """Logarithms of the leave-one-out probabilities, among the others, that one fires and that one does not."""
    others = after(posterior, n, f, 0.0, kappa, (float(n), float(f))) if n else posterior
    firing = math.log(min(max(others.without_firing, LOWEST), 1 - LOWEST))
    return firing, math.log(min(max(1 - others.without_silent, LOWEST), 1 - LOWEST))


@jit
def keep(stack: Stack, top: Top, first: int, total: float) -> float:
    """`total` less the activations of the children that are kept; removes from the stack, from `first` on, those that are not.

    Subtrees move down in their order, never onto one that is still to move.
    """
    source, target, stop = first, first, top[0]
    while source < stop:
        size = stack[source].size
        if stack[source].kept:
            total -= stack[source].total
            # Copied node by node, forwards: source and target may overlap.
            if target < source:
                for i in range(size):
                    stack[target + i] = stack[source + i]
            target += size
        source += size
    top[0] = target
    return total
