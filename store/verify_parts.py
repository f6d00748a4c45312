"""What is checked of a capture besides the bytes of its blocks' files: what is in them, and whether it belongs together."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from actstore.store.capture.patches import patches_sha256
from actstore.store.capture.questions.answers import damaged_answers, has_attributions
from actstore.store.capture.requests import has_requests, read_requests
from actstore.store.capture.statistics.capture_statistics import sum_statistics
from actstore.store.capture.statistics.exemplars import exemplar_rows, has_exemplars
from actstore.store.capture.statistics.neuron_table import neuron_table
from actstore.store.capture.tables import open_capture_table
from actstore.store.capture.workers.numerics import read_numerics
from actstore.store.errors import FormatError, NotFoundError, finding
from actstore.store.files.arrays import BlockArray, other_blocks
from actstore.store.files.block_arrays import block_arrays
from actstore.store.files.groups import damaged_groups
from actstore.store.layout import capture_key, table_key
from actstore.store.storage.listing import is_readable
from actstore.store.verify_blocks import BlockPass, unforeseen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from actstore.store.reader import Capture


def guarded(key: str, check: Callable[[], Iterable[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """What `check` finds; whatever it raises over bytes that it did not expect is found too, under `key`."""
    try:
        yield from check()
    except Exception as error:
        yield key, unforeseen(error)


def _metadata(capture: Capture, _: BlockPass) -> Iterator[tuple[str, str]]:
    """What is wrong with the description of the arrays that blocks are shards of."""
    record = capture.record
    for spec in block_arrays(record):
        key = f"{spec.key.removeprefix(capture_key(record.name))[1:]}/zarr.json"
        try:
            array = BlockArray(capture.folder, spec.key)
        except (FormatError, NotFoundError) as error:
            yield key, finding(error)
            continue
        if (what := other_blocks(array, spec)) is not None:
            yield key, what
        elif record.is_checked and array.grid != spec.grid:  # captures of earlier versions may have had other chunks
            found, expected = (f"{grid.chunk_rows} × {grid.chunk_columns}" for grid in (array.grid, spec.grid))
            yield key, f"describes chunks of {found}, and the block's are {expected}"


def _groups(capture: Capture, _: BlockPass) -> Iterator[tuple[str, str]]:
    """What is wrong with the metadata of the groups around the arrays."""
    yield from damaged_groups(capture.folder, capture.record)


def _plan(capture: Capture, _: BlockPass) -> Iterator[tuple[str, str]]:
    expected = capture.record.plan.fingerprint
    try:
        found = capture.plan.fingerprint()
        if found != expected:
            yield "plan", f"fingerprint {found[:12]}…, expected {expected[:12]}…"
    except (FormatError, NotFoundError, ValueError, IndexError, OSError, RuntimeError) as error:
        yield "plan", finding(error)


def _patches(capture: Capture, _: BlockPass) -> Iterator[tuple[str, str]]:
    """Whether the table of patches of a capture of images is the one that was planned."""
    expected = capture.record.patches_sha256
    if expected is None:
        return
    try:
        fingerprint = patches_sha256(capture.folder, capture.record.name)
        if fingerprint != expected:
            yield "patches.parquet", f"SHA-256 {fingerprint[:12]}…, expected {expected[:12]}…"
    except NotFoundError:
        yield "patches.parquet", "missing"


def _requests(capture: Capture, _: BlockPass) -> Iterator[tuple[str, str]]:
    """Whether the table of requests of a capture of probes is the one that was written."""
    if has_requests(capture.record):
        try:
            read_requests(capture.folder, capture.record.name, capture.record.plan_files.get("requests.arrow", ""))
        except FormatError as error:
            yield "requests.arrow", finding(error)


def _answers(capture: Capture, _: BlockPass) -> Iterator[tuple[str, str]]:
    """Whether the tables of a finished capture of questions say what its blocks do."""
    if has_attributions(capture) and capture.is_finished:
        try:
            yield from damaged_answers(capture)
        except (FormatError, NotFoundError, ValueError, IndexError):
            return  # the block, or the plan, is reported by its checksum


def _checkpoint(_: Capture, blocks: BlockPass) -> Iterator[tuple[str, str]]:
    """Whether a checkpoint of added statistics is the sum of its blocks' own, bit for bit."""
    if blocks.checkpoint_fault:
        yield "blocks/folded.statistics.safetensors.zst", blocks.checkpoint_fault


def _statistics(capture: Capture, blocks: BlockPass) -> Iterator[tuple[str, str]]:
    """Whether the finished statistics are the sum of the blocks' own, bit for bit."""
    if blocks.unreadable is not None:
        yield blocks.unreadable
    total = blocks.total
    if total is None or not (
        capture.is_finished and is_readable(capture.folder, table_key(capture.record.name, "neurons"))
    ):
        return  # a block is reported, by its checksum; or there is nothing yet but the blocks and a checkpoint
    folder, record = capture.folder, capture.record
    try:
        found = sum_statistics(folder, record, capture.blocks, is_known_finished=True)
        if total.encode() != found.encode():
            yield "statistics", "not the sum of the blocks' own"
        table, expected = capture.neurons().to_arrow(), neuron_table(record, total)
        # A later version may have more columns; what a table has must be right, and it must have a row for every neuron.
        known = [name for name in expected.column_names if name in table.column_names]
        if not known or not table.equals(expected.select(known)):
            yield "neurons.parquet", "not what the statistics say"
    except (FormatError, NotFoundError, ValueError, OSError, RuntimeError) as error:
        yield "statistics", finding(error)


def _exemplars(capture: Capture, blocks: BlockPass) -> Iterator[tuple[str, str]]:
    """Whether the table of exemplars is what statistics and plan say."""
    folder, record = capture.folder, capture.record
    if not (has_exemplars(record) and capture.is_finished):
        return
    try:
        table = open_capture_table(folder, record, "exemplars")
        total = blocks.total or sum_statistics(folder, record, capture.blocks, is_known_finished=True)
        n_groups = table.file.metadata.num_row_groups
        groups = zip_longest(range(n_groups), exemplar_rows(folder, record, total))
        if not all(None not in pair and table.read(None, [pair[0]]).equals(pair[1]) for pair in groups):
            yield "exemplars.parquet", "not what the statistics and the plan say"
    except NotFoundError:
        return  # of an earlier version; or the plan lacks a file, which is reported
    except FormatError as error:
        if "exemplars.parquet" in error.found:  # what else is damaged is reported where it is
            yield "exemplars.parquet", finding(error)


def _numerics(capture: Capture, _: BlockPass) -> Iterator[tuple[str, str]]:
    """Whether what the capture says of the numerics of those who computed its blocks can be read; earlier ones say nothing."""
    read_numerics(capture.folder, capture.record.name)
    yield from ()


PARTS: Final = {
    "zarr.json": _metadata,
    "groups": _groups,
    "plan": _plan,
    "patches.parquet": _patches,
    "requests.arrow": _requests,
    "statistics": _statistics,
    "blocks/folded.statistics.safetensors.zst": _checkpoint,
    "exemplars.parquet": _exemplars,
    "prompts.parquet": _answers,
    "numerics.json": _numerics,
}
"""What is checked of a capture besides its blocks' files, by the key by which it is called where that fails."""
