"""The nodes of a neuron's trie that are the least use are removed, down to a number of nodes; compiled."""

import math

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit
from actstore.kernels.suffix_trie.naive import SAME
from actstore.kernels.suffix_trie.stack import Integer, Stack, Top, alone, end
from actstore.kernels.suffix_trie.trie import Settings


@jit
def trim(stack: Stack, top: Top, n: Integer, expected: float, rest: float, settings: Settings) -> None:
    """As `naive.trim`, of the nodes on the stack; n, expected: mass and `expected` of all."""
    size = top[0]
    parents, above, n_children = _relatives(stack, size)
    own = _own(stack, size, above, n, expected)
    losses = np.empty(size, np.float64)
    removed, n_left = np.zeros(size, np.bool_), size
    for i in range(size):
        losses[i] = _loss(own, i, above[i]) if n_children[i] == 0 else np.inf
    while n_left > settings.nodes:
        worst = 0
        for i in range(1, size):
            if losses[i] < losses[worst] - SAME:
                worst = i
        ending, node = above[worst], np.int64(worst)
        own[ending] += own[worst]
        # Ignored tokens at which no path ends go with the last node below them.
        while True:
            removed[node], losses[node] = True, np.inf
            n_left -= 1
            node = parents[node]
            if node < 0:
                break
            n_children[node] -= 1
            if n_children[node] or not math.isnan(stack[node].probability):
                break
        if ending < size:
            mean = (own[ending, 3] + settings.kappa * stack[ending].mean) / (own[ending, 2] + settings.kappa)
            end(stack[ending], own[ending, 1] / own[ending, 0], mean, rest)
        for i in range(size):
            # What stands beside others that have changed, and the node above if it is a leaf now.
            if not removed[i] and n_children[i] == 0 and (above[i] == ending or i == ending):
                losses[i] = _loss(own, i, above[i])
    target = 0
    for i in range(size):
        if not removed[i]:
            stack[target] = stack[i]
            target += 1
    top[0] = target


@jit
def _relatives(stack: Stack, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """[node] the parent, or -1; the nearest node above at which paths end, or `size`; the number of children."""
    parents, above, n_children = np.full(size, -1), np.full(size, size), np.zeros(size, np.int64)
    ancestors = np.empty(257, np.int64)  # [depth]
    for i in range(size):
        depth = stack[i].depth
        ancestors[depth] = i
        if depth:
            # Depth first: the last node met one level up is the parent.
            parents[i] = ancestors[depth - 1]
            n_children[parents[i]] += 1
            ends = not math.isnan(stack[parents[i]].probability)
            above[i] = parents[i] if ends else above[parents[i]]
    return parents, above, n_children


@jit
def _own(stack: Stack, size: int, above: NDArray[np.int64], n: Integer, expected: float) -> NDArray[np.float64]:
    """[node + 1, 4] mass, expected, fires and total of the positions that have no longer path; last, those without any."""
    own = np.zeros((size + 1, 4))
    own[size, 0], own[size, 1] = n, expected
    for i in range(size):
        node = stack[i]
        if not math.isnan(node.probability):
            numbers = (float(node.mass), node.expected, float(node.fires), node.total)
            for column in range(4):
                own[i, column] += numbers[column]
                own[above[i], column] -= numbers[column]
    return own


@jit
def _loss(own: NDArray[np.float64], node: int, ending: Integer) -> float:
    """What telling a node apart from what the path above it stands for adds to the expected log likelihood."""
    n, expected = own[node, 0], own[node, 1]
    others_n, others = own[ending, 0], own[ending, 1]
    return alone(n, expected) + alone(others_n, others) - alone(n + others_n, expected + others)
