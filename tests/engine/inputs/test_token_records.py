"""Token ids and what stands beside them: masked padding goes, and what would run the model otherwise is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
import torch

from actstore.engine.inputs.corpus import CorpusDigest, CorpusOptions, CorpusReport, read_corpus
from actstore.engine.inputs.token_records import read_token_ids
from actstore.store.errors import InvalidInputError

IDS = [0, 0, 5, 6, 7, 0]


def read(record, column="input_ids"):
    return read_token_ids("f:3", column, record).tolist()


def message(record):
    with pytest.raises(InvalidInputError) as caught:
        read(record)
    return str(caught.value)


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        ([1, 1, 1, 1, 1, 1], IDS),
        ([1, 1, 1, 1, 1, 0], [0, 0, 5, 6, 7]),
        ([0, 0, 1, 1, 1, 1], [5, 6, 7, 0]),
        ([0, 0, 1, 1, 1, 0], [5, 6, 7]),
        ([0, 0, 0, 1, 0, 0], [6]),
        ([0, 0, 0, 0, 0, 0], []),
        (None, IDS),
    ],
)
def test_masked_ends_are_left_out(mask, kept):
    assert read({"input_ids": IDS, "attention_mask": mask}) == kept
    if mask is not None:
        assert read({"input_ids": IDS, "attention_mask": [bool(m) for m in mask]}) == kept


@pytest.mark.parametrize(
    "convert",
    [
        tuple,
        np.array,
        torch.tensor,
        lambda values: np.array(values, np.uint8),
        lambda values: [np.int64(value) for value in values],
        lambda values: torch.tensor(values, dtype=torch.int32),
    ],
    ids=["tuple", "array", "tensor", "bytes", "scalars", "int32"],
)
def test_ids_and_mask_in_memory_may_be_of_any_integer_type(convert):
    record = {"tokens": convert(IDS), "attention_mask": convert([0, 0, 1, 1, 1, 0])}
    assert read(record, "tokens") == [5, 6, 7]


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ([1, 1], "2"),
        ([1] * 7, "7"),
        ([], "0"),
        ([1, 1, 2, 1, 1, 1], "2 at position 2"),
        ([1, 1, 1, 1, 1, -1], "-1 at position 5"),
        ([1.0] * 6, "a number (1.0) at position 0"),
        ([0.0, 0.0, 0.0, 0.0, 0.0, -1e9], "a number (0.0) at position 0"),
        (np.ones(6), "a list of float64"),
        (np.ones((6, 6), np.int64), "an array of 2 axes"),
        ([[1]] * 6, "a list at position 0"),
        (["1"] * 6, 'text ("1") at position 0'),
        ([1, 1, None, 1, 1, 1], "null at position 2"),
        (1, "an integer (1)"),
        ([1, 1, 1, 1, 1, 1 << 70], "a number that needs more than 64 bits"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, found):
    assert message({"input_ids": IDS, "attention_mask": mask}) == (
        f"f:3: column 'attention_mask' must hold one 0 or 1 per token id (6 of them), found {found}; fix the row, or leave "
        "the column out."
    )


def test_a_mask_with_a_hole_is_refused():
    assert message({"input_ids": IDS, "attention_mask": [0, 1, 1, 0, 1, 0]}) == (
        "f:3: column 'attention_mask' masks position 3, between tokens that it keeps, and only padding before and after a "
        "document can be left out; split the record there, or leave the column out."
    )


def test_ids_of_two_axes_are_refused():
    assert "found an array of 2 axes; fix the row" in message({"input_ids": torch.tensor([IDS])})
    assert "found an integer (3)" in message({"input_ids": 3})


@pytest.mark.parametrize("column", ["token_type_ids", "global_attention_mask"])
def test_other_segments_than_the_first_are_refused_where_ids_are_kept(column):
    mask = [0, 0, 1, 1, 1, 0]
    assert read({"input_ids": IDS, "attention_mask": mask, column: [3, 3, 0, 0, 0, 3]}) == [5, 6, 7]
    assert read({"input_ids": IDS, column: [0] * 6}) == IDS
    assert read({"input_ids": IDS, column: None}) == IDS
    assert message({"input_ids": IDS, "attention_mask": mask, column: [0, 0, 0, 1, 0, 0]}) == (
        f"f:3: column {column!r} holds 1 at position 3, and a capture runs the model with 0 there, so its activations would "
        "be others; leave the column out to capture the ids without it."
    )
    assert message({"input_ids": IDS, column: [0]}).startswith(
        f"f:3: column {column!r} must hold one integer per token id (6 of them), found 1;"
    )


def test_positions_count_from_the_first_id_that_is_kept():
    mask = [0, 0, 1, 1, 1, 0]
    assert read({"input_ids": IDS, "position_ids": list(range(6))}) == IDS
    assert read({"input_ids": IDS, "attention_mask": mask, "position_ids": [1, 1, 0, 1, 2, 1]}) == [5, 6, 7]
    assert "column 'position_ids' holds 0 at position 3, and a capture runs the model with 3 there" in message(
        {"input_ids": IDS, "position_ids": [0, 1, 2, 0, 1, 2]}
    )
    assert "column 'position_ids' holds 2 at position 2, and a capture runs the model with 0 there" in message(
        {"input_ids": IDS, "attention_mask": mask, "position_ids": list(range(6))}
    )


RECORDS = [
    {"tokens": [2, 5, 6, 3, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0], "text": "a"},
    {"tokens": [0, 0, 0, 2, 7, 3], "attention_mask": [0, 0, 0, 1, 1, 1], "text": "b"},
    {"tokens": [0, 0], "attention_mask": [0, 0], "text": "c"},
    {"tokens": [0, 2, 3], "attention_mask": None, "text": "d"},
]


def write_lines(path):
    path.write_text("\n".join(map(json.dumps, RECORDS)))


def write_list(path):
    path.write_text(json.dumps(RECORDS))


def write_parquet(path):
    pq.write_table(pa.Table.from_pylist(RECORDS), path)


def write_arrow(path):
    table = pa.Table.from_pylist(RECORDS)
    masks = table["attention_mask"].cast(pa.list_(pa.bool_()))
    table = table.set_column(table.schema.names.index("attention_mask"), "attention_mask", masks)
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", write_lines), ("a.json", write_list), ("a.parquet", write_parquet), ("a.arrow", write_arrow)],
)
def test_masks_in_every_kind_of_file(tmp_path, name, write):
    path = tmp_path / name
    write(path)
    options = CorpusOptions(ids_column="tokens", prefer_ids=True)
    report, digest, expected = CorpusReport(), CorpusDigest(), CorpusDigest()
    documents = list(read_corpus(path, options, report))
    assert [document.ids.tolist() for document in documents] == [[2, 5, 6, 3], [2, 7, 3], [0, 2, 3]]
    assert report.n_empty_documents == 1
    # The fingerprint is that of the same documents without padding.
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"input_ids": [2, 5, 6, 3]}\n{"input_ids": [2, 7, 3]}\n{"input_ids": [0, 2, 3]}')
    for document, bare in zip(documents, read_corpus(plain), strict=True):
        digest.update(document)
        expected.update(bare)
    assert digest.hexdigest() == expected.hexdigest()
    # Text has nothing to do with the ids beside it.
    assert [document.text for document in read_corpus(path, CorpusOptions(ids_column="tokens"))] == list("abcd")


def test_a_wrong_mask_names_its_row(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 0], [1, 1]]}), path)
    with pytest.raises(
        InvalidInputError, match=r"a\.parquet:1: column 'attention_mask' must hold one 0 or 1 per token id"
    ):
        list(read_corpus(path))
