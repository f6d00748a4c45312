"""What in a store is not what its records say.

Every committed shard is held against its checksum, the plan against its fingerprint, the finished statistics against the
sum of the blocks' own, the files of neurons' graphs against theirs.

Recomputing values is the engine's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from actstore.store.capture.answers import damaged_answers, has_attributions
from actstore.store.capture.commits import damaged_files, damaged_shards
from actstore.store.capture.neuron_table import neuron_table
from actstore.store.capture.patches import patches_sha256
from actstore.store.capture.requests import has_requests, read_requests
from actstore.store.capture.statistics import CaptureStatistics, read_block_statistics, sum_statistics
from actstore.store.capture.writer import block_arrays
from actstore.store.edits import edit_names
from actstore.store.edits import read_record as read_edit_record
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.arrays import BlockArray
from actstore.store.files.checksums import verify_checksums
from actstore.store.graphs.record import read_record
from actstore.store.layout import (
    GATE_SIGN,
    TOKENIZER_KEY,
    VOCABULARY_KEY,
    block_statistics_key,
    capture_key,
    edits_key,
    graphs_key,
    table_key,
    weights_key,
)
from actstore.store.model.root import read_neurons, read_root, read_tokenizer, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder


_MOST_NAMED: Final = 1000
"""The maximum number of blocks without a commit record that are named one by one."""


@dataclass(frozen=True)
class Damage:
    """One thing in a store that is not what it should be."""

    capture: str | None
    """None for graphs, edits and what belongs to the store."""
    block: int | None
    """None for the plan and the finished statistics."""
    site: str | None
    layer: int | None
    key: str
    what: str
    graphs: str | None = None
    """The name of damaged graphs; None for a capture's parts."""

    def __str__(self) -> str:
        if self.graphs is None and self.capture is None:
            return f"{self.key}: {self.what}"
        if self.graphs is not None:
            return f"graphs {self.graphs!r}: {self.key}: {self.what}; build them again"
        place = f"layer {self.layer} ({self.site}), " if self.layer is not None else ""
        block = f"block {self.block}" if self.block is not None else "the capture as a whole"
        return f"capture {self.capture!r}, {place}{block}: {self.key}: {self.what}"


def verify_capture(capture: Capture, on_block: Callable[[int], None] = lambda block: None) -> list[Damage]:
    """Everything damaged in a capture, by block; an empty list where all is well."""
    name, folder = capture.record.name, capture.folder
    damage = []
    for block in capture.blocks:
        for key, what in _guarded(f"blocks/{block}.json", partial(damaged_shards, folder, name, block)):
            damage.append(_damage(name, block, key, what))
        on_block(block)
    # The table of neurons is written when every block is committed: from then on, none may lack its record.
    if folder.exists(table_key(name, "neurons")):
        damage += _missing_blocks(capture)
    for part, key in _PARTS.items():
        damage += [_damage(name, None, *found) for found in _guarded(key, partial(part, capture))]
    return damage


def _guarded(key: str, check: Callable[[], Iterable[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """What `check` finds; whatever it raises over bytes that it did not expect is found too, under `key`."""
    try:
        yield from check()
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk or the network, which says nothing about the bytes
        yield key, f"cannot be checked: {' '.join(str(error).split()) or type(error).__name__}"


def _missing_blocks(capture: Capture) -> Iterator[Damage]:
    """Planned blocks without a commit record; at most `_MOST_NAMED` of them are named."""
    committed = set(capture.blocks)
    missing = capture.record.plan.n_blocks - len(committed)
    for block in range(capture.record.plan.n_blocks if missing else 0):
        if block in committed:
            continue
        if block - len(committed) >= _MOST_NAMED:
            yield _damage(
                capture.record.name,
                block,
                f"blocks/{block}.json",
                f"missing, as are others from there on: {missing:,} in all",
            )
            return
        yield _damage(
            capture.record.name, block, f"blocks/{block}.json", "missing; run the capture again with `resume=True`"
        )


def verify_root(folder: Folder) -> list[Damage]:
    """Everything damaged in what belongs to the store as a whole: its tables, tokenizer, weights and edits."""
    parts = [name.removesuffix(".safetensors") for name in folder.names("weights") if name.endswith(".safetensors")]
    missing = [part for part in read_root(folder).weights if part not in parts]
    checks: dict[str, Callable[[], object]] = {
        table_key(None, "neurons"): lambda: read_neurons(folder),
        VOCABULARY_KEY: lambda: read_vocabulary(folder),
        TOKENIZER_KEY: lambda: read_tokenizer(folder),
    }
    checks |= {weights_key(part): partial(_check_weights, folder, part) for part in parts}
    for name in edit_names(folder):
        checks[edits_key(name, "edit.json")] = partial(_check_edit, folder, name)
    damage = [Damage(None, None, None, None, weights_key(part), "missing; restore it from a copy") for part in missing]
    for key, check in checks.items():
        if folder.exists(key):
            damage += [
                Damage(None, None, None, None, *found) for found in _guarded(key, partial(_complaint, key, check))
            ]
    return damage


def _complaint(key: str, check: Callable[[], object]) -> Iterator[tuple[str, str]]:
    """What `check` raises on purpose."""
    try:
        check()
    except (FormatError, NotFoundError, ValueError) as error:
        yield key, str(error)


def _check_weights(folder: Folder, part: str) -> None:
    verify_checksums(part, folder.read(weights_key(part)), whole=True)


def _check_edit(folder: Folder, name: str) -> None:
    files = read_edit_record(folder, name).files
    for file, what in damaged_files(folder, f"edits/{name}", files):
        raise FormatError(f"{file}: {what}; make the edit again")


def verify_graphs(folder: Folder, capture: str | None = None) -> tuple[list[str], list[Damage]]:
    """The names of the finished graphs that were looked at, and everything damaged in them.

    All of a store's, or those of one capture; graphs whose record cannot be read may be any capture's.
    """
    names, damage = [], []
    for name in folder.names("graphs"):
        try:
            record = read_record(folder, name)
        except FormatError as error:
            found = [("graph.json", str(error))]
        else:
            if record is None and _is_unfinished(folder, name):
                continue
            if record is not None and capture not in (None, record.capture):
                continue
            found = [("graph.json", "missing")]
            if record is not None:
                found = list(_guarded("graph.json", partial(damaged_files, folder, f"graphs/{name}", record.files)))
        names.append(name)
        damage += [Damage(None, None, None, None, graphs_key(name, file), what, name) for file, what in found]
    return names, damage


def _is_unfinished(folder: Folder, name: str) -> bool:
    """Whether graphs without a record never had one: parts go after it came, both tables stand before."""
    files = ("nodes.arrow", "neurons.arrow")
    return folder.exists(graphs_key(name, "parts/graph.json")) or not any(
        folder.exists(graphs_key(name, file)) for file in files
    )


def _damage(capture: str, block: int | None, key: str, what: str) -> Damage:
    match = re.match(r"(?:values|scale|threshold|dropped)/([^/]+)/(\d+)/|gate_sign/(\d+)/", key)
    site = (match[1] or GATE_SIGN) if match else None
    layer = int(match[2] or match[3]) if match else None
    return Damage(capture, block, site, layer, key, what)


def _metadata(capture: Capture) -> Iterator[tuple[str, str]]:
    """What is wrong with the description of the arrays that blocks are shards of."""
    record = capture.record
    for spec in block_arrays(record):
        key = f"{spec.key.removeprefix(capture_key(record.name))[1:]}/zarr.json"
        try:
            array = BlockArray(capture.folder, spec.key)
        except (FormatError, NotFoundError) as error:
            yield key, str(error)
            continue
        if (array.grid.rows, array.grid.columns, array.dtype) != (spec.rows, spec.columns, spec.dtype):
            yield key, f"describes blocks of {array.grid.rows} × {array.grid.columns} {array.dtype}"


def _plan(capture: Capture) -> Iterator[tuple[str, str]]:
    expected = capture.record.plan.fingerprint
    try:
        found = capture.plan.fingerprint()
        if found != expected:
            yield "plan", f"fingerprint {found[:12]}…, expected {expected[:12]}…"
    except (FormatError, NotFoundError, ValueError, IndexError, OSError, RuntimeError) as error:
        yield "plan", str(error)


def _patches(capture: Capture) -> Iterator[tuple[str, str]]:
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


def _requests(capture: Capture) -> Iterator[tuple[str, str]]:
    """Whether the table of requests of a capture of probes is the one that was written."""
    if has_requests(capture.record):
        try:
            read_requests(capture.folder, capture.record.name)
        except FormatError as error:
            yield "requests.arrow", str(error)


def _answers(capture: Capture) -> Iterator[tuple[str, str]]:
    """Whether the tables of a finished capture of questions say what its blocks do."""
    if has_attributions(capture) and capture.is_finished:
        try:
            yield from damaged_answers(capture)
        except (FormatError, NotFoundError, ValueError, IndexError):
            return  # the block, or the plan, is reported by its checksum


def _statistics(capture: Capture) -> Iterator[tuple[str, str]]:
    """Whether the finished statistics are the sum of the blocks' own, bit for bit."""
    folder, record = capture.folder, capture.record
    total = CaptureStatistics.empty(record)
    for block in capture.blocks:
        try:
            total.merge(read_block_statistics(folder, record, block))
        except (FormatError, NotFoundError, ValueError) as error:
            # Most often the block has been reported, by its checksum.
            if next(damaged_shards(folder, record.name, block), None) is None:
                yield block_statistics_key(record.name, block).removeprefix(f"{capture_key(record.name)}/"), str(error)
            return
    try:
        if total.encode() != sum_statistics(folder, record, capture.blocks).encode():
            yield "statistics", "not the sum of the blocks' own"
        table, expected = capture.neurons().to_arrow(), neuron_table(record, total)
        # A later version may have more columns; what a table has must be right, and it must have a row for every neuron.
        known = [name for name in expected.column_names if name in table.column_names]
        if not known or not table.equals(expected.select(known)):
            yield "neurons.parquet", "not what the statistics say"
    except (FormatError, NotFoundError, ValueError, OSError, RuntimeError) as error:
        yield "statistics", str(error)


_PARTS: Final = {
    _metadata: "zarr.json",
    _plan: "plan",
    _patches: "patches.parquet",
    _requests: "requests.arrow",
    _statistics: "statistics",
    _answers: "prompts.parquet",
}
"""What is checked of a capture besides its blocks' files, and the key by which it is called where that fails."""
