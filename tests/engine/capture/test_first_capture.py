"""The first capture of a store: what a killed one leaves is taken over, two at once make one store of one model."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from actstore.engine.capture.api import RunOptions, capture, plan
from actstore.engine.capture.run import Run
from actstore.engine.capture.target import remove_unplanned
from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.model.remains import unexpected_entry
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own
from actstore.store.verify import open_captures, verify_capture, verify_root

if TYPE_CHECKING:
    from collections.abc import Callable

N_PAIRS = 10
SETTINGS: dict[str, Any] = {"context": 16, "max_tokens": 60}


@pytest.fixture(scope="session")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights."""
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(tiny_model, folder)
    file = folder / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return folder


def run(model: Path, corpus: Path, store: Path, name: str = "corpus", **options: Any) -> None:
    capture(str(model), corpus, store, name=name, options=RunOptions(**options), **SETTINGS)


def damage_of(store: Path) -> list[Any]:
    captures, damage = open_captures(Store(store))
    return [*damage, *verify_root(Folder(store)), *(item for one in captures for item in verify_capture(one))]


IN_TURN = """
import json, sys, time
from pathlib import Path
import torch
from actstore.engine.capture.api import capture
from actstore.store.errors import ActstoreError
model, corpus, folder, name, n_pairs, settings = sys.argv[1:]
torch.set_num_threads(1)
for pair in range(int(n_pairs)):
    Path(folder, f"{pair}-{name}").touch()
    while not all(Path(folder, f"{pair}-{other}").exists() for other in "ab"):
        time.sleep(0.001)
    try:
        capture(model, corpus, f"{folder}/{pair}", name=name, **json.loads(settings))
    except ActstoreError as error:
        print(json.dumps(str(error)), flush=True)
    else:
        print(json.dumps(""), flush=True)
"""
"""Captures into one new store after another, each begun when the other process begins it too."""


def pairs_of(first: Path, second: Path, corpus: Path, folder: Path) -> list[dict[str, str]]:
    """For each of `N_PAIRS` new stores: capture → why it failed, of two processes that make their first captures at once."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", IN_TURN, str(model), str(corpus), str(folder), name, str(N_PAIRS), json.dumps(SETTINGS)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        )
        for model, name in ((first, "a"), (second, "b"))
    }  # fmt: skip
    answers: dict[str, list[str]] = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        answers[name] = [json.loads(line) for line in out.splitlines()]
    return [{"a": answers["a"][pair], "b": answers["b"][pair]} for pair in range(N_PAIRS)]


@pytest.mark.slow
def test_two_first_captures_of_two_models_make_a_store_of_one(
    tiny_model: Path, other_model: Path, corpus: Path, tmp_path: Path
) -> None:
    for pair, results in enumerate(pairs_of(tiny_model, other_model, corpus, tmp_path)):
        store = Store(tmp_path / str(pair))
        (name,) = [name for name, why in results.items() if not why]
        (why,) = [why for why in results.values() if why]
        models = {"a": tiny_model, "b": other_model}
        assert (store.captures, store.model.name) == ((name,), str(models[name]))
        assert re.match(f"{re.escape(str(store.folder))} holds .*not |.* holds another model than ", why)
        assert all(str(model) in why for model in models.values())
        assert store.folder.names("captures") == [name, "zarr.json"]
        assert damage_of(tmp_path / str(pair)) == []


@pytest.mark.slow
def test_two_first_captures_of_one_model_make_one_store(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    for pair, results in enumerate(pairs_of(tiny_model, tiny_model, corpus, tmp_path)):
        assert results == {"a": "", "b": ""}
        assert Store(tmp_path / str(pair)).captures == ("a", "b")
        assert damage_of(tmp_path / str(pair)) == []


def test_a_root_that_another_process_has_written_meanwhile_is_read_again(
    tiny_model: Path, other_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process comes between the plan and the root; its store keeps every byte, and ours leaves nothing."""
    store, check_disk = tmp_path / "store", Run._check_disk
    before: dict[str, bytes] = {}

    def overtaken(self: Run, record: Any) -> None:
        monkeypatch.setattr(Run, "_check_disk", check_disk)
        run(other_model, corpus, store, "theirs")
        before.update(contents(store, "captures/theirs", "weights", "tokenizer", "zarr.json", "neurons.parquet"))

    monkeypatch.setattr(Run, "_check_disk", overtaken)
    with pytest.raises(InvalidInputError) as caught:
        run(tiny_model, corpus, store, "ours")
    assert f"holds another model than {tiny_model}: {other_model}, whose fingerprint is" in str(caught.value)
    assert contents(store) == before | contents(store, "captures/zarr.json", "captures.json")
    assert damage_of(store) == []


def contents(store: Path, *below: str) -> dict[str, bytes]:
    """Every file of a store but locks, or those below some keys."""
    files = {
        str(file.relative_to(store)): file for file in store.rglob("*") if file.is_file() and file.suffix != ".lock"
    }
    return {key: file.read_bytes() for key, file in files.items() if key.startswith(below or ("",))}


LEFTOVERS = {
    "zarr.82dfa495fb2f48d4875d708f695f258b.partial": "{",
    "zarr.json.1f.partial": "",
    ".zarr.json.partial": "",
    "neurons.parquet.partial": "PAR1",
    "zarr.json": '{"zarr_format": 3, "node_type": "group"}',
    "captures/zarr.json": '{"zarr_format": 3, "node_type": "group"}',
    "captures/zarr.82dfa495fb2f48d4875d708f695f258b.partial": "{",
    "captures/corpus/zarr.json": '{"zarr_format": 3, "node_type": "group"}',
    "captures/corpus/zarr.82dfa495fb2f48d4875d708f695f258b.partial": "{",
    "captures/corpus/tokens/ids/c/zarr.0.partial": "{",
    "captures/corpus/windows.parquet.partial": "PAR1",
    "weights/layer-0.safetensors": "of another model",
    "weights/layer-77.safetensors": "of another model",
    "weights/layer-1.safetensors.partial": "of another model",
    "neurons.parquet": "of another model",
}


@pytest.mark.parametrize("resume", [False, True])
def test_whatever_a_killed_first_capture_leaves_is_taken_over(
    tiny_model: Path, corpus: Path, tmp_path: Path, resume: bool
) -> None:
    store = tmp_path / "store"
    for key, text in LEFTOVERS.items() | {("captures/corpus/writer.lock", "")}:
        (store / key).parent.mkdir(parents=True, exist_ok=True)
        (store / key).write_text(text)
    run(tiny_model, corpus, store, resume=resume)
    assert damage_of(store) == []
    left = [str(file.relative_to(store)) for file in store.rglob("*.partial")]
    assert [key for key in left if not key.startswith("captures/corpus/")] == []
    assert not (store / "weights/layer-77.safetensors").exists()


def test_a_tokenizer_whose_root_was_never_written_is_replaced(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["fox"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    run(tiny_model, corpus, store, tokenizer=str(tmp_path / "tokenizer"))
    # As a kill between the tokenizer and the root leaves it.
    for name in ("zarr.json", "captures.json"):
        (store / name).unlink()
    captured = store / "captures/corpus"
    for part in captured.iterdir():
        if part.name not in ("inputs", "tokens", "windows.parquet", "documents.parquet", "writer.lock"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    run(tiny_model, corpus, store)
    assert damage_of(store) == []
    assert "fox" not in Store(store).vocabulary["piece"].to_pylist()


@pytest.mark.parametrize("damage", ["empty", "gone"])
@pytest.mark.parametrize("resume", [False, True])
def test_nothing_is_captured_into_a_store_whose_root_is_damaged_or_lost(
    tiny_model: Path, other_model: Path, corpus: Path, tmp_path: Path, damage: str, resume: bool
) -> None:
    store = tmp_path / "store"
    run(tiny_model, corpus, store)
    (store / "zarr.json").write_bytes(b"") if damage == "empty" else (store / "zarr.json").unlink()
    before = contents(store)
    for model, name in ((other_model, "other"), (tiny_model, "other"), (tiny_model, "corpus")):
        with pytest.raises(FormatError, match=r"the store's root is (damaged|lost)\. Restore zarr\.json from a copy"):
            run(model, corpus, store, name, resume=resume)
    assert contents(store) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_capture_whose_record_is_lost_is_not_captured_anew(
    tiny_model: Path, corpus: Path, tmp_path: Path, resume: bool
) -> None:
    store = tmp_path / "store"
    run(tiny_model, corpus, store)
    run(tiny_model, corpus, store, "second")
    (store / "captures/second/zarr.json").unlink()
    before = contents(store)
    with pytest.raises(FormatError, match="the record of capture 'second' is lost"):
        run(tiny_model, corpus, store, "second", resume=resume)
    assert contents(store) == before


def test_a_capture_of_another_store_is_not_resumed(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    run(tiny_model, corpus, tmp_path / "store")
    run(tiny_model, corpus, tmp_path / "other", "second")
    (tmp_path / "other/captures/second").rename(tmp_path / "store/captures/second")
    with pytest.raises(FormatError, match="was captured into another store"):
        run(tiny_model, corpus, tmp_path / "store", "second", resume=True)


def test_contributions_of_other_weights_are_refused(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    run(tiny_model, corpus, tmp_path / "store")
    store = Store(tmp_path / "store")
    store.contributions(5, everywhere=True)
    file = tmp_path / "store/weights/layer-1.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(
        FormatError, match=r"layer-1.safetensors is damaged: it is another file than the store was written"
    ):
        store.contributions(5, everywhere=True)


@pytest.mark.parametrize("n", range(8))
def test_a_removal_that_stops_leaves_a_folder_to_capture_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """Of a first capture that failed, the removal fails at its step n, as on a disk that fails."""
    folder = Folder(tmp_path / "store", read_only=False)
    for key in (
        "tokenizer/tokenizer.json",
        "weights/layer-0.safetensors",
        "neurons.parquet",
        "captures/corpus/tokens/ids/zarr.json",
    ):
        folder.write(key, b"{}")
    for key in ("zarr.json", "captures/zarr.json"):
        folder.write_json(key, {"zarr_format": 3, "node_type": "group", "attributes": {}})
    steps = itertools.count()

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: Any, **settings: Any) -> object:
            if next(steps) == n:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return original(*arguments, **settings)

        return step

    with own(folder, "corpus"):
        monkeypatch.setattr(Folder, "delete", counted(Folder.delete))
        monkeypatch.setattr(Path, "rmdir", counted(Path.rmdir))
        monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
        remove_unplanned(folder, "corpus")
        monkeypatch.undo()
    assert unexpected_entry(folder) is None


def test_a_capture_that_memory_cannot_hold_leaves_nothing_and_may_be_planned_for_elsewhere(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(
        InvalidInputError, match=r"and 0\.00 GB are free\. Fill it on a machine with more, or plan it for less"
    ):
        run(tiny_model, corpus, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    plan(str(tiny_model), corpus, tmp_path / "store", **SETTINGS)
    assert Store(tmp_path / "store").peek("corpus").record.plan.n_tokens > 0
