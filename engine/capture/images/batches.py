"""Batches of a capture of images: the planned windows with their pixels, read and encoded again when their turn comes.

The counterpart of `block_filler.batches_of`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.capture.block_filler import Batch, batch_columns
from actstore.engine.capture.images.prompts import encode
from actstore.engine.inputs.images import ImageOptions, read_images
from actstore.store.errors import CaptureError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from actstore.engine.capture.settings import ImageSettings
    from actstore.engine.inputs.images import ImageDocument
    from actstore.engine.models.vision.inputs import EncodedPrompt, VisionProcessor
    from actstore.store.capture.plan import BlockPlan


class ImageLibrary:
    """Gives the documents of a capture's table of documents by number, reading their location front to back."""

    def __init__(self, documents: pa.Table, location: str, options: ImageOptions) -> None:
        """`documents` is the capture's table; `location` is where its images are now."""
        self._location, self._options = location, options
        self._entries: list[int] = documents["entry"].to_pylist()
        self._sources: list[str] = documents["source"].to_pylist()
        self._sha256: list[str] = documents["image_sha256"].to_pylist()
        self._needed = set(self._entries)
        self._stream: Iterator[ImageDocument] | None = None
        self._next = 0
        self._waiting: dict[int, ImageDocument] = {}

    def document(self, number: int) -> ImageDocument:
        """A document, whose image is the one that was planned; `InvalidInputError` where it is not, or no longer there."""
        entry = self._entries[number]
        if self._stream is None or (entry < self._next and entry not in self._waiting):
            self._stream, self._next, self._waiting = read_images(self._location, self._options), 0, {}
        while self._next <= entry:
            document = next(self._stream, None)
            if document is None:
                raise InvalidInputError(
                    f"The image {self._sources[number]} of the capture is no longer in {self._location}."
                )
            # Windows are drawn forward to fill blocks: documents that are passed on the way are needed soon.
            if self._next in self._needed:
                self._waiting[self._next] = document
            self._next += 1
        document = self._waiting.pop(entry)
        if document.image.sha256 != self._sha256[number]:
            what = "has changed since the capture was planned" if document.image.sha256 else "can no longer be read"
            raise InvalidInputError(f"The image {document.image.source} {what}. Put back the one that it was.")
        return document


class ImageBatches:
    """Makes the batches of a block; for `BlockFiller`."""

    def __init__(
        self, processor: VisionProcessor, settings: ImageSettings, documents: pa.Table, library: ImageLibrary
    ) -> None:
        """Of a capture with these settings and this table of documents."""
        self._processor, self._settings, self._library = processor, settings, library
        self._prompts: list[str] = documents["prompt"].to_pylist()
        self._captions: list[str] = documents["caption"].to_pylist()
        self._n_prompt: list[int] = documents["n_prompt"].to_pylist()

    def __call__(self, plan: BlockPlan, n_labels: int, block_slots: int) -> Iterator[Batch]:
        """The batches of a block in their planned order, as `batches_of` gives those of text."""
        starts = np.cumsum([0, *plan.windows["n_inputs"]])
        of_tower = self._settings.part != "language"
        for batch in plan.batches():
            windows = range(batch.start, batch.stop)
            prompts = [
                self._encode(int(plan.windows["document"][w]), plan.inputs[starts[w] : starts[w + 1]]) for w in windows
            ]
            ids, mask, extra = self._processor.collate(prompts)
            lengths = plan.windows["n_inputs"][batch]
            if of_tower:
                first_rows = np.cumsum([0, *lengths[:-1]])
                n_rows = int(lengths.sum())
            else:
                first_rows = np.arange(len(lengths)) * ids.shape[1]
                n_rows = len(lengths) * ids.shape[1]
            columns = batch_columns(plan, batch, first_rows, n_labels, block_slots)
            yield Batch(ids, mask, columns, extra, n_rows)

    def _encode(self, number: int, ids: np.ndarray) -> EncodedPrompt:
        """What the model reads of a document; `CaptureError` where it is not what was planned."""
        document = self._library.document(number)
        of_tower = self._settings.part != "language"
        answer = self._captions[number] if of_tower else ids[self._n_prompt[number] :].tolist()
        encoded = encode(
            self._processor, document, document.image.open(), self._prompts[number], answer, self._settings.prefix
        )
        same = (
            len(self._processor.part_patches(encoded, self._settings.part)) == len(ids)
            if of_tower
            else np.array_equal(encoded.ids, ids)
        )
        if not same:
            raise CaptureError(
                f"{document.source} is no longer encoded as it was planned: the model's processor, or the transformers "
                "library, has changed. Begin another capture with another `name`."
            )
        return encoded


def open_library(documents: pa.Table, locations: tuple[str, ...], settings: ImageSettings) -> ImageLibrary:
    """The library of a capture at the first of the locations that is there; `NotFoundError` where none is."""
    for location in dict.fromkeys(locations):
        try:
            next(read_images(location, settings.of(ImageOptions)))
        except NotFoundError:
            continue
        return ImageLibrary(documents, location, settings.of(ImageOptions))
    raise NotFoundError(
        f"The images of the capture are not at {locations[0]} any more. Say where they are with `images`."
    )
