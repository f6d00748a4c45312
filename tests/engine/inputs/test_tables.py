import json

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from actstore.engine.inputs import tables
from actstore.engine.inputs.corpus import CorpusOptions, describe, read_corpus
from actstore.store.errors import InvalidInputError


def read(path, **options):
    return list(read_corpus(path, CorpusOptions(**options)))


def message(path, **options):
    with pytest.raises(InvalidInputError) as caught:
        read(path, **options)
    return str(caught.value)


def write_parquet(table, path):
    pq.write_table(table, path, row_group_size=3)


def write_stream(table, path):
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_file(table, path):
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_feather(table, path):
    feather.write_feather(table, path, compression="lz4")


WRITERS = {"a.parquet": write_parquet, "a.arrow": write_stream, "b.arrow": write_file, "a.feather": write_feather}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    def write_table(columns):
        path = tmp_path / request.param
        WRITERS[request.param](columns if isinstance(columns, pa.Table) else pa.table(columns), path)
        return path

    return write_table


def save_dataset(folder, *shards):
    """What `save_to_disk` leaves, made by hand."""
    folder.mkdir(parents=True)
    names = [f"data-{index:05}-of-{len(shards):05}.arrow" for index in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_stream(pa.table(shard), folder / name)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def save_splits(folder, **splits):
    for name, columns in splits.items():
        save_dataset(folder / name, columns)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def test_rows_in_order_over_batches_with_their_number(write, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    path = write({"id": list(range(8)), "text": [f"t{n}" for n in range(8)]})
    assert [(document.source, document.text) for document in read(path)] == [(f"{path}:{n}", f"t{n}") for n in range(8)]


def test_labels_next_to_text(write):
    path = write({"n": [1, None], "text": ["a", "b"], "m": [{"k": [1]}, None], "s": ["x", "y"]})
    labels = [document.labels for document in read(path, label_columns=("s", "n", "m"))]
    assert labels == [{"s": "x", "n": "1", "m": '{"k": [1]}'}, {"s": "y", "n": "", "m": ""}]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_string_type_is_text(write, kind):
    assert [document.text for document in read(write({"text": pa.array(["né", "b", "né"]).cast(kind)}))] == [
        "né",
        "b",
        "né",
    ]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int32()), pa.large_list(pa.uint16()), pa.list_(pa.int64()), pa.list_(pa.uint8())]
)
def test_ids_without_text(write, kind):
    path = write({"input_ids": pa.array([[1, 2], [3], [], None, [4, 5, 6]], kind)})
    documents = read(path)
    assert [(document.source, document.ids.tolist()) for document in documents] == [
        (f"{path}:0", [1, 2]),
        (f"{path}:1", [3]),
        (f"{path}:4", [4, 5, 6]),
    ]
    assert all(document.text is None for document in documents)


def test_preferred_ids_win_over_text(write):
    path = write({"text": ["a"], "input_ids": [[7]]})
    assert read(path)[0].text == "a"
    assert read(path, prefer_ids=True)[0].ids.tolist() == [7]


@pytest.mark.parametrize(
    ("ids", "row", "found"),
    [
        ([[1], [2, -3]], 1, "-3 at position 1"),
        ([[1], [2, None]], 1, "null at position 1"),
        ([[1.5], [0.5]], 0, "a list of float64"),
        ([3, 4], 0, "an integer (3)"),
        ([[], [True]], 1, "a truth value (true) at position 0"),
    ],
)
def test_ids_that_are_no_token_ids_name_the_row(write, ids, row, found):
    path = write({"input_ids": ids})
    assert message(path) == (
        f"{path}:{row}: column 'input_ids' must hold token ids (integers from 0), found {found}; "
        "fix the row, or name another with `ids_column`."
    )


def test_text_of_another_type_names_the_row(write):
    path = write({"text": [4, 5]})
    assert message(path) == (
        f"{path}:0: column 'text' must hold text, found an integer (4); name another with `text_column`."
    )


def test_missing_text_column(write):
    path = write({"body": ["a"], "id": [1]})
    assert message(path) == (
        f"{path} has no column 'text' with text, nor 'input_ids' with token ids: its columns are 'body', 'id'; "
        "name one with `text_column`, or of images with `image_column`."
    )
    assert read(path, text_column="body")[0].text == "a"


def test_missing_label_column_is_found_before_the_first_row(write):
    path = write({"text": ["a"], "language": ["en"]})
    with pytest.raises(InvalidInputError) as caught:
        next(read_corpus(path, CorpusOptions(label_columns=("lang",))))
    assert str(caught.value) == (
        f"{path} has no label column 'lang': its columns are 'text', 'language'; name one of them with `label_columns`."
    )


def test_strings_that_are_not_utf8(write):
    offsets, content = pa.py_buffer(b"\0\0\0\0\1\0\0\0\4\0\0\0"), pa.py_buffer(b"aa\xffb")
    path = write({"text": pa.Array.from_buffers(pa.string(), 2, [None, offsets, content])})
    assert message(path) == (
        f"{path}:1: column 'text' is not UTF-8: byte 0xff at offset 1 of the value; "
        'convert it, or pass `errors="replace"` to read on with U+FFFD in its place.'
    )
    assert [document.text for document in read(path, errors="replace")] == ["a", "a\ufffdb"]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_damaged_tables_are_one_sentence(write, damage):
    path = write({"text": ["a" * 1000, "b" * 1000] * 10})
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-40:] = b"\xff" * 40
    flipped[:16] = b"\xff" * 16
    path.write_bytes(
        {"cut": content[: len(content) // 2], "empty": b"", "text": b"hello there", "flipped": flipped}[damage]
    )
    kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
    found = message(path)
    assert found.startswith(f"{path} is not readable as {kind} (")
    assert found.endswith("): the file is damaged or cut short; write it again.")
    assert "\n" not in found


def test_a_table_without_rows_is_an_empty_corpus(write):
    assert "holds no documents" in message(write({"text": pa.array([], pa.string())}))


def test_one_large_row_group_is_not_held_in_memory(tmp_path):
    path = tmp_path / "a.parquet"
    n_rows, text = 4000, "".join(map(chr, range(0x4E00, 0x4E00 + 4000)))
    pq.write_table(
        pa.table({"text": [f"{row}{text}" for row in range(n_rows)]}), path, compression="none", use_dictionary=False
    )
    before = pa.total_allocated_bytes()
    highest = 0
    for document in read_corpus(path):
        assert document.text is not None
        highest = max(highest, pa.total_allocated_bytes() - before)
    assert path.stat().st_size > 45e6
    assert highest < 20e6  # a page of 1,024 rows and a batch, not the column


def test_saved_dataset_in_the_order_of_its_shards(tmp_path):
    save_dataset(tmp_path / "d", {"text": ["a", "b"]}, {"text": ["c"]})
    documents = read(tmp_path / "d")
    assert [(document.source, document.text, document.labels) for document in documents] == [
        (f"{tmp_path}/d/data-00000-of-00002.arrow:0", "a", {}),
        (f"{tmp_path}/d/data-00000-of-00002.arrow:1", "b", {}),
        (f"{tmp_path}/d/data-00001-of-00002.arrow:0", "c", {}),
    ]
    assert describe(tmp_path / "d") == f"saved dataset '{tmp_path}/d'"


def test_saved_splits_in_their_order_with_their_name_as_label(tmp_path):
    save_splits(tmp_path / "d", train={"text": ["a"], "n": [1]}, test={"text": ["b"], "n": [2]})
    found = [(document.text, document.labels) for document in read(tmp_path / "d", label_columns=("n",))]
    assert found == [("a", {"n": "1", "split": "train"}), ("b", {"n": "2", "split": "test"})]


def test_one_split_by_its_folder_gives_the_same_documents(tmp_path, monkeypatch):
    save_splits(tmp_path / "d", train={"text": ["a"]}, test={"text": ["b"]})
    monkeypatch.chdir(tmp_path / "d" / "test")
    for location in (tmp_path / "d" / "test", "."):
        assert [(document.text, document.labels) for document in read(location)] == [("b", {"split": "test"})]


def test_asking_for_the_split_label_is_no_error(tmp_path):
    save_splits(tmp_path / "d", train={"text": ["a"]})
    assert read(tmp_path / "d", label_columns=("split",))[0].labels == {"split": "train"}


def test_a_split_column_asked_for_wins_over_the_folder(tmp_path):
    save_splits(tmp_path / "d", train={"text": ["a"], "split": ["mine"]})
    assert read(tmp_path / "d")[0].labels == {"split": "train"}
    assert read(tmp_path / "d", label_columns=("split",))[0].labels == {"split": "mine"}


def test_a_saved_dataset_within_a_folder_is_read_as_one(tmp_path):
    save_splits(tmp_path / "c" / "d", train={"text": ["a"]})
    (tmp_path / "c" / "e.txt").write_text("b")
    assert [(document.text, document.labels) for document in read(tmp_path / "c")] == [
        ("a", {"split": "train"}),
        ("b", {}),
    ]
    assert [document.text for document in read(tmp_path / "c", pattern="*.txt")] == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("state.json", "{", "one JSON object"),
        ("state.json", '{"_data_files": null}', "the names of its Arrow files under '_data_files'"),
        (
            "state.json",
            '{"_data_files": [{"filename": "../a.arrow"}]}',
            "the names of its Arrow files under '_data_files'",
        ),
        ("dataset_dict.json", '{"splits": [".."]}', "a list of split names under 'splits'"),
    ],
)
def test_damaged_records_of_a_saved_dataset(tmp_path, name, content, expected):
    save_dataset(tmp_path / "d", {"text": ["a"]})
    (tmp_path / "d" / name).write_text(content)
    assert message(tmp_path / "d") == (
        f"{tmp_path}/d/{name} of a saved dataset must hold {expected}: save the dataset again with save_to_disk."
    )


def test_a_shard_that_is_gone(tmp_path):
    save_dataset(tmp_path / "d", {"text": ["a"]}, {"text": ["b"]})
    (tmp_path / "d" / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow cannot be read (" in message(tmp_path / "d")


def test_rows_chosen_by_indices_are_not_read_in_the_wrong_order(tmp_path):
    save_dataset(tmp_path / "d", {"text": ["a"]})
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_indices_data_files": [{"filename": "i.arrow"}],
    }
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    assert "was saved by an early release of datasets" in message(tmp_path / "d")


def test_what_datasets_itself_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "n": [1, 2, 3]})
    datasets.DatasetDict(train=whole.select([2, 0]), test=whole.select([1])).save_to_disk(tmp_path / "d")
    whole.save_to_disk(tmp_path / "e", num_shards=2)
    assert [(document.text, document.labels) for document in read(tmp_path / "d", label_columns=("n",))] == [
        ("c", {"n": "3", "split": "train"}),
        ("a", {"n": "1", "split": "train"}),
        ("b", {"n": "2", "split": "test"}),
    ]
    assert [document.text for document in read(tmp_path / "e")] == ["a", "b", "c"]
