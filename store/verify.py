"""What in a store is not what its records say.

Every committed shard is held against its checksum, the plan against its fingerprint, the finished statistics against the
sum of the blocks' own, the files of neurons' graphs against theirs.

Recomputing values is the engine's.
"""

from __future__ import annotations

import re
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from actstore.store.capture.commits import damaged_files
from actstore.store.capture.committed import damaged_index
from actstore.store.capture.record import read_capture
from actstore.store.capture.statistics.standing import standing
from actstore.store.capture.unchecked import write_verified
from actstore.store.damage import Damage
from actstore.store.edits import RECORD, edit_names
from actstore.store.edits import read_record as read_edit_record
from actstore.store.errors import FormatError, NotFoundError, UnlistableError, finding
from actstore.store.explanations.files import damaged_files as damaged_explanations
from actstore.store.explanations.record import RECORD as SET_RECORD
from actstore.store.files.checksums import verify_checksums
from actstore.store.files.groups import CAPTURES, damaged_group
from actstore.store.files.names import KINDS, stored_names, unlisted_names
from actstore.store.files.parquet import read_metadata
from actstore.store.graphs.record import check_belongs, read_record
from actstore.store.layout import (
    TOKENIZER_KEY,
    VOCABULARY_KEY,
    edits_key,
    graphs_key,
    names_key,
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
from actstore.store.storage.cached import CachedFolder
from actstore.store.storage.folder import Folder
from actstore.store.storage.listing import is_readable
from actstore.store.verify_blocks import BlockPass, CheckedBlock, check_block, unforeseen
from actstore.store.verify_parts import PARTS, guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from actstore.store.capture.captures import Captures
    from actstore.store.model.root import RootRecord
    from actstore.store.reader import Capture


Item = TypeVar("Item")
Result = TypeVar("Result")


def reading_once(location: str | Path | Folder) -> Folder:
    """The folder there, to be verified; of one on a server, one that fetches no small file twice."""
    folder = location if isinstance(location, Folder) else Folder(location)
    return CachedFolder(folder) if folder.storage.concurrency > 1 else folder


class Mapper(Protocol):
    """`map`, or what gives the same results in the same order by other processes, which function and items are sent to."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """The results of the items, in their order."""


def verify_capture(
    capture: Capture, on_block: Callable[[int], None] = lambda block: None, run: Mapper = map
) -> list[Damage]:
    """Everything damaged in a capture, by block; an empty list where all is well. `run` looks at its blocks."""
    (damage,) = verify_captures([capture], on_block, run)
    return damage


def verify_captures(
    captures: Sequence[Capture], on_block: Callable[[int], None] = lambda block: None, run: Mapper = map
) -> list[list[Damage]]:
    """As `verify_capture`, of each of some captures; `run` is called once."""
    parts = [_Block(number, block) for number, capture in enumerate(captures) for block in capture.blocks]
    checked = zip(parts, run(partial(_check_block, tuple(captures)), parts), strict=True)
    damage = []
    for capture in captures:
        blocks, found = BlockPass(capture), []
        for (_, block), one in islice(checked, len(capture.blocks)):
            blocks.add(block, one)
            found += [_damage(capture.record.name, block, *what) for what in one.damage]
            on_block(block)
        damage.append(_join(capture, blocks, found))
    next(checked, None)  # there is none: workers are let go
    return damage


class _Block(NamedTuple):
    """What is checked at once."""

    capture: int
    block: int

    def __str__(self) -> str:
        return f"block {self.block}"


def _check_block(captures: tuple[Capture, ...], item: _Block) -> CheckedBlock:
    """What the files of a block of one of the captures are."""
    capture = captures[item.capture]
    try:
        return check_block(capture.folder.direct, capture.record, item.block)
    except Exception as error:
        return CheckedBlock([(f"blocks/{item.block}.json", unforeseen(error))])


def _join(capture: Capture, blocks: BlockPass, damage: list[Damage]) -> list[Damage]:
    """The damage of a capture's blocks, that of its other parts, and what shows only beside both."""
    name, folder = capture.record.name, capture.folder
    damage += standing(capture).lost
    for key, check in PARTS.items():
        damage += [_damage(name, None, *found) for found in guarded(key, partial(check, capture, blocks))]
    if not damage:  # the index follows from blocks and plan: what is wrong with them shows in it too
        shards = blocks.shards if capture.is_complete else ""
        found_in_index = guarded("committed.json", partial(damaged_index, folder, capture.record, shards))
        damage += [_damage(name, None, *found) for found in found_in_index]
    return damage


def open_captures(store: Captures, name: str | None = None) -> tuple[list[Capture], list[Damage]]:
    """The captures to be verified, of all or of one name, and those that cannot be: damaged, lost, or from elsewhere.

    `NotFoundError` where there is none of that name.
    """
    if name is None:
        captures, errors = store.read_captures()
    else:
        captures, errors = {}, {}
        try:
            captures[name] = store.peek(name)
        except FormatError as error:
            errors[name] = error
    damage = [Damage(one, None, None, None, "zarr.json", finding(error)) for one, error in errors.items()]
    return [*captures.values()], damage


def record_verified(capture: Capture, damage: Iterable[Damage]) -> None:
    """Let readers know, given the `damage` that `verify_capture` found, which blocks they need not check at first use.

    Only of a capture without checksums of rows, and where its store can be written.
    """
    if not capture.record.is_checked:
        damaged_blocks = {one.block for one in damage if one.capture == capture.record.name}
        write_verified(capture.folder, capture.record, set(capture.blocks) - damaged_blocks)


def verify_root(folder: Folder) -> list[Damage]:
    """Everything damaged in what belongs to the store as a whole: its tables, tokenizer, weights, edits and explanations."""
    root = read_root_record(folder)
    parts = _weight_parts(folder, root)
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
    damage = [Damage(None, None, None, None, weights_key(part), "missing") for part in missing]
    for kind in KINDS:
        damage += [Damage(None, None, None, None, *found) for found in _unlisted(folder, kind)]
    for key, check in checks.items():
        if key in root.files or is_readable(folder, key):
            belongs = partial(check_beside_root, folder, key, root) if key in tables else None
            found = guarded(key, partial(_complaint, key, belongs, check))
            damage += [Damage(None, None, None, None, *one) for one in found]
    if (what := damaged_group(folder, CAPTURES)) is not None:
        damage.append(Damage(None, None, None, None, f"{CAPTURES}/zarr.json", what))
    for name in stored_names(folder, "explanations"):
        broken = guarded(f"explanations/{name}", partial(damaged_explanations, folder, name, root))
        damage += [Damage(None, None, None, None, *one) for one in broken]
    return damage


def _weight_parts(folder: Folder, root: RootRecord) -> list[str]:
    """The parts of the weights that lie in a store; where they cannot be listed, those of its record that can be read."""
    try:
        names = folder.names("weights")
    except (UnlistableError, PermissionError):
        return [part for part in root.model.weights if is_readable(folder, weights_key(part))]
    return [name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")]


def _unlisted(folder: Folder, kind: str) -> Iterator[tuple[str, str]]:
    """What is wrong with the index of the store's `kind`: that it cannot be read, or lacks what has a record."""
    try:
        names = unlisted_names(folder, kind)
    except FormatError as error:
        yield names_key(kind), finding(error)
        return
    except (UnlistableError, PermissionError):
        return  # there is nothing to compare it with
    for name in names:
        if _has_record(folder, kind, name):
            what = f"does not list {name!r}, which a reader of a location that cannot be listed will not find"
            yield names_key(kind), what


def _has_record(folder: Folder, kind: str, name: str) -> bool:
    """Whether there is a record, damaged or not: a capture's folder has a file of that name before, which Zarr writes."""
    if kind != "captures":
        records = {"graphs": "graph.json", "edits": RECORD, "explanations": SET_RECORD}
        return is_readable(folder, f"{kind}/{name}/{records[kind]}")
    try:
        return read_capture(folder, name) is not None
    except FormatError:
        return True


def _complaint(key: str, *checks: Callable[[], object] | None) -> Iterator[tuple[str, str]]:
    """What the first of `checks` to raise on purpose raises."""
    try:
        for check in filter(None, checks):
            check()
    except (FormatError, NotFoundError, ValueError) as error:
        yield key, finding(error)


def _check_vocabulary(folder: Folder) -> None:
    read_vocabulary(folder)
    fingerprint = read_metadata(folder, VOCABULARY_KEY).get(b"fingerprint", b"").decode()
    for name in stored_names(folder, "captures"):
        try:
            record = read_capture(folder, name)
        except FormatError:
            continue  # reported as that capture's damage
        if record is not None and record.plan.tokenizer_fingerprint not in ("", fingerprint):
            raise FormatError(
                f"it is of another tokenizer (fingerprint {fingerprint[:12]}…) than the one of capture {name!r} (fingerprint "
                f"{record.plan.tokenizer_fingerprint[:12]}…).",
                "Restore it from a copy.",
            )


def _check_weights(folder: Folder, part: str) -> None:
    verify_checksums(part, folder.source(weights_key(part)), bound_to=bound_checksums(folder, part))


def _check_edit(folder: Folder, name: str) -> None:
    files = read_edit_record(folder, name).files
    for file, what in damaged_files(folder, f"edits/{name}", files):
        raise FormatError(f"{file}: {what}.", "Make the edit again.")


def verify_graphs(folder: Folder, capture: str | None = None) -> tuple[list[str], list[Damage]]:
    """The names of the finished graphs that were looked at, and everything damaged in them.

    All of a store's, or those of one capture; graphs whose record cannot be read may be any capture's.
    """
    names, damage, root = [], [], read_root_record(folder)
    for name in stored_names(folder, "graphs"):
        try:
            record = read_record(folder, name)
        except FormatError as error:
            found = [("graph.json", finding(error))]
        else:
            if record is None and _is_unfinished(folder, name):
                continue
            if record is not None and capture not in (None, record.capture):
                continue
            found = [("graph.json", "missing")]
            if record is not None:
                found = list(guarded("graph.json", partial(damaged_files, folder, f"graphs/{name}", record.files)))
                try:
                    check_belongs(folder, record, root)
                except FormatError as error:
                    found.append(("graph.json", finding(error)))
        names.append(name)
        damage += [Damage(None, None, None, None, graphs_key(name, file), what, name) for file, what in found]
    return names, damage


def _is_unfinished(folder: Folder, name: str) -> bool:
    """Whether graphs without a record never had one: parts go after it came, both tables stand before."""
    files = ("nodes.arrow", "neurons.arrow")
    return is_readable(folder, graphs_key(name, "parts/graph.json")) or not any(
        is_readable(folder, graphs_key(name, file)) for file in files
    )


def _damage(capture: str, block: int | None, key: str, what: str) -> Damage:
    match = re.match(r"(?:values|scale|threshold|dropped)/([^/]+)/(\d+)/|(gate_sign|write_scale)/(\d+)/", key)
    site = (match[1] or match[3]) if match else None
    layer = int(match[2] or match[4]) if match else None
    return Damage(capture, block, site, layer, key, what)
