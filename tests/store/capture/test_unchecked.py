"""Captures of earlier versions, whose rows have no checksums: shards are checked whole at first use, or by `verify`."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import actstore
from actstore.store.capture import unchecked
from actstore.store.capture.commits import read_commit
from actstore.store.capture.record import read_capture
from actstore.store.errors import FormatError
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT = Path(__file__).parents[1] / "data" / "format-1-step-2" / "text"
VERIFIED = "captures/corpus/verified.json"
SHARD = "captures/corpus/values/mlp.post/1/c/0/1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of a store of an earlier version."""
    return Path(shutil.copytree(KEPT, tmp_path / "store"))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are checked whole, as they are."""
    keys: list[str] = []
    damaged_files = unchecked.damaged_files

    def spy(folder: Folder, prefix: str, files: dict[str, Any]) -> Any:
        keys.extend(f"{prefix}/{key}" for key in files)
        return damaged_files(folder, prefix, files)

    monkeypatch.setattr(unchecked, "damaged_files", spy)
    return keys


def flip(file: Path, at: int = 40) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(bytes(data))


def corpus(path: Path) -> actstore.Capture:
    return actstore.open(path).capture("corpus")


READERS: dict[str, Callable[[Path], Any]] = {
    "activations": lambda path: corpus(path).activations(1, 2),
    "block_row": lambda path: corpus(path).block_row(1, 2, 1),
    "block_values": lambda path: corpus(path).block_values(1, 1),
    "raw_block": lambda path: corpus(path).raw_block(1, 1),
}


@pytest.mark.parametrize("at", [3, 40, -30, -1])
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_shard_is_noticed_at_first_use(path: Path, reader: str, at: int) -> None:
    flip(path / SHARD, at)
    with pytest.raises(FormatError) as failed:
        READERS[reader](path)
    message = str(failed.value)
    assert message.startswith("capture 'corpus', layer 1 (mlp.post), block 1: ")
    assert "is damaged: checksum" in message
    assert "Run `store.verify()`" in message
    corpus(path).activations(0, 2)


def test_gate_signs(path: Path) -> None:
    flip(path / "captures/corpus/gate_sign/1/c/0/1", 20)
    with pytest.raises(FormatError, match=r"layer 1 \(gate_sign\), block 1: .* is damaged: checksum"):
        corpus(path).gate_signs(1, 1)


def test_scales(path: Path) -> None:
    flip(path / "captures/int8/scale/mlp.post/1/c/0/0", 20)
    with pytest.raises(FormatError, match=r"capture 'int8', layer 1 \(mlp.post\), block 0: .* is damaged: checksum"):
        actstore.open(path).capture("int8").activations(1, 2)


def test_shards_that_changed_places(path: Path) -> None:
    other = path / SHARD.replace("c/0/1", "c/0/0")
    (path / SHARD).write_bytes(other.read_bytes())
    with pytest.raises(FormatError, match=r"block 1: .* is damaged"):
        corpus(path).activations(1, 2)


def test_a_shard_that_its_commit_record_does_not_list(path: Path) -> None:
    """Such as one of an interrupted run, under a record that lists less."""
    file = path / "captures/corpus/blocks/1.json"
    record = read_commit(Folder(path), read_capture(Folder(path), "corpus"), 1)
    del record.shards["values/mlp.post/1/c/0/1"]
    file.write_text(json.dumps(record.with_checksum().to_json()))
    with pytest.raises(FormatError, match=r"block 1: .*its block's commit record does not list it"):
        corpus(path).activations(1, 2)


def test_a_shard_is_checked_once_by_an_opened_store(path: Path, checked: list[str]) -> None:
    store = actstore.open(path)
    for neuron in (1, 2, 3):
        store.capture("corpus").activations(1, neuron)
        store.capture("begun").activations(0, neuron)  # unfinished: opened anew each time
    assert sorted(checked) == sorted(set(checked))
    assert SHARD in checked
    n = len(checked)
    actstore.open(path).capture("corpus").activations(1, 2)
    assert len(checked) == n + 2


def test_verify_saves_checking(path: Path, checked: list[str]) -> None:
    before = corpus(path).activations(1, 2).tobytes()
    checked.clear()
    assert actstore.open(path).verify() == []
    assert (path / VERIFIED).is_file()
    checked.clear()
    assert corpus(path).activations(1, 2).tobytes() == before
    assert checked == []


def test_a_block_that_verify_found_damaged_is_still_checked(path: Path) -> None:
    flip(path / SHARD)
    assert [(d.layer, d.block) for d in actstore.open(path).verify("corpus")] == [(1, 1)]
    assert set(json.loads((path / VERIFIED).read_text())["blocks"]) == {"0"}
    with pytest.raises(FormatError, match=r"block 1: .* is damaged: checksum"):
        corpus(path).activations(1, 2)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"blocks": 3, "checksum": "0"}', '{"blocks": {"0": "1", "1": "2"}}'])
def test_a_damaged_record_of_verify_says_nothing(path: Path, checked: list[str], text: str) -> None:
    (path / VERIFIED).write_text(text)
    corpus(path).activations(1, 2)
    assert SHARD in checked


def test_another_commit_record_is_not_what_verify_saw(path: Path, checked: list[str]) -> None:
    """A block that was written again."""
    actstore.open(path).verify()
    record = read_commit(Folder(path), read_capture(Folder(path), "corpus"), 1)
    again = replace(record, seconds=77.0).with_checksum()
    (path / "captures/corpus/blocks/1.json").write_text(json.dumps(again.to_json()))
    checked.clear()
    corpus(path).activations(1, 2)
    assert checked == [SHARD]


def test_a_store_that_cannot_be_written_is_verified_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Folder, "write_json", refuse)
    assert actstore.open(path).verify() == []
    assert not (path / VERIFIED).exists()


def test_info_and_verify_say_unchecked(
    path: Path, cli: Callable[..., Any], planting: Callable[..., Any], tmp_path: Path
) -> None:
    described = json.loads(cli("info", path, "--json").out)["captures"]
    assert {capture["checked"] for capture in described.values()} == {False}
    experts = cli("info", KEPT.parent / "experts").out
    assert experts.endswith("\nunchecked, of an earlier version whose rows have no checksums: corpus, int8\n")
    verified = cli("verify", path, "--capture", "corpus")
    assert (verified.status, "capture 'corpus': unchecked" in verified.out) == (0, True)
    assert json.loads(cli("verify", path, "--capture", "corpus", "--json").out)["unchecked"] == ["corpus"]
    planting(tmp_path / "new")
    assert json.loads(cli("info", tmp_path / "new", "--json").out)["captures"]["corpus"]["checked"] is True
    assert "unchecked" not in cli("info", tmp_path / "new").out + cli("verify", tmp_path / "new").out
    assert not (tmp_path / "new" / VERIFIED).exists()
