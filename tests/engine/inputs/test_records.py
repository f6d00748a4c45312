from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

from actstore.engine.inputs.documents import CorpusOptions
from actstore.engine.inputs.records import RecordReader
from actstore.engine.inputs.value_names import name_columns
from actstore.store.errors import InvalidInputError


def read(record, split=None, **options):
    return RecordReader(CorpusOptions(**options)).read("f:3", record, split)


def message(record, **options):
    with pytest.raises(InvalidInputError) as caught:
        read(record, **options)
    return str(caught.value)


def test_text_wins_over_ids_unless_ids_are_preferred():
    record = {"input_ids": [1, 2], "text": "one"}
    assert read(record).text == "one"
    assert read(record, prefer_ids=True).ids.tolist() == [1, 2]
    assert read({"text": "one"}, prefer_ids=True).text == "one"


def test_ids_are_read_where_there_is_no_text():
    document = read({"tokens": [5, 0, 2**40], "other": 1}, ids_column="tokens")
    assert document.text is None
    assert document.ids.dtype == np.int64
    assert document.ids.tolist() == [5, 0, 2**40]


def test_null_text_is_an_empty_document():
    assert read({"text": None}).is_empty


@pytest.mark.parametrize("ids", [[], None, np.array([], np.uint16)])
def test_empty_ids_are_an_empty_document(ids):
    assert read({"input_ids": ids}).is_empty
    assert read({"input_ids": ids, "attention_mask": ids}).is_empty


def test_labels_are_strings():
    record = {"text": "a", "s": "x", "i": 3, "b": True, "n": None, "l": [1, "é"], "o": {"b": 1, "a": None}, "f": 0.5}
    labels = read(record, label_columns=("s", "i", "b", "n", "l", "o", "f", "absent")).labels
    assert labels == {
        "s": "x",
        "i": "3",
        "b": "true",
        "n": "",
        "l": '[1, "é"]',
        "o": '{"a": null, "b": 1}',
        "f": "0.5",
        "absent": "",
    }


def test_labels_of_numpy_and_torch_are_those_of_python():
    record = {"text": np.str_("a"), "i": np.int64(3), "b": np.bool_(True), "s": np.str_("x"), "t": torch.tensor(3)}
    record |= {"l": np.array([1, 2]), "o": {"k": np.float32(0.5), "p": PurePosixPath("a/b")}}
    document = read(record, label_columns=("i", "b", "s", "t", "l", "o"))
    labels = {"i": "3", "b": "true", "s": "x", "t": "3", "l": "[1, 2]", "o": '{"k": 0.5, "p": "a/b"}'}
    assert document.labels == labels


def test_split_is_a_label_unless_the_record_has_its_own():
    assert read({"text": "a"}, split="train").labels == {"split": "train"}
    assert read({"text": "a", "split": "x"}, split="train", label_columns=("split",)).labels == {"split": "x"}


def test_missing_text_column_names_those_there_are():
    assert message({"body": "a", "id": 1}) == (
        "f:3 has no column 'text' with text, nor 'input_ids' with token ids: its columns are 'body', 'id'; "
        "name one with `text_column`, or of images with `image_column`."
    )


def test_missing_text_column_of_a_record_without_columns():
    assert "its columns are none;" in message({})


def test_many_columns_are_not_all_named():
    assert name_columns(str(n) for n in range(14)).endswith(", '11' and 2 more")


@pytest.mark.parametrize(
    ("value", "found"),
    [(3, "an integer (3)"), (["a"], "a list"), ({}, "an object"), (b"a", "bytes"), (False, "a truth value (false)")],
)
def test_text_of_another_type_is_refused(value, found):
    assert message({"text": value}) == (
        f"f:3: column 'text' must hold text, found {found}; name another with `text_column`."
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, -1, 2], "-1 at position 1"),
        ([1, 2.0], "a number (2.0) at position 1"),
        ([True], "a truth value (true) at position 0"),
        ([1, None], "null at position 1"),
        ([[1]], "a list at position 0"),
        ([1 << 63], "a number that needs more than 64 bits"),
        ("1 2", 'text ("1 2")'),
        (np.array([0.5]), "a list of float64"),
        (np.array([4, 1 << 63], dtype=np.uint64), "9223372036854775808 at position 1"),
    ],
)
def test_ids_that_are_no_token_ids_are_refused(value, found):
    assert message({"input_ids": value}) == (
        f"f:3: column 'input_ids' must hold token ids (integers from 0), found {found}; "
        "fix the row, or name another with `ids_column`."
    )


def test_ids_are_copied_out_of_the_batch():
    batch = np.array([1, 2, 3])
    ids = read({"input_ids": batch}).ids
    batch[:] = 0
    assert ids.tolist() == [1, 2, 3]


def test_half_a_surrogate_pair_is_refused_or_replaced():
    assert message({"text": "né\ud83d!"}) == (
        "f:3: column 'text' has half a surrogate pair (\\ud83d) at character 2, which no UTF-8 text can hold; "
        'fix it, or pass `errors="replace"` to read on with U+FFFD in its place.'
    )
    document = read({"text": "né\ud83d!", "l": "\udc00"}, errors="replace", label_columns=("l",))
    assert (document.text, document.labels) == ("né\ufffd!", {"l": "\ufffd"})
