"""A builder's tokens and rows into a store: plan, root, record and blocks, as a run of a model leaves them."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from actstore.engine.capture.block_filler import batch_columns, submit_blocks
from actstore.engine.capture.buffers import block_buffers
from actstore.engine.capture.packing import HostPacker
from actstore.engine.capture.sizes import bytes_per_slot, check_memory, planned_slots, with_storage
from actstore.engine.capture.steps.filler import n_encoders
from actstore.engine.capture.steps.finish import finish_capture
from actstore.kernels.pack.statistics import STATISTICS
from actstore.store.capture.plan import Plan, PlannedWindow, PlanWriter
from actstore.store.capture.writer import CaptureWriter
from actstore.store.files.precision import PRECISIONS
from actstore.store.files.records import CaptureRecord, PlanRecord
from actstore.store.layout import SLOT_MULTIPLE
from actstore.store.model import root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actstore.engine.building.arrays import Place
    from actstore.engine.building.sequences import Planned
    from actstore.engine.building.settings import BuildSettings
    from actstore.engine.building.spool import Spool
    from actstore.engine.capture.packing import FilledBlock
    from actstore.store.storage.folder import Folder

BLOCK_SLOTS: Final = 16_384


@dataclass(frozen=True)
class Contents:
    """What a builder was given."""

    widths: Mapping[Place, int]
    dtype: str
    tokens: Planned
    spool: Spool
    corpus: str
    """What the record calls the source of the tokens."""
    known: str
    """What is known of the tokens, as the settings have it."""

    @property
    def sites(self) -> dict[str, dict[int, int]]:
        """Site → layer → width."""
        sites: dict[str, dict[int, int]] = {}
        for (site, layer), width in sorted(self.widths.items(), key=lambda item: item[0][1]):
            sites.setdefault(site, {})[layer] = width
        return sites


def write_plan(folder: Folder, name: str, contents: Contents, settings: BuildSettings, tokenizer: str) -> PlanRecord:
    """Write the plan: whole windows in the order of their rows, as many per block as fit; its record."""
    tokens = contents.tokens
    slots = _block_slots(contents, settings)
    of_plan = {"block_slots": slots, "positions": "all"}
    writer = PlanWriter(folder, name, slots, of_plan)
    try:
        labels = tokens.documents(writer)
        for block in _blocks(tokens.windows(), slots):
            writer.add_block([block])
        fingerprint = writer.close(labels)
    except BaseException:
        writer.abandon()
        raise
    return PlanRecord(
        fingerprint=fingerprint,
        corpus=contents.corpus,
        corpus_fingerprint=hashlib.sha256(fingerprint.encode()).hexdigest(),
        tokenizer_fingerprint=tokenizer,
        settings=of_plan,
        label_columns=tokens.label_columns,
        labels=tuple(labels),
        n_documents=writer.n_documents,
        n_windows=writer.n_windows,
        n_tokens=writer.n_tokens,
        block_slots=slots,
        n_blocks=writer.n_blocks,
    )


def _block_slots(contents: Contents, settings: BuildSettings) -> int:
    slot_nbytes = bytes_per_slot(contents.sites, settings.precision, contents.dtype, 0)
    wanted = planned_slots(slot_nbytes, None, settings.block_tokens, BLOCK_SLOTS)
    slots = max(min(wanted, contents.tokens.n_tokens), contents.tokens.longest)
    return -(-slots // SLOT_MULTIPLE) * SLOT_MULTIPLE


def _blocks(windows: Iterator[PlannedWindow], slots: int) -> Iterator[list[PlannedWindow]]:
    block: list[PlannedWindow] = []
    n_slots = 0
    for window in windows:
        if block and n_slots + len(window.kept) > slots:
            yield block
            block, n_slots = [], 0
        block.append(window)
        n_slots += len(window.kept)
    if block:
        yield block


def capture_record(
    name: str, fingerprint: str, contents: Contents, settings: BuildSettings, plan: PlanRecord
) -> CaptureRecord:
    """The record of the capture, of the model with this fingerprint."""
    record = CaptureRecord(
        name=name,
        created=root.now(),
        written_by=root.written_by(),
        model_fingerprint=fingerprint,
        dtype=contents.dtype,
        precision=settings.precision,
        sites={site: {str(k): v for k, v in layers.items()} for site, layers in contents.sites.items()},
        gate_sign=(),
        keep=settings.keep if PRECISIONS[settings.precision].uses_keep else None,
        n_exemplars=settings.exemplars,
        settings=settings.to_json(contents.known),
        plan=plan,
        statistics=tuple(STATISTICS),
    )
    return with_storage(record, dataclasses.asdict(settings))


def fill(folder: Folder, record: CaptureRecord, contents: Contents) -> None:
    """Fill and commit every block, and finish the capture, which the caller owns and whose record is written."""
    check_memory(record, 1)
    with CaptureWriter(folder, record, n_threads=n_encoders(None, overlap=False), overlap=False) as writer:
        submit_blocks(_filled(folder, record, contents), writer)
    finish_capture(folder, record)


def _filled(folder: Folder, record: CaptureRecord, contents: Contents) -> Iterator[FilledBlock]:
    """Every block; one layer's rows are in memory beside the block's buffers."""
    plan = Plan(folder, record.name, record.plan, record.plan_files)
    packer = HostPacker(record, block_buffers(record, 1), ())
    first = 0
    for block in range(record.plan.n_blocks):
        of_block = plan.block(block)
        n_windows, n_rows = len(of_block.labels), len(of_block.position)
        planned = batch_columns(
            of_block,
            slice(0, n_windows),
            np.zeros(n_windows, np.int64),
            len(record.plan.labels),
            record.plan.block_slots,
        )
        columns = dataclasses.replace(planned, rows=np.arange(n_rows))  # rows come in the order of their slots
        packer.begin(of_block)
        packer.batch(columns)
        for site, layer in contents.widths:
            rows = torch.from_numpy(contents.spool.rows((site, layer), first, n_rows))
            packer.pack(layer, site, rows.view(torch.bfloat16) if contents.dtype == "bfloat16" else rows, columns)
        first += n_rows
        yield from packer.finish()
