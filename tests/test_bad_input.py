"""Each mistake of a user's: one sentence, its own exit status, and everything on disk as it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

import actstore
from actstore.engine.capture.progress import CaptureProgress
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own
from actstore.store.storage.writers import KeyWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

SMALL = ("--context", "16", "--max-tokens", "600", "--memory", "32KB")


@pytest.fixture
def refused(cli: Callable[..., Result], tmp_path: Path) -> Callable[..., str]:
    """The one sentence with which a command line is refused, after checking that nothing on disk has changed."""

    def run(*arguments: object, status: int = 2, root: Path = tmp_path) -> str:
        before = snapshot(root)
        done = cli(*arguments)
        assert (done.status, done.out) == (status, ""), done
        assert snapshot(root) == before, "something was written, or lost"
        assert done.err.startswith("Error: ")
        assert done.err.count("\n") == 1
        assert "Traceback" not in done.err
        return done.err.removeprefix("Error: ").rstrip("\n")

    return run


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below a folder but locks, and every folder."""
    files = {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"}
    return files | {f"{p}/": b"" for p in root.rglob("*") if p.is_dir()}


@pytest.fixture(scope="module")
def whole(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store, to be copied."""
    target = tmp_path_factory.mktemp("whole") / "store"
    options = actstore.engine.capture.api.RunOptions(memory=32_000)
    actstore.capture(str(tiny_model), corpus, target, options=options, context=16, max_tokens=600)
    return target


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "store")


@pytest.fixture
def begun(tiny_model: Path, corpus: Path, tmp_path: Path) -> Path:
    """A store whose capture was interrupted."""

    class Stop(CaptureProgress):
        n = 5

        def filled(self, n_tokens: int) -> None:
            self.n -= 1
            if not self.n:
                raise KeyboardInterrupt

    options = actstore.engine.capture.api.RunOptions(memory=32_000)
    with pytest.raises(actstore.store.errors.CaptureError):
        actstore.capture(
            str(tiny_model), corpus, tmp_path / "store", options=options, progress=Stop(), context=16, max_tokens=600
        )
    return tmp_path / "store"


# The model


def test_no_such_model(refused: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    message = refused("capture", tmp_path / "no" / "model", corpus, tmp_path / "store")
    assert re.search(r"there is no folder '.*/no/model': give a folder that holds config.json", message)
    assert "no folder" in refused("inspect", tmp_path / "no" / "model")
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in refused("inspect", tmp_path / "empty")


def test_a_state_space_model_has_no_neurons(refused: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    for command in (("inspect", tmp_path / "mamba"), ("capture", tmp_path / "mamba", corpus, tmp_path / "store")):
        message = refused(*command)
        assert "Expected a transformer with feed-forward neurons" in message
        assert "state-space" in message


def test_a_model_without_weights(refused: Callable[..., str], tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    assert "weights" in refused("capture", tmp_path / "bare", corpus, tmp_path / "store")


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "7"), "has layers 0 to 1, found layer 7"),
        (("--layers", "one"), "Layers are numbers and ranges such as 0,3-5, found 'one'"),
        (("--layers", "-1"), "found '-1'"),
        (("--layers", "3-1"), "At least one layer must be captured"),
        (("--keep", "0"), "--keep is a share above 0"),
        (("--context", "65"), "reads at most 64 tokens at once, found a context of 65. Lower --context"),
        (("--context", "0"), "found a context of 0"),
        (("--overlap", "64"), "The overlap must lie between 0 and the context less one"),
        (("--positions", "first"), "Positions are `all`, `last`, `generated` or indices such as 0,5,-1, found 'first'"),
        (("--positions", "63", "--context", "32"), "no token to store"),
        (("--device", "abacus"), "Expected a device such as cpu, cuda or cuda:1, found 'abacus'"),
        (("--memory", "much"), "such as 2GB, found 'much'"),
        (("--memory", "inf"), "found 'inf'"),
        (("--memory", "-1GB"), "found '-1GB'"),
        (("--max-documents", "0"), "--max-documents is at least 1"),
        (("--label", "tongue"), "has no label column 'tongue': its columns are 'text', 'language'"),
        (("--label", "language", "--label", "language"), "'language' is named twice"),
        (("--text-column", "body"), "has no column 'body' with text"),
        (("--name", "../up"), "A capture's name is letters, digits"),
        (("--tokenizer", "no/such/tokenizer"), "No usable tokenizer was found with no/such/tokenizer"),
        (("--gate-sign", "--site", "resid.post"), "--gate-sign needs the site mlp.post"),
    ],
)
def test_an_option_that_cannot_be(
    refused: Callable[..., str], tiny_model: Path, corpus: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in refused("capture", tiny_model, corpus, tmp_path / "store", *options)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--site", "mlp.middle"),
            "takes one of mlp.post, mlp.gate, mlp.up, resid.pre, resid.mid, resid.post, attn.out, attn.q, attn.k, attn.v, "
            "attn.z",
        ),
        (("--precision", "float8"), "takes one of exact, half, int8, sparse, none"),
        (("--begin", "maybe"), "takes one of auto, always, never"),
        (("--dtype", "int3"), "takes one of auto, float32, float16, bfloat16"),
        (("--errors", "ignore"), "takes one of strict, replace"),
    ],
)
def test_a_value_outside_a_closed_set_is_bad_usage(
    cli: Callable[..., Result], tiny_model: Path, corpus: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = cli("capture", tiny_model, corpus, tmp_path / "store", *options)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"Error: {options[0]} {message}, and {options[1]!r} is none of them.")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_an_unknown_option_is_bad_usage(cli: Callable[..., Result], tmp_path: Path) -> None:
    assert cli("info", "--colour", tmp_path).status == 2
    assert cli("capture", tmp_path).status == 2


# The corpus


def test_corpora_that_cannot_be_read(refused: Callable[..., str], tiny_model: Path, tmp_path: Path) -> None:
    def message(corpus: object, *options: object) -> str:
        return refused("capture", tiny_model, corpus, tmp_path / "store", *options)

    assert "There is no file or folder" in message(tmp_path / "nowhere.txt")
    assert "No file matches" in message(tmp_path / "*.txt")
    (tmp_path / "empty.txt").write_text("")
    assert re.search(r"empty.txt.* holds only empty documents", message(tmp_path / "empty.txt"))
    (tmp_path / "folder").mkdir()
    assert "holds no documents" in message(tmp_path / "folder")
    (tmp_path / "binary.txt").write_bytes(b"text" * 100 + b"\0more")
    assert re.search(r"binary.txt.*400", message(tmp_path / "binary.txt"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    assert "broken.parquet is not readable as Parquet" in message(tmp_path / "broken.parquet")
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    assert "broken.jsonl:2" in message(tmp_path / "broken.jsonl")


def test_invalid_utf8_is_named_with_its_offset_and_can_be_replaced(
    refused: Callable[..., str], cli: Callable[..., Result], tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("all is well here. " * 200)
    (folder / "b.txt").write_bytes(b"caf\xe9 noir")
    message = refused("capture", tiny_model, folder, tmp_path / "store", *SMALL)
    assert re.search(r"b\.txt.*offset 3.*--errors replace", message)
    done = cli("capture", tiny_model, folder, tmp_path / "store", "--errors", "replace", "--context", 32)
    assert done.status == 0, done.err
    assert actstore.open(tmp_path / "store").capture().record.plan.n_documents == 2


def test_a_document_longer_than_the_context_is_windowed_not_cut(
    cli: Callable[..., Result], tiny_model: Path, tmp_path: Path
) -> None:
    text = "".join(chr(97 + i % 26) for i in range(1000))
    (tmp_path / "long.txt").write_text(text)
    assert cli("capture", tiny_model, tmp_path / "long.txt", tmp_path / "store", "--context", 16).status == 0
    opened = actstore.open(tmp_path / "store")
    tokens = opened.capture().tokens()
    ids = [i for i, m in zip(tokens["id"].to_pylist(), tokens["modality"].to_pylist(), strict=True) if m == "text"]
    order = sorted(range(len(ids)), key=lambda i: _reading_order(tokens)[i])
    assert opened.text(ids[i] for i in order) == text


def _reading_order(tokens: Any) -> list[tuple[int, int]]:
    # Windows of one length keep their order in a block; only the last, shorter one may come in another batch.
    rows = zip(
        tokens["window"].to_pylist(), tokens["position"].to_pylist(), tokens["modality"].to_pylist(), strict=True
    )
    return [(window, position) for window, position, modality in rows if modality == "text"]


def test_ids_of_another_vocabulary(refused: Callable[..., str], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.jsonl").write_text('{"input_ids": [1, 2, 400]}\n')
    message = refused("capture", tiny_model, tmp_path / "ids.jsonl", tmp_path / "store")
    assert "below the model's vocabulary of 400, found 400" in message


def test_not_finite_activations_are_reported_and_no_error(
    cli: Callable[..., Result], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "poisoned")
    weights = load_file(tmp_path / "poisoned" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][5] = torch.nan
    save_file(weights, tmp_path / "poisoned" / "model.safetensors", metadata={"format": "pt"})
    done = cli("capture", tmp_path / "poisoned", corpus, tmp_path / "store", *SMALL, "--json")
    assert done.status == 0
    assert re.fullmatch(r"Warning: \d+ activations are NaN or infinite\. .*left out of every mean\.\n", done.err)
    json.loads(done.out)
    assert (
        cli("top", tmp_path / "store", "L1.N5").out
        == "L1.N5 has no finite activation over any counted token.\n\nno finite value\n"
    )
    row = json.loads(cli("top", tmp_path / "store", "L1.N5", "--json").out)
    assert (row["exemplars"], row["statistics"]["mean"]) == ([], None)
    assert cli("verify", tmp_path / "store", "--refill", 1).status == 0


# The store


def test_a_store_that_exists_offers_to_resume(
    refused: Callable[..., str], store: Path, tiny_model: Path, corpus: Path
) -> None:
    message = refused("capture", tiny_model, corpus, store, *SMALL)
    assert "already has a capture 'corpus'. Continue it with --resume, or name the new one with --name" in message


def test_resuming_with_anything_else_names_what_differs(
    refused: Callable[..., str],
    begun: Path,
    tiny_model: Path,
    corpus: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def message(model: Path, corpus: Path, *options: object) -> str:
        return refused("capture", model, corpus, begun, "--resume", *options, root=begun)

    assert "precision is exact there and half now" in message(tiny_model, corpus, "--precision", "half")
    assert "context is 16 there and 32 now" in message(tiny_model, corpus, "--context", 32)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "something else"}\n')
    assert "the corpus" in message(tiny_model, other)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert "another model" in message(model, corpus)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["fox"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert "the tokenizer is another" in message(tiny_model, corpus, "--tokenizer", tmp_path / "tokenizer")


def test_a_second_writer(refused: Callable[..., str], begun: Path, tiny_model: Path, corpus: Path) -> None:
    with own(Folder(begun, read_only=False), "corpus"):
        message = refused("capture", tiny_model, corpus, begun, "--resume")
    assert f"is being written by process {os.getpid()} on " in message


def test_a_flipped_byte_is_found_with_capture_layer_and_block(cli: Callable[..., Result], store: Path) -> None:
    shard = store / "captures/corpus/values/mlp.post/1/c/0/3"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = cli("verify", store, "--json")
    (damage,) = json.loads(done.out)["damaged"]
    assert (done.status, damage["capture"], damage["layer"], damage["block"]) == (1, "corpus", 1, 3)
    shown = cli("verify", store)
    assert shown.status == 1
    assert "damaged: capture 'corpus', layer 1 (mlp.post), block 3" in shown.out


def test_a_store_of_a_newer_format(refused: Callable[..., str], store: Path, tiny_model: Path, corpus: Path) -> None:
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"]["actstore"]["format"] = 2
    (store / "zarr.json").write_text(json.dumps(root))
    for command in (("info", store), ("top", store, "L0.N0"), ("capture", tiny_model, corpus, store, "--name", "b")):
        assert "has store format 2" in refused(*command)


@pytest.mark.parametrize(
    "command",
    [("info",), ("verify",), ("top", "L0.N0"), ("stats",), ("sql", "select 1"), ("export", "--output", "x.npy")],
)
def test_no_store_there(refused: Callable[..., str], tmp_path: Path, command: tuple[str, ...]) -> None:
    message = refused(command[0], tmp_path / "nowhere", *command[1:])
    assert re.match(r"There is no store at .*nowhere: expected a folder written by `actstore capture`", message)


def test_a_store_cannot_be_made_of_a_file_or_in_a_folder_of_other_things(
    refused: Callable[..., str], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused("capture", tiny_model, corpus, tmp_path / "file")
    assert "Not a directory" in refused("capture", tiny_model, corpus, tmp_path / "file" / "store")
    (tmp_path / "folder" / "weights").mkdir(parents=True)
    (tmp_path / "folder" / "weights" / "mine.bin").write_text("mine")
    assert "other content (weights" in refused("capture", tiny_model, corpus, tmp_path / "folder")


def test_a_folder_that_may_not_be_written(
    tiny_model: Path, corpus: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write anywhere")
    assert "Permission denied" in refused("capture", tiny_model, corpus, tmp_path / "locked" / "store")


def test_too_small_a_disk(
    refused: Callable[..., str], tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    assert "Make room, lower --precision" in refused("capture", tiny_model, corpus, tmp_path / "store", *SMALL)


@pytest.mark.parametrize("n_writes", [2, 12])
def test_a_disk_that_fills_up_half_way(
    cli: Callable[..., Result],
    tiny_model: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_writes: int,
) -> None:
    write, n_left = KeyWriter.write, n_writes

    def full(file: KeyWriter, data: Any) -> int:
        nonlocal n_left
        n_left -= "/c/0/" in file._key
        if n_left < 0:
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(KeyWriter, "write", full)
    done = cli("capture", tiny_model, corpus, tmp_path / "store", *SMALL)
    assert (done.status, done.out) == (1, "")
    assert re.fullmatch(r"Error: The disk of .* is full: .* --resume.*\n", done.err)
    assert not list((tmp_path / "store").rglob("*.partial"))
    monkeypatch.setattr(KeyWriter, "write", write)
    assert cli("verify", tmp_path / "store").status == 0
    done = cli("capture", tiny_model, corpus, tmp_path / "store", "--resume", "--json")
    assert done.status == 0
    blocks = json.loads(done.out)["captures"]["corpus"]["blocks"]
    assert blocks["planned"] == blocks["committed"]


# Questions


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("top", "S", "neuron 5"), "such as L3.N17, found 'neuron 5'"),
        (("top", "S", "L9.N0"), "has layers 0 to 1, found layer 9"),
        (("top", "S", "L0.N24"), "neurons 0 to 23, found neuron 24"),
        (("top", "S", "L0.N0", "--capture", "b"), "has no capture 'b'. Its captures are: corpus"),
        (("top", "S", "L0.N0", "--site", "resid.post"), "has no site 'resid.post'. Its sites are: mlp.post"),
        (("stats", "S", "--sort", "size"), "no column 'size' to sort by"),
        (("stats", "S", "--by", "language"), "no label 'language'. Its labels are: none"),
        (("stats", "S", "--site", "attn.out", "--json"), "has no site 'attn.out'"),
        (("stats", "S", "--layers", "9"), "No neuron matches"),
        (("sql", "S", "selekt 1"), "The query cannot be run: Parser Error"),
        (("sql", "S", "select * from nothing"), "nothing"),
        (("sql", "S", ""), "quer"),
        (("sql", "S", "select 1", "--capture", "b"), "has no capture 'b'"),
        (("verify", "S", "--capture", "b"), "has no capture 'b'"),
        (
            ("export", "S", "--output", "T/x.txt", "--neurons", "L0.N0"),
            "one of .parquet, .csv, .npy, .safetensors, .jsonl, or by --format: found 'x.txt'",
        ),
        (("export", "S", "--output", "T/no/x.npy", "--neurons", "L0.N0"), "The folder of"),
        (("export", "S", "--output", "T/x.npy"), "Nothing to export"),
        (("export", "S", "--output", "T/x.npy", "--neurons", "L0.N0,"), "found ''"),
        (("export", "S", "--output", "T/x.npy", "--neurons", "L0.N99"), "neurons 0 to 23"),
        (("export", "S", "--output", "T/x.npy", "--layers", "5"), "no layer 5"),
        (("export", "S", "--output", "T/x.npy", "--layers", "0", "--site", "mlp.up"), "has no site 'mlp.up'"),
        (("export", "S", "--output", "T/x.npy", "--neurons", "L0.N0", "--site", "mlp.up"), "has no site 'mlp.up'"),
        (("export", "S", "--output", "T/folder.npy", "--neurons", "L0.N0"), "Is a directory"),
    ],
)
def test_a_question_that_has_no_answer(
    refused: Callable[..., str], store: Path, tmp_path: Path, command: tuple[str, ...], message: str
) -> None:
    (tmp_path / "folder.npy").mkdir()
    filled = [str(store) if part == "S" else part.replace("T/", f"{tmp_path}/") for part in command]
    assert message in refused(*filled)


def test_a_neuron_that_a_narrower_site_has_not(
    cli: Callable[..., Result], refused: Callable[..., str], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert cli("capture", tiny_model, corpus, store, *SMALL, "--site", "mlp.post", "--site", "resid.post").status == 0
    assert "found neuron 20" in refused("top", store, "L0.N20", "--site", "resid.post")
    assert "found neuron 20" in refused(
        "export", store, "--output", tmp_path / "x.npy", "--neurons", "L0.N20", "--site", "resid.post"
    )


def test_values_that_were_not_kept(
    cli: Callable[..., Result], refused: Callable[..., str], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert cli("capture", tiny_model, corpus, store, *SMALL, "--precision", "none").status == 0
    assert "keeps statistics only" in refused("export", store, "--output", tmp_path / "x.npy", "--neurons", "L0.N0")
    assert "keeps no values" in refused("verify", store, "--refill", 1)
    assert cli("top", store, "L0.N0").status == 0


def test_a_mistake_costs_no_traceback_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "actstore.cli", "info", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"Error: There is no store at .*\n", done.stderr)
