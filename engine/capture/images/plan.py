"""The plan of a capture of images: each document a window, which positions are kept, in which blocks, what they see.

Also writes the table of patches, whose slots follow from where windows are placed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.capture.answers.positions import Positions
from actstore.engine.capture.plan import batch_windows, pack_blocks
from actstore.engine.capture.plan_labels import Labels
from actstore.store.capture.patches import PatchesWriter
from actstore.store.capture.plan import PlannedWindow, PlanWriter
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import PlanRecord
from actstore.store.layout import GENERATED, IMAGE, SPECIAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from actstore.engine.capture.images.prompts import Prepared
    from actstore.engine.capture.settings import ImageSettings
    from actstore.engine.models.vision.inputs import EncodedPrompt, Patches, VisionProcessor
    from actstore.store.storage.folder import Folder

TAKEN_COLUMNS: Final = (
    "document", "source", "sha256", "n_tokens", "entry", "image", "image_sha256", "width", "height", "prompt", "caption",
    "generated", "n_prompt",
)  # fmt: skip
MAX_PADDING: Final = 1 / 16


@dataclass(frozen=True)
class ImageWindow(PlannedWindow):
    """A window with what its positions see."""

    patches: Patches
    kind: int
    """Windows of one kind may run in one batch."""


@dataclass(frozen=True)
class ImagePlanner:
    """Writes the plan of prepared documents, which it takes one at a time."""

    location: str
    settings: ImageSettings
    processor: VisionProcessor
    block_slots: int
    on_planned: Callable[[int, int], None]

    def write(
        self, prompts: Iterator[Prepared], folder: Folder, capture: str, corpus_fingerprint: Callable[[], str]
    ) -> tuple[PlanRecord, str]:
        """Write plan and patches into `capture`: the plan's record, and the SHA-256 of the table of patches.

        `corpus_fingerprint` is asked once every prompt was taken. `InvalidInputError` where no position is kept.
        """
        settings = self.settings
        positions = Positions(settings.positions)
        self._check_labels()
        as_json = {
            "context": settings.context,
            "part": settings.part,
            "positions": settings.positions,
            "batch_tokens": settings.batch_tokens,
            "block_slots": self.block_slots,
            "max_padding": MAX_PADDING,
        }
        writer, patches = PlanWriter(folder, capture, self.block_slots, as_json), PatchesWriter(folder, capture)
        labels = Labels(settings.label_columns)
        try:
            for block in pack_blocks(self._windows(prompts, writer, labels, positions), self.block_slots):
                batches = self._batches(block)
                rows = patch_rows(batches, writer.n_windows, writer.n_blocks * self.block_slots)
                writer.add_block(batches)
                patches.add_block(rows)
            self._expect_windows(writer.n_windows)
            labels.check(str(self.location), writer.n_documents)
            pairs = tuple(labels.ids)
            fingerprint, patches_sha256 = writer.close(pairs), patches.close()
        except BaseException:
            writer.abandon()
            patches.abandon()
            raise
        record = PlanRecord(
            fingerprint=fingerprint,
            corpus=self.location,
            corpus_fingerprint=corpus_fingerprint(),
            tokenizer_fingerprint=self.processor.tokenizer.fingerprint,
            settings=as_json,
            label_columns=settings.label_columns,
            labels=pairs,
            n_documents=writer.n_documents,
            n_windows=writer.n_windows,
            n_tokens=writer.n_tokens,
            block_slots=self.block_slots,
            n_blocks=writer.n_blocks,
        )
        return record, patches_sha256

    def _check_labels(self) -> None:
        for column in self.settings.label_columns:
            if column in TAKEN_COLUMNS:
                raise InvalidInputError(
                    f"A label column cannot be called {column!r}: taken are {', '.join(TAKEN_COLUMNS)}. Rename it."
                )

    def _expect_windows(self, n_windows: int) -> None:
        if n_windows:
            return
        answers = (
            " Are there captions, or is `generate=True` missing?" if "generated" in self.settings.positions else ""
        )
        raise InvalidInputError(
            f"The images of {self.location} give no position to keep with `positions` {self.settings.positions!r}.{answers}"
        )

    def _windows(
        self, prompts: Iterator[Prepared], writer: PlanWriter, labels: Labels, positions: Positions
    ) -> Iterator[ImageWindow]:
        kinds: list[EncodedPrompt] = []
        limit, n_tokens = self.settings.max_tokens, 0
        for prepared in prompts:
            window = self._window(prepared, writer.n_documents, labels, positions, kinds)
            writer.add_document(self._row(prepared, len(window.ids)))
            if len(window.kept) > self.block_slots:
                raise InvalidInputError(
                    f"{prepared.document.source} keeps {len(window.kept):,} positions, more than a block of "
                    f"{self.block_slots:,} slots holds. Raise `memory`, or keep fewer `positions`."
                )
            if len(window.kept):
                yield window
            n_tokens += len(window.kept)
            self.on_planned(writer.n_documents, n_tokens)
            if limit is not None and n_tokens >= limit:
                return

    def _window(
        self, prepared: Prepared, document: int, labels: Labels, positions: Positions, kinds: list[EncodedPrompt]
    ) -> ImageWindow:
        encoded, part = prepared.encoded, self.settings.part
        patches = self.processor.part_patches(encoded, part)
        kind = next((i for i, first in enumerate(kinds) if self._alike(first, encoded)), len(kinds))
        if kind == len(kinds):
            # Only shapes decide, and pixels would add up.
            shapes = {key: value.to("meta") for key, value in encoded.extra.items()}
            kinds.append(dataclasses.replace(encoded, extra=shapes))
        if part == "language":
            ids, modality = encoded.ids, modality_of(encoded, self.processor)
            kept = positions.kept(modality, encoded.n_prompt)
        else:
            ids = np.full(len(patches), image_token(encoded), np.int32)
            modality = np.full(len(patches), IMAGE, np.uint8)
            kept = np.arange(len(patches), dtype=np.int32)
        return ImageWindow(document, ids, kept, modality[kept], labels.of(prepared.document.labels), patches, kind)

    def _alike(self, a: EncodedPrompt, b: EncodedPrompt) -> bool:
        """Whether two windows may run in one batch; in front of the language model only where all shapes agree."""
        same = self.settings.part == "language" or all(
            a.extra[k].shape == v.shape for k, v in b.extra.items() if k in a.extra
        )
        return same and self.processor.fits_together(a, b)

    def _batches(self, block: list[PlannedWindow]) -> list[list[PlannedWindow]]:
        """Batches of one kind and of like length."""
        batches = []
        for kind in sorted({window.kind for window in block if isinstance(window, ImageWindow)}):
            alike = [window for window in block if isinstance(window, ImageWindow) and window.kind == kind]
            batches += batch_windows(list(alike), self.settings.batch_tokens, MAX_PADDING)
        return batches

    def _row(self, prepared: Prepared, n_tokens: int) -> dict[str, Any]:
        """The row of the documents table."""
        document = prepared.document
        answered = self.settings.part == "language"
        row = {
            "source": document.source,
            "sha256": prepared.sha256,
            "n_tokens": n_tokens,
            "entry": prepared.entry,
            "image": document.image.name or document.source,
            "image_sha256": document.image.sha256,
            "width": prepared.width,
            "height": prepared.height,
            "prompt": prepared.prompt,
            "caption": prepared.caption,
            "generated": prepared.generated,
            "n_prompt": prepared.encoded.n_prompt if answered else n_tokens,
        }
        return row | {column: document.labels.get(column, "") for column in self.settings.label_columns}


def modality_of(encoded: EncodedPrompt, processor: VisionProcessor) -> NDArray[np.uint8]:
    """What each position holds; special tokens of an answer, such as its end, are special, and enter no statistic."""
    modality = encoded.modality.copy()
    special = np.isin(encoded.ids, list(processor.tokenizer.special_ids)) & (modality == GENERATED)
    modality[special] = SPECIAL
    return modality


def image_token(encoded: EncodedPrompt) -> int:
    """The placeholder that stands for the image among the ids; -1 where there is none."""
    at = np.flatnonzero(encoded.modality == IMAGE)
    return int(encoded.ids[at[0]]) if len(at) else -1


def patch_rows(batches: list[list[PlannedWindow]], first_window: int, first_slot: int) -> dict[str, NDArray[Any]]:
    """The columns of `store.patches.PATCHES` of one block whose windows are placed from `first_window`, `first_slot` on."""
    names = ("tile", "row", "column")
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("window", "position", "token", *names, "box")}
    slot = first_slot
    windows = [window for batch in batches for window in batch]
    for number, window in enumerate(windows, start=first_window):
        assert isinstance(window, ImageWindow)
        patches = window.patches
        slots = np.full(len(window.ids), -1, np.int64)
        slots[window.kept] = np.arange(slot, slot + len(window.kept))
        parts["window"].append(np.full(len(patches), number, np.int32))
        parts["position"].append(patches.position)
        parts["token"].append(slots[patches.position])
        for name in names:
            parts[name].append(getattr(patches, name))
        parts["box"].append(patches.box.reshape(-1, 4))
        slot += len(window.kept)
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    box = columns.pop("box").astype(np.float32)
    return columns | {name: box[:, i] for i, name in enumerate(("left", "top", "right", "bottom"))}


def short_name(image: str) -> str:
    """The last part of an image's path."""
    return Path(image).name
