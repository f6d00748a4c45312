"""The tries of neurons, compiled. Arguments were checked by `api`.

Above, a node is an interval of ranks, counted by searching the sorted events; nothing is touched that does not fire. Below a
branching that ignores tokens, a node is a list of ranks. What is kept grows on a stack of nodes, depth first, from which
children that are not worth their place are taken away again. No function calls itself: numba's cache cannot keep such.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.suffix_trie.evidence import FIRES, FRAME, HELD_OUT, Evidence, Room
from actstore.kernels.suffix_trie.naive import SAME
from actstore.kernels.suffix_trie.skip import may_skip, skip_tokens, sort_list, token_at
from actstore.kernels.suffix_trie.stack import NODE, Belief, after, choose, end, keep, push_known
from actstore.kernels.suffix_trie.trie import BOUNDARY, Nodes, Settings, Trie

CAPACITY = 1 << 12
"""Nodes that a stack has room for at first."""


def build(
    trie: Trie, offsets: NDArray[np.int64], events: NDArray[np.int32], values: NDArray[np.float32],
    held_offsets: NDArray[np.int64], held: NDArray[np.int32], rest: NDArray[np.float64], settings: Settings, threads: int,
) -> Nodes:  # fmt: skip
    """The tries of all neurons; see `api.build`."""
    parts: dict[int, Any] = {}
    kappa, gain, max_depth, max_skip, margin = settings
    coded = Settings(float(kappa), float(gain), int(max_depth), int(max_skip), float(margin))
    n, n_tokens = len(trie.place), int(trie.ids.max(initial=-1)) + 1 - BOUNDARY

    def run(first: int, stop: int) -> None:
        room = Room(
            np.zeros(n, np.uint8), np.empty(n, np.int32), np.empty(n, np.int64), np.zeros((n_tokens, 2), np.int32),
            np.empty(max_depth + 2, FRAME), np.zeros(2, np.int64),
        )  # fmt: skip
        stack = np.empty(CAPACITY, NODE)
        parts[first] = _build(
            first, stop, trie, offsets, events, values, held_offsets, held, rest, coded, room, stack, stack[:0].copy()
        )

    over_neurons(run, len(rest), 1, threads)
    grown = [parts[first] for first in sorted(parts)]
    sizes = np.concatenate([sizes for sizes, _, _ in grown])
    nodes, parents = np.concatenate([nodes for _, nodes, _ in grown]), np.concatenate([p for _, _, p in grown])
    return Nodes(
        np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        parents,
        np.ascontiguousarray(nodes["token"]),
        nodes["depth"].astype(np.uint8),
        ~np.isnan(nodes["probability"]),
        nodes["probability"].astype(np.float32),
        nodes["value"].astype(np.float32),
        np.ascontiguousarray(nodes["count"]),
        np.ascontiguousarray(nodes["fires"]),
    )


@jit
def _build(
    first: int, stop: int, trie: Any, offsets: Any, events: Any, values: Any, held_offsets: Any, held: Any, rest: Any, s: Any,
    room: Any, stack: Any, written: Any,
) -> Any:  # fmt: skip
    """The number of nodes of each neuron, their nodes one after another, and the parent of each."""
    sizes, n_written = np.zeros(stop - first, np.int64), 0
    parents, above = np.empty(0, np.int32), np.empty(257, np.int32)
    for neuron in range(first, stop):
        firing = events[offsets[neuron] : offsets[neuron + 1]]
        out = held[held_offsets[neuron] : held_offsets[neuron + 1]]
        sums = np.empty(firing.size + 1, np.float64)
        sums[0] = 0.0
        for i in range(firing.size):
            sums[i + 1] = sums[i] + values[offsets[neuron] + i]
            room.marks[firing[i]] = FIRES
        for rank in out:
            room.marks[rank] = HELD_OUT
        evidence = Evidence(firing, sums, out, rest[neuron], room)
        _grow_all(trie, evidence, stack, s)
        while room.top[1]:
            stack = np.empty(2 * stack.size, stack.dtype)
            _grow_all(trie, evidence, stack, s)
        for rank in firing:
            room.marks[rank] = 0
        for rank in out:
            room.marks[rank] = 0
        n = room.top[0]
        sizes[neuron - first] = n
        if n_written + n > written.size:
            written, parents = _longer(written, 2 * (n_written + n)), _longer(parents, 2 * (n_written + n))
        for i in range(n):
            depth = stack[i].depth
            above[depth] = i
            written[n_written + i] = stack[i]
            parents[n_written + i] = above[depth - 1] if depth else -1
        n_written += n
    return sizes, written[:n_written].copy(), parents[:n_written].copy()


@jit
def _longer(array: Any, size: int) -> Any:
    longer = np.empty(size, array.dtype)
    longer[: array.size] = array
    return longer


@jit
def _grow_all(trie: Any, evidence: Any, stack: Any, s: Any) -> None:
    """Fill the stack with the neuron's trie."""
    events, held, room = evidence.events, evidence.held, evidence.room
    room.top[:] = 0
    n, f = trie.place.size - held.size, events.size
    if f == 0:
        return
    total = evidence.sums[f]
    known = Belief(f / n, (f - 1) / max(n - 1, 1), f / max(n - 1, 1), total / f)
    e, h = 0, 0
    while e < f:
        node = _root_of(trie, events[e])  # straight to those that hold events
        e_stop = _find(events, trie.stop[node], e, f)
        h = _find(held, trie.start[node], h, held.size)
        h_stop = _find(held, trie.stop[node], h, held.size)
        _grow(trie, evidence, stack, s, node, e, e_stop, h, h_stop, known)
        if room.top[1]:
            return
        e, h = e_stop, h_stop
    choose(stack, 0, room.top[0], n, f, known, s)
    keep(stack, room.top, 0, total)


@jit
def _root_of(trie: Any, rank: int) -> Any:
    """The node at depth 0 whose interval holds a rank."""
    low, high = np.int64(trie.children[0]), np.int64(trie.children[1])
    while high - low > 1:
        middle = (low + high) // 2
        if trie.start[middle] <= rank:
            low = middle
        else:
            high = middle
    return low


@jit
def _find(ranks: Any, limit: Any, first: Any, stop: Any) -> Any:
    """The first index from `first` on at which `ranks`, ascending, is not below `limit`."""
    if first == stop or ranks[first] >= limit:  # most intervals hold none
        return first
    step = 1
    while first + step < stop and ranks[first + step] < limit:
        first += step
        step *= 2
    low, high = first + 1, min(stop, first + step)
    while low < high:
        middle = (low + high) // 2
        if ranks[middle] < limit:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def _grow(
    trie: Any, evidence: Any, stack: Any, s: Any, node: int, e: int, e_stop: int, h: int, h_stop: int, prior: Any
) -> None:
    """Push a node at depth 0 and what is kept below it: the interval of `node`, with events `e` and held-out ranks `h`."""
    room, level = evidence.room, 0
    frames, top = room.frames, room.top
    n, f, total = (
        trie.stop[node] - trie.start[node] - (h_stop - h),
        e_stop - e,
        evidence.sums[e_stop] - evidence.sums[e],
    )
    at, known = push_known(
        stack, top, np.int64(trie.token[node]), 0, np.int64(n), f, total, prior, evidence.rest, s.kappa
    )
    if at < 0 or f == n or s.max_depth == 0:
        return
    _open(frames[0], at, known, 0)
    frames[0].node = node
    frames[0].next, frames[0].stop = trie.children[node], trie.children[node + 1]
    frames[0].event, frames[0].event_stop, frames[0].held, frames[0].held_stop = e, e_stop, h, h_stop
    while level >= 0 and not top[1]:
        frame = frames[level]
        if frame.listed:
            entered = _push_lists(trie, evidence, stack, s, frame, frames[level + 1])
        else:
            entered = _push_children(trie, evidence, stack, s, frame, frames[level + 1])
        if entered:
            level += 1
        elif not top[1] and not _settle(trie, evidence, stack, s, frame):
            level -= 1


@jit
def _push_children(trie: Any, evidence: Any, stack: Any, s: Any, frame: Any, below: Any) -> bool:
    """Push children of an interval up to one that has children to grow, for which `below` is its frame then."""
    starts, stops, tokens, children = trie.start, trie.stop, trie.token, trie.children
    events, sums, held, top, rest = evidence.events, evidence.sums, evidence.held, evidence.room.top, evidence.rest
    known = Belief(frame.p, frame.without_firing, frame.without_silent, frame.value)
    depth = stack[frame.at].depth + 1
    child, e_stop, h_stop = frame.next, frame.event, frame.held
    while child < frame.stop:
        e, h, limit = e_stop, h_stop, np.int64(stops[child])
        e_stop, h_stop = _find(events, limit, e, frame.event_stop), _find(held, limit, h, frame.held_stop)
        n, f = limit - starts[child] - (h_stop - h), e_stop - e
        if n:
            token = np.int64(tokens[child])
            at, there = push_known(stack, top, token, depth, n, f, sums[e_stop] - sums[e], known, rest, s.kappa)
            if 0 < f < n and at >= 0 and depth < s.max_depth and token != BOUNDARY:
                _open(below, at, there, 0)
                below.node, below.next, below.stop = child, children[child], children[child + 1]
                below.event, below.event_stop, below.held, below.held_stop = e, e_stop, h, h_stop
                frame.next, frame.event, frame.held = child + 1, e_stop, h_stop
                return True
        child += 1
    frame.next = child
    return False


@jit
def _open(frame: Any, at: int, known: Any, listed: int) -> None:
    """Begin a frame for the node `at` of the stack."""
    frame.p, frame.value = known.p, known.value
    frame.without_firing, frame.without_silent = known.without_firing, known.without_silent
    frame.at, frame.skip, frame.listed = at, 0, listed


@jit
def _push_lists(trie: Any, evidence: Any, stack: Any, s: Any, frame: Any, below: Any) -> bool:
    """The same of a list, sorted by the tokens that tell its parts apart."""
    room, events, sums = evidence.room, evidence.events, evidence.sums
    ranks, marks = room.ranks, room.marks
    known = Belief(frame.p, frame.without_firing, frame.without_silent, frame.value)
    depth = stack[frame.at].depth + 1 + frame.skip
    start = frame.next
    while start < frame.stop:
        token = token_at(trie, ranks[start], depth)
        stop, f, total = start, 0, 0.0
        while stop < frame.stop and token_at(trie, ranks[stop], depth) == token:
            if marks[ranks[stop]] == FIRES:
                event = np.searchsorted(events, ranks[stop])
                total += sums[event + 1] - sums[event]
                f += 1
            stop += 1
        n = stop - start
        at, there = push_known(stack, room.top, token, depth, n, f, total, known, evidence.rest, s.kappa)
        if 0 < f < n and at >= 0 and depth < s.max_depth and token != BOUNDARY:
            _open(below, at, there, 1)
            below.next, below.stop = start, stop
            below.event, below.event_stop = (
                start,
                stop,
            )  # the list once more, to begin again if tokens are to be ignored
            sort_list(trie, room, start, stop, depth + 1)
            frame.next = stop
            return True
        start = stop
    frame.next = start
    return False


@jit
def _settle(trie: Any, evidence: Any, stack: Any, s: Any, frame: Any) -> bool:
    """Keep of a node's children what is worth it; whether it begins again, ignoring tokens."""
    room, node = evidence.room, stack[frame.at]
    known = Belief(frame.p, frame.without_firing, frame.without_silent, frame.value)
    first = frame.at + 1 + frame.skip
    found, others_n, others_f = choose(stack, first, room.top[0], node.count, node.fires, known, s)
    if frame.skip or s.gain < 0 or found > node.worth + SAME:
        total = keep(stack, room.top, first, node.total)
        node.worth = found - frame.skip * s.gain
        end(node, after(known, others_n, others_f, total, s.kappa) if others_n else known, evidence.rest)
    else:
        room.top[0] = frame.at + 1
    for i in range(frame.at, min(first, room.top[0])):
        stack[i].size = room.top[0] - i
    if frame.skip or not may_skip(node, known, s):
        return False
    return skip_tokens(trie, evidence, stack, s, frame, known)
