"""Branching over ignored tokens: whether it is better than what a node has, and the lists of ranks it makes; compiled."""

import math
from typing import Any

import numpy as np

from actstore.kernels.jit import jit
from actstore.kernels.suffix_trie.evidence import FIRES, HELD_OUT
from actstore.kernels.suffix_trie.naive import LOWEST, SKIP_FIRES
from actstore.kernels.suffix_trie.stack import choose, push, push_known
from actstore.kernels.suffix_trie.trie import BOUNDARY, IGNORE, NEAR


@jit
def may_skip(node: Any, known: Any, s: Any) -> bool:
    """Whether ignoring tokens could be better: not where even telling all that fire from all that do not is not."""
    if s.max_skip < 1 or node.fires < SKIP_FIRES or s.gain < 0 or node.depth + 2 > s.max_depth:
        return False
    best = min((node.fires - 1 + s.kappa * known.without_firing) / (node.fires - 1 + s.kappa), 1 - LOWEST)
    return bool(node.worth + s.margin < node.fires * math.log(best))


@jit
def skip_tokens(trie: Any, evidence: Any, stack: Any, s: Any, frame: Any, known: Any) -> bool:
    """Whether branching over ignored tokens is better than what a node has; if so, its frame begins again with that."""
    room, node = evidence.room, stack[frame.at]
    top, best, chosen = room.top[0], node.worth + s.margin, 0
    for skip in range(1, min(s.max_skip, s.max_depth - node.depth - 1) + 1):
        depth, cost = node.depth + 1 + skip, skip * s.gain
        if _promise(trie, evidence, s, frame, node.fires, depth, known) - cost > node.worth + s.margin:
            if not frame.listed:
                _list_ranks(trie, room, frame)
            found = _look(trie, evidence, stack, s, frame, depth, known) - cost
            room.top[0] = top
            if found > best:
                chosen, best = skip, found
    if not chosen or room.top[1]:
        return False
    room.top[0] = frame.at + 1
    for skip in range(chosen):
        push(stack, room.top, IGNORE, node.depth + 1 + skip, node.count, node.fires, node.total)
    frame.skip, frame.next, frame.stop = chosen, frame.event, frame.event_stop
    sort_list(trie, room, frame.next, frame.stop, node.depth + 1 + chosen)
    return True


@jit
def _promise(trie: Any, evidence: Any, s: Any, frame: Any, n_fires: Any, depth: int, known: Any) -> float:
    """What telling a frame's events apart by their tokens at `depth` would be worth if nothing silent had these tokens."""
    room, counts, met = evidence.room, evidence.room.counts, evidence.room.keys
    n_met = 0
    # The events of an interval are the last ones that its children were given.
    first, stop = (frame.event, frame.event_stop) if frame.listed else (frame.event_stop - n_fires, frame.event_stop)
    for i in range(first, stop):
        rank = room.ranks[i] if frame.listed else evidence.events[i]
        if frame.listed and room.marks[rank] != FIRES:
            continue
        token = token_at(trie, rank, depth) - BOUNDARY
        if counts[token, 1] == 0:
            met[n_met] = token
            n_met += 1
        counts[token, 1] += 1
    worth = 0.0
    for token in met[:n_met]:
        f = np.int64(counts[token, 1])
        counts[token, 1] = 0
        p = (f - 1 + s.kappa * known.without_firing) / (f - 1 + s.kappa)
        worth += f * math.log(min(max(p, LOWEST), 1 - LOWEST))
    return worth


@jit
def _list_ranks(trie: Any, room: Any, frame: Any) -> None:
    """Make an interval's frame that of a list of its ranks, to be begun with."""
    to = 0
    for rank in range(trie.start[frame.node], trie.stop[frame.node]):
        if room.marks[rank] != HELD_OUT:
            room.ranks[to] = rank
            to += 1
    frame.listed, frame.event, frame.event_stop = 1, 0, to


@jit
def _look(trie: Any, evidence: Any, stack: Any, s: Any, frame: Any, depth: int, known: Any) -> float:
    """What telling a frame's list apart by the tokens at `depth` is worth, with nothing below; leaves them on the stack."""
    room = evidence.room
    counts, marks, ranks, met, top = room.counts, room.marks, room.ranks, room.keys, room.top
    first, f, n_met = top[0], np.int64(0), 0
    for i in range(frame.event, frame.event_stop):
        rank = ranks[i]
        token = token_at(trie, rank, depth) - BOUNDARY
        fires = np.int64(marks[rank] == FIRES)
        if counts[token, 0] == 0:
            met[n_met] = token
            n_met += 1
        counts[token, 0] += 1
        counts[token, 1] += fires
        f += fires
    for token in met[:n_met]:
        n_there, f_there = np.int64(counts[token, 0]), np.int64(counts[token, 1])
        push_known(stack, top, token + BOUNDARY, depth, n_there, f_there, 0.0, known, 0.0, s.kappa)
        counts[token, 0], counts[token, 1] = 0, 0
    return float(choose(stack, first, top[0], np.int64(frame.event_stop - frame.event), f, known, s)[0])


@jit
def sort_list(trie: Any, room: Any, a: int, b: int, depth: int) -> None:
    """Sort `ranks[a:b]` by their tokens at `depth`, then by rank."""
    keys = room.keys[a:b]
    for i in range(a, b):
        keys[i - a] = np.int64(token_at(trie, room.ranks[i], depth) - BOUNDARY) << 32 | np.int64(room.ranks[i])
    keys.sort()
    for i in range(a, b):
        room.ranks[i] = keys[i - a] & 0x7FFFFFFF


@jit
def token_at(trie: Any, rank: int, depth: int) -> Any:
    """The token so far before the position of a rank."""
    if NEAR <= depth < NEAR + trie.near.shape[0]:
        return np.int64(trie.near[depth - NEAR, rank])
    return np.int64(trie.ids[trie.place[rank] - depth]) if trie.reach[rank] >= depth else np.int64(BOUNDARY)
