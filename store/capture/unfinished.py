"""That a capture is unfinished, said to whoever reads it: once per store and capture, as a warning of the logger `actstore`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actstore.store.capture.reader import Capture

logger = logging.getLogger("actstore")


def unfinished_sentence(capture: Capture) -> str | None:
    """What a reader of a capture that lacks blocks should know, in one line; None where all are stored."""
    if capture.is_complete:
        return None
    n_blocks = len(capture.blocks)
    return (
        f"Capture {capture.record.name!r} is unfinished: {n_blocks:,} of {capture.record.plan.n_blocks:,} blocks "
        f"{'is' if n_blocks == 1 else 'are'} stored, and the answer covers no more. To finish it, run the command that began "
        "it again, with `resume=True`."
    )
