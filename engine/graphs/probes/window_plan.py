"""The plan of a capture of probes, whose windows are given in the order in which they run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

from actstore.store.capture.plan import PlannedWindow, PlanWriter
from actstore.store.files.records import PlanRecord
from actstore.store.layout import SPECIAL, TEXT

if TYPE_CHECKING:
    from actstore.engine.capture.plan import PlanSettings
    from actstore.engine.graphs.probes.plan import ArrangedWindows
    from actstore.store.storage.folder import Folder


def write_arranged(
    arranged: ArrangedWindows,
    folder: Folder,
    name: str,
    settings: PlanSettings,
    corpus: str,
    tokenizer_fingerprint: str,
    special_ids: frozenset[int],
) -> PlanRecord:
    """The record of the plan of arranged windows, which is written as one document.

    A batch has windows of one length and one block, so that it needs no padding. Tokens of `special_ids` are no text.
    """
    specials = np.array(sorted(special_ids), np.int32)
    modality = np.where(np.isin(arranged.ids, specials), SPECIAL, TEXT).astype(np.uint8)
    positions = np.arange(settings.context, dtype=np.int32)
    ends = np.cumsum(arranged.lengths)
    per_batch = np.maximum(1, settings.batch_tokens // arranged.lengths)
    as_json = dataclasses.asdict(settings)
    writer = PlanWriter(folder, name, settings.block_slots, as_json)
    digest = hashlib.sha256(np.ascontiguousarray(arranged.ids).tobytes()).hexdigest()
    try:
        document = writer.add_document({"source": name, "sha256": digest, "n_tokens": len(arranged.ids)})

        def window(number: int) -> PlannedWindow:
            length = int(arranged.lengths[number])
            tokens = slice(int(ends[number]) - length, int(ends[number]))
            return PlannedWindow(document, arranged.ids[tokens], positions[:length], modality[tokens], ())

        block_borders = np.flatnonzero(np.diff(arranged.blocks, prepend=-1, append=-1)).tolist()
        for start, stop in itertools.pairwise(block_borders):
            length_borders = np.flatnonzero(np.diff(arranged.lengths[start:stop], prepend=-1, append=-1)) + start
            batches = [
                [window(number) for number in range(first, min(first + int(per_batch[a]), b))]
                for a, b in itertools.pairwise(length_borders.tolist())
                for first in range(a, b, int(per_batch[a]))
            ]
            writer.add_block(batches)
        fingerprint = writer.close(())
    except BaseException:
        writer.abandon()
        raise
    return PlanRecord(
        fingerprint, corpus, digest, tokenizer_fingerprint, as_json, (), (), writer.n_documents,
        writer.n_windows, writer.n_tokens, settings.block_slots, writer.n_blocks,
    )  # fmt: skip
