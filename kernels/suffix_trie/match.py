"""Predictions of tries, compiled. Arguments were checked by `api`."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.suffix_trie.trie import BOUNDARY, IGNORE, Nodes


class Predictions(NamedTuple):
    """What tries say of every position; 0 and 0 where no line matches."""

    probability: NDArray[np.float32]
    """[neuron, position] of firing."""
    value: NDArray[np.float32]
    """[neuron, position] expected activation, in shares of the neuron's maximum."""
    line: NDArray[np.int32]
    """[neuron, position] the node that says so, counted from the neuron's first; -1 where none does."""


def predict(nodes: Nodes, ids: NDArray[np.int32], begins: NDArray[np.int64], threads: int) -> Predictions:
    """The predictions of all neurons; see `api.predict`."""
    n_neurons, n_tokens = len(nodes.offsets) - 1, max(ids.max(initial=-1), nodes.token.max(initial=-1)) + 1
    shape = (n_neurons, len(ids))
    found = Predictions(np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.full(shape, -1, np.int32))
    over_neurons(_predict, n_neurons, 1, threads, *_of(nodes), ids, begins, int(n_tokens), *found)
    return found


def _of(nodes: Nodes) -> tuple[Any, ...]:
    return nodes.offsets, nodes.parent, nodes.token, nodes.ends, nodes.probability, nodes.value


@jit
def _predict(
    first: int, stop: int, offsets: Any, parents: Any, tokens: Any, ends: Any, probabilities: Any, values: Any, ids: Any,
    begins: Any, n_tokens: int, probability: Any, value: Any, line: Any,
) -> None:  # fmt: skip
    roots = np.full(n_tokens, -1, np.int32)
    waiting = np.empty((520, 2), np.int32)
    for neuron in range(first, stop):
        a, b = offsets[neuron], offsets[neuron + 1]
        parent, token = parents[a:b], tokens[a:b]
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
                n_waiting = _push(waiting, 0, any_root, 0)
                n_waiting = _push(waiting, n_waiting, root, 0)
                longest, best = -1, -1
                while n_waiting:
                    n_waiting -= 1
                    node, depth = waiting[n_waiting, 0], waiting[n_waiting, 1]
                    if ends[a + node] and depth > longest:
                        longest, best = depth, node
                    low, high = starts[node + 1], starts[node + 2]
                    if low < high:
                        at = position - depth - 1
                        wanted = ids[at] if at >= begin else BOUNDARY
                        n_waiting = _push(waiting, n_waiting, _child(children, token, low, high, IGNORE), depth + 1)
                        if wanted != IGNORE:
                            n_waiting = _push(waiting, n_waiting, _child(children, token, low, high, wanted), depth + 1)
                if best >= 0:
                    line[neuron, position] = best
                    probability[neuron, position], value[neuron, position] = probabilities[a + best], values[a + best]
        for node in children[: starts[1]]:
            if token[node] >= 0:
                roots[token[node]] = -1


@jit
def _index(parent: Any) -> Any:
    """The children of all nodes, those at depth 0 first: node `i` has `children[starts[i + 1]:starts[i + 2]]`."""
    starts = np.zeros(parent.size + 2, np.int32)
    for node in range(parent.size):
        starts[parent[node] + 2] += 1
    for i in range(1, starts.size):
        starts[i] += starts[i - 1]
    to, children = starts[:-1].copy(), np.empty(parent.size, np.int32)
    for node in range(parent.size):
        children[to[parent[node] + 1]] = node
        to[parent[node] + 1] += 1
    return starts, children


@jit
def _child(children: Any, token: Any, low: int, high: int, wanted: int) -> int:
    """Of children `low` to `high`, ascending by token, the one with the wanted token, or -1."""
    while high - low > 0:
        middle = (low + high) // 2
        found = token[children[middle]]
        if found == wanted:
            return int(children[middle])
        if found < wanted:
            low = middle + 1
        else:
            high = middle
    return -1


@jit
def _push(waiting: Any, n_waiting: int, node: int, depth: int) -> int:
    if node < 0:
        return n_waiting
    waiting[n_waiting, 0], waiting[n_waiting, 1] = node, depth
    return n_waiting + 1
