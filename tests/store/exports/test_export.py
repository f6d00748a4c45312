import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from actstore.store import token_tables
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.exports.export import export_activations
from actstore.store.reader import Store

# Layers in turn, neurons backwards, one twice; more of layer 1 than are read row by row.
NEURONS = [(1, 39), (0, 4), (1, 0), (0, 0), (1, 39), *[(1, n) for n in range(20, 8, -1)], (0, 4)]


@pytest.fixture
def capture(planted_path):
    return Store(planted_path[0]).capture()


@pytest.fixture
def expected(planted_path):
    """[token, neuron]"""
    return np.stack([planted_path[1][layer][neuron] for layer, neuron in NEURONS], axis=1)


def test_npy(capture, expected, tmp_path):
    assert export_activations(capture, tmp_path / "a.npy", neurons=NEURONS) == 135
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), expected)


def test_safetensors(capture, expected, tmp_path):
    assert export_activations(capture, tmp_path / "a.safetensors", neurons=NEURONS) == 135
    found = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found["activations"], expected.T)
    assert list(zip(found["layer"].tolist(), found["neuron"].tolist(), strict=True)) == NEURONS
    tokens = capture.tokens()
    np.testing.assert_array_equal(found["token"], tokens["token"].to_numpy())
    np.testing.assert_array_equal(found["id"], tokens["id"].to_numpy())
    assert {name: str(array.dtype) for name, array in found.items()} == {
        "activations": "float32", "layer": "int32", "neuron": "int32", "token": "int64", "id": "int32",
        "document": "int32", "position": "int32",
    }  # fmt: skip


def test_safetensors_for_torch(capture, expected, tmp_path):
    from safetensors.torch import load_file as load_torch_file

    export_activations(capture, tmp_path / "a.safetensors", neurons=NEURONS)
    found = load_torch_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found["activations"].numpy(), expected.T)
    assert found["token"].tolist() == capture.tokens()["token"].to_pylist()


def test_parquet(capture, planted_path, tmp_path):
    neurons = list(dict.fromkeys(NEURONS))
    assert export_activations(capture, tmp_path / "a.parquet", neurons=neurons) == 135
    found = pq.read_table(tmp_path / "a.parquet")
    tokens = capture.tokens()
    described = [*tokens.column_names, "text", "source", "language"]
    assert found.column_names == [*described, *[f"L{layer}.N{index}" for layer, index in neurons]]
    assert found.select(tokens.column_names).equals(tokens.to_arrow())
    for layer, index in neurons:
        np.testing.assert_array_equal(found[f"L{layer}.N{index}"].to_numpy(), planted_path[1][layer][index])


def check_tokens(capture, table):
    """Every row says what its token is, where it comes from, and the labels of its document."""
    tokens, documents = capture.tokens().to_pylist(), capture.documents().to_pylist()
    rows = table.select([*capture.tokens().column_names, "text", "source", "language"]).to_pylist()
    assert len(rows) == len(tokens) > 0
    for row, token in zip(rows, tokens, strict=True):
        document = documents[token["document"]]
        assert row == token | {
            "text": capture.store.token_text(token["id"]), "source": document["source"], "language": document["language"],
        }  # fmt: skip


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "parquet"])
def test_the_tokens_texts_documents_and_labels_come_along(capture, tmp_path, suffix):
    export_activations(capture, tmp_path / f"a.{suffix}", neurons=[(0, 0), (1, 2)])
    beside = tmp_path / ("a.parquet" if suffix == "parquet" else "a.tokens.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {f"a.{suffix}", beside.name}
    check_tokens(capture, pq.read_table(beside))
    if suffix == "safetensors":
        found, tokens = load_file(tmp_path / "a.safetensors"), capture.tokens()
        for name in ("document", "position"):
            np.testing.assert_array_equal(found[name], tokens[name].to_numpy())


def test_of_a_capture_that_is_not_finished_too(somewhere, tmp_path, planting):
    planting(somewhere, blocks=(0, 2), finish=False)
    capture = Store(somewhere).capture()
    export_activations(capture, tmp_path / "a.npy", neurons=[(0, 0)])
    export_activations(capture, tmp_path / "a.parquet", neurons=[(0, 0)])
    check_tokens(capture, pq.read_table(tmp_path / "a.tokens.parquet"))
    check_tokens(capture, pq.read_table(tmp_path / "a.parquet"))


def test_parts_of_many_rows_are_the_whole(capture, monkeypatch, tmp_path):
    whole = token_tables.TokenTable(capture).rows(0, 135)
    monkeypatch.setattr(token_tables, "ROWS", 7)
    token_tables.TokenTable(capture).write(tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").equals(whole)


def test_a_label_named_like_another_column_gets_another_name(capture):
    names = ("text", "id", "L1.N3", "label_text", "language")
    documents = capture.documents()
    for name in names[:-1]:
        documents = documents.append_column(name, pa.array([f"{name}-{i}" for i in range(len(documents))]))
    plan = SimpleNamespace(label_columns=names)
    fake = SimpleNamespace(
        tokens=capture.tokens, documents=lambda: documents, store=capture.store, record=SimpleNamespace(plan=plan)
    )
    table = token_tables.TokenTable(fake).rows(0, 5)
    added = table.column_names[len(capture.tokens().column_names) :]
    assert added == ["text", "source", "label_text", "label_id", "label_L1.N3", "label_label_text", "language"]
    assert table["label_text"].to_pylist() == [f"text-{d}" for d in table["document"].to_pylist()]


def test_parquet_names_a_neuron_once(capture, tmp_path):
    """Two columns of one name make a file that most readers refuse."""
    export_activations(capture, tmp_path / "a.parquet", neurons=[(1, 3), (0, 0), (1, 3)])
    assert pq.read_table(tmp_path / "a.parquet").column_names[-2:] == ["L1.N3", "L0.N0"]


def test_only_committed_blocks(somewhere, tmp_path, planting):
    values = planting(somewhere, blocks=(0, 2), finish=False)
    capture = Store(somewhere).capture()
    expected = np.delete(values[1], np.arange(*np.cumsum(capture.used_slots[:2])), axis=1)[[5, 2]]
    n = expected.shape[1]
    for name in ("a.npy", "a.parquet", "a.safetensors"):
        assert export_activations(capture, tmp_path / name, neurons=[(1, 5), (1, 2)]) == n
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected.T)
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["activations"], expected)
    assert pq.read_table(tmp_path / "a.parquet")["L1.N2"].to_pylist() == expected[1].tolist()


@pytest.mark.parametrize("precision", ["half", "int8", "sparse"])
def test_values_are_what_the_reader_gives(somewhere, tmp_path, planting, precision):
    planting(somewhere, precision=precision)
    capture = Store(somewhere).capture()
    neurons = [(0, 3), *[(1, n) for n in range(12)]]
    export_activations(capture, tmp_path / "a.npy", neurons=neurons)
    expected = np.stack([capture.activations(*neuron) for neuron in neurons], axis=1)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


def test_an_existing_file_is_replaced(capture, expected, tmp_path):
    (tmp_path / "a.npy").write_text("old")
    export_activations(capture, tmp_path / "a.npy", neurons=NEURONS)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


@pytest.mark.parametrize("name", ["a.npy", "a.parquet", "a.safetensors"])
def test_a_failure_leaves_what_was_there(capture, tmp_path, name):
    def stop(block):
        raise KeyboardInterrupt

    (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt):
        export_activations(capture, tmp_path / name, neurons=NEURONS, on_block=stop)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"
    with pytest.raises(NotFoundError, match="Layer 1 has neurons 0 to 39"):
        export_activations(capture, tmp_path / f"new-{name}", neurons=[(1, 40)])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_cannot_be_exported(capture, tmp_path):
    for target, neurons, message in [
        ("a.txt", [(0, 0)], r"one of \.parquet, \.csv, \.npy, \.safetensors, \.jsonl, or by `format`: found 'a\.txt'"),
        ("nowhere/a.npy", [(0, 0)], "The folder of .*nowhere/a.npy does not exist"),
        ("a.npy", [], "Nothing to export: pass `neurons`"),
        ("a.parquet", [(0, 0)] * 10_001, "at most 10000; found 10001 neurons"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            export_activations(capture, tmp_path / target, neurons=neurons)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(capture, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InvalidInputError, match=r"a\.npy takes 0\.0 MB, and its disk has 0\.0 MB free\. Make room"):
        export_activations(capture, tmp_path / "a.npy", neurons=[(0, 0), (0, 1)])
    assert list(tmp_path.iterdir()) == []


def test_nothing_committed(somewhere, tmp_path, planting):
    planting(somewhere, blocks=(), finish=False)
    capture = Store(somewhere).capture()
    for name in ("a.npy", "a.parquet", "a.safetensors"):
        with pytest.raises(InvalidInputError, match="has no committed block to export"):
            export_activations(capture, tmp_path / name, neurons=[(0, 0)])
    assert [path.name for path in tmp_path.iterdir()] == []
