"""Reasons to doubt coactivations, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.capture.positions import warnings_of

if TYPE_CHECKING:
    from actstore.engine.coactivation.settings import CoactivationSettings
    from actstore.store.reader import Capture


def coactivation_warnings(capture: Capture, settings: CoactivationSettings) -> list[str]:
    """What of a capture's values makes the measures others than the model's own activations would give."""
    sentences = warnings_of(capture, settings.site)
    record = capture.record
    if record.encoding.keeps_every_value and not record.encoding.keeps_signs:
        sentences.append(
            f"Capture {record.name!r} has precision {record.precision}: activations are rounded to a step per neuron and "
            "block, and those nearer to zero than half of it are read as 0, so that the tokens on which neurons fire, and "
            "Jaccard, are approximate."
        )
    return sentences
