"""The answers of a capture of images, by image: what captures of the same images elsewhere take for captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.engine.multimodal.captions import read_captions
from actstore.engine.multimodal.describe import plain
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.store.capture.reader import Capture


def answers_by_image(capture: Capture) -> dict[str, dict[str, Any]]:
    """File name without suffix → `prompt` and `caption`, of a capture's documents."""
    rows = capture.documents().to_pylist()
    answers = {}
    for caption in read_captions(capture):
        if caption.image is None:
            raise InvalidInputError(
                f"Capture {capture.record.name!r} holds no images. Name one of images with `capture`."
            )
        row = rows[caption.document]
        answers[Path(caption.image).stem] = {"prompt": row.get("prompt"), "caption": plain(caption.text)}
    return answers
