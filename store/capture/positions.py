"""The positions of a capture that a method reads: all counted ones, the last of each window, the generated span.

They follow from the plan alone, block by block.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.store.capture.saturation import overflow_sentences
from actstore.store.errors import InvalidInputError
from actstore.store.layout import GENERATED, IMAGE, SPECIAL, TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from actstore.store.capture.plan import BlockPlan
    from actstore.store.capture.reader import Capture

POSITIONS: Final = {
    "counted": "every stored position but special tokens",
    "all": "every stored position, special tokens too",
    "text": "text tokens",
    "image": "image tokens",
    "generated": "generated tokens",
    "predicting": "the positions that predict a generated token: the last one of the prompt, special or not, and on",
    "last": "the last text or image position of each window: of a prompt in a window of its own, its last token",
}


def check_positions(capture: Capture, positions: str) -> None:
    """Raise `InvalidInputError` unless `positions` is a key of `POSITIONS` and the capture's plan holds such positions."""
    name = capture.record.name
    if positions not in POSITIONS:
        raise InvalidInputError(f"Positions are one of {', '.join(POSITIONS)}: found {positions!r}.")
    stored = str(capture.record.plan.settings.get("positions", "all"))
    if positions in ("last", "predicting") and re.match(r"-?\d", stored):
        raise InvalidInputError(
            f"Capture {name!r} stores the positions {stored} of each window, and {positions!r} needs those that the windows "
            'end in. Capture again with `positions="all"`'
            + (', or with `positions="last"`.' if positions == "last" else ".")
        )
    if stored == "last" and positions == "predicting":
        raise InvalidInputError(
            f"Capture {name!r} stores the last position of each window only, and {positions!r} needs the generated tokens. "
            'Capture again with `positions="all"`.'
        )
    code = {"image": IMAGE, "generated": GENERATED, "predicting": GENERATED, "text": TEXT}.get(positions)
    if code is not None and not (capture.plan.array("tokens/modality") == code).any():
        kind = {IMAGE: "image", GENERATED: "generated", TEXT: "text"}[code]
        raise InvalidInputError(
            f"Capture {name!r} holds no {kind} token. Choose other `positions`, such as counted, or a capture whose "
            f"documents hold {kind} tokens."
        )


def slots_of(plan: BlockPlan, positions: str) -> NDArray[np.int64]:
    """The slots of a block at `positions`, ascending, counted from the block's first."""
    modality = plan.modality
    window = windows_of(plan)
    if positions == "all":
        selected = np.ones(len(modality), bool)
    elif positions == "counted":
        selected = modality != SPECIAL
    elif positions == "last":
        places = np.flatnonzero((modality == TEXT) | (modality == IMAGE))
        # Slots are in the order of windows and positions: the last of each run of one window.
        return np.asarray(places[np.append(np.diff(window[places]) > 0, True)[: len(places)]])
    elif positions == "predicting":
        selected = np.zeros(len(modality), bool)
        follows = (window[1:] == window[:-1]) & (plan.position[1:] == plan.position[:-1] + 1)
        selected[:-1] = follows & (modality[1:] == GENERATED)
    else:
        selected = modality == {"text": TEXT, "image": IMAGE, "generated": GENERATED}[positions]
    return np.flatnonzero(selected)


def windows_of(plan: BlockPlan) -> NDArray[np.int64]:
    """The window of each slot of a block, as a row of the block's windows; shape [token]."""
    return np.repeat(np.arange(len(plan.labels)), plan.windows["n_slots"])


def blocks_with(capture: Capture, positions: str, blocks: Iterable[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(block, its slots at `positions`) of every block of `blocks` that has some; `check_positions` must have passed."""
    for block in blocks:
        slots = slots_of(capture.block_plan(block), positions)
        if len(slots):
            yield block, slots


def check_values(capture: Capture, site: str) -> None:
    """Raise `InvalidInputError` unless the capture holds values at `site` in at least one block."""
    record = capture.record
    if site not in record.sites:
        raise InvalidInputError(
            f"Capture {record.name!r} has no site {site!r}. Its sites are: {', '.join(record.sites)}. Capture again with "
            f'`sites=["{site}"]`.'
        )
    if not record.encoding.keeps_values:
        raise InvalidInputError(
            f"Capture {record.name!r} keeps statistics only (precision none), and this needs values. Capture again with "
            "another `precision`."
        )
    if not capture.blocks:
        raise InvalidInputError(f"Capture {record.name!r} has no committed block. Resume it with `resume=True` first.")


def warnings_of(capture: Capture, site: str) -> list[str]:
    """What a reader of a capture's values at a site should know, in sentences."""
    record, sentences = capture.record, []
    if not capture.is_complete:
        sentences.append(
            f"Capture {record.name!r} is not complete: {len(capture.blocks)} of {record.plan.n_blocks} blocks are read."
        )
    if not record.encoding.keeps_every_value:
        sentences.append(
            f"Capture {record.name!r} has precision {record.precision}: values that it dropped are read as 0."
        )
    return sentences + overflow_sentences(capture, [site])
