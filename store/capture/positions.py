"""The positions of a capture that a method reads: all counted ones, the last of each window, the generated span.

Decided from the plan alone, block by block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.store.capture.saturation import overflow_sentences
from actstore.store.capture.unfinished import unfinished_sentence
from actstore.store.errors import InvalidInputError
from actstore.store.layout import GENERATED, IMAGE, MODALITIES, SPECIAL, TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from actstore.store.capture.plan import BlockPlan
    from actstore.store.capture.reader import Capture


def _select_all(plan: BlockPlan) -> NDArray[np.bool_]:
    return np.ones(len(plan.modality), bool)


def _select_counted(plan: BlockPlan) -> NDArray[np.bool_]:
    return np.asarray(plan.modality != SPECIAL)


def _select_modality(modality: int, plan: BlockPlan) -> NDArray[np.bool_]:
    return np.asarray(plan.modality == modality)


def _select_predicting(plan: BlockPlan) -> NDArray[np.bool_]:
    selected = np.zeros(len(plan.modality), bool)
    window = windows_of(plan)
    follows = (window[1:] == window[:-1]) & (plan.position[1:] == plan.position[:-1] + 1)
    selected[:-1] = follows & (plan.modality[1:] == GENERATED)
    return selected


def _select_last(plan: BlockPlan) -> NDArray[np.bool_]:
    selected = np.zeros(len(plan.modality), bool)
    slots = np.flatnonzero((plan.modality == TEXT) | (plan.modality == IMAGE))
    # Slots are in the order of windows and positions: the last of each run of one window.
    ends = np.append(np.diff(windows_of(plan)[slots]) > 0, True)[: len(slots)]
    selected[slots[ends]] = True
    return selected


@dataclass(frozen=True)
class PositionSet:
    """One set of positions that a method can look at."""

    label: str
    """What tables call it."""
    help: str
    """One phrase for the command line and the documentation."""
    select: Callable[[BlockPlan], NDArray[np.bool_]]
    """Which slots of a block are in the set; shape [slot]."""
    modality: int | None = None
    """The modality of which a capture must hold a token; None where any capture will do."""
    needs_window_ends: bool = False
    """Whether the positions in which windows end must be stored."""


POSITIONS: Final[dict[str, PositionSet]] = {
    "counted": PositionSet("counted", "every stored position but special tokens", _select_counted),
    "all": PositionSet("all", "every stored position, special tokens too", _select_all),
    "text": PositionSet("text", "text tokens", partial(_select_modality, TEXT), TEXT),
    "image": PositionSet("image", "image tokens", partial(_select_modality, IMAGE), IMAGE),
    "generated": PositionSet("generated", "generated tokens", partial(_select_modality, GENERATED), GENERATED),
    "predicting": PositionSet(
        "predicting",
        "the positions that predict a generated token: the last one of the prompt, special or not, and on",
        _select_predicting,
        GENERATED,
        needs_window_ends=True,
    ),
    "last": PositionSet(
        "last",
        "the last text or image position of each window: of a prompt in a window of its own, its last token",
        _select_last,
        needs_window_ends=True,
    ),
}
"""Name → set of positions; the names that `positions` takes."""


def check_positions(capture: Capture, positions: str) -> None:
    """Raise `InvalidInputError` unless `positions` is a key of `POSITIONS` and the capture's plan holds such positions."""
    name = capture.record.name
    if positions not in POSITIONS:
        raise InvalidInputError(f"Positions are one of {', '.join(POSITIONS)}: found {positions!r}.")
    position_set = POSITIONS[positions]
    stored = str(capture.record.plan.settings.get("positions", "all"))
    if position_set.needs_window_ends and re.match(r"-?\d", stored) and "generated" not in stored:
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
    modality = position_set.modality
    if modality is not None and not (capture.plan.array("tokens/modality") == modality).any():
        kind = MODALITIES[modality]
        raise InvalidInputError(
            f'Capture {name!r} holds no {kind} token. Choose other `positions`, such as "counted", or a capture whose '
            f"documents hold {kind} tokens."
        )


def slots_of(plan: BlockPlan, positions: str) -> NDArray[np.int64]:
    """The slots of a block at `positions`, ascending, counted from the block's first."""
    return np.flatnonzero(POSITIONS[positions].select(plan))


def windows_of(plan: BlockPlan) -> NDArray[np.int64]:
    """The window of each slot of a block, as a row of the block's windows; shape [token]."""
    return plan.window_of_slot()


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
    record, unfinished = capture.record, unfinished_sentence(capture)
    sentences = [] if unfinished is None else [unfinished]
    if not record.encoding.keeps_every_value:
        sentences.append(
            f"Capture {record.name!r} has precision {record.precision}: values that it dropped are read as 0."
        )
    return sentences + overflow_sentences(capture, [site])
