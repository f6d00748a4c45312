"""What each position of a capture predicts: the token that comes next, in its window or in the window that goes on from it.

Also finds the slot of a position that a user names, and what is stored there.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.store.capture.special_tokens import special_tokens
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.tokens import check_tokens_known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.reader import Capture


class Place(NamedTuple):
    """A position of a document, as exemplars name it: `position` counts from the start of the window the model read.

    From the window's end where it is negative. Documents of several windows need the `window` where several have the position.
    """

    document: int
    position: int
    window: int | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place in a text such as 3:17, or 3:17@5 with a window."""
        match = re.fullmatch(r"\s*(\d+):(-?\d+)(?:@(\d+))?\s*", text)
        if match is None:
            raise InvalidInputError(
                f"A place is a document and a position in it, such as 3:17, or 3:17@5 with a window, found {text!r}."
            )
        return cls(int(match[1]), int(match[2]), None if match[3] is None else int(match[3]))


class Slot(NamedTuple):
    """Where a place lies in the store, and what comes there."""

    block: int
    offset: int
    """In the block's [neuron, token] arrays."""
    document: int
    position: int
    window: int
    next_token: int
    """-1 where none is known."""


def find_slot(capture: Capture, place: Place) -> Slot:
    """The slot of a place; an error that says what there is where the capture has no such place, or did not keep it."""
    plan = capture.record.plan
    name, document = capture.record.name, place.document
    if not 0 <= document < plan.n_documents:
        raise NotFoundError(f"Capture {name!r} has documents 0 to {plan.n_documents - 1}, found document {document}.")
    windows = capture.windows()
    numbers = np.flatnonzero(windows["document"].to_numpy() == document)
    if place.window is not None and place.window not in numbers:
        raise NotFoundError(
            f"Document {document} of capture {name!r} was read in {_listed('window', numbers)}, found window {place.window}."
        )
    lengths, blocks = windows["n_inputs"].to_numpy(), windows["block"].to_numpy()
    candidates = numbers if place.window is None else np.array([place.window])
    inside = [int(w) for w in candidates if -lengths[w] <= place.position < lengths[w]]
    if not inside:
        longest = int(lengths[candidates].max()) if len(candidates) else 0
        raise NotFoundError(
            f"Document {document} of capture {name!r} has positions 0 to {longest - 1}, found position {place.position}."
            if longest
            else f"Document {document} of capture {name!r} has no stored token."
        )
    slots = [slot for w in inside if (slot := _slot(capture, int(blocks[w]), w, place.position)) is not None]
    if not slots:
        positions = plan.settings.get("positions", "all")
        raise NotFoundError(
            f"Capture {name!r} did not keep position {place.position} of document {document}: it was made with "
            f'`positions="{positions}"`. Capture again with `positions="all"`, or with that position among them.'
        )
    if len(slots) > 1:
        numbers = np.array([slot.window for slot in slots])
        raise InvalidInputError(
            f"Document {document} was read in several windows, and {_listed('window', numbers)} have a position "
            f'{place.position}: name one as in `at="{document}:{place.position}@{numbers[0]}"`.'
        )
    return slots[0]


def activations_at(
    capture: Capture, slot: Slot, neurons: Sequence[tuple[int, int]], site: str = "mlp.post"
) -> NDArray[np.float32]:
    """The activations of some neurons (layer, index) at one place; shape [neuron]."""
    rows = [capture.block_row(layer, index, slot.block, site)[slot.offset] for layer, index in neurons]
    return np.array(rows, np.float32)


def _listed(noun: str, numbers: NDArray[np.int64]) -> str:
    shown = ", ".join(str(n) for n in numbers[:8].tolist()) + (", …" if len(numbers) > 8 else "")
    return f"{noun}{'s' if len(numbers) > 1 else ''} {shown}"


def _slot(capture: Capture, block: int, window: int, position: int) -> Slot | None:
    plan = capture.block_plan(block)
    (index,) = np.flatnonzero(plan.windows["window"] == window).tolist()
    length = int(plan.windows["n_inputs"][index])
    first = int(plan.windows["slot_start"][index]) - block * capture.record.plan.block_slots
    n_slots = int(plan.windows["n_slots"][index])
    position %= length
    offsets = np.flatnonzero(plan.position[first : first + n_slots] == position)
    if not len(offsets):
        return None
    offset = first + int(offsets[0])
    following = int(NextTokens(capture).of_block(block)[offset])
    return Slot(block, offset, int(plan.windows["document"][index]), position, window, following)


class NextTokens:
    """The token that comes after each token of a capture."""

    def __init__(self, capture: Capture) -> None:
        check_tokens_known(capture.record, "Contributions to tokens")
        self._capture = capture

    def of_block(self, block: int) -> NDArray[np.int64]:
        """The next token's id at every used slot of a block; -1 where none is known. Shape [token].

        It is what the window goes on with; at a window's end, the first token of text of the window that continues the
        document. The last token of a document has none, nor has a window's where windows overlap.
        """
        plan = self._capture.block_plan(block)
        window = np.repeat(np.arange(len(plan.windows["window"])), plan.windows["n_slots"])
        starts = plan.windows["input_start"] - plan.windows["input_start"][0]
        after = plan.position.astype(np.int64) + 1
        inside = after < plan.windows["n_inputs"][window]
        following = plan.inputs[np.where(inside, starts[window] + after, 0)].astype(np.int64)
        return np.where(inside, following, self._continuations[plan.windows["window"]][window])

    @cached_property
    def _continuations(self) -> NDArray[np.int64]:
        """The first token of text of the window that goes on from each window, -1 where none does; shape [window]."""
        capture = self._capture
        windows = capture.windows().select(["window", "document", "n_inputs"])
        document, n_inputs = windows["document"].to_numpy(), windows["n_inputs"].to_numpy()
        continuations = np.full(len(document), -1, np.int64)
        # All windows of a document but its last are full, and full ones keep their order; the last may be packed before them.
        order = np.lexsort((np.arange(len(document)), -n_inputs, document))
        goes_on = document[order[:-1]] == document[order[1:]]
        if capture.record.plan.settings.get("overlap", 0) == 0 and goes_on.any():
            continuations[order[:-1][goes_on]] = self._first_tokens(len(document))[order[1:][goes_on]]
        return continuations

    def _first_tokens(self, n_windows: int) -> NDArray[np.int64]:
        """The first token of each window that is not a special one; -1 where all are. Shape [window]."""
        capture, first = self._capture, np.full(n_windows, -1, np.int64)
        special = special_tokens(capture)
        for block in range(capture.record.plan.n_blocks):
            plan = capture.block_plan(block)
            window = np.repeat(plan.windows["window"], plan.windows["n_inputs"])
            text = np.flatnonzero(~np.isin(plan.inputs, special))[::-1]
            first[window[text]] = plan.inputs[text]  # of several assignments the last stays: that of the first token
        return first
