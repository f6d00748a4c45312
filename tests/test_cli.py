"""Every command as people and machines use it: what it prints, on which stream, with which exit status."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from safetensors.numpy import load_file
from told_to_end import run_told_to_end
from transformers import AutoModelForCausalLM

import actstore
from actstore import cli as command_line
from actstore.commands.options import parse_bytes, parse_layers
from actstore.store.errors import CaptureError, InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

COMMANDS = (
    "demo", "inspect", "sizes", "capture", "plan", "fill", "finish", "import", "info", "verify", "repair", "copy",
    "reorder",
    "top", "stats", "sql", "export", "serve", "site", "contributions", "attribute", "naica", "questions", "knowledge",
    "selectivity", "change", "coverage", "coactivation", "graphs", "explain", "multimodal", "edit",
)  # fmt: skip
SMALL = ("--context", "32", "--max-tokens", "600", "--memory", "40KB", "--label", "language")


@pytest.fixture(scope="module")
def store(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command itself, in a process of its own."""
    target = tmp_path_factory.mktemp("cli") / "tiny.actstore"
    done = shell("capture", tiny_model, corpus, target, *SMALL, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["captures"]["corpus"]["tokens"] > 600
    return target


def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "actstore.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


# The keys that stay stable


def test_inspect_says_what_would_be_captured_without_weights(
    cli: Callable[..., Result], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    found = cli("inspect", tmp_path, "--json").json
    assert found["neurons"] == 48
    assert [(s["layer"], s["neurons"], s["module"], s["gated"]) for s in found["layers"]] == [
        (0, 24, "model.layers.0.mlp.down_proj", True),
        (1, 24, "model.layers.1.mlp.down_proj", True),
    ]
    assert found["bytes_per_token"]["mlp.post"] == 48 * 4
    assert found["bytes_per_token"]["resid.post"] == 2 * 16 * 4
    shown = cli("inspect", tmp_path).out
    assert "48 neurons; 192 B per token at mlp.post" in shown
    assert "model.layers.1.mlp.down_proj" in shown


def test_info_describes_the_store(cli: Callable[..., Result], store: Path) -> None:
    found = cli("info", store, "--json").json
    assert {"model", "layers", "neurons", "bytes", "captures"} <= set(found)
    assert (found["layers"], found["neurons"]) == (2, 48)
    held = found["captures"]["corpus"]
    assert {"tokens", "documents", "sites", "precision", "blocks"} <= set(held)
    assert held["sites"] == ["mlp.post"]
    assert held["blocks"]["planned"] == held["blocks"]["committed"] > 3
    assert held["labels"] == {"language": ["en", "fr", "py"]}
    assert found["bytes"] == sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    assert "complete" in cli("info", store).out


def test_verify_finds_nothing_wrong_and_with_refill_nothing_different(cli: Callable[..., Result], store: Path) -> None:
    clean = {"ok": True, "unfinished": [], "unchecked": [], "damaged": [], "graphs": [], "refilled": []}
    assert cli("verify", store, "--json").json == clean
    found = cli("verify", store, "--refill", 2, "--json")
    assert (found.status, found.json["ok"]) == (0, True)
    assert [row["largest_difference"] for row in found.json["refilled"]] == [0.0, 0.0]
    assert "all well" in cli("verify", store).out


def test_verify_says_what_is_unfinished(cli: Callable[..., Result], store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    planned = cli("info", store, "--json").json["captures"]["corpus"]["blocks"]["planned"]
    for key in ("blocks/1.json", "neurons.parquet", "committed.json"):  # the last are written when every block is there
        (tmp_path / "store/captures/corpus" / key).unlink()
    shutil.rmtree(tmp_path / "store/captures/corpus/statistics")
    found = cli("verify", tmp_path / "store", "--json")
    assert (found.status, found.json["ok"]) == (0, True)
    assert found.json["unfinished"] == [{"capture": "corpus", "blocks": planned - 1, "planned": planned}]
    assert (
        f"capture 'corpus': unfinished, {planned - 1} of {planned} blocks are written"
        in cli("verify", tmp_path / "store").out
    )


def test_verify_names_damaged_graphs(cli: Callable[..., Result], store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    assert cli("graphs", "build", tmp_path / "store", "--neurons", "L0.N3,L1.N7").status == 0
    assert "1 set of graphs: all well" in cli("verify", tmp_path / "store").out
    nodes = tmp_path / "store/graphs/graphs/nodes.arrow"
    data = bytearray(nodes.read_bytes())
    data[len(data) // 2] ^= 1
    nodes.write_bytes(data)
    found = cli("verify", tmp_path / "store", "--json")
    assert (found.status, found.json["ok"], found.json["graphs"]) == (1, False, ["graphs"])
    (damage,) = found.json["damaged"]
    assert (damage["graphs"], damage["key"]) == ("graphs", "graphs/graphs/nodes.arrow")
    assert (damage["capture"], damage["layer"], damage["block"]) == (None, None, None)
    people = cli("verify", tmp_path / "store", "--capture", "corpus")
    assert people.status == 1
    assert "damaged: graphs 'graphs': graphs/graphs/nodes.arrow: checksum" in people.out


def test_verify_finds_nothing_wrong_with_two_sites(
    cli: Callable[..., Result], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    target, sites = tmp_path / "two.actstore", ("--site", "mlp.post", "--site", "resid.post")
    assert cli("capture", tiny_model, corpus, target, "--max-tokens", 100, *sites).status == 0
    assert cli("verify", target, "--json").json["damaged"] == []


def test_top_shows_where_a_neuron_is_highest(cli: Callable[..., Result], store: Path) -> None:
    found = cli("top", store, "l1.n7", "-k", 3, "--json").json
    assert found["neuron"] == "L1.N7"
    assert len(found["exemplars"]) == 3
    first = found["exemplars"][0]
    assert {"value", "document", "position", "token", "text"} <= set(first)
    assert first["value"] == found["statistics"]["max"]
    assert first["tokens"][first["pivot"]] == first["token"]
    assert first["activations"][first["pivot"]] == first["value"]
    shown = cli("top", store, "L1.N7", "-k", 3).out.splitlines()
    assert shown[0].startswith("L1.N7: mean ")
    assert re.fullmatch(r" *-?[\d.e-]+  .*«.+».*", shown[1]), "one exemplar per line, its token marked"
    assert sum("«" in line for line in shown) == 3
    assert any("█" in line for line in shown)


def test_a_neuron_named_twice_is_one(cli: Callable[..., Result], store: Path, tmp_path: Path) -> None:
    for line, expected in ((("--neurons", "L0.N3,l0.n3"), 1), (("--layers", "0,0"), 24)):
        done = cli("export", store, "--output", tmp_path / "out.parquet", *line, "--json")
        assert done.json["neurons"] == expected


def test_neurons_of_a_hooks_layer_are_those_that_are_named(
    cli: Callable[..., Result], refused: Callable[..., str], store: Path, tmp_path: Path
) -> None:
    """And not the whole layer, which the hook would stand for without them."""
    line = ("export", store, "--output", tmp_path / "out.parquet", "--site", "blocks.1.mlp.hook_post")
    assert cli(*line, "--neurons", "L1.N3,L1.N5", "--json").json["neurons"] == 2
    assert cli(*line, "--neurons=L1.N3", "--json").json["neurons"] == 1
    assert cli(*line, "--json").json["neurons"] == 24
    assert "is of layer 1, and the neurons are of layer 0" in refused(*line, "--neurons", "L0.N3,L1.N5")


def test_stats_sorts_filters_and_splits_by_label(cli: Callable[..., Result], store: Path) -> None:
    rows = cli("stats", store, "--sort", "std", "-k", 5, "--layers", 1, "--json").json["neurons"]
    assert len(rows) == 5
    assert all(row["name"].startswith("L1.") for row in rows)
    assert sorted((row["std"] for row in rows), reverse=True) == [row["std"] for row in rows]
    both = cli("stats", store, "-k", 48, "--layers", "0-1", "--json").json["neurons"]
    assert len(both) == 48
    by = cli("stats", store, "--by", "language", "-k", 48, "--json").json["neurons"]
    assert list(by[0]) == ["name", "en", "fr", "py"]
    capture = actstore.open(store).capture()
    shares = {row["name"]: row for row in by}
    values, tokens = capture.activations(1, 3), capture.tokens()
    languages = np.array(capture.documents()["language"].to_pylist())[tokens["document"].to_numpy()]
    text = np.array(tokens["modality"].to_pylist()) == "text"
    for language in ("en", "fr", "py"):
        here = text & (languages == language)
        assert shares["L1.N3"][language] == pytest.approx((values[here] > 0).mean())
    shown = cli("stats", store, "--by", "language").out
    assert shown.split()[:4] == ["name", "en", "fr", "py"]
    assert shown.endswith("Share of values above zero by language; the neurons with the largest max.\n")


def test_sql_answers_over_the_tables(cli: Callable[..., Result], store: Path) -> None:
    query = "select layer, count(*) n from neurons group by layer order by layer"
    assert cli("sql", store, query, "--json").json == {
        "columns": ["layer", "n"], "rows": [{"layer": 0, "n": 24}, {"layer": 1, "n": 24}]
    }  # fmt: skip
    n_tokens = actstore.open(store).capture().record.plan.n_tokens
    assert cli("sql", store, "select count(*) n from tokens", "--json").json["rows"] == [{"n": n_tokens}]
    assert cli("sql", store, "select 'nan'::float x", "--json").json["rows"] == [{"x": None}]
    many = cli("sql", store, "select range r from range(300)").out
    assert "… 100 more rows" in many
    assert cli("sql", store, "select range r from range(300)", "--rows", 0).out.splitlines()[-1].strip() == "299"


def test_a_table_in_a_pipe_keeps_one_line_a_row(cli: Callable[..., Result], store: Path) -> None:
    lines = cli("sql", store, "select * from neurons limit 5").out.splitlines()
    assert len(lines) == 6
    assert re.search(r"language=en: 0\.\d+, language=fr: ", lines[1])


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".safetensors"])
def test_export_writes_what_the_store_holds(
    cli: Callable[..., Result], store: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"out{suffix}"
    found = cli("export", store, "--output", target, "--neurons", "L0.N3,L1.N7", "--json").json
    capture = actstore.open(store).capture()
    expected = np.stack([capture.activations(0, 3), capture.activations(1, 7)])
    beside = {"tokens_file": str(tmp_path / "out.tokens.parquet")} if suffix != ".parquet" else {}
    assert found == beside | {
        "file": str(target), "tokens": expected.shape[1], "neurons": 2, "bytes": target.stat().st_size,
    }  # fmt: skip
    tokens = pq.read_table(tmp_path / "out.tokens.parquet" if beside else target)
    assert "".join(tokens["text"].to_pylist()[:6]) == actstore.open(store).text(tokens["id"].to_pylist()[:6])
    assert set(tokens["language"].to_pylist()) == {"en", "fr", "py"}
    if suffix == ".parquet":
        table = pq.read_table(target)
        values = np.stack([table["L0.N3"].to_numpy(), table["L1.N7"].to_numpy()])
    elif suffix == ".npy":
        values = np.load(target).T
    else:
        values = load_file(target)["activations"]
    np.testing.assert_array_equal(values, expected)
    assert "24 neurons over" in cli("export", store, "--output", target, "--layers", "1").out


# Help


def test_the_help_lists_every_command(cli: Callable[..., Result]) -> None:
    shown = cli("--help")
    assert shown.status == 0
    app = command_line.application()
    names = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert names | {group.name for group in app.registered_groups} == set(COMMANDS)
    for command in COMMANDS:
        assert command in shown.out


@pytest.mark.parametrize(("module", "commands"), command_line.FAMILIES.items())
def test_a_module_registers_the_commands_that_the_table_lists(module: str, commands: tuple[str, ...]) -> None:
    for command in commands:
        alone = typer.main.get_command(command_line.application(command))
        assert tuple(alone.commands) == commands  # type: ignore[attr-defined]


def test_a_command_does_not_import_the_modules_of_others(store: Path) -> None:
    code = "import sys; sys.argv[1:] = ['info', sys.argv[1]]\ntry: cli.main()\nexcept SystemExit: pass\n"
    code = (
        f"from actstore import cli\n{code}print([name for name in sys.modules if name.startswith('actstore.commands')])"
    )
    done = subprocess.run([sys.executable, "-c", code, store], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert "actstore.commands.info" in loaded
    assert "actstore.commands.graphs" not in loaded
    assert "actstore.commands.read" not in loaded


def subcommands(group: str) -> list[str]:
    (found,) = [g.typer_instance for g in command_line.application().registered_groups if g.name == group]
    return [c.name or c.callback.__name__ for c in found.registered_commands if found and c.callback]


GROUPS = tuple(group.name or "" for group in command_line.application().registered_groups)


@pytest.mark.parametrize("command", [*COMMANDS, *(f"{g} {c}" for g in GROUPS for c in subcommands(g))])
def test_every_command_shows_an_example_that_its_own_options_allow(cli: Callable[..., Result], command: str) -> None:
    shown = cli(*command.split(), "--help")
    assert shown.status == 0
    flat = re.sub(r"[\s│]+", " ", shown.out)
    example = re.search(r"Example: (actstore [^│]+?) (?:[╭─]|Arguments|Usage)", flat)
    assert example, flat
    if command in GROUPS:  # its example is one of a subcommand: the one that is meant where none is named
        named = example[1].split()[2]
        flat += cli(command, named if named in subcommands(command) else "show", "--help").out
    assert command.removesuffix(" show") in example[1]
    for option in re.findall(r" (--[a-z-]+)", example[1]):
        assert flat.count(option) > 1, f"the example's {option} is no option of {command}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("actstore gr", "graphs"), ("actstore naica ev", "evaluate"), ("actstore stats x --so", "--sort")],
)
def test_a_shell_completes_commands_and_options(words: str, expected: str) -> None:
    launch = "import sys; sys.argv[0] = 'actstore'; from actstore.cli import main; main()"
    environment = os.environ | {
        "_ACTSTORE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", launch], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == [expected], done.stderr


def test_the_version_is_said(cli: Callable[..., Result]) -> None:
    assert cli("--version").out.startswith("actstore 0.")


# Corpora


@pytest.fixture
def captured(cli: Callable[..., Result], tiny_model: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What `info` says of a capture of some corpus."""

    def capture(corpus: object, *options: object) -> dict[str, Any]:
        target = tmp_path / "captured.actstore"
        done = cli("capture", tiny_model, corpus, target, "--context", 32, *options, "--json")
        assert done.status == 0, done.err
        held: dict[str, Any] = done.json["captures"]["corpus"]
        return held

    return capture


def test_standard_input_is_a_corpus(captured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("the fox", "le chien"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert captured("-", "--stdin-format", "jsonl")["documents"] == 2


def test_globs_and_folders_are_corpora(captured: Any, tmp_path: Path) -> None:
    for name in ("a.md", "b.md", "c.txt"):
        (tmp_path / name).write_text("the quick brown fox")
    assert captured(tmp_path / "*.md")["documents"] == 2


def test_a_folder_is_filtered_by_pattern_and_what_is_skipped_is_said(
    cli: Callable[..., Result], tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, content in (("a.md", b"the fox"), ("b.txt", b"the dog"), ("c.bin", b"\0\1"), ("d.txt", b"")):
        (folder / name).write_bytes(content)
    done = cli("capture", tiny_model, folder, tmp_path / "all.actstore", "--json")
    assert done.json["captures"]["corpus"]["documents"] == 2
    assert done.err.splitlines() == [
        "Files of the corpus skipped, which are not text: 1.",
        "Empty documents of the corpus skipped: 1.",
    ]
    done = cli("capture", tiny_model, folder, tmp_path / "md.actstore", "--pattern", "*.md", "--json")
    assert (done.json["captures"]["corpus"]["documents"], done.err) == (1, "")


def test_an_archive_in_a_folder_is_named(cli: Callable[..., Result], tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("the fox")
    (folder / "b.bin").write_bytes(b"\0")
    (folder / "c.zip").write_bytes(b"PK\x03\x04")
    done = cli("capture", tiny_model, folder, tmp_path / "store", "--json")
    assert done.err.splitlines() == [
        f"Skipped: {folder / 'c.zip'} (a ZIP archive).",
        "Files of the corpus skipped, which are not text: 2.",
    ]


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_csv_with_labels_is_a_corpus(captured: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c.csv{suffix}"
    with pa.output_stream(path, compression="zstd" if suffix else None) as file:
        file.write(b'n,body\n1,the fox\n2,"le chien, le chat"\n')
    held = captured(path, "--text-column", "body", "--label", "n")
    assert (held["documents"], held["labels"]) == (2, {"n": ["1", "2"]})


def test_parquet_with_labels_is_a_corpus(captured: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["the fox", "le chien"], "n": [1, 2]}), tmp_path / "c.parquet")
    held = captured(tmp_path / "c.parquet", "--text-column", "body", "--label", "n")
    assert (held["documents"], held["labels"]) == (2, {"n": ["1", "2"]})


def test_a_column_of_ids_needs_no_tokenizer(cli: Callable[..., Result], tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(bare)
    pq.write_table(pa.table({"tokens": [[5, 6, 7], [8, 9]]}), tmp_path / "ids.parquet")
    target = tmp_path / "ids.actstore"
    done = cli("capture", bare, tmp_path / "ids.parquet", target, "--ids-column", "tokens", "--json")
    assert done.json["captures"]["corpus"]["tokens"] == 5
    assert cli("verify", target, "--json").json["ok"]
    shown = cli("top", target, "L0.N0", "-k", "1", "--json").json["exemplars"][0]
    assert re.fullmatch(r"<\d>", shown["token"])


def test_a_document_without_its_label_is_counted_under_an_empty_one(
    captured: Any, cli: Callable[..., Result], tmp_path: Path
) -> None:
    rows = [
        {"text": "the fox", "kind": "A"},
        {"text": "the dog"},
        {"text": "a cat", "kind": "a"},
        {"text": "b", "kind": "name"},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert captured(tmp_path / "c.jsonl", "--label", "kind")["labels"] == {"kind": ["A", "", "a", "name"]}
    found = cli("stats", tmp_path / "captured.actstore", "--by", "kind", "--json")
    assert found.status == 0, found.err
    assert list(found.json["neurons"][0]) == ["name", "A", "", "a", "kind=name"]


def test_a_second_capture_is_chosen_by_name(
    cli: Callable[..., Result], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    target = tmp_path / "two.actstore"
    for name, precision in (("corpus", "exact"), ("light", "none")):
        done = cli(
            "capture",
            tiny_model,
            corpus,
            target,
            "--max-tokens",
            100,
            "--name",
            name,
            "--precision",
            precision,
            "--layers",
            "1",
        )
        assert done.status == 0, done.err
    assert cli("stats", target, "--capture", "light", "--json").json["capture"] == "light"
    assert set(cli("info", target, "--json").json["captures"]) == {"corpus", "light"}
    query = 'select (select count(*) from "light".neurons) a, (select count(*) from "corpus".neurons) b'
    assert cli("sql", target, query, "--json").json["rows"] == [{"a": 24, "b": 24}]


# Streams and signals


def test_a_pipe_closed_early_is_no_error(store: Path) -> None:
    command = f"{sys.executable} -m actstore.cli sql {store} 'select * from tokens, range(300)' --json | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) == 10
    command = f"{sys.executable} -m actstore.cli sql {store} 'select * from tokens, range(300)' | head -n 2"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_an_interrupt_leaves_a_store_that_resumes(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    target = tmp_path / "store"
    environment = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    arguments = ["capture", tiny_model, corpus, target, "--context", "16", "--memory", "32KB", "--json"]
    told = run_told_to_end(signal.SIGINT, *arguments, environment=environment)
    assert (told.returncode, told.stdout) == (1, ""), told.stderr
    assert re.fullmatch(
        r"Error: Interrupted: \d+ of \d+ blocks of capture 'corpus' are in .*--resume to fill the rest\.\n", told.stderr
    )
    done = shell(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    blocks = json.loads(done.stdout)["captures"]["corpus"]["blocks"]
    assert blocks["planned"] == blocks["committed"] > 60


def test_errors_take_one_line_and_their_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> tuple[int, str]:
        def command() -> None:
            raise error

        status = command_line._run(command)
        return status, capsys.readouterr().err

    long = "A [bold]path[/bold]. " * 20 + "End."
    assert fail(InvalidInputError(long)) == (2, f"Error: {long}\n")
    assert fail(CaptureError("half-way")) == (1, "Error: half-way.\n")
    assert fail(ModelError("expected a model")) == (2, "Error: Expected a model.\n")
    assert fail(InvalidInputError("texts/a.txt is empty.")) == (2, "Error: texts/a.txt is empty.\n")
    assert fail(OSError(28, "No space left on device", "x")) == (2, "Error: No space left on device: x.\n")
    of_arrow = "Error writing bytes to file. Detail: [errno 28] No space left on device"
    assert fail(OSError(28, of_arrow, "x")) == (2, "Error: No space left on device: x.\n")
    assert fail(IsADirectoryError(21, "Is a directory", "x")) == (2, "Error: Is a directory: x.\n")
    assert fail(MemoryError("37 TiB")) == (2, "Error: There is not enough memory for this command: 37 TiB.\n")
    assert fail(KeyboardInterrupt()) == (130, "Interrupted.\n")
    assert fail(SystemExit(130)) == (130, "Interrupted.\n")
    assert fail(SystemExit(2)) == (2, "")
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EIO, "Input/output error", "a/zarr.json"), "Input/output error: a/zarr.json."),
        (OSError(errno.EIO, "Input/output error"), "Input/output error: a file or a disk that the system does not name."),
        (OSError(errno.ESTALE, "Stale file handle", b"a\xff"), "Stale file handle: a�."),
        (OSError(errno.ENOTCONN, "Not connected", "a"), "Not connected: a."),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), "Cross-device link: a, b."),
        (OSError(errno.EMFILE, "Too many open files", "a"), "Too many open files: a; raise the limit with `ulimit -n 4096`."),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; raise the limit with `ulimit -n 4096`."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "No such file or directory: a."),
        (OSError("\nthe bucket b\ncannot be read"), "The bucket b."),
        (TimeoutError(), "TimeoutError."),
        (OSError(errno.EIO, "x\x1b]0;y\x07[/a]", "[bold]"), "x␛]0;y␇[/a]: [bold]."),
    ],
)  # fmt: skip
def test_whatever_the_system_refuses_is_one_sentence(
    error: OSError, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert command_line._run(command) == 2
    assert capsys.readouterr().err == f"Error: {message}\n"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gdrive://bucket/store", "needs a package that is not installed (`pip install gdrive_fsspec`)"),
        ("nowhere://store", "is no URL that can be opened: Protocol not known: nowhere"),
    ],
)
def test_a_store_that_no_driver_reads_is_refused(refused: Callable[..., str], url: str, message: str) -> None:
    assert f"{url} {message}" in refused("info", url)


@pytest.mark.parametrize("value", [10**20, -(10**20)])
def test_integers_beyond_64_bits_are_refused(cli: Callable[..., Result], store: Path, value: int) -> None:
    for line in (("top", store, "L0.N1", "-k"), ("coverage", store, "--top"), ("coverage", store, "--sections")):
        done = cli(*line, value)
        assert (done.status, done.out) == (2, "")
        # A number below the least is refused for that.
        expected = "1 or more" if line[-1] == "-k" and value < 0 else "at most 64 bits"
        assert (
            done.err == f"Error: {line[-1].replace('-k', '--k')} takes a whole number of {expected}, found {value}.\n"
        )


@pytest.mark.parametrize("value", [2**62, 10**10, 0, -1])
def test_absurd_numbers_are_refused(cli: Callable[..., Result], store: Path, value: int) -> None:
    for line in (("coverage", store, "--top"), ("coverage", store, "--criterion", "kmnc", "--sections")):
        done = cli(*line, value)
        assert (done.status, done.out) == (2, ""), done
        assert f"found {value}" in done.err


def test_a_seed_is_not_negative(cli: Callable[..., Result], store: Path) -> None:
    done = cli("graphs", "evaluate", store, "--seed", -1)
    assert done.status == 2
    assert done.err == "Error: --seed takes a whole number of 0 or more, found -1.\n"


def test_a_model_that_is_not_there_is_refused_by_probes(refused: Callable[..., str], store: Path) -> None:
    assert "there is no folder '/nonexistent'" in refused("graphs", "probe", store, "--model", "/nonexistent")


@pytest.mark.parametrize(
    ("text", "expected"), [("64KB", 64_000), ("1.5gb", 1_500_000_000), ("2 MB", 2_000_000), ("17", 17), ("3B", 3)]
)
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


def test_lists_of_layers() -> None:
    assert parse_layers("0,3-5,4") == (0, 3, 4, 5)
    assert max(parse_layers("0-99999999999999") or ()) == 1 << 20, (
        "a range ends, and is refused where layers are looked up"
    )


def test_sql_output_can_be_parsed_by_a_machine(cli: Callable[..., Result], store: Path) -> None:
    shown = cli("sql", store, "select name, count from neurons order by layer, neuron").out
    rows = list(csv.reader(io.StringIO(re.sub(r" {2,}", ",", shown))))
    assert rows[1][0] == "L0.N0"
