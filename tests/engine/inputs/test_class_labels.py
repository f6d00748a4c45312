"""Classes by their names, wherever `datasets` kept them: in the schema of a file, or beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from actstore.engine.inputs.class_labels import class_columns, features_in, name_classes
from actstore.engine.inputs.corpus import CorpusOptions, read_corpus
from actstore.engine.inputs.images import ImageOptions, read_images
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

CLASS = {"names": ["de", "en"], "_type": "ClassLabel"}
FEATURES = {"text": {"dtype": "string", "_type": "Value"}, "lang": CLASS}


def table(features: dict[str, Any] | None = None, **columns: Any) -> pa.Table:
    """A table with the metadata that `datasets` writes."""
    made = pa.table(columns or {"text": ["a", "b", "c", "d"], "lang": [1, 0, -1, None]})
    if features is None:
        return made
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_stream(made: pa.Table, path: Path) -> None:
    with ipc.new_stream(path, made.schema) as writer:
        writer.write_table(made)


def save_dataset(folder: Path, made: pa.Table, information: dict[str, Any]) -> Path:
    folder.mkdir()
    write_stream(made, folder / "data.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps(information))
    return folder


def labels(path: Path, column: str = "lang") -> list[str]:
    return [document.labels[column] for document in read_corpus(path, CorpusOptions(label_columns=(column,)))]


@pytest.mark.parametrize(
    ("name", "write"), [("a.parquet", pq.write_table), ("a.arrow", write_stream), ("a.feather", feather.write_feather)]
)
def test_names_from_the_schema_of_a_file(tmp_path: Path, name: str, write: Any) -> None:
    write(table(FEATURES), tmp_path / name)
    assert labels(tmp_path / name) == ["en", "de", "", ""]


def test_names_from_a_saved_dataset(tmp_path: Path) -> None:
    assert labels(save_dataset(tmp_path / "a", table(FEATURES), {})) == ["en", "de", "", ""]
    assert labels(save_dataset(tmp_path / "b", table(), {"features": FEATURES})) == ["en", "de", "", ""]
    assert labels(save_dataset(tmp_path / "c", table(), {"features": None})) == ["1", "0", "-1", ""]


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {b"huggingface": b"{"}, {b"huggingface": b"[]"}, {b"huggingface": b'{"info": {"features": []}}'}],
)
def test_other_metadata_names_nothing(metadata: dict[bytes, bytes] | None) -> None:
    assert features_in(metadata) == {}


@pytest.mark.parametrize("index", [2, -2])
def test_an_index_without_a_name_is_refused(tmp_path: Path, index: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(FEATURES, text=["a", "b"], lang=[0, index]), path)
    with pytest.raises(InvalidInputError) as caught:
        labels(path)
    assert str(caught.value) == (
        f"{path}:1: column 'lang' holds a class by its index, below 2 or -1 for none, found an integer ({index}); write the "
        "data set again."
    )
    assert [document.text for document in read_corpus(path)] == ["a", "b"]  # it matters only as a label


@pytest.mark.parametrize(
    ("feature", "value", "expected"),
    [
        ({"feature": CLASS, "_type": "Sequence"}, [1, 0, -1], '["en", "de", null]'),
        ({"feature": CLASS, "_type": "List"}, [1], '["en"]'),
        ([CLASS], [0, 1], '["de", "en"]'),
        ({"k": CLASS, "n": {"dtype": "int64", "_type": "Value"}}, {"k": 1, "n": 1}, '{"k": "en", "n": 1}'),
        ({"feature": {"k": CLASS}, "_type": "Sequence"}, {"k": [1, 0]}, '{"k": ["en", "de"]}'),
        ([{"k": CLASS}], [{"k": 1}], '[{"k": "en"}]'),
        ({"dtype": "int64", "_type": "Value"}, 1, "1"),
        ({"names": None, "_type": "ClassLabel"}, 1, "1"),
    ],
)
def test_classes_at_whatever_depth(tmp_path: Path, feature: Any, value: Any, expected: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table({"lang": feature}, text=["a"], lang=[value]), path)
    assert labels(path) == [expected]


def test_a_value_of_another_shape_than_its_feature_stays(tmp_path: Path) -> None:
    assert name_classes("en", CLASS, "f", "lang") == "en"
    assert name_classes({"k": 1}, [CLASS], "f", "lang") == {"k": 1}
    assert class_columns({"a": CLASS, "b": {"_type": "Value"}, "c": None}) == {"a": CLASS}


def test_names_of_the_classes_of_images(tmp_path: Path) -> None:
    columns = {"image": ["a.png", "b.png"], "lang": [1, -1]}
    pq.write_table(table({"lang": CLASS}, **columns), tmp_path / "a.parquet")
    save_dataset(tmp_path / "d", table(None, **columns), {"features": {"lang": CLASS}})
    for location in (tmp_path / "a.parquet", tmp_path / "d"):
        found = read_images(location, ImageOptions(label_columns=("lang",)))
        assert [document.labels["lang"] for document in found] == ["en", ""]
