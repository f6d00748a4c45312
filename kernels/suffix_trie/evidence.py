"""What is known of one neuron while its trie grows, and the room for it."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIRES, HELD_OUT = 1, 2
"""Marks of ranks."""

FRAME = np.dtype(
    [
        ("p", "f8"),
        ("without_firing", "f8"),
        ("without_silent", "f8"),
        ("value", "f8"),
        ("at", "i8"),
        ("skip", "i8"),
        ("listed", "i8"),
        ("next", "i8"),
        ("stop", "i8"),
        ("event", "i8"),
        ("event_stop", "i8"),
        ("held", "i8"),
        ("held_stop", "i8"),
        ("node", "i8"),
    ]
)
"""A node whose children are being grown: where it is on the stack, what is believed there, how many tokens are ignored; then
its children to come, which are nodes of the shared trie with their events and held-out ranks, or parts of a list of ranks."""


class Room(NamedTuple):
    """Scratch of one thread."""

    marks: NDArray[np.uint8]
    """[rank] FIRES, HELD_OUT or 0; 0 between neurons."""
    ranks: NDArray[np.int32]
    """[rank] lists."""
    keys: NDArray[np.int64]
    """[rank]"""
    counts: NDArray[np.int32]
    """[token, 2] positions and events of each token; 0 between uses."""
    frames: NDArray[Any]
    top: NDArray[np.int64]
    """How many nodes are on the stack, and 1 if there was no room for more."""


class Evidence(NamedTuple):
    """What is known of one neuron, and room to sort and count its positions in."""

    events: NDArray[np.int32]
    """[event] ranks that fire, ascending."""
    sums: NDArray[np.float64]
    """[event + 1] their activations added up."""
    held: NDArray[np.int32]
    """[held-out position] ranks left out, ascending."""
    rest: float
    room: Room
