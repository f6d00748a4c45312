"""The kinds of captures, and what fills the blocks of each."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from actstore.engine.attribution.block_filler import fill_attributions
from actstore.engine.capture.block_filler import fill_blocks
from actstore.engine.graphs.probes.run import fill_windows
from actstore.store.tokens import check_made_by_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.engine.capture.steps.filler import FillBlocks
    from actstore.engine.models.vision.inputs import VisionProcessor
    from actstore.store.files.records import CaptureRecord


def block_filler(
    record: CaptureRecord, load_processor: Callable[[], VisionProcessor], images: str | None = None
) -> FillBlocks:
    """What fills blocks as the command that planned the capture does.

    `images` is where the images of a capture are now, if not where they were; only for them a processor is loaded.
    """
    check_made_by_model(record, "Filling a block")
    if record.settings.get("command") == "attribute":
        return fill_attributions
    if record.of_images:
        from actstore.engine.capture.images.run import fill_image_blocks  # only here: it loads the image library

        locations = () if images is None else (images,)
        return partial(fill_image_blocks, load_processor(), locations)
    return fill_windows if "probes" in record.settings else fill_blocks
