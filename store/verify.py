"""What in a store is not what its records say.

Every committed shard is held against its checksum, the plan against its fingerprint, the finished statistics against the
sum of the blocks' own, the files of neurons' graphs against theirs.

Recomputing values is the engine's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from actstore.store.capture.answers import damaged_answers, has_attributions
from actstore.store.capture.commits import damaged_files, damaged_shards
from actstore.store.capture.neuron_table import neuron_table
from actstore.store.capture.patches import patches_sha256
from actstore.store.capture.record import read_capture
from actstore.store.capture.requests import has_requests, read_requests
from actstore.store.capture.statistics import CaptureStatistics, read_block_statistics, sum_statistics
from actstore.store.capture.unchecked import write_verified
from actstore.store.capture.writer import block_arrays
from actstore.store.edits import edit_names
from actstore.store.edits import read_record as read_edit_record
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.arrays import BlockArray
from actstore.store.files.checksums import verify_checksums
from actstore.store.files.parquet import read_metadata
from actstore.store.files.shards import Shard, shard_seed
from actstore.store.graphs.record import check_belongs, read_record
from actstore.store.layout import (
    GATE_SIGN,
    TOKENIZER_KEY,
    VOCABULARY_KEY,
    capture_key,
    edits_key,
    folded_statistics_key,
    graphs_key,
    shard_key,
    statistics_key,
    table_key,
    weights_key,
)
from actstore.store.model.root import (
    bound_checksums,
    check_beside_root,
    read_neurons,
    read_root_record,
    read_tokenizer,
    read_vocabulary,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from actstore.store.capture.captures import Captures
    from actstore.store.reader import Capture
    from actstore.store.storage.folder import Folder


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
        damage += [_damage(name, block, key, what) for key, what in damaged_shards(folder, capture.record, block)]
        on_block(block)
    damage += _places(capture, {one.block for one in damage})
    # Statistics and the table of neurons are written when every block is committed: from then on, none may lack its record.
    results = (table_key(name, "neurons"), f"{statistics_key(name, 'tokens', 'by_label')}/zarr.json")
    if any(folder.exists(key) for key in results):
        for block in sorted(set(range(capture.record.plan.n_blocks)).difference(capture.blocks)):
            damage.append(_damage(name, block, f"blocks/{block}.json", "missing"))
    for part in (_metadata, _plan, _patches, _requests, _statistics, _checkpoint, _answers):
        damage += [_damage(name, None, key, what) for key, what in part(capture)]
    return damage


def open_captures(store: Captures, name: str | None = None) -> tuple[list[Capture], list[Damage]]:
    """The captures to be verified, of all or of one name, and those that cannot be: damaged, lost, or from elsewhere.

    `NotFoundError` where there is none of that name.
    """
    if name is None:
        captures, reasons = store.read_captures()
    else:
        captures, reasons = {}, {}
        try:
            captures[name] = store.peek(name)
        except FormatError as error:
            reasons[name] = str(error)
    return [*captures.values()], [Damage(one, None, None, None, "zarr.json", what) for one, what in reasons.items()]


def record_verified(capture: Capture, damage: Iterable[Damage]) -> None:
    """Let readers know, given the `damage` that `verify_capture` found, which blocks they need not check at first use.

    Only of a capture without checksums of rows, and where its store can be written.
    """
    if not capture.record.is_checked:
        damaged_blocks = {one.block for one in damage if one.capture == capture.record.name}
        write_verified(capture.folder, capture.record, set(capture.blocks) - damaged_blocks)


def verify_root(folder: Folder) -> list[Damage]:
    """Everything damaged in what belongs to the store as a whole: its tables, tokenizer, weights and edits."""
    root = read_root_record(folder)
    parts = [name.removesuffix(".safetensors") for name in folder.names("weights") if name.endswith(".safetensors")]
    missing = [part for part in root.model.weights if part not in parts]
    tables = (table_key(None, "neurons"), VOCABULARY_KEY)
    checks: dict[str, Callable[[], object]] = {
        table_key(None, "neurons"): lambda: read_neurons(folder),
        VOCABULARY_KEY: lambda: _check_vocabulary(folder),
        TOKENIZER_KEY: lambda: read_tokenizer(folder),
    }
    checks |= {weights_key(part): partial(_check_weights, folder, part) for part in parts}
    for name in edit_names(folder):
        checks[edits_key(name, "edit.json")] = partial(_check_edit, folder, name)
    damage = [Damage(None, None, None, None, weights_key(part), "missing; restore it from a copy") for part in missing]
    for key, check in checks.items():
        try:
            if key in tables:
                check_beside_root(folder, key, root)
            check()
        except (FormatError, NotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            if folder.exists(key) or key in root.files:
                damage.append(Damage(None, None, None, None, key, str(error)))
    return damage


def _check_vocabulary(folder: Folder) -> None:
    read_vocabulary(folder)
    fingerprint = read_metadata(folder, VOCABULARY_KEY).get(b"fingerprint", b"").decode()
    for name in folder.names("captures"):
        try:
            record = read_capture(folder, name)
        except FormatError:
            continue  # reported as that capture's damage
        if record is not None and record.plan.tokenizer_fingerprint not in ("", fingerprint):
            raise FormatError(
                f"it is of another tokenizer (fingerprint {fingerprint[:12]}…) than the one of capture {name!r} (fingerprint "
                f"{record.plan.tokenizer_fingerprint[:12]}…); restore it from a copy"
            )


def _check_weights(folder: Folder, part: str) -> None:
    verify_checksums(part, folder.source(weights_key(part)), bound_to=bound_checksums(folder, part))


def _check_edit(folder: Folder, name: str) -> None:
    files = read_edit_record(folder, name).files
    for file, what in damaged_files(folder, f"edits/{name}", files):
        raise FormatError(f"{file}: {what}; make the edit again")


def verify_graphs(folder: Folder, capture: str | None = None) -> tuple[list[str], list[Damage]]:
    """The names of the finished graphs that were looked at, and everything damaged in them.

    All of a store's, or those of one capture; graphs whose record cannot be read may be any capture's.
    """
    names, damage, root = [], [], read_root_record(folder)
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
                found = list(damaged_files(folder, f"graphs/{name}", record.files))
                try:
                    check_belongs(folder, record, root)
                except FormatError as error:
                    found.append(("graph.json", str(error)))
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


def _places(capture: Capture, damaged_blocks: set[int | None]) -> Iterator[Damage]:
    """The shards of undamaged blocks that are another block's, array's or capture's, commit record and all.

    The checksums of their rows tell: one row of each shard is read.
    """
    if not capture.record.is_checked:
        return
    for spec in block_arrays(capture.record):
        for block in (b for b in capture.blocks if b not in damaged_blocks):
            key, seed = shard_key(spec.key, block), shard_seed(spec.identity, spec.key, block)
            short = key.removeprefix(f"{capture_key(capture.record.name)}/")
            try:
                Shard(capture.folder.source(key), spec.grid, spec.dtype, key, seed).row(0)
            except (FormatError, NotFoundError) as error:
                yield _damage(capture.record.name, block, short, str(error))


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
            read_requests(capture.folder, capture.record.name, capture.record.plan_files.get("requests.arrow", ""))
        except FormatError as error:
            yield "requests.arrow", str(error)


def _answers(capture: Capture) -> Iterator[tuple[str, str]]:
    """Whether the tables of a finished capture of questions say what its blocks do."""
    if has_attributions(capture) and capture.is_finished:
        try:
            yield from damaged_answers(capture)
        except (FormatError, NotFoundError, ValueError, IndexError):
            return  # the block, or the plan, is reported by its checksum


def _checkpoint(capture: Capture) -> Iterator[tuple[str, str]]:
    """Whether a checkpoint of added statistics is the sum of its blocks' own, bit for bit."""
    folder, record = capture.folder, capture.record
    key = folded_statistics_key(record.name)
    if not folder.exists(key):
        return
    short = key.removeprefix(f"{capture_key(record.name)}/")
    try:
        found, n_blocks = CaptureStatistics.decode(folder.read(key), record, f"{folder}/{key}")
    except FormatError as error:
        yield short, str(error)
        return
    if not set(capture.blocks).issuperset(range(n_blocks)):
        return  # such a one is passed over
    total = CaptureStatistics.empty(record)
    try:
        for block in range(n_blocks):
            total.merge(read_block_statistics(folder, record, block))
    except (FormatError, NotFoundError, ValueError):
        return  # the block is reported by its checksum
    if found.encode() != total.encode():
        yield short, "not the sum of the blocks' own"


def _statistics(capture: Capture) -> Iterator[tuple[str, str]]:
    """Whether the finished statistics are the sum of the blocks' own, bit for bit."""
    folder, record = capture.folder, capture.record
    total = CaptureStatistics.empty(record)
    try:
        for block in capture.blocks:
            total.merge(read_block_statistics(folder, record, block))
    except (FormatError, NotFoundError, ValueError):
        return  # the block is reported by its checksum
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
