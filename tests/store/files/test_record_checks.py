"""What no record of a store can say, whatever its checksum."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import planted_stores
import pytest

from actstore.store.edits import EditedRows, EditRecord
from actstore.store.errors import FormatError
from actstore.store.files.record_checks import check_of_model
from actstore.store.files.records import CaptureRecord, CommitRecord, PlanRecord
from actstore.store.graphs.record import GraphRecord

if TYPE_CHECKING:
    from actstore.store.files.records import Record

PLAN = PlanRecord("p", "corpus", "c", "t", {}, ("language",), (("language", "en"),), 2, 3, 40, 64, 2)
CAPTURE = planted_stores.capture_record("corpus", PLAN, planted_stores.Planted())
MODEL = planted_stores.model_record()
COMMIT = CommitRecord(7, {"values/mlp.post/1/c/0/7": (123, "0a1b2c3d")})
GRAPHS = GraphRecord("graphs", "corpus", "a", "f", "t", "corpus", "p", "mlp.post", {}, 2)
ROWS = EditedRows(1, "m", (0, 3), "b", "a")
EDIT = EditRecord("double", "weights", "boost", "a", "2026", "m", "f", "float32", {}, (ROWS,))
LAYERS = json.loads(json.dumps(MODEL.to_json()))["layers"]


@pytest.mark.parametrize(
    ("record", "field", "wrong"),
    [
        (PLAN, "n_blocks", 10**9), (PLAN, "n_blocks", -1), (PLAN, "n_blocks", 0), (PLAN, "n_blocks", 4),
        (PLAN, "n_windows", 1), (PLAN, "n_windows", 2**31), (PLAN, "n_documents", -1), (PLAN, "n_tokens", 129),
        (PLAN, "n_tokens", -1), (PLAN, "n_tokens", 10**30), (PLAN, "block_slots", 0), (PLAN, "block_slots", 2**62),
        (PLAN, "labels", [["topic", "x"]]), (PLAN, "n_blocks", float("nan")),
        (CAPTURE, "name", "../corpus"), (CAPTURE, "name", ""), (CAPTURE, "name", "a\0b"), (CAPTURE, "name", ".."),
        (CAPTURE, "dtype", "float64"), (CAPTURE, "dtype", "object"), (CAPTURE, "float_dtype", "int8"),
        (CAPTURE, "keep", float("nan")), (CAPTURE, "keep", -0.5), (CAPTURE, "keep", float("inf")),
        (CAPTURE, "n_exemplars", 10**9), (CAPTURE, "n_exemplars", -1), (CAPTURE, "gate_sign", [0, 7]),
        (CAPTURE, "gate_sign", [0, 0]), (CAPTURE, "statistics", ["mean", "mean"]),
        (CAPTURE, "settings", {"probes": "all"}), (CAPTURE, "sites", {"../mlp.post": {"0": 5}}),
        *((CAPTURE, "sites", {"mlp.post": {key: 5}}) for key in ("", "x", "-1", "01", "1.0", "../1", "٣", "9" * 30)),
        *((CAPTURE, "sites", {"mlp.post": {"0": width}}) for width in (0, -5, 2**30)),
        (CAPTURE, "sites", {"mlp.post": {}}),
        (MODEL, "d_model", 0), (MODEL, "d_model", 2**40), (MODEL, "n_vocabulary", -1), (MODEL, "layers", []),
        (MODEL, "layers", LAYERS[::-1]), (MODEL, "layers", LAYERS[1:]), (MODEL, "sites", ["a/b"]), (MODEL, "weights", [".."]),
        (MODEL, "layers", [LAYERS[0] | {"neurons": 0}]), (MODEL, "layers", [LAYERS[0] | {"neurons": 2**40}]),
        (COMMIT, "block", -1), (COMMIT, "shards", {"../../../etc/passwd": [1, "0a1b2c3d"]}),
        (COMMIT, "shards", {"/etc/passwd": [1, "0a1b2c3d"]}), (COMMIT, "shards", {"a//b": [1, "0a1b2c3d"]}),
        (COMMIT, "shards", {"a": [-1, "0a1b2c3d"]}), (COMMIT, "shards", {"a": [1, "0A1B"]}), (COMMIT, "shards", {"a": [1, ""]}),
        (COMMIT, "seconds", float("nan")),
        (GRAPHS, "name", "a/b"), (GRAPHS, "n_neurons", -1), (GRAPHS, "n_nodes", -1),
        (GRAPHS, "files", {"../nodes.arrow": [1, "0a1b2c3d"]}),
        (EDIT, "name", ".."), (EDIT, "kind", "x"), (EDIT, "files", {"..": [1, "0a1b2c3d"]}), (ROWS, "neurons", [3, 0]),
        (ROWS, "neurons", [-1, 0]), (ROWS, "neurons", [0, 0]), (ROWS, "layer", -1), (ROWS, "layer", 2**40),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_name(record: Record, field: str, wrong: Any) -> None:
    value = json.loads(json.dumps(record.to_json()))
    assert type(record).from_json(value, "S/x.json") == record
    with pytest.raises(FormatError) as caught:
        type(record).from_json(value | {field: wrong}, "S/x.json")
    message = str(caught.value)
    assert message.startswith("S/x.json: ")
    assert len(message) < 250
    assert "found" in message


@pytest.mark.parametrize("sites", [{"mlp.post": {"2": 5}}, {"mlp.post": {"0": 6}}, {"mlp.gate": {"1": 5}}])
def test_a_captures_layers_are_those_of_the_model(sites: dict[str, dict[str, int]]) -> None:
    check_of_model({"mlp.post": {"0": 5, "1": 40}, "resid.post": {"1": 8}}, MODEL, "S/x.json")
    with pytest.raises(FormatError, match=r"^S/x.json: .* should lie between (0|5|40) and "):
        check_of_model(sites, MODEL, "S/x.json")


def test_a_record_that_could_not_be_read_is_not_written() -> None:
    import dataclasses

    with pytest.raises(FormatError, match="name should be a name"):
        dataclasses.replace(CAPTURE, name="a/b").to_json()
    assert isinstance(CaptureRecord.from_json(CAPTURE.to_json(), ""), CaptureRecord)
