"""Corpora in memory give the documents that the same rows in a file give; what cannot be one is refused by its type."""

from __future__ import annotations

import io
import json
import shutil
from collections import UserList
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import actstore
from actstore.engine.capture import api as capture_run
from actstore.engine.capture.api import RunOptions
from actstore.engine.inputs.corpus import CorpusDigest, CorpusOptions, CorpusReport, describe, read_corpus
from actstore.engine.inputs.memory_corpus import MemoryCorpus, as_corpus
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actstore.engine.inputs.documents import Document

CLASS = {"names": ["de", "en"], "_type": "ClassLabel"}
ROWS = [
    {"text": "one", "lang": 1},
    {"text": "two", "lang": 0},
    {"text": None, "lang": -1},
    {"text": "four", "lang": -1},
]


class Dataset:
    """What is used of a `datasets.Dataset`: features, length, columns, rows by their index and in batches, a format."""

    def __init__(self, rows: list[dict[str, Any]], features: Mapping[str, Any] | None = None, **shown: Any) -> None:
        self.rows, self.features, self._format = rows, features, shown
        self.read: set[str] = set()

    @property
    def column_names(self) -> list[str]:
        return list(self.rows[0])

    @property
    def format(self) -> dict[str, Any]:
        return {"type": None, "columns": self.column_names} | self._format

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self.rows):
            raise IndexError
        return self._shown(self.rows[index])

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        self.read |= set(row)
        return self._format["transform"](row) if self.format["type"] == "custom" else row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._shown, self.rows)

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(self.rows), batch_size):
            rows = [self._shown(row) for row in self.rows[start : start + batch_size]]
            yield {column: [row[column] for row in rows] for column in rows[0]}

    def with_format(self, kind: None) -> Dataset:
        made = Dataset(self.rows, self.features)
        made.read = self.read
        return made

    def select_columns(self, columns: list[str]) -> Dataset:
        made = Dataset(
            [{column: row[column] for column in columns} for row in self.rows], self.features, **self._format
        )
        made.read = self.read
        return made


class Stream:
    """An `IterableDataset`: rows, as often as they are asked for, and nothing known of them."""

    features = None
    column_names = None

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.rows


def read(corpus: object, report: CorpusReport | None = None, **options: Any) -> list[Document]:
    made = as_corpus(corpus)
    assert isinstance(made, MemoryCorpus)
    first, again = (list(read_corpus(made, CorpusOptions(**options), r)) for r in (report, None))
    assert [d.sha256 for d in first] == [d.sha256 for d in again]  # it can be read again
    return first


def message(corpus: object, **options: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read(corpus, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("corpus", "name", "source"),
    [
        (["one", "two"], "<list of 2 texts>", "<list>"),
        (("one", "two"), "<tuple of 2 texts>", "<tuple>"),
        ([{"text": "one"}, {"text": "two"}], "<list of 2 records>", "<list>"),
        (["one", {"text": "two"}], "<list of 2 documents>", "<list>"),
        (UserList(["one", "two"]), "<collections.UserList of 2 documents>", "<collections.UserList>"),
        (np.array(["one", "two"]), "<numpy.ndarray of 2 documents>", "<numpy.ndarray>"),
        (np.array(["one", "two"], object), "<numpy.ndarray of 2 documents>", "<numpy.ndarray>"),
        (pa.array(["one", "two"]), "<pyarrow.StringArray of 2 documents>", "<pyarrow.StringArray>"),
        (pa.chunked_array([["one"], ["two"]]), "<pyarrow.ChunkedArray of 2 documents>", "<pyarrow.ChunkedArray>"),
        (dict.fromkeys(["one", "two"]).keys(), None, "<dict_keys>"),
        (pa.table({"text": ["one", "two"]}), "<pyarrow.Table of 2 rows>", "<pyarrow.Table>"),
        (pa.record_batch({"text": ["one", "two"]}), "<pyarrow.RecordBatch of 2 rows>", "<pyarrow.RecordBatch>"),
    ],
    ids=range(12),
)
def test_names_sources_and_texts(corpus: object, name: str | None, source: str) -> None:
    if name is None:
        assert message(corpus).startswith("A corpus has an order, and a dict_keys has none")
        return
    assert str(as_corpus(corpus)) == name
    assert describe(as_corpus(corpus)) == f"the corpus {name}"
    assert [(d.source, d.text) for d in read(corpus)] == [(f"{source}:0", "one"), (f"{source}:1", "two")]


def test_one_is_not_several() -> None:
    assert str(as_corpus(["one"])) == "<list of 1 text>"
    assert str(as_corpus([])) == "<list of 0 documents>"


def test_locations_stay_locations() -> None:
    assert as_corpus("a.txt") == as_corpus(Path("a.txt")) == "a.txt"
    assert as_corpus("-") == "-"


def test_records_have_labels_ids_and_masks() -> None:
    records = [
        {"input_ids": [1, 2, 0], "attention_mask": [1, 1, 0], "lang": "en"},
        {"input_ids": torch.tensor([0, 3]), "attention_mask": torch.tensor([0, 1]), "lang": None},
        {"input_ids": np.array([4], np.uint16), "n": 3},
        {"text": "five", "lang": np.str_("de")},
    ]
    found = read(records, label_columns=("lang",))
    assert [d.text if d.ids is None else d.ids.tolist() for d in found] == [[1, 2], [3], [4], "five"]
    assert [d.labels["lang"] for d in found] == ["en", "", "", "de"]


def test_empty_documents_are_counted() -> None:
    report = CorpusReport()
    assert [d.source for d in read(["", "one", "", {"text": None}], report)] == ["<list>:1"]
    assert report.n_empty_documents == 3
    assert message([""]) == (
        "The corpus <list of 1 text> holds only empty documents (1 of them): expected at least one with text or token ids."
    )
    assert message([]) == "The corpus <list of 0 documents> holds no documents: expected at least one text or record."


def test_options_are_those_of_files() -> None:
    records = [{"body": "one", "ids": [1]}, {"body": "two", "ids": [2]}]
    assert [d.text for d in read(records, text_column="body", max_documents=1)] == ["one"]
    preferred = read(records, ids_column="ids", text_column="body", prefer_ids=True)
    assert [d.ids is not None and d.ids.tolist() for d in preferred] == [[1], [2]]
    assert message(records).startswith(
        "<list>:0 has no column 'text' with text, nor 'input_ids' with token ids: its columns are 'body', 'ids';"
    )
    assert message([{"text": "a"}], label_columns=("lnag",)) == (
        "The corpus <list of 1 record> has no label column 'lnag': its columns are 'text'; name one of them with "
        "`label_columns`."
    )
    assert message(["a"], label_columns=("lang",)).startswith(
        "The corpus <list of 1 text> is plain text, which has no label"
    )
    assert "half a surrogate pair" in message(["\ud83d"])
    assert [d.text for d in read(["\ud83d"], errors="replace")] == ["\ufffd"]


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (3, "3"),
        (True, "True"),
        (None, "None"),
        (b"bytes", "bytes"),
        (["words"], "list"),
        (Path("a.txt"), "pathlib.PosixPath"),
        (torch.tensor([1]), "torch.Tensor"),
    ],
    ids=range(7),
)
def test_what_is_no_document_is_named_by_its_index_and_type(item: object, found: str) -> None:
    assert message(["one", {"text": "two"}, item]) == (
        f"<list of 3 documents> holds {found} at index 2: expected texts, or records such as {{'text': '...'}}."
    )


@pytest.mark.parametrize(
    ("corpus", "found"),
    [
        (None, "None"),
        (3, "3"),
        (b"text", "bytes"),
        (bytearray(b"text"), "bytearray"),
        (object(), "object"),
        (lambda: ["text"], "function"),
        ({"text": ["one"]}, "dict"),
        ({}, "dict"),
    ],
    ids=range(8),
)
def test_what_is_no_corpus_is_refused_by_its_type(corpus: object, found: str) -> None:
    assert message(corpus).startswith(
        "A corpus is a path, or in memory a list of texts or of records, a datasets.Dataset, or a table of pyarrow, pandas or "
        f"polars; found {found}."
    )


class OneIterator:
    """Iterates once, though it is no iterator itself."""

    def __init__(self) -> None:
        self._rows = iter(["one"])

    def __iter__(self) -> Iterator[str]:
        return self._rows


class Indexed:
    """A map-style dataset of torch: a length, and items by index."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"text": ["one", "two"][index]}


def test_items_by_their_index() -> None:
    assert [d.text for d in read(Indexed())] == ["one", "two"]


@pytest.mark.parametrize(
    ("corpus", "kind"),
    [
        ((text for text in ["one"]), "generator"),
        (iter(["one"]), "list_iterator"),
        (map(str, [1]), "map"),
        (OneIterator(), f"{__name__.partition('.')[0]}.OneIterator"),
        (io.StringIO("one"), "_io.StringIO"),
        (pa.table({"text": ["one"]}).to_reader(), "pyarrow.RecordBatchReader"),
    ],
    ids=range(6),
)
def test_what_can_be_read_once_is_refused(corpus: object, kind: str) -> None:
    assert message(corpus) == (
        f"A corpus is read more than once, and a {kind} can be read only once: pass a list of its items, list(…), or write "
        "them to a file of JSON lines."
    )


def test_a_set_has_no_order() -> None:
    assert message({"one", "two"}) == "A corpus has an order, and a set has none: pass a list."


def test_a_list_of_the_names_of_files_is_no_list_of_texts(tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text("text")
    names = [str(path) for path in paths]
    assert message(names) == (
        "The corpus <list of 2 texts> holds names of files, and their texts are expected: pass one path or a glob, or read the "
        "files first."
    )
    assert len(read([*names, "a text"])) == 3
    assert len(read([{"text": name} for name in names])) == 2


def test_tables_are_read_as_parquet_is() -> None:
    table = pa.table({"input_ids": [[1, 2, 0], [3]], "attention_mask": [[1, 1, 0], [1]], "lang": [1, -1]})
    metadata = {"huggingface": json.dumps({"info": {"features": {"lang": CLASS}}})}
    table = table.replace_schema_metadata(metadata)
    found = read(table, label_columns=("lang",))
    assert [(d.ids.tolist(), d.labels) for d in found if d.ids is not None] == [
        ([1, 2], {"lang": "en"}),
        ([3], {"lang": ""}),
    ]
    assert message(table, label_columns=("lnag",)).startswith(
        "<pyarrow.Table of 2 rows> has no label column 'lnag': its"
    )


def test_frames_are_known_by_their_arrow_interface() -> None:
    class DataFrame:
        columns = ("text",)

        def __init__(self, table: pa.Table) -> None:
            self._table = table

        def __len__(self) -> int:
            return len(self._table)

        def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
            if self._table["text"].type != pa.string():
                raise pa.ArrowTypeError("Expected bytes, got a 'int' object")
            return self._table.__arrow_c_stream__()

        def __iter__(self) -> Iterator[str]:  # pandas and polars give the columns' names
            return iter(self.columns)

    assert [d.text for d in read(DataFrame(pa.table({"text": ["one", "two"]})))] == ["one", "two"]
    assert message(DataFrame(pa.table({"text": [1]}))) == (
        f"The corpus <{__name__.partition('.')[0]}.DataFrame> cannot be read as a table (Expected bytes, got a 'int' object). "
        "Give each column one type."
    )


def test_frames_without_it_are_not_read_as_their_columns_names() -> None:
    class LazyFrame:
        columns = ("text",)

        def __iter__(self) -> Iterator[str]:
            return iter(self.columns)

    assert message(LazyFrame()).endswith("LazyFrame.")


def test_a_dataset_gives_the_names_of_its_classes() -> None:
    dataset = Dataset(ROWS, {"text": {"_type": "Value"}, "lang": CLASS})
    report = CorpusReport()
    found = read(dataset, report, label_columns=("lang",))
    assert [(d.source.partition(">")[2], d.text, d.labels["lang"]) for d in found] == [
        (":0", "one", "en"),
        (":1", "two", "de"),
        (":3", "four", ""),
    ]
    assert report.n_empty_documents == 1
    assert str(as_corpus(dataset)).endswith("Dataset of 4 rows>")
    with pytest.raises(
        InvalidInputError, match=r":0: column 'lang' holds a class by its index, below 2 or -1 for none"
    ):
        read(Dataset([{"text": "a", "lang": 7}], {"lang": CLASS}), label_columns=("lang",))


def test_features_may_be_objects_that_become_json() -> None:
    class Features(dict[str, object]):
        def to_dict(self) -> dict[str, object]:
            return {"lang": CLASS}

    found = read(Dataset(ROWS, Features(lang=object())), label_columns=("lang",))
    assert [d.labels["lang"] for d in found] == ["en", "de", ""]


def test_of_a_dataset_only_the_columns_are_read_that_are_asked_for() -> None:
    dataset = Dataset([{"text": "one", "audio": object(), "lang": "en"}], {})
    assert read(dataset, label_columns=("lang",))[0].labels == {"lang": "en"}
    assert dataset.read == {"text", "lang"}
    assert "has no label column 'lnag': its columns are 'text', 'audio', 'lang';" in message(
        dataset, label_columns=("lnag",)
    )


def test_a_format_hides_columns_and_a_transform_makes_them() -> None:
    rows = [{"text": "one", "input_ids": [1, 2], "attention_mask": [1, 0]}]
    [document] = read(Dataset(rows, {}, type="torch", columns=["input_ids", "attention_mask"]))
    assert document.ids is not None
    assert document.ids.tolist() == [1]
    [document] = read(Dataset(rows, {}, columns=["text"]), prefer_ids=True)
    assert document.text == "one"
    made = Dataset([{"raw": "one"}], {}, type="custom", transform=lambda row: {"text": f"<{row['raw']}>"})
    assert [d.text for d in read(made)] == ["<one>"]


def test_a_stream_of_rows_that_can_be_read_again() -> None:
    found = read(Stream(ROWS), label_columns=("lang",))
    assert [(d.text, d.labels["lang"]) for d in found] == [("one", "1"), ("two", "0"), ("four", "-1")]
    assert "is list: expected a record" in message(Stream([["one"]]))  # type: ignore[list-item]


def test_splits_of_datasets_have_their_name_as_label() -> None:
    splits = {"train": Dataset(ROWS[:1], {}), "test": Dataset(ROWS[1:2], {})}
    assert str(as_corpus(splits)) == "<dict of 2 splits>"
    assert [(d.source, d.text, d.labels) for d in read(splits)] == [
        ("<dict>/train:0", "one", {"split": "train"}),
        ("<dict>/test:0", "two", {"split": "test"}),
    ]


def test_images_in_memory_are_refused() -> None:
    dataset = Dataset([{"image": object(), "label": 0}], {"image": {"_type": "Image"}, "label": CLASS})
    assert "holds images, in its column 'image', and no text; images are read from files only" in message(dataset)
    assert as_corpus({"train": dataset}).image_columns == ("image",)  # type: ignore[union-attr]


def test_images_beside_text_in_memory_are_refused_where_the_model_sees_them() -> None:
    corpus = as_corpus(Dataset([{"image": object(), "text": "a cat"}], {"image": {"_type": "Image"}}))
    sees = SimpleNamespace(parts=("language", "vision"), kind="causal")
    with pytest.raises(
        InvalidInputError, match=r"Images are read from files only, and <.*Dataset of 1 row> is in memory"
    ):
        capture_run._is_of_images(corpus, None, sees, {})  # type: ignore[arg-type]
    assert not capture_run._is_of_images(corpus, None, SimpleNamespace(parts=("language",), kind="causal"), {})  # type: ignore[arg-type]
    assert not capture_run._is_of_images(as_corpus(["a cat"]), None, sees, {})  # type: ignore[arg-type]


# Through a model


def test_texts_in_memory_are_captured_as_those_of_a_file_and_resumed(tiny_model: Path, tmp_path: Path) -> None:
    texts = ["the quick brown fox", "jumps over the lazy dog", "naïve café"]
    records = [{"text": text, "language": str(len(text))} for text in texts]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{r["text"]}", "language": "{r["language"]}"}}\n' for r in records))
    store = tmp_path / "store"
    expected = actstore.capture(str(tiny_model), path, store, name="file", label_columns=("language",))
    found = actstore.capture(str(tiny_model), records, store, name="memory", label_columns=("language",))
    assert found.record.plan.corpus == "<list of 3 records>"
    assert found.plan.table("documents")["source"].to_pylist() == [f"<list>:{n}" for n in range(3)]
    assert found.record.plan.corpus_fingerprint == expected.record.plan.corpus_fingerprint
    np.testing.assert_array_equal(found.activations(1, 3), expected.activations(1, 3))

    again = actstore.capture(str(tiny_model), records, store, name="memory", options=RunOptions(resume=True))
    assert again.is_complete
    with pytest.raises(
        InvalidInputError, match=r"the corpus <list of 2 records> is not what was planned from <list of 3 rec"
    ):
        actstore.capture(str(tiny_model), records[:2], store, name="memory", options=RunOptions(resume=True))


def test_ids_in_memory_need_no_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("tokenizer*"))
    done = actstore.capture(str(model), [{"input_ids": torch.tensor([0, 40, 41])}], tmp_path / "store")
    assert done.record.plan.n_tokens == 3


@pytest.mark.parametrize("corpus", [(text for text in ["one"]), ["one", 2], {"text": ["one"]}], ids=range(3))
def test_what_is_refused_leaves_nothing_behind(tiny_model: Path, tmp_path: Path, corpus: Any) -> None:
    with pytest.raises(InvalidInputError):
        actstore.capture(str(tiny_model), corpus, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_settings_of_images_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="`image_column` is for images, and <list of 1 text> is taken for text"):
        actstore.capture(str(tiny_model), ["one"], tmp_path / "store", image_column="image")


def test_a_digest_knows_nothing_of_where_documents_were() -> None:
    def digest(corpus: object) -> str:
        whole = CorpusDigest()
        for document in read(corpus, label_columns=("n",)):
            whole.update(document)
        return whole.hexdigest()

    table = pa.table({"text": ["one", "two"], "n": ["1", "2"]})
    assert digest(table) == digest(table.to_pylist()) == digest(Dataset(table.to_pylist(), {}))
