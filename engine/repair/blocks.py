"""Damaged blocks, filled again with the model: computed beside the store, compared with what was written, and put in place.

Where the commit record survives, it says what every file was. A file that comes out the same takes its place, and nothing else
changes. One that comes out otherwise, on another machine or version, is written only if that is accepted: then the record goes
first and the whole block is written anew, so that whatever stops the repair leaves a block that is not committed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.filling.kinds import block_filler
from actstore.engine.repair.outcome import Outcome
from actstore.engine.repair.scratch import copy_file, scratch_folder
from actstore.engine.workers.numerics import threads_as_captured
from actstore.store.capture.commits import damaged_files, read_commit
from actstore.store.capture.statistics.neuron_table import remove_finished
from actstore.store.capture.writer import CaptureWriter
from actstore.store.errors import CaptureError, FormatError, NotFoundError
from actstore.store.files.bundles.reader import damaged_bundle, open_bundle
from actstore.store.files.bundles.writer import write_bundle
from actstore.store.layout import block_statistics_key, bundle_key, capture_key, commit_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actstore.engine.repair.model import RepairModel
    from actstore.store.damage import Damage
    from actstore.store.files.records import CommitRecord
    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder

MOST_THREADS: Final = 16


def refill(capture: Capture, damage: Mapping[int, Sequence[Damage]], model: RepairModel) -> list[Outcome]:
    """Fill the damaged blocks of a capture that the caller owns, whose plan is whole; `damage`: block → what is wrong with it.

    Raises as `RepairModel.load` does, before anything is changed.
    """
    record = capture.record
    loaded = model.load(record.dtype, record.model_fingerprint)
    overlap = loaded.device.type != "cpu"
    with scratch_folder(capture.folder, record.name) as scratch:
        repair = _BlockRepair(capture, scratch, damage, accept=model.options.accept_differences)
        n_threads = min(MOST_THREADS, os.cpu_count() or 1)
        try:
            with (
                threads_as_captured(capture.folder, record.name, loaded),
                CaptureWriter(scratch, record, n_threads=n_threads, overlap=overlap) as writer,
            ):
                writer.on_commit = repair.adopt
                fill = block_filler(record, model.processor, model.options.images)
                # The plan is that of the store; the scratch folder has none.
                fill(capture.folder, record, loaded, writer, sorted(damage), CaptureProgress())
        except CaptureError:  # its writer knows of no other capture than the one beside the store
            raise CaptureError(
                f"The disk of {capture.folder} is full: a block of capture {record.name!r} could not be computed beside it. "
                "Make room, and run `store.repair()` again."
            ) from None
    return repair.outcomes


class _BlockRepair:
    """Puts blocks that were filled again in the place of damaged ones."""

    def __init__(
        self, capture: Capture, scratch: Folder, damage: Mapping[int, Sequence[Damage]], *, accept: bool
    ) -> None:
        self._folder, self._record, self._scratch = capture.folder, capture.record, scratch
        self._name = capture.record.name
        self._prefix = capture_key(self._name)
        self._damage, self._accept = damage, accept
        self.outcomes: list[Outcome] = []

    def adopt(self, block: int) -> None:
        """Compare a block that is complete in the scratch folder with the store's, and repair that."""
        computed = read_commit(self._scratch, self._record, block)
        written = self._written(block)
        if written is not None:
            self._restore(block, computed, written)
        else:
            self._restore_record(block, computed)
        files = [f"{self._prefix}/{key}" for key in computed.shards]
        for key in [bundle_key(self._name, block)] if self._record.bundled else files:
            self._scratch.delete(key)
        self._scratch.delete(commit_key(self._name, block))

    def _written(self, block: int) -> CommitRecord | None:
        """The block's commit record; None where it is lost or damaged."""
        try:
            return read_commit(self._folder, self._record, block)
        except (FormatError, NotFoundError):
            return None

    def _restore(self, block: int, computed: CommitRecord, written: CommitRecord) -> None:
        """Put back the damaged files of a block whose commit record says what they were."""
        damaged = [*self._unlike(block, written)]
        unlike = [key for key in damaged if computed.shards.get(key) != written.shards[key]]
        if not unlike:
            self._put_back(block, damaged, written)
            self._report(block, "recomputed with the model: the bytes that were written", is_repaired=True)
        else:
            self._write_anew(block, computed, unlike)

    def _unlike(self, block: int, commit: CommitRecord) -> dict[str, str]:
        """Key → what is wrong, of the block's files that are not as a record says: all of them where their bundle is not."""
        if self._record.bundled and damaged_bundle(self._folder, self._record, block, [*commit.shards]) is not None:
            return dict.fromkeys(commit.shards, "missing")
        return dict(damaged_files(self._folder, self._prefix, commit.shards))

    def _restore_record(self, block: int, computed: CommitRecord) -> None:
        """Commit a block anew whose record is gone, if the files that are there are those that the model gives."""
        unlike = self._unlike(block, computed)
        statistics = block_statistics_key(self._name, block).removeprefix(f"{self._prefix}/")
        missing = [key for key, what in unlike.items() if what == "missing"]
        # The statistics are of every value of every layer: where they agree, what differs elsewhere is damage.
        if statistics not in unlike or len(missing) == len(unlike):
            self._folder.delete(commit_key(self._name, block))
            self._put_back(block, [*unlike], computed)
            copy_file(self._scratch, self._folder, commit_key(self._name, block))
            self._report(block, "recomputed with the model, and committed again", is_repaired=True)
        else:
            self._write_anew(block, computed, [key for key in unlike if key not in missing])

    def _write_anew(self, block: int, computed: CommitRecord, unlike: Sequence[str]) -> None:
        """Write all of a block that comes out with other bytes, if that is accepted."""
        found = (
            f"recomputed on other numerics: {len(unlike)} of {len(computed.shards)} files differ from what was written"
        )
        if not self._accept:
            what = (
                f"{found} ({unlike[0]} first); nothing is changed. Repair on the machine and with the versions that captured "
                "it, or write the block as it is computed now with `accept_differences=True`"
            )
            self._report(block, what, is_repaired=False)
            return
        remove_finished(self._folder, self._name)
        self._folder.delete(commit_key(self._name, block))
        self._put_back(block, [*computed.shards], computed)
        copy_file(self._scratch, self._folder, commit_key(self._name, block))
        self._report(block, f"{found}; the block is written anew", is_repaired=True)

    def _put_back(self, block: int, damaged: Sequence[str], commit: CommitRecord) -> None:
        """Put the `damaged` of a block's files, which `commit` lists, in their places, as they were computed.

        A bundle is written anew of these and of the others, which are copied, and takes the place of the damaged one whole.
        """
        if not self._record.bundled:
            for key in damaged:
                copy_file(self._scratch, self._folder, f"{self._prefix}/{key}")
            return
        computed = open_bundle(self._scratch, self._record, block)
        is_whole = set(commit.shards).issubset(damaged)
        written = computed if is_whole else open_bundle(self._folder, self._record, block)
        files = ((key, computed if key in damaged else written) for key in commit.shards)
        write_bundle(self._folder, self._record, block, files, commit.shards)

    def _report(self, block: int, what: str, *, is_repaired: bool) -> None:
        self.outcomes += [Outcome(damage, is_repaired, what) for damage in self._damage[block]]
