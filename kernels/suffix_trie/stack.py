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
"""A node on the stack: `total` are the activations where it fires added up, `size` counts it and all below it.

`score` is its leave-one-out log likelihood, less what the nodes below it cost; `kept` what `choose` has decided. A node comes
before those below it, depth first, so that a subtree is `size` nodes side by side."""

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
def after(prior: Posterior, n: Integer, f: Integer, total: float, kappa: float) -> Posterior:
    """As `naive.Posterior.after`."""
    rest = n - 1 + kappa
    return Posterior(
        (f + kappa * prior.p) / (n + kappa),
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
) -> tuple[int, Posterior]:
    """The index of a new node at which paths end, or -1, and its posterior."""
    posterior = after(prior, n, f, total, kappa)
    index = push(stack, top, token, depth, n, f, total)
    if index >= 0:
        stack[index].score = likelihood(posterior, n, f)
        end(stack[index], posterior, rest)
    return index, posterior


@jit
def end(node: Node, posterior: Posterior, rest: float) -> None:
    """Let paths end at a node, with the probability and the value that `posterior` gives."""
    node.probability = posterior.p
    node.value = posterior.p * posterior.value + (1 - posterior.p) * rest


@jit
def choose(
    stack: Stack, first: int, top: int, n: Integer, f: Integer, posterior: Posterior, settings: Settings
) -> tuple[float, Integer, Integer]:
    """The score of the children from `first` to the top, marking those kept, and n and f of all the others.

    n, f: positions of the node and how many of them fire. As `naive._choose`, with the same three starts in the same order: of
    scores that differ by less than `SAME` the first wins.
    """
    # 0 in the type of n: a literal would have another, and numba compile for both.
    silent_n, firing_n, child = n - n, n - n, first
    while child < top:
        silent_n += stack[child].count if stack[child].fires == 0 else 0
        firing_n += stack[child].count if stack[child].fires == stack[child].count else 0
        child += stack[child].size
    best, best_firing, best_silent = -np.inf, 0.0, 0.0
    for start in range(3):
        # Which children the others are to begin with: all, the silent ones, those that always fire.
        others_n, others_f = (n, f) if start == 0 else ((silent_n, n - n) if start == 1 else (firing_n, firing_n))
        firing, silent, gains = 0.0, 0.0, 0.0
        for _ in range(ROUNDS):
            firing, silent = _rates(posterior, others_n, others_f, settings.kappa)
            gains, others_n, others_f = _mark(stack, first, top, n, f, firing, silent, settings)
        left_firing, left_silent = _rates(posterior, others_n, others_f, settings.kappa)
        score = gains + others_f * left_firing + (others_n - others_f) * left_silent
        if score > best + SAME:
            best, best_firing, best_silent = score, firing, silent
    # The marks are those of the last start: made again with the rates of the best.
    _, others_n, others_f = _mark(stack, first, top, n, f, best_firing, best_silent, settings)
    return best, others_n, others_f


@jit
def _mark(
    stack: Stack, first: int, top: int, n: Integer, f: Integer, firing: float, silent: float, settings: Settings
) -> tuple[float, Integer, Integer]:
    """The score of the children that stand out of others with these rates, marking them, and n and f of the others then.

    firing, silent: logarithms, as from `_rates`.
    """
    index, score = first, 0.0
    while index < top:
        child = stack[index]
        among_others = child.fires * firing + (child.count - child.fires) * silent
        # More than `gain` by `SAME`: a tie must fall alike here and in the specification.
        child.kept = settings.gain < 0 or child.score - among_others > settings.gain + SAME
        if child.kept:
            n -= child.count
            f -= child.fires
            score += child.score - settings.gain
        index += child.size
    return score, n, f


@jit
def _rates(posterior: Posterior, n: Integer, f: Integer, kappa: float) -> tuple[float, float]:
    """Logarithms of the leave-one-out probabilities, among the others, that one fires and that one does not."""
    others = after(posterior, n, f, 0.0, kappa) if n else posterior
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
