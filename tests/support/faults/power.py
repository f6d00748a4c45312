"""Power cuts: from the journal of a run, the states in which a disk may be found afterwards.

What was synced is there: bytes by fsync of the file, names by fsync of the folder. Of what was not, anything may be: a file's
later bytes are lost, zeros, or there in part; new names, renames and removals are undone, all of them from some moment on as
a journalling file system does it, or any of them. A rename happens or does not, as file systems promise.
"""

from __future__ import annotations

import random
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from faults.campaigns import Result, Say, changing_scenarios, numbered
from faults.client import Ended
from faults.oracle import describe
from faults.scenarios import Scenario, files_of
from faults.shim import Fault

if TYPE_CHECKING:
    from faults.oracle import Oracle

EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2)."""
HEADER = struct.Struct("<c7xQqqIIII")


class Operation(NamedTuple):
    """One change that a process made, or a sync."""

    kind: str
    """c create, w write, t truncate, s sync of a file, d of a folder, S of everything, r rename, l link, u unlink, m mkdir,
    x rmdir, o open for reading."""
    inode: int
    offset: int
    length: int
    path: str
    other: str
    data: bytes


def read_journal(path: Path) -> list[Operation]:
    """The operations in their order."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        kind, inode, offset, length, *sizes, _ = HEADER.unpack_from(data, at)
        at += HEADER.size
        parts = []
        for size in sizes:
            parts.append(data[at : at + size])
            at += size
        found.append(Operation(kind.decode(), inode, offset, length, parts[0].decode(), parts[1].decode(), parts[2]))
    return found


@dataclass
class File:
    """A file's bytes: on disk for certain, and what was done to them since."""

    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes) written, (length, None) truncated."""

    def content(self, n: int | None = None) -> bytes:
        """The bytes after the first `n` pending changes; all by default."""
        data = bytearray(self.durable)
        for at, written in self.pending[:n]:
            if written is None:
                del data[at:]
                data.extend(bytes(at - len(data)))
            else:
                data.extend(bytes(max(0, at - len(data))))
                data[at : at + len(written)] = written
        return bytes(data)

    def sync(self) -> None:
        """What is there now stays."""
        self.durable, self.pending = self.content(), []

    def found(self, chance: random.Random) -> bytes:
        """What a disk may have of it after a power cut."""
        whole = self.content()
        fate = chance.choice(("lost", "zeros", "part", "there")) if self.pending else "there"
        if fate == "lost":
            return self.durable
        if fate == "zeros":  # the size reached the disk, the bytes did not
            return self.durable[: len(whole)] + bytes(max(0, len(whole) - len(self.durable)))
        if fate == "part":
            part = self.content(chance.randint(0, len(self.pending)))
            certain = min([len(self.durable), *(at for at, written in self.pending if written is None)])
            return part[: chance.randint(min(certain, len(part)), len(part))] if chance.random() < 0.5 else part
        return whole


@dataclass
class Directory:
    """A folder's names: on disk for certain, and now."""

    durable: dict[str, File | Directory] = field(default_factory=dict)
    now: dict[str, File | Directory] = field(default_factory=dict)


Change = tuple[Directory, str, "File | Directory | None"]


class Disk:
    """A folder and everything below it, as the kernel has it, and as the disk may have it."""

    def __init__(self, root: Path, state: Path) -> None:
        """`root`: the folder's path in the journal; `state`: a copy of what was there, all of it synced."""
        self.root, self.top = root, Directory()
        self.inodes: dict[int, File] = {}
        self.pending: list[list[Change]] = []
        for path in sorted(state.rglob("*")):
            folder = self._folder(root / path.relative_to(state).parent)
            node = Directory() if path.is_dir() else File(path.read_bytes())
            folder.now[path.name] = folder.durable[path.name] = node

    def _folder(self, path: Path) -> Directory:
        node: File | Directory = self.top
        for name in path.relative_to(self.root).parts:
            assert isinstance(node, Directory)
            node = node.now[name]
        assert isinstance(node, Directory)
        return node

    def _node(self, path: str) -> File | Directory:
        place = Path(path)
        return self.top if place == self.root else self._folder(place.parent).now[place.name]

    def _file(self, operation: Operation) -> File:
        if operation.inode not in self.inodes:
            node = self._node(operation.path)
            assert isinstance(node, File)
            self.inodes[operation.inode] = node
        return self.inodes[operation.inode]

    def _change(self, *changes: tuple[str, File | Directory | None]) -> None:
        made: list[Change] = []
        for path, node in changes:
            folder, name = self._folder(Path(path).parent), Path(path).name
            made.append((folder, name, node))
            if node is None:
                folder.now.pop(name, None)
            else:
                folder.now[name] = node
        self.pending.append(made)

    def apply(self, operation: Operation) -> None:
        """Do what a process did."""
        kind, path = operation.kind, operation.path
        if kind == "c":
            self.inodes[operation.inode] = node = File()
            self._change((path, node))
        elif kind == "w":
            self._file(operation).pending.append((operation.offset, operation.data))
        elif kind == "t":
            self._file(operation).pending.append((operation.length, None))
        elif kind == "s":
            self._file(operation).sync()
        elif kind == "d":
            self._sync_folder(self._node(path))
        elif kind == "S":
            for changes in self.pending:
                _make(changes)
            self.pending = []
            _sync_all(self.top)
        elif kind == "r":
            # A renaming's length is its flags; both names stay where they are exchanged.
            left = self._node(operation.other) if operation.length & EXCHANGE else None
            self._change((path, left), (operation.other, self._node(path)))
        elif kind == "l":
            self._change((operation.other, self._node(path)))
        elif kind in "ux":
            self._change((path, None))
        elif kind == "m":
            self._change((path, Directory()))
        elif kind != "o":
            raise ValueError(f"operation {kind!r} on {path} is not simulated")

    def _sync_folder(self, folder: File | Directory) -> None:
        left = []
        for changes in self.pending:
            if any(where is folder for where, _, _ in changes):
                _make(changes)
            else:
                left.append(changes)
        self.pending = left

    def cut(self, target: Path, chance: random.Random) -> None:
        """Write what a disk may have after a power cut at this moment into `target`; the simulation ends here."""
        if chance.random() < 0.5:
            kept = self.pending[: chance.randint(0, len(self.pending))]
        else:
            share = chance.choice((0, 0.5, 0.9, 1))
            kept = [changes for changes in self.pending if chance.random() < share]
        for changes in kept:
            _make(changes)
        _write(self.top, target, chance)


def _make(changes: list[Change]) -> None:
    for folder, name, node in changes:
        if node is None:
            folder.durable.pop(name, None)
        else:
            folder.durable[name] = node


def _write(folder: Directory, target: Path, chance: random.Random) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, node in sorted(folder.durable.items()):
        if isinstance(node, Directory):
            _write(node, target / name, chance)
        else:
            (target / name).write_bytes(node.found(chance))


@dataclass
class Run:
    """A scenario run once with its journal."""

    state: Path
    operations: list[Operation]
    ended: Ended


def power_cuts(
    oracle: Oracle,
    n: int,
    seed: int,
    *,
    names: tuple[str, ...] | None = None,
    only: int | None = None,
    say: Say = print,
) -> Result:
    """Power cuts at sampled moments of all commands that change files, and right after their end."""
    result = Result("power cuts", n, seed)
    scenarios = changing_scenarios(oracle, names)
    runs: dict[str, Run] = {}
    for i, chance in numbered(n, seed, "power cuts", only):
        scenario = scenarios[i % len(scenarios)]
        if scenario.name not in runs:
            runs[scenario.name] = _journalled(oracle, scenario)
        run = runs[scenario.name]
        moment = len(run.operations) if chance.random() < 0.25 else chance.randint(0, len(run.operations))
        work = oracle.workshop.folder / "work"
        disk = Disk(work, run.state)
        for operation in run.operations[:moment]:
            disk.apply(operation)
        shutil.rmtree(work)
        disk.cut(work, chance)
        at_end = moment == len(run.operations)
        ended = run.ended if at_end else Ended(None, 9, False, 0, 0, "", "", None, {}, False)
        case = f"seed {seed}, case {i}: {scenario.name}, {'after its end' if at_end else f'after {moment} changes'}"
        failures = oracle.judge(scenario, work, ended, durable=False)
        result.add(case, "after its end" if at_end else "during the run", failures)
        for kind, detail in failures:
            say(f"power cuts: {case}: {kind}: {describe(detail)}")
    return result


def _journalled(oracle: Oracle, scenario: Scenario) -> Run:
    """Run a scenario with a journal, and check that the journal tells all of it."""
    work = oracle.start(scenario)
    state = oracle.workshop.folder / "journals" / scenario.name
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(work, state)
    path = oracle.workshop.folder / "journal"
    ended = oracle.workshop.cli(scenario.run, work, fault=Fault(), journal=path, timeout_s=300)
    operations = [operation for operation in read_journal(path) if operation.kind != "o"]
    run = Run(state, operations, ended)
    check_simulation(run, work, oracle.workshop.folder / "replayed")
    return run


def check_simulation(run: Run, work: Path, folder: Path) -> None:
    """Everything synced, the simulated disk must hold what is really there; else the journal misses something."""
    disk = Disk(work, run.state)
    for operation in run.operations:
        disk.apply(operation)
    for changes in disk.pending:
        _make(changes)
    shutil.rmtree(folder, ignore_errors=True)
    _sync_all(disk.top)
    _write(disk.top, folder, random.Random(0))
    found, real = ({key: path.read_bytes() for key, path in files_of(where)} for where in (folder, work))
    differing = sorted(key for key in {*found, *real} if found.get(key) != real.get(key))
    if differing:
        raise AssertionError(f"the journal does not tell how {differing[:5]} came about")


def _sync_all(folder: Directory) -> None:
    for node in folder.durable.values():
        if isinstance(node, Directory):
            _sync_all(node)
        else:
            node.sync()
