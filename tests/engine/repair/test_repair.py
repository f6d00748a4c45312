"""Damage of every kind, repaired: the store's files are again, byte for byte, what they were, or it is said why not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import actstore
from actstore.engine.capture import api as capture_api
from actstore.engine.capture import corpus_run
from actstore.kernels.torch_threads import torch_threads
from actstore.store import layout
from actstore.store.capture.commits import read_commit
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics, read_block_statistics
from actstore.store.errors import InvalidInputError, NotFoundError, ReadOnlyError
from actstore.store.files.bundles.writer import BundleWriter
from actstore.store.files.groups import EMPTY_GROUP
from actstore.store.files.shards import checksum, encode_shard, shard_seed
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.engine.repair.outcome import RepairReport
    from actstore.store.reader import Capture

    Damaging = Callable[[Path], None]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def delete(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a store but locks, and what a writer that was killed has left under a temporary name."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".partial"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """The files that are not the same; commit records that tell another time are."""
    keys = sorted(found.keys() | expected.keys())
    return [key for key in keys if without_time(key, found.get(key)) != without_time(key, expected.get(key))]


def without_time(key: str, data: bytes | None) -> object:
    if data is None or not (key.endswith(".json") and "/blocks/" in key):
        return data
    return {name: value for name, value in json.loads(data).items() if name not in ("seconds", "checksum")}


def repaired(store: Path, before: dict[str, bytes], **options: Any) -> RepairReport:
    """The report of a repair after which nothing is damaged and every file is what it was."""
    assert actstore.open(store).verify()
    report = actstore.open(store).repair(**options)
    assert report.not_repaired == ()
    assert report.repaired
    assert report.is_whole
    assert actstore.open(store).verify() == []
    assert differing(files_of(store), before) == []
    return report


@pytest.fixture
def copied(captured: Any, tmp_path: Path) -> Callable[..., Path]:
    """A store of a text capture of its own, several blocks of two layers."""

    def copy(**settings: Any) -> Path:
        return shutil.copytree(captured(**settings).folder.local_path(), tmp_path / "store")

    return copy


IN_CAPTURE = "captures/corpus/"
BLOCK: list[tuple[dict[str, Any], str, Damaging]] = [
    ({}, "values/mlp.post/1/c/0/1", flip),
    ({}, "values/mlp.post/0/c/0/2", delete),
    ({}, "values/mlp.post/0/c/0/0", cut),
    ({}, "gate_sign/1/c/0/1", flip),
    ({}, "blocks/1.statistics.safetensors.zst", flip),
    ({}, "blocks/1.json", flip),
    ({}, "blocks/1.json", empty),
    ({}, "blocks/2.json", delete),
    ({"precision": "int8"}, "values/mlp.post/1/c/0/1", flip),
    ({"precision": "int8"}, "scale/mlp.post/1/c/0/1", delete),
    ({"precision": "sparse", "keep": 0.1}, "threshold/mlp.post/0/c/0/1", flip),
    ({"precision": "sparse", "keep": 0.1}, "values/mlp.post/0/c/0/1", flip),
    ({"precision": "sparse", "keep": 0.1}, "dropped/mlp.post/0/c/0/1", empty),
    ({"precision": "none", "gate_sign": True}, "gate_sign/0/c/0/1", flip),
    ({"precision": "none"}, "blocks/0.statistics.safetensors.zst", delete),
    ({"precision": "half", "sites": ("mlp.post", "resid.post")}, "values/resid.post/1/c/0/1", flip),
    ({"dtype": "bfloat16"}, "values/mlp.post/1/c/0/1", flip),
    ({"precision": "int8", "bundle": True}, "bundles/1", flip),
    ({"precision": "int8", "bundle": True}, "bundles/2", cut),
    ({"precision": "int8", "bundle": True}, "blocks/1.json", delete),
]


@pytest.mark.parametrize(("settings", "key", "damage"), BLOCK)
def test_a_damaged_block_is_computed_again(
    copied: Callable[..., Path], settings: dict[str, Any], key: str, damage: Damaging
) -> None:
    store = copied(**settings)
    before = files_of(store)
    damage(store / IN_CAPTURE / key)
    report = repaired(store, before)
    assert {one.damage.block for one in report.repaired} == {int(key.split("/")[-1].split(".")[0])}
    assert all(one.what.startswith("recomputed with the model") for one in report.repaired)


WITHOUT_MODEL: list[tuple[str, Damaging]] = [
    ("values/mlp.post/1/zarr.json", flip),
    ("values/mlp.post/0/zarr.json", delete),
    ("gate_sign/0/zarr.json", empty),
    ("statistics/mlp.post/mean/c/0", flip),
    ("statistics/mlp.post/histogram/zarr.json", delete),
    ("statistics/gate_sign/0/positives/c/0/0", delete),
    ("neurons.parquet", flip),
    ("neurons.parquet", empty),
]


@pytest.mark.parametrize(("key", "damage"), WITHOUT_MODEL)
def test_what_follows_from_the_blocks_needs_no_model(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, key: str, damage: Damaging
) -> None:
    from actstore.engine.models.sources import ModelSource

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loads the model")

    store = copied()
    monkeypatch.setattr(ModelSource, "load", load)
    before = files_of(store)
    damage(store / IN_CAPTURE / key)
    repaired(store, before)


def test_the_metadata_of_groups_are_written_again_as_they_were(copied: Callable[..., Path]) -> None:
    store = copied()
    before = files_of(store)
    groups = [
        store / key for key, data in before.items() if key.endswith("zarr.json") and json.loads(data) == EMPTY_GROUP
    ]
    assert {store / "captures/zarr.json", store / "captures/corpus/tokens/zarr.json"} < {*groups}
    for file in groups:
        flip(file)
    report = repaired(store, before)
    assert len(report.repaired) == len(groups)


def test_a_lost_table_of_neurons_is_written_again(copied: Callable[..., Path]) -> None:
    store = copied()
    before = files_of(store)
    (store / IN_CAPTURE / "neurons.parquet").unlink()
    assert not actstore.open(store).capture().is_finished
    assert [one.damage.key for one in actstore.open(store).repair().repaired] == ["neurons.parquet"]
    assert differing(files_of(store), before) == []


@pytest.mark.parametrize(
    "gone",
    [("committed.json",), ("committed.json", "neurons.parquet"), ("committed.json", "neurons.parquet", "statistics")],
)
def test_a_capture_that_lacks_the_last_step_alone_is_finished_and_not_called_damaged(
    copied: Callable[..., Path], cli: Any, gone: tuple[str, ...]
) -> None:
    """As `verify` calls it: unfinished."""
    store = copied()
    before, n_blocks = files_of(store), len(actstore.open(store).capture().blocks)
    for key in gone:
        lost = store / IN_CAPTURE / key
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    shown = cli("verify", store).out
    assert (
        f"capture 'corpus': unfinished, {n_blocks} of {n_blocks} blocks are written; `actstore finish` ends it" in shown
    )
    assert cli("verify", store, "--json").json["damaged"] == []
    report = actstore.open(store).repair()
    assert (report.repaired, report.not_repaired, report.finished) == ((), (), ("corpus",))
    assert report.is_whole
    assert str(report) == "finished: capture 'corpus', every block of which was written"
    assert actstore.open(store).verify() == []
    assert cli("verify", store, "--json").json["unfinished"] == []
    assert differing(files_of(store), before) == []


def test_verify_and_repair_call_the_same_captures_damaged(copied: Callable[..., Path], cli: Any) -> None:
    store = copied()
    (store / IN_CAPTURE / "neurons.parquet").unlink()
    found = cli("verify", store, "--json")
    assert (found.status, found.json["unfinished"]) == (1, [])
    assert [one["key"] for one in found.json["damaged"]] == ["neurons.parquet"]
    assert "unfinished" not in cli("verify", store).out
    repaired_now = cli("repair", store, "--json").json
    assert [one["key"] for one in repaired_now["repaired"]] == ["neurons.parquet"]
    assert repaired_now["finished"] == []


def checkpoint(store: Path, record: Any) -> Path:
    """Write a checkpoint over all blocks, as a run of more blocks leaves one."""
    folder = Folder(store, read_only=False)
    total, n_blocks = CaptureStatistics.empty(record), record.plan.n_blocks
    for block in range(n_blocks):
        total.merge(read_block_statistics(folder, record, block))
    key = layout.folded_statistics_key(record.name)
    folder.write(key, total.encode(n_blocks))
    return store / key


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("stale", [True, False])
def test_a_damaged_checkpoint_is_added_up_again(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, finished: bool, stale: bool
) -> None:
    from actstore.engine.repair import finished as results

    store = copied()
    record = actstore.open(store).capture().record
    monkeypatch.setattr(results, "CHECKPOINT_BLOCKS", record.plan.n_blocks)
    path = checkpoint(store, record)
    assert actstore.open(store).verify() == []
    before = files_of(store)
    if stale:
        other = CaptureStatistics.empty(record)
        path.write_bytes(other.encode(record.plan.n_blocks))
    else:
        flip(path)
    if not finished:
        (store / IN_CAPTURE / "neurons.parquet").unlink()
    report = repaired(store, before)
    assert path.relative_to(store / IN_CAPTURE).as_posix() in {one.damage.key for one in report.repaired}


ROOT: list[tuple[tuple[str, ...], Damaging]] = [
    (("neurons.parquet",), flip),
    (("weights/layer-0.safetensors",), flip),
    (("weights/unembedding.safetensors",), delete),
    (("weights/final_norm.safetensors",), cut),
    (("tokenizer/vocabulary.parquet",), flip),
    (("tokenizer/tokenizer.json",), flip),
    (
        ("neurons.parquet", "tokenizer/vocabulary.parquet", "tokenizer/tokenizer.json", "weights/layer-1.safetensors"),
        cut,
    ),
]


@pytest.mark.parametrize(("keys", "damage"), ROOT)
def test_the_files_of_the_root_are_written_again_from_the_model(
    copied: Callable[..., Path], keys: tuple[str, ...], damage: Damaging
) -> None:
    store = copied()
    before = files_of(store)
    for key in keys:
        damage(store / key)
    report = repaired(store, before)
    assert {one.damage.key for one in report.repaired} >= set(keys)  # what is held to a damaged file is damaged with it


SEVERAL = (
    "values/mlp.post/1/c/0/1",
    "gate_sign/0/c/0/1",
    "values/mlp.post/0/c/0/2",
    "blocks/0.json",
    "blocks/0.statistics.safetensors.zst",
    "values/mlp.post/1/zarr.json",
    "statistics/mlp.post/mean/c/0",
    "neurons.parquet",
)


def damage_much(store: Path) -> None:
    for key in SEVERAL[:3]:
        flip(store / IN_CAPTURE / key)
    delete(store / IN_CAPTURE / "blocks/0.json")
    for key in SEVERAL[5:]:
        flip(store / IN_CAPTURE / key)
    flip(store / "weights/layer-0.safetensors")


def test_several_damages_at_once(copied: Callable[..., Path]) -> None:
    store = copied()
    before = files_of(store)
    damage_much(store)
    repaired(store, before)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize("accept", [False, True])
def test_a_repair_that_is_killed_is_completed_by_the_next(
    copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accept: bool
) -> None:
    store = copied()
    before = files_of(store)
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    if accept:
        other_numerics(damaged, 1, 0)
    else:
        damage_much(damaged)
    n_steps, n_left = 0, 1 << 30

    def counting(step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal n_steps
            n_steps += 1
            if n_steps > n_left:
                raise Killed
            return step(*arguments, **named)

        return counted

    def repair_until(n: int) -> None:
        nonlocal n_steps, n_left
        shutil.rmtree(store)
        shutil.copytree(damaged, store)
        with monkeypatch.context() as patch:
            n_steps, n_left = 0, n
            for name in ("replace", "unlink", "rmdir"):
                patch.setattr(os, name, counting(getattr(os, name)))
            actstore.open(store).repair(accept_differences=accept)

    repair_until(n_left)
    for n in np.linspace(0, n_steps - 1, 5).astype(int).tolist():
        with pytest.raises(Killed):
            repair_until(n)
        assert actstore.open(store).repair(accept_differences=accept).is_whole
        assert actstore.open(store).verify() == []
        assert differing(files_of(store), before) == []


def other_numerics(store: Path, block: int, layer: int) -> None:
    """Damage a shard that was, as its commit record says, written with other bytes than the model gives here."""
    capture = actstore.open(store).capture()
    values = capture.raw_block(layer, block).copy()
    values[0, 0] = np.nextafter(values[0, 0], np.inf)
    data = encode_shard(values, layout.shard_grid(len(values), capture.record.plan.block_slots))
    key = layout.shard_key(layout.values_key("corpus", "mlp.post", layer), block)
    record = read_commit(capture.folder, capture.record, block)
    short = key.removeprefix(IN_CAPTURE)
    record = dataclasses.replace(record, shards=record.shards | {short: (len(data), checksum(data))}).with_checksum()
    Folder(store, read_only=False).write_json(layout.commit_key("corpus", block), record.to_json())
    (store / key).write_bytes(data[:-1])


def test_other_numerics_are_said_and_written_only_if_accepted(copied: Callable[..., Path]) -> None:
    store = copied()
    whole = files_of(store)
    other_numerics(store, 1, 0)
    flip(store / IN_CAPTURE / "gate_sign/0/c/0/1")  # of the same block
    damaged = files_of(store)
    report = actstore.open(store).repair()
    assert not report.is_whole
    assert {one.damage.key for one in report.not_repaired} == {"values/mlp.post/0/c/0/1", "gate_sign/0/c/0/1"}
    assert all("recomputed on other numerics: 1 of" in one.what for one in report.not_repaired)
    assert files_of(store) == damaged
    report = actstore.open(store).repair(accept_differences=True)
    assert report.is_whole
    assert all("written anew" in one.what for one in report.repaired if one.damage.block == 1)
    assert actstore.open(store).verify() == []
    assert differing(files_of(store), whole) == []


def test_a_bundle_keeps_its_files_that_are_whole(copied: Callable[..., Path]) -> None:
    """Also one that comes out otherwise here: only the damaged one is put in place."""
    store = copied(precision="int8", bundle=True)
    capture, folder = actstore.open(store).capture(), Folder(store, read_only=False)
    record = capture.record
    commit, array = read_commit(folder, record, 1), layout.values_key("corpus", "mlp.post", 0)
    values = capture.raw_block(0, 1).copy()
    values[0, 0] ^= 1
    grid = layout.shard_grid(len(values), record.plan.block_slots)
    other = encode_shard(values, grid, record.encoding.compression, shard_seed(record.identity, array, 1))
    files = {key: capture.folder.read(f"{IN_CAPTURE}{key}") for key in commit.shards} | {
        "values/mlp.post/0/c/0/1": other
    }
    writer = BundleWriter(folder, layout.bundle_key("corpus", 1))
    for number, (key, data) in enumerate(files.items()):
        writer.add(number, key, [data])  # without the lengths of chunks: readers look them up
    writer.close()
    changed = dataclasses.replace(commit, shards={key: (len(data), checksum(data)) for key, data in files.items()})
    folder.write_json(layout.commit_key("corpus", 1), changed.with_checksum().to_json())
    np.testing.assert_array_equal(actstore.open(store).capture().raw_block(0, 1), values)
    path = store / IN_CAPTURE / "bundles/1"
    data = path.read_bytes()
    at = data.index(files["gate_sign/0/c/0/1"]) + 40
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert [one.key for one in actstore.open(store).verify() if one.block == 1] == ["gate_sign/0/c/0/1"]
    report = actstore.open(store).repair()
    assert [one.damage.key for one in report.repaired if one.damage.block == 1] == ["gate_sign/0/c/0/1"]
    again = actstore.open(store).capture().folder
    assert {key: again.read(f"{IN_CAPTURE}{key}") for key in files} == files


def test_a_block_whose_record_is_lost_with_other_values_is_not_written_over(copied: Callable[..., Path]) -> None:
    store = copied()
    other_numerics(store, 1, 0)
    (store / IN_CAPTURE / "blocks/1.json").unlink()
    flip(store / IN_CAPTURE / "blocks/1.statistics.safetensors.zst")
    damaged = files_of(store)
    report = actstore.open(store).repair()
    assert [one.damage.key for one in report.not_repaired] == ["blocks/1.json"]
    assert files_of(store) == damaged
    assert actstore.open(store).repair(accept_differences=True).is_whole


NOT_REPAIRABLE: list[tuple[str, str, str]] = [
    ("tokens/ids/c/0", "plan", "only the corpus gives"),
    ("inputs/ids/zarr.json", "plan", "only the corpus gives"),
    ("windows.parquet", "plan", "only the corpus gives"),
    ("documents.parquet", "plan", "only the corpus gives"),
]


def test_a_block_is_repaired_on_as_many_threads_as_it_was_captured_on(copied: Callable[..., Path]) -> None:
    """With another number, MKL adds up in another order."""
    store = copied()
    before = files_of(store)
    flip(store / IN_CAPTURE / "values/mlp.post/1/c/0/1")
    with torch_threads(2):
        repaired(store, before)
        assert torch.get_num_threads() == 2


def test_lost_numerics_are_named_and_blocks_are_repaired_without(copied: Callable[..., Path]) -> None:
    store = copied()
    flip(store / IN_CAPTURE / "numerics.json")
    flip(store / IN_CAPTURE / "values/mlp.post/1/c/0/1")
    report = actstore.open(store).repair()
    assert [one.damage.key for one in report.repaired] == ["values/mlp.post/1/c/0/1"]
    assert [one.damage.key for one in report.not_repaired] == ["numerics.json"]
    (store / IN_CAPTURE / "numerics.json").unlink()
    assert actstore.open(store).verify() == []


@pytest.mark.parametrize(("file", "key", "why"), NOT_REPAIRABLE)
def test_what_cannot_be_repaired_is_named(copied: Callable[..., Path], file: str, key: str, why: str) -> None:
    store = copied()
    flip(store / IN_CAPTURE / file)
    flip(store / IN_CAPTURE / "values/mlp.post/0/c/0/1")
    flip(store / "weights/layer-0.safetensors")
    report = actstore.open(store).repair()
    assert {one.damage.key for one in report.repaired} == {"weights/layer-0.safetensors"}
    assert {one.damage.key for one in report.not_repaired} == {key, "values/mlp.post/0/c/0/1"}
    (named,) = (one for one in report.not_repaired if one.damage.key == key)
    assert why in named.what
    assert not report.is_whole


def test_another_model_is_refused_and_one_that_is_gone_is_named(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = tmp_path / "model", tmp_path / "store"
    shutil.copytree(tiny_model, model)
    monkeypatch.setattr(corpus_run, "BLOCK_SLOTS", 256)
    capture_api.capture(str(model), corpus, store, context=32, max_tokens=600)
    before = files_of(store)
    moved = tmp_path / "moved"
    shutil.move(model, moved)
    flip(store / IN_CAPTURE / "values/mlp.post/0/c/0/1")
    flip(store / IN_CAPTURE / "neurons.parquet")
    report = actstore.open(store).repair()
    assert [one.damage.key for one in report.not_repaired] == ["values/mlp.post/0/c/0/1"]
    assert "no longer exists" in report.not_repaired[0].what
    other = tmp_path / "other"
    shutil.copytree(moved, other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match="holds another model than"):
        actstore.open(store).repair(model=other)
    repaired(store, before, model=str(moved))


def test_only_the_capture_that_is_named_is_repaired(copied: Callable[..., Path]) -> None:
    store = copied()
    flip(store / IN_CAPTURE / "values/mlp.post/0/c/0/1")
    flip(store / "weights/layer-0.safetensors")
    report = actstore.open(store).repair("corpus")
    assert report.is_whole
    assert [one.damage.key for one in report.repaired] == ["values/mlp.post/0/c/0/1"]
    assert [one.key for one in actstore.open(store).verify()] == ["weights/layer-0.safetensors"]
    with pytest.raises(NotFoundError, match="has no capture 'none'"):
        actstore.open(store).repair("none")


def test_a_whole_store_is_not_written_to_and_an_owned_capture_is_left(copied: Callable[..., Path]) -> None:
    store = copied()
    paths = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    report = actstore.open(store).repair()
    assert (report.repaired, report.not_repaired, str(report)) == ((), (), "nothing was damaged")
    for check in (actstore.open(store).repair, actstore.open(store).verify):
        with pytest.raises(InvalidInputError, match="Expected a device such as cpu, cuda or cuda:1, found 'gpu'"):
            check(device="gpu")  # although no model has to run
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == paths
    flip(store / IN_CAPTURE / "values/mlp.post/0/c/0/1")
    with own(Folder(store, read_only=False), "corpus"), pytest.raises(ReadOnlyError, match="being written by"):
        actstore.open(store).repair()


def test_lost_blocks_that_resuming_fills_are_added_up_anew(
    copied: Callable[..., Path], corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may come out otherwise than they were; the finished statistics are of what they are."""
    store = copied()
    before = files_of(store)
    (store / IN_CAPTURE / "blocks/1.json").unlink()
    (store / IN_CAPTURE / "neurons.parquet").write_bytes(b"of another machine")
    assert [one.key for one in actstore.open(store).verify()] == ["blocks/1.json"]
    monkeypatch.setattr(corpus_run, "BLOCK_SLOTS", 256)
    options = capture_api.RunOptions(resume=True)
    capture_api.capture(str(tiny_model), corpus, store, options=options)
    assert differing(files_of(store), before) == []


def test_the_command(copied: Callable[..., Path], cli: Any) -> None:
    store = copied()
    flip(store / IN_CAPTURE / "values/mlp.post/0/c/0/1")
    found = cli("verify", store)
    assert found.status == 1
    assert "`actstore repair` makes again" in found.out
    result = cli("repair", store, "--quiet")
    assert result.status == 0
    assert result.out.splitlines() == [
        "repaired: " + result.out.splitlines()[0].removeprefix("repaired: "),
        "1 of 1 damaged part repaired: all well.",
    ]
    assert "recomputed with the model: the bytes that were written" in result.out
    assert cli("verify", store).status == 0
    flip(store / IN_CAPTURE / "documents.parquet")
    result = cli("repair", store, "--json")
    assert result.status == 1
    assert result.json["ok"] is False
    assert result.json["repaired"] == []
    assert [one["key"] for one in result.json["not_repaired"]] == ["plan"]


@pytest.fixture(scope="module")
def questions(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """A capture of attributions, three blocks."""
    folder = tmp_path_factory.mktemp("attributed")
    rows = []
    for i in range(50):
        letters = "ABCDE"[: 2 + i % 4]
        options = "".join(f"\n {letter}. {i + n}" for n, letter in enumerate(letters))
        prompts = [f"{'the fox ' * (i % 3)}{start}{options}\nsay:" for start in ("who?", "and who?", "le")]
        rows.append({"id": f"q{i}", "prompts": prompts, "answers": [letters[i // 4 % len(letters)]] * 3})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return actstore.attribute(str(tiny_model), path, folder / "store", steps=4).capture


@pytest.mark.parametrize(
    "key",
    [
        "values/attribution.ig/1/c/0/1",
        "values/mlp.post/0/c/0/0",
        "blocks/1.answers.parquet",
        "blocks/2.json",
        "prompts.parquet",
        "queries.parquet",
    ],
)
def test_attributions(questions: Capture, tmp_path: Path, key: str) -> None:
    store = shutil.copytree(questions.folder.local_path() or Path(), tmp_path / "store")
    before = files_of(store)
    flip(store / "captures/questions" / key)
    repaired(store, before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of images, and where these are."""
    from PIL import Image
    from tiny_vision import tiny_vision_model

    folder = tmp_path_factory.mktemp("pictures")
    (folder / "pictures").mkdir()
    chance = np.random.default_rng(0)
    rows = []
    for i in range(6):
        Image.fromarray(chance.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / "pictures" / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": "what is it?", "caption": f"a {i} circle"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pictures" / "images.jsonl").write_text(lines, encoding="utf-8")
    model = tiny_vision_model("llava", folder / "llava")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actstore.engine.capture.images.run.BLOCK_SLOTS", 256)
        actstore.capture(str(model), folder / "pictures", folder / "store", name="images")
    return folder / "store", folder / "pictures"


def test_images_also_where_they_have_moved(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    original, images = pictures
    store = shutil.copytree(original, tmp_path / "store")
    before = files_of(store)
    shards = sorted((store / "captures/images/values/mlp.post/0/c/0").iterdir())
    assert len(shards) > 1
    flip(shards[1])
    flip(store / "captures/images/blocks/0.json")
    flip(store / "tokenizer/vocabulary.parquet")
    repaired(store, before)
    flip(shards[1])
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    hidden = images.with_name("hidden")
    images.rename(hidden)
    try:
        report = actstore.open(store).repair()
        assert [one.damage.block for one in report.not_repaired] == [1]
        repaired(store, before, images=str(moved))
    finally:
        hidden.rename(images)
    flip(store / "captures/images/patches.parquet")
    report = actstore.open(store).repair()
    assert [one.damage.key for one in report.not_repaired] == ["patches.parquet"]


@pytest.fixture
def probed(tiny_model: Path, corpus: Path, tmp_path: Path, cli: Any) -> Path:
    """A store with probes of both kinds, graphs and an edit."""
    store = tmp_path / "store"
    actstore.capture(str(tiny_model), corpus, store, context=32, max_tokens=600)
    opened = actstore.open(store)
    opened.graphs.build(neurons=[(0, 3)])
    assert cli("graphs", "probe", store, "--sample", 100, "--window", 16).status == 0
    opened.graphs.probe(neurons=[(0, 3)], n_exemplars=4, n_substitutes=1, capture="corpus")
    opened.edits.suppress("L0.N3", name="quiet")
    return store


def test_probes_are_run_again_and_graphs_and_edits_are_named(probed: Path) -> None:
    store = probed
    before = files_of(store)
    names = [name for name in actstore.open(store).captures if name != "corpus"]
    kinds = {actstore.open(store).capture(name).record.settings["probes"]["kind"] for name in names}
    assert "sampled" in kinds
    assert len(kinds) > 1
    for name in names:
        flip(store / "captures" / name / "values/mlp.post/1/c/0/0")
    repaired(store, before)
    flip(store / "graphs/graphs/nodes.arrow")
    flip(store / "edits/quiet/delta.safetensors")
    report = actstore.open(store).repair()
    named = {one.damage.key: one.what for one in report.not_repaired}
    assert named.keys() == {"graphs/graphs/nodes.arrow", "edits/quiet/edit.json"}
    assert "build the graphs 'graphs' again" in named["graphs/graphs/nodes.arrow"]
    assert "delete the edit 'quiet' and make it again" in named["edits/quiet/edit.json"]
