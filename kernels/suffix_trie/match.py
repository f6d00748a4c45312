"""Predictions of tries, compiled. Arguments were checked by `api`."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.suffix_trie.trie import BOUNDARY, IGNORE, Nodes


class Predictions(NamedTuple):
    """What tries say of every position; 0 and 0 where no path matches."""

    probability: NDArray[np.float32]
    """[neuron, position] of firing."""
    value: NDArray[np.float32]
    """[neuron, position] expected activation, in shares of the neuron's maximum."""
    node: NDArray[np.int32]
    """[neuron, position] the node that says so, counted from the neuron's first; -1 where none does."""


_Arrays = tuple[
    NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]
]


def predict(nodes: Nodes, ids: NDArray[np.int32], begins: NDArray[np.int64], threads: int) -> Predictions:
    """The predictions of all neurons; see `api.predict`."""
    n_neurons, n_tokens = len(nodes.offsets) - 1, max(ids.max(initial=-1), nodes.token.max(initial=-1)) + 1
    shape = (n_neurons, len(ids))
    predictions = Predictions(np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.full(shape, -1, np.int32))
    over_neurons(_predict, n_neurons, 1, threads, *_arrays(nodes), ids, begins, int(n_tokens), *predictions)
    return predictions


def _arrays(nodes: Nodes) -> _Arrays:
    """Those of the nodes' arrays that `_predict` reads, in its order."""
    return nodes.offsets, nodes.parent, nodes.token, nodes.ends, nodes.probability, nodes.value


@jit
def _predict(
    first: int,
    stop: int,
    offsets: NDArray[np.int64],
    parents: NDArray[np.int32],
    tokens: NDArray[np.int32],
    ends: NDArray[np.bool_],
    probabilities: NDArray[np.float32],
    values: NDArray[np.float32],
    ids: NDArray[np.int32],
    begins: NDArray[np.int64],
    n_tokens: int,
    probability: NDArray[np.float32],
    value: NDArray[np.float32],
    path_node: NDArray[np.int32],
) -> None:
    """Fill the predictions [neuron, position] of neurons `first:stop`.

    offsets to values: as in `Nodes`. ids: [position]. begins: [window]. n_tokens: more than any token of either. Paths are
    followed depth first on a stack of (node, depth), the exact token before `IGNORE`: the first of the longest paths wins.
    """
    roots = np.full(n_tokens, -1, np.int32)  # [token] the node at depth 0 of each, or -1
    pending = np.empty((520, 2), np.int32)  # two per depth, of which there are at most 256, and some
    for neuron in range(first, stop):
        a, b = offsets[neuron], offsets[neuron + 1]
        parent, token = parents[a:b], tokens[a:b]
        # Node -1, above the roots, is the first of `starts`.
        starts, children = _index(parent)
        any_root = -1
        for node in children[: starts[1]]:
            if token[node] >= 0:
                roots[token[node]] = node
            elif token[node] == IGNORE:
                any_root = node
        begin = 0
        for window in range(begins.size):
            begin, end = begins[window], begins[window + 1] if window + 1 < begins.size else ids.size
            for position in range(begin, end):
                root = roots[ids[position]] if ids[position] >= 0 else -1
                if root < 0 and any_root < 0:
                    continue
                n_pending = _push(pending, 0, any_root, 0)
                n_pending = _push(pending, n_pending, root, 0)
                longest, best = -1, -1  # depth and node of the longest path that ends so far
                while n_pending:
                    n_pending -= 1
                    node, depth = pending[n_pending, 0], pending[n_pending, 1]
                    if ends[a + node] and depth > longest:
                        longest, best = depth, node
                    low, high = starts[node + 1], starts[node + 2]
                    if low < high:
                        context_position = position - depth - 1
                        context_token = ids[context_position] if context_position >= begin else BOUNDARY
                        # Pushed first, so that it is followed last.
                        n_pending = _push(pending, n_pending, _child(children, token, low, high, IGNORE), depth + 1)
                        if context_token != IGNORE:
                            n_pending = _push(
                                pending, n_pending, _child(children, token, low, high, context_token), depth + 1
                            )
                if best >= 0:
                    path_node[neuron, position] = best
                    probability[neuron, position], value[neuron, position] = probabilities[a + best], values[a + best]
        for node in children[: starts[1]]:
            if token[node] >= 0:
                # Taken back one by one: there are few roots and many tokens.
                roots[token[node]] = -1


@jit
def _index(parent: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The children of all nodes, those at depth 0 first: node `i` has `children[starts[i + 1]:starts[i + 2]]`."""
    starts = np.zeros(parent.size + 2, np.int32)
    for node in range(parent.size):
        starts[parent[node] + 2] += 1
    # A counting sort by parent: children keep their order, which ascends by token.
    for i in range(1, starts.size):
        starts[i] += starts[i - 1]
    next_slots, children = starts[:-1].copy(), np.empty(parent.size, np.int32)
    for node in range(parent.size):
        children[next_slots[parent[node] + 1]] = node
        next_slots[parent[node] + 1] += 1
    return starts, children


@jit
def _child(children: NDArray[np.int32], tokens: NDArray[np.int32], low: int, high: int, target: int) -> int:
    """Of children `low` to `high`, ascending by token, the one with the token `target`, or -1."""
    while high - low > 0:
        middle = (low + high) // 2
        child_token = tokens[children[middle]]
        if child_token == target:
            return int(children[middle])
        if child_token < target:
            low = middle + 1
        else:
            high = middle
    return -1


@jit
def _push(pending: NDArray[np.int32], n_pending: int, node: int, depth: int) -> int:
    """The number of nodes on the stack with one more, unless it is -1, which is none."""
    if node < 0:
        return n_pending
    pending[n_pending, 0], pending[n_pending, 1] = node, depth
    return n_pending + 1
