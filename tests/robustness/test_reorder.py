"""`actstore reorder`: captures of every kind in another order and back, byte by byte; stopped at any moment, and refused."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from planted_stores import WIDTHS, Planted, plant

import actstore
from actstore.store.capture.commits import read_commit
from actstore.store.errors import ActstoreError, CaptureError, FormatError, InvalidInputError, ReadOnlyError
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own
from actstore.store.transfer import exchange, reorder

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT = Path(__file__).parents[1] / "store" / "data" / "format-1-step-2"
CHANGED = re.compile(
    r"captures/[^/]+/(zarr\.json|committed\.json|blocks/\d+\.json|bundles/\d+|values/.*(zarr\.json|c/0/\d+))"
)
"""What may have other bytes in another order."""


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a store but locks, hidden ones too."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "writer.lock")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def values_of(capture: actstore.Capture) -> dict[tuple[str, int, int], bytes]:
    """All values as they are stored."""
    places = [(site, layer) for site in capture.record.sites for layer in capture.record.layers(site)]
    return {(*at, block): capture.raw_block(at[1], block, at[0]).tobytes() for at in places for block in capture.blocks}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    plant(tmp_path / "store")
    return tmp_path / "store"


def test_every_kind_of_capture_is_the_same_to_readers_and_goes_back(whole_store: Path, tmp_path: Path) -> None:
    path = shutil.copytree(whole_store, tmp_path / "store")
    before, store = contents(path), actstore.open(path)
    values = {name: values_of(store.capture(name)) for name in store.captures}
    assert len(values) == 6
    for name in values:
        assert store.reorder("token", capture=name).record.order == {"mlp.post": "token"}
        assert values_of(store.capture(name)) == values[name]
    after, again = contents(path), actstore.open(path)
    assert before.keys() == after.keys()
    assert [key for key in before if before[key] != after[key] and not CHANGED.fullmatch(key)] == []
    assert again.verify() == []
    assert str(again.graph(0, 1).draw()) == str(actstore.open(whole_store).graph(0, 1).draw())
    assert again.info()["captures"]["bundled"]["order"] == {"mlp.post": "token"}
    for name in values:
        assert again.reorder("mlp.post=neuron", capture=name).record.order == {}
    assert contents(path) == before


@pytest.mark.parametrize(
    ("precision", "bundled"), [("exact", False), ("half", True), ("int8", False), ("int8", True), ("sparse", False)]
)
def test_the_bytes_are_those_of_a_capture_in_that_order(tmp_path: Path, precision: str, bundled: bool) -> None:
    """Steps of int8 among them: nothing is decoded and quantised again."""

    def holes(values: np.ndarray, layer: int) -> np.ndarray:
        values[1::3, ::7] = np.nan
        return values

    what = {"precision": precision, "bundled": bundled, "values": holes}
    for name, order in (("ours", "neuron"), ("theirs", "token")):
        plant(tmp_path / name, "corpus", Planted(order=order, **what))
    ours = actstore.open(tmp_path / "ours").reorder("token")
    theirs = actstore.open(tmp_path / "theirs").capture()
    for block in theirs.blocks:
        assert (
            read_commit(ours.folder, ours.record, block).shards
            == read_commit(theirs.folder, theirs.record, block).shards
        )
    assert actstore.open(tmp_path / "ours").verify() == []
    for layer, width in enumerate(WIDTHS):
        np.testing.assert_array_equal(ours.activations(layer, width - 1), theirs.activations(layer, width - 1))


def test_an_unfinished_capture_is_resumed_in_its_new_order(tmp_path: Path) -> None:
    plant(tmp_path / "store", "corpus", Planted(blocks=(0, 2), finish=False))
    capture = actstore.open(tmp_path / "store").reorder("token")
    assert (capture.blocks, capture.record.order) == ((0, 2), {"mlp.post": "token"})
    assert actstore.open(tmp_path / "store").verify() == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CaptureError),
        (OSError(errno.EIO, "Input/output error"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (FormatError("a row is damaged"), FormatError),
    ],
    ids=["full", "broken", "interrupted", "damaged"],
)
@pytest.mark.parametrize("step", ["encoded_parts", "sync_tree"])
def test_what_stops_it_leaves_the_capture_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: type[BaseException], step: str
) -> None:
    before, n_calls, original = contents(path), 0, getattr(reorder, step)

    def fail(*arguments: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == (4 if step == "encoded_parts" else 1):  # of two layers and three blocks
            raise error
        return original(*arguments)

    monkeypatch.setattr(reorder, step, fail)
    with pytest.raises(expected) as raised:
        actstore.open(path).reorder("token")
    if expected is CaptureError:
        assert "is full: capture 'corpus' could not be written beside itself, and is as it was" in str(raised.value)
    assert contents(path) == before
    monkeypatch.undo()
    assert actstore.open(path).reorder("token").record.order == {"mlp.post": "token"}
    assert not (path / ".reorder").exists()


def test_what_a_kill_left_is_in_no_readers_way_and_goes(path: Path) -> None:
    """At a kill while it is written, and at one after it took its place."""
    before = contents(path)
    for left in ("captures/corpus/values", "before/captures"):
        shutil.copytree(path / "captures/corpus", path / ".reorder/corpus" / left)
        store = actstore.open(path)
        assert (store.captures, store.verify()) == (("corpus",), [])
        store.reorder("neuron")
        assert contents(path) == before


KILLED = """
import os, signal, sys
from pathlib import Path
import actstore
from actstore.store.transfer import exchange, reorder

def killing(function, n, before):
    calls = []
    def call(*arguments, **options):
        calls.append(0)
        if before and len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if not before and len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

where, moment = sys.argv[1:]
if moment == "written":
    reorder.write_parts = killing(reorder.write_parts, 4, True)
elif moment == "exchanged":
    reorder.replace_folder = killing(reorder.replace_folder, 1, False)
else:
    exchange.exchange = lambda one, other: False
    Path.rename = killing(Path.rename, 2, True)
actstore.open(where).reorder("token")
"""


@pytest.mark.parametrize(
    ("moment", "order", "what"),
    [
        ("written", {}, ["left by a `reorder` that was killed: removed"]),
        ("exchanged", {"mlp.post": "token"}, ["left by a `reorder` that was killed: removed"]),
        (
            "between",
            {},
            [
                "a `reorder` that was killed had moved it aside: put back in its place",
                "left by a `reorder` that was killed: removed",
            ],
        ),
    ],
)
def test_repair_clears_what_a_kill_left(
    path: Path, cli: Callable[..., Any], moment: str, order: dict[str, str], what: list[str]
) -> None:
    """A process that is really killed: while it writes, behind the exchange, and between two renamings."""
    values = values_of(actstore.open(path).capture())
    before = contents(path)
    done = subprocess.run([sys.executable, "-c", KILLED, path, moment], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (path / ".reorder/corpus").is_dir()
    assert (path / "captures/corpus").is_dir() == (moment != "between")
    shown = cli("repair", path, "--quiet")
    place = "capture 'corpus', the capture as a whole: .reorder/corpus"
    n = len(what)
    assert shown.out.splitlines() == [
        *(f"repaired: {place}: {one}" for one in what),
        f"{n} of {n} damaged part{'s' * (n > 1)} repaired: all well.",
    ]
    assert not (path / ".reorder").exists()
    store = actstore.open(path)
    assert (store.capture().record.order, store.verify()) == (order, [])
    assert values_of(store.capture()) == values
    assert order or contents(path) == before
    assert store.repair().repaired == ()


def test_repair_leaves_what_is_going_on_and_what_may_be_the_last_copy(path: Path) -> None:
    plant(path, "other")
    for name in ("corpus", "other"):
        shutil.copytree(path / "captures" / name, path / ".reorder" / name / "captures" / name)
    with own(Folder(path, read_only=False), "corpus"):
        report = actstore.open(path).repair()
    assert [one.damage.key for one in report.repaired] == [".reorder/other"]
    assert [folder.name for folder in (path / ".reorder").iterdir()] == ["corpus"]
    assert actstore.open(path).repair(capture="other").repaired == ()
    (path / "captures/corpus/zarr.json").unlink()
    report = actstore.open(path).repair()
    assert {
        str(one).rpartition(": capture")[2] for one in report.not_repaired if one.damage.key == ".reorder/corpus"
    } == {" 'corpus' cannot be read, and this may be what is left of it: restore the capture, and repair again"}
    assert (path / ".reorder/corpus/captures/corpus/zarr.json").is_file()


@pytest.mark.parametrize("without", ["exchange", "link"])
def test_file_systems_that_cannot(path: Path, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    """Exchange two folders, as NFS, or give a file two names, as FAT."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if without == "link":
        monkeypatch.setattr(os, "link", refuse)
    else:
        monkeypatch.setattr(exchange, "exchange", lambda one, other: False)
    before, values = contents(path), values_of(actstore.open(path).capture())
    assert values_of(actstore.open(path).reorder("token")) == values
    assert actstore.open(path).verify() == []
    actstore.open(path).reorder("neuron")
    assert contents(path) == before


def test_a_kill_between_two_renamings_is_undone_by_the_next_call(path: Path) -> None:
    """Where a file system cannot exchange folders: the capture lies aside, and what was written in its place is not there."""
    before, aside = contents(path), path / ".reorder/corpus/before/captures"
    aside.mkdir(parents=True)
    (path / "captures/corpus").rename(aside / "corpus")
    store = actstore.open(path)
    assert store.captures == ()
    with own(Folder(path / ".reorder/corpus/before", read_only=False), "corpus"), pytest.raises(ReadOnlyError):
        store.reorder("neuron")  # of another process, which is between them
    assert store.reorder("neuron").record.order == {}
    assert contents(path) == before


def test_a_failed_second_renaming_puts_the_capture_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename, n_calls = contents(path), Path.rename, 0

    def second_fails(self: Path, target: Path) -> Path:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(exchange, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output error"):
        actstore.open(path).reorder("token")
    assert contents(path) == before


def test_who_has_it_open_is_refused_what_was_not_open_yet(path: Path) -> None:
    """Never given values in the wrong order."""
    reader = actstore.open(path).capture()
    whole = reader.raw_block(1, 0)
    actstore.open(path).reorder("token")
    np.testing.assert_array_equal(reader.raw_block(1, 0), whole)  # the file that it has open
    for layer, block in ((0, 0), (0, 1), (1, 1), (1, 2)):
        with pytest.raises(FormatError):
            reader.raw_block(layer, block)


def test_nothing_is_done_where_it_lies_so(path: Path) -> None:
    times = {file: file.stat().st_mtime_ns for file in path.rglob("*.json")}
    told: list[tuple[int, int]] = []
    store = actstore.open(path)
    assert store.reorder("neuron", on_block=lambda *done: told.append(done)).record.order == {}
    assert ({file: file.stat().st_mtime_ns for file in path.rglob("*.json")}, told) == (times, [])
    store.reorder("token", on_block=lambda *done: told.append(done))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_what_cannot_be_is_refused(path: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    before = contents(path)
    for order, what in (("tokens", "found 'tokens'"), ("resid.post=token", "The sites are mlp.post")):
        assert what in refused("reorder", path, "--order", order)
    assert "has no capture 'other'" in refused("reorder", path, "--order", "token", "--capture", "other")
    with own(Folder(path, read_only=False), "corpus"):
        assert "being written by process" in refused("reorder", path, "--order", "token")
    plant("memory://to-be-reordered")
    with pytest.raises(InvalidInputError, match="on a local disk, and memory://to-be-reordered is none"):
        actstore.open("memory://to-be-reordered").reorder("token")
    plant(tmp_path / "none", "corpus", Planted(precision="none", gate_sign=False))
    with pytest.raises(InvalidInputError, match="keeps statistics only"):
        actstore.open(tmp_path / "none").reorder("token")
    kept = shutil.copytree(KEPT / "text", tmp_path / "kept")
    with pytest.raises(InvalidInputError, match="written by an earlier version, without checksums"):
        actstore.open(kept).reorder("token", capture="corpus")
    (path / "elsewhere").mkdir()
    (path / "captures/corpus/gate_sign").rename(path / "elsewhere/gate_sign")
    (path / "captures/corpus/gate_sign").symlink_to(path / "elsewhere/gate_sign")
    with pytest.raises(InvalidInputError, match="gate_sign is a symbolic link"):
        actstore.open(path).reorder("token")
    (path / "captures/corpus/gate_sign").unlink()
    (path / "elsewhere/gate_sign").rename(path / "captures/corpus/gate_sign")
    assert contents(path) == before


def test_a_disk_without_room_is_refused_before_anything_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(path)
    monkeypatch.setattr(Folder, "free_nbytes", lambda self: 1000)
    with pytest.raises(InvalidInputError, match=r"takes about 0\.00 GB, and the disk of .* has 0\.00 GB free"):
        actstore.open(path).reorder("token")
    assert contents(path) == before


def test_damage_is_found_before_anything_is_changed(path: Path) -> None:
    shard = path / "captures/corpus/values/mlp.post/1/c/0/1"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    before = contents(path)
    with pytest.raises(ActstoreError):
        actstore.open(path).reorder("token")
    assert contents(path) == before


def test_the_command_says_how_sites_lie(path: Path, cli: Callable[..., Any]) -> None:
    shown = cli("reorder", path, "--order", "token", "--quiet")
    assert shown.out == f"{path}: capture 'corpus': mlp.post token by token.\n"
    found = cli("reorder", path, "--order", "mlp.post=neuron", "--json").json
    assert (found["capture"], found["order"], found["blocks"]) == ("corpus", {"mlp.post": "neuron"}, 3)
