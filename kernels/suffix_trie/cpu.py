"""The tries of neurons, compiled. Arguments were checked by `api`.

Above a branching that ignores tokens, a node is an interval of ranks, counted by searching the sorted events; below, a list of
ranks. Nodes grow on a stack, depth first; children not worth their cost are removed. Nothing recurses, for numba's cache.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.jit import jit, over_neurons
from actstore.kernels.suffix_trie.evidence import (
    FIRES,
    FRAME,
    HELD_OUT,
    Evidence,
    Frame,
    Scratch,
    find,
    open_frame,
    weigh_interval,
)
from actstore.kernels.suffix_trie.naive import SAME
from actstore.kernels.suffix_trie.skip import may_skip, push_lists, skip_tokens
from actstore.kernels.suffix_trie.stack import (
    NODE,
    Integer,
    Posterior,
    Stack,
    alone,
    choose,
    end,
    keep,
    left_out_score,
    look_ahead,
    push_known,
)
from actstore.kernels.suffix_trie.trie import BOUNDARY, Nodes, Settings, Trie
from actstore.kernels.suffix_trie.trim import trim

CAPACITY = 1 << 12  # nodes that a stack has room for at first

Grown = tuple[NDArray[np.int64], Stack, NDArray[np.int32]]  # nodes per neuron; all nodes in order; the parent of each
Array = TypeVar("Array", Stack, NDArray[np.int32])


def build(
    trie: Trie,
    offsets: NDArray[np.int64],
    events: NDArray[np.int32],
    values: NDArray[np.float32],
    held_out_offsets: NDArray[np.int64],
    held_out: NDArray[np.int32],
    rest: NDArray[np.float64],
    settings: Settings,
    threads: int,
) -> Nodes:
    """The tries of all neurons; see `api.build`."""
    grown_ranges: dict[int, Grown] = {}
    kappa, gain, max_depth, max_skip, margin, n_nodes = settings
    coded = Settings(float(kappa), float(gain), int(max_depth), int(max_skip), float(margin), int(n_nodes))
    n, n_tokens = len(trie.input_index), int(trie.ids.max(initial=-1)) + 1 - BOUNDARY

    def run(first: int, stop: int) -> None:
        scratch = Scratch(
            np.zeros(n, np.uint8), np.empty(n, np.int32), np.empty(n, np.int64), np.zeros((n_tokens, 2), np.int32),
            np.empty(max_depth + 2, FRAME), np.zeros(2, np.int64),
        )  # fmt: skip
        stack = np.empty(CAPACITY, NODE)
        grown_ranges[first] = _build(
            first,
            stop,
            trie,
            offsets,
            events,
            values,
            held_out_offsets,
            held_out,
            rest,
            coded,
            scratch,
            stack,
            stack[:0].copy(),
        )

    over_neurons(run, len(rest), 1, threads)
    # In the order of neurons, not of the threads that were done first.
    grown = [grown_ranges[first] for first in sorted(grown_ranges)]
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
    first: int,
    stop: int,
    trie: Trie,
    offsets: NDArray[np.int64],
    events: NDArray[np.int32],
    values: NDArray[np.float32],
    held_out_offsets: NDArray[np.int64],
    held_out: NDArray[np.int32],
    rest: NDArray[np.float64],
    settings: Settings,
    scratch: Scratch,
    stack: Stack,
    written: Stack,
) -> Grown:
    """The tries of neurons `first:stop`; arguments as in `api.build`, `rest` [neuron] among them.

    stack: on which one trie grows at a time; a larger one takes its place where it is too small. written: an empty array of
    nodes, for its type.
    """
    sizes, n_written = np.zeros(stop - first, np.int64), 0
    parents, ancestors = np.empty(0, np.int32), np.empty(257, np.int32)  # [node of written], [depth]
    for neuron in range(first, stop):
        firing = events[offsets[neuron] : offsets[neuron + 1]]
        held_out_ranks = held_out[held_out_offsets[neuron] : held_out_offsets[neuron + 1]]
        sums = np.empty(firing.size + 1, np.float64)  # [event + 1]
        sums[0] = 0.0
        for i in range(firing.size):
            sums[i + 1] = sums[i] + values[offsets[neuron] + i]
            scratch.marks[firing[i]] = FIRES
        for rank in held_out_ranks:
            scratch.marks[rank] = HELD_OUT
        evidence = Evidence(firing, sums, held_out_ranks, rest[neuron], scratch)
        _grow_all(trie, evidence, stack, settings)
        # Started again from the root: what had grown is not worth the trouble of saving, as stacks seldom overflow.
        while scratch.top[1]:
            stack = np.empty(2 * stack.size, stack.dtype)
            _grow_all(trie, evidence, stack, settings)
        # Marks are taken back one by one: clearing all would take longer than a neuron's trie.
        for rank in firing:
            scratch.marks[rank] = 0
        for rank in held_out_ranks:
            scratch.marks[rank] = 0
        n = scratch.top[0]
        sizes[neuron - first] = n
        if n_written + n > written.size:
            # Doubled, so that what is copied stays a fraction of what is written.
            written, parents = _longer(written, 2 * (n_written + n)), _longer(parents, 2 * (n_written + n))
        for i in range(n):
            # Depth first: the last node met one level up is the parent.
            depth = stack[i].depth
            ancestors[depth] = i
            written[n_written + i] = stack[i]
            parents[n_written + i] = ancestors[depth - 1] if depth else -1
        n_written += n
    return sizes, written[:n_written].copy(), parents[:n_written].copy()


@jit
def _longer(array: Array, size: int) -> Array:
    """A copy of `array` with room for `size` elements, of which those beyond its own are undefined."""
    longer = np.empty(size, array.dtype)
    longer[: array.size] = array
    return longer


@jit
def _grow_all(trie: Trie, evidence: Evidence, stack: Stack, settings: Settings) -> None:
    """Fill the stack with the neuron's trie."""
    events, held_out, scratch = evidence.events, evidence.held_out, evidence.scratch
    scratch.top[:] = 0
    n, f = trie.input_index.size - held_out.size, events.size
    if f == 0:
        return
    total = evidence.sums[f]
    posterior = Posterior(f / n, (f - 1) / max(n - 1, 1), f / max(n - 1, 1), total / f)
    e: Integer = 0  # events that were passed
    h: Integer = 0  # and held-out ranks
    while e < f:
        node = _root_of(trie, events[e])  # straight to those that hold events
        e_stop = find(events, trie.stop[node], e, f)
        h = find(held_out, trie.start[node], h, held_out.size)
        h_stop = find(held_out, trie.stop[node], h, held_out.size)
        _grow(trie, evidence, stack, settings, node, e, e_stop, h, h_stop, posterior)
        if scratch.top[1]:
            return
        e, h = e_stop, h_stop
    mass, expected, n_known, _ = look_ahead(stack, 0, scratch.top[0])
    mass += n - n_known  # tokens that never fire
    choose(stack, 0, scratch.top[0], mass, f, expected, np.int64(0), 0.0, settings.gain)
    keep(stack, scratch.top, 0, total)
    if 0 < settings.nodes < scratch.top[0]:
        trim(stack, scratch.top, mass, expected, evidence.rest, settings)


@jit
def _root_of(trie: Trie, rank: int) -> np.int64:
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
def _grow(
    trie: Trie,
    evidence: Evidence,
    stack: Stack,
    settings: Settings,
    node: Integer,
    e: Integer,
    e_stop: Integer,
    h: Integer,
    h_stop: Integer,
    prior: Posterior,
) -> None:
    """Push a node at depth 0 and what is kept below it: the interval of `node`, with events `e` and held-out ranks `h`."""
    scratch, level = evidence.scratch, 0
    frames, top = scratch.frames, scratch.top
    n, f, total = (
        trie.stop[node] - trie.start[node] - (h_stop - h),
        e_stop - e,
        evidence.sums[e_stop] - evidence.sums[e],
    )
    is_mixed, weights = f < n and settings.max_depth > 0, (float(n), float(f))
    if is_mixed:
        weights = weigh_interval(trie, evidence, node, e, e_stop, h, h_stop, settings.kappa)
    index, posterior = push_known(
        stack, top, np.int64(trie.token[node]), 0, np.int64(n), f, total, prior, evidence.rest, settings.kappa, weights
    )
    if index < 0 or not is_mixed:
        return
    open_frame(frames[0], index, posterior, 0)
    frames[0].node = node
    frames[0].next, frames[0].stop = trie.children[node], trie.children[node + 1]
    frames[0].event, frames[0].event_stop, frames[0].held_out, frames[0].held_out_stop = e, e_stop, h, h_stop
    while level >= 0 and not top[1]:
        frame = frames[level]
        # The deepest frame goes on: it pushes children until one has children itself, whose frame is then the deepest.
        # When none is left the node is settled: it begins again, ignoring tokens, or is done.
        if frame.listed:
            entered = push_lists(trie, evidence, stack, settings, frame, frames[level + 1])
        else:
            entered = _push_children(trie, evidence, stack, settings, frame, frames[level + 1])
        if entered:
            level += 1
        elif not top[1] and not _settle(trie, evidence, stack, settings, frame):
            level -= 1


@jit
def _push_children(
    trie: Trie, evidence: Evidence, stack: Stack, settings: Settings, frame: Frame, below: Frame
) -> bool:
    """Push children of an interval up to one that has children to grow, for which `below` is its frame then."""
    starts, stops, tokens, children = trie.start, trie.stop, trie.token, trie.children
    events, sums, held_out, top, rest = (
        evidence.events,
        evidence.sums,
        evidence.held_out,
        evidence.scratch.top,
        evidence.rest,
    )
    posterior = Posterior(frame.p, frame.without_firing, frame.without_silent, frame.value)
    depth = stack[frame.index].depth + 1
    child, e_stop, h_stop = frame.next, frame.event, frame.held_out
    while child < frame.stop:
        e, h, limit = e_stop, h_stop, np.int64(stops[child])
        e_stop, h_stop = find(events, limit, e, frame.event_stop), find(held_out, limit, h, frame.held_out_stop)
        n, f = limit - starts[child] - (h_stop - h), e_stop - e
        if n:
            token, weights = np.int64(tokens[child]), (float(n), float(f))
            is_mixed = 0 < f < n and depth < settings.max_depth and token != BOUNDARY
            if is_mixed:
                weights = weigh_interval(trie, evidence, child, e, e_stop, h, h_stop, settings.kappa)
            index, child_posterior = push_known(
                stack, top, token, depth, n, f, sums[e_stop] - sums[e], posterior, rest, settings.kappa, weights
            )
            if is_mixed and index >= 0:
                open_frame(below, index, child_posterior, 0)
                below.node, below.next, below.stop = child, children[child], children[child + 1]
                below.event, below.event_stop, below.held_out, below.held_out_stop = e, e_stop, h, h_stop
                # Where to go on once the subtree is done.
                frame.next, frame.event, frame.held_out = child + 1, e_stop, h_stop
                return True
        child += 1
    frame.next = child
    return False


@jit
def _settle(trie: Trie, evidence: Evidence, stack: Stack, settings: Settings, frame: Frame) -> bool:
    """Whether a node begins again, ignoring tokens; keeps of its children those that add more than they cost."""
    scratch, node = evidence.scratch, stack[frame.index]
    posterior = Posterior(frame.p, frame.without_firing, frame.without_silent, frame.value)
    first, cost = frame.index + 1 + frame.skip, frame.skip * settings.gain
    mass, expected, _, n_new = look_ahead(stack, first, scratch.top[0])
    # Contexts that no position has, of which the node's own probability is all that is known: see `naive._branch`.
    mass, new = mass + n_new, n_new * posterior.p
    expected += new
    left_out = left_out_score(stack, first, scratch.top[0], node.count, node.fires, posterior, settings) - cost
    if frame.skip or left_out > node.left_out + SAME:
        node.left_out = left_out
    score, others_n, others_f, others = choose(
        stack, first, scratch.top[0], mass, node.fires, expected, n_new, new, settings.gain
    )
    merged = alone(mass, expected)
    node.mass, node.expected = mass, expected
    if score - cost > merged + SAME or settings.gain < 0:
        node.score = score - cost
        total = keep(stack, scratch.top, first, node.total)
    else:
        node.score, total = merged, node.total
        others_n, others_f, others = mass, np.int64(node.fires), expected
        scratch.top[0] = frame.index + 1
    if others_n:
        mean = (total + settings.kappa * posterior.value) / (others_f + settings.kappa)
        end(node, others / others_n, mean, evidence.rest)
    else:  # a context that no position has: nothing but the node's own probability is known of it
        end(node, posterior.p, posterior.value, evidence.rest)
    # The node, and those that stand for ignored tokens between it and its children.
    for i in range(frame.index, min(first, scratch.top[0])):
        stack[i].size = scratch.top[0] - i
    if frame.skip or not may_skip(node, posterior, settings):
        return False
    return skip_tokens(trie, evidence, stack, settings, frame, posterior)
