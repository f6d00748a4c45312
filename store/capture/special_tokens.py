"""The token ids that stand for no text in a capture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actstore.store.layout import SPECIAL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.capture.reader import Capture


def special_tokens(capture: Capture) -> NDArray[np.int64]:
    """Those that the store's vocabulary calls special, ascending; where only ids are known, those stored as special."""
    vocabulary = capture.store.vocabulary
    if vocabulary is not None:
        return np.flatnonzero(vocabulary["special"].to_numpy(zero_copy_only=False)).astype(np.int64)
    ids = [np.empty(0, np.int64)]
    for block in range(capture.record.plan.n_blocks):
        plan = capture.block_plan(block)
        starts = np.cumsum([0, *plan.windows["n_inputs"]])[:-1]
        places = np.repeat(starts, plan.windows["n_slots"]) + plan.position
        ids.append(np.unique(plan.inputs[places[plan.modality == SPECIAL]]).astype(np.int64))
    return np.unique(np.concatenate(ids))
