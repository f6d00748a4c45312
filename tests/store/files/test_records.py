import dataclasses
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files.records import CaptureRecord, CommitRecord, LayerRecord, ModelRecord, PlanRecord
from actstore.store.model.root import is_store, read_root, write_root
from actstore.store.reader import read_capture
from actstore.store.storage.folder import Folder

LAYER = LayerRecord(3, 17, "model.layers.3.mlp.down_proj", True, 3, "decoder", None, "norm")
MODEL = ModelRecord(
    "gpt2",
    "gpt2",
    "causal",
    8,
    None,
    "float32",
    "f" * 64,
    ("mlp.post",),
    (dataclasses.replace(LAYER, layer=0), dataclasses.replace(LAYER, layer=1)),
    {"a": [1]},
    ("layer-0",),
    "/m",
)
PLAN = PlanRecord(
    "p" * 64, "corpus", "c" * 64, "", {"context": 8}, ("language",), (("language", "en"),), 2, 3, 40, 64, 1
)
CAPTURE = CaptureRecord(
    "corpus",
    "2026",
    "actstore 1",
    "f" * 64,
    "bfloat16",
    "sparse",
    {"mlp.post": {"3": 17}},
    (3,),
    0.05,
    20,
    {},
    PLAN,
    "float32",
    "e" * 64,
    ("count", "mean"),
    "r" * 32,
    "i" * 32,
    {"tokens/ids": "d" * 32},
    True,
    "zstd:3",
    {"mlp.post": "token"},
    (3,),
)
COMMIT = CommitRecord(
    7,
    {"values/mlp.post/3/c/0/7": (123, "0a1b2c3d")},
    1.5,
    capture="corpus",
    plan="p" * 64,
    model="f" * 64,
    identity="i" * 32,
).with_checksum()
RECORDS = [LAYER, MODEL, PLAN, CAPTURE, COMMIT]
FIELDS = [
    pytest.param(record, field, id=f"{type(record).__name__}.{field.name}")
    for record in RECORDS
    for field in dataclasses.fields(record)
]


def through_json(record):
    return json.loads(json.dumps(record.to_json()))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_round_trip(record):
    assert type(record).from_json(through_json(record), "here") == record


def test_a_capture_of_text_says_nothing_of_patches():
    plain = dataclasses.replace(CAPTURE, patches_sha256=None)
    assert "patches_sha256" not in through_json(plain)
    assert (plain.of_images, CAPTURE.of_images) == (False, True)
    assert CaptureRecord.from_json(through_json(plain), "here") == plain


def test_values_in_the_models_own_dtype_are_not_worth_a_field():
    assert CAPTURE.value_dtype == "float32"
    plain = dataclasses.replace(CAPTURE, float_dtype=None)
    assert "float_dtype" not in through_json(plain)
    assert plain.value_dtype == "bfloat16"
    assert CaptureRecord.from_json(through_json(plain), "here") == plain


def test_unknown_fields_are_passed_over():
    """A later actstore may add what an earlier one need not know."""
    assert LayerRecord.from_json(through_json(LAYER) | {"colour": "red"}, "here") == LAYER


@pytest.mark.parametrize(("record", "field"), FIELDS)
def test_a_missing_field_is_named(record, field):
    value = through_json(record)
    del value[field.name]
    if field.default is not dataclasses.MISSING:
        assert getattr(type(record).from_json(value, "here"), field.name) == field.default
        return
    if field.default_factory is not dataclasses.MISSING:
        assert getattr(type(record).from_json(value, "here"), field.name) == field.default_factory()
        return
    with pytest.raises(FormatError) as caught:
        type(record).from_json(value, "S/zarr.json")
    assert str(caught.value) == f"S/zarr.json lacks the field {field.name!r}."


@pytest.mark.parametrize(("record", "field"), FIELDS)
@pytest.mark.parametrize("wrong", [True, "text", 2.5, [[1]], {"a": {"b": []}}, None])
def test_a_wrong_type_is_named(record, field, wrong):
    value = through_json(record)
    right = value[field.name]
    accepts = {
        str: (str,),
        bool: (bool,),
        int: (int,),
        float: (float,),
        list: (),
        dict: (dict,) if field.type == "dict[str, Any]" else (),
        type(None): (int,),
    }[type(right)]
    is_closed = isinstance(record, CaptureRecord) and field.name in ("dtype", "float_dtype", "keep")
    if (type(wrong) in accepts and not is_closed) or (wrong is None and "None" in str(field.type)):
        type(record).from_json(value | {field.name: wrong}, "here")
        return
    with pytest.raises(FormatError) as caught:
        type(record).from_json(value | {field.name: wrong}, "here")
    assert str(caught.value).startswith(f"here: {field.name}")
    assert "<class" not in str(caught.value)


def test_messages():
    with pytest.raises(FormatError) as caught:
        LayerRecord.from_json(through_json(LAYER) | {"neurons": "many"}, "S/zarr.json: model")
    assert str(caught.value) == "S/zarr.json: model: neurons should be int, found 'many'."
    with pytest.raises(FormatError) as caught:
        LayerRecord.from_json(through_json(LAYER) | {"neurons": True}, "S/zarr.json: model")
    assert str(caught.value) == "S/zarr.json: model: neurons should be int, found True."
    with pytest.raises(FormatError) as caught:
        ModelRecord.from_json([], "S/zarr.json: model")
    assert str(caught.value) == "S/zarr.json: model should be a JSON object, found list."
    with pytest.raises(FormatError) as caught:
        CommitRecord.from_json({"block": 1, "shards": {"a": [1, "b", 2]}}, "c")
    assert str(caught.value) == "c: shards should hold 2 items, found 3."


def test_a_nested_field_is_named():
    value = through_json(MODEL)
    value["layers"][1].pop("gated")
    with pytest.raises(FormatError, match=r"^here: layers lacks the field 'gated'\.$"):
        ModelRecord.from_json(value, "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(RECORDS), st.data())
def test_any_json_is_a_record_or_a_format_error(record, data):
    names = [field.name for field in dataclasses.fields(record)]
    changes = data.draw(st.dictionaries(st.sampled_from(names), json_values, max_size=3))
    value = data.draw(json_values) if data.draw(st.booleans()) else through_json(record) | changes
    try:
        read = type(record).from_json(value, "here")
    except FormatError as error:
        assert str(error).startswith("here")  # noqa: PT017 - most changes are errors, some are not
    else:
        assert isinstance(read, type(record))


def test_the_checksum_covers_every_field():
    assert COMMIT.checksum
    assert COMMIT.with_checksum() == COMMIT
    others = [
        dataclasses.replace(COMMIT, block=8),
        dataclasses.replace(COMMIT, shards={"values/mlp.post/3/c/0/7": (124, "0a1b2c3d")}),
        dataclasses.replace(COMMIT, shards={"values/mlp.post/3/c/0/7": (123, "0a1b2c3e")}),
        dataclasses.replace(COMMIT, shards={}),
        dataclasses.replace(COMMIT, seconds=1.25),
    ]
    assert all(other.with_checksum().checksum != COMMIT.checksum for other in others)


def test_the_checksum_survives_json():
    read = CommitRecord.from_json(through_json(COMMIT), "here")
    assert read.with_checksum().checksum == COMMIT.checksum


# The root of a store.


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path, read_only=False)


def test_the_root_says_whose_store_it_is(folder):
    assert not is_store(folder)
    write_root(folder, MODEL)
    assert is_store(folder)
    assert read_root(folder) == MODEL


def test_no_store(folder):
    with pytest.raises(NotFoundError) as caught:
        read_root(folder)
    assert str(caught.value) == (
        f"There is no store at {folder}: expected a folder written by `actstore.capture(…)`. Check the path."
    )


def test_a_newer_format_is_refused_by_name(folder):
    write_root(folder, MODEL)
    root = folder.read_json("zarr.json")
    root["attributes"]["actstore"] |= {"format": 2, "written_by": "actstore 9.1", "model": "unheard of"}
    folder.write_json("zarr.json", root)
    assert is_store(folder)
    with pytest.raises(FormatError) as caught:
        read_root(folder)
    assert str(caught.value) == (
        f"{folder} has store format 2, written by actstore 9.1; this actstore reads formats up to 1. Update actstore."
    )


@pytest.mark.parametrize("version", [None, "1", 1.5, True, 0, -1, [1]])
def test_a_format_that_is_no_version_is_refused(folder, version):
    write_root(folder, MODEL)
    root = folder.read_json("zarr.json")
    root["attributes"]["actstore"]["format"] = version
    folder.write_json("zarr.json", root)
    with pytest.raises(FormatError, match="has store format"):
        read_root(folder)


@pytest.mark.parametrize("root", [{}, {"attributes": None}, {"attributes": []}, {"attributes": {"actstore": 1}}])
def test_another_zarr_hierarchy_is_no_store(folder, root):
    folder.write_json("zarr.json", root)
    with pytest.raises(FormatError, match="not one written by actstore"):
        read_root(folder)


@given(json_values)
def test_any_root_is_a_format_error(tmp_path_factory, value):
    folder = Folder(tmp_path_factory.getbasetemp() / "roots", read_only=False)
    folder.write("zarr.json", json.dumps(value).encode())
    with suppress(FormatError):
        is_store(folder)
    with pytest.raises(FormatError):
        read_root(folder)
    folder.write("captures/c/zarr.json", json.dumps({"attributes": value}).encode())
    assert read_capture(folder, "c") is None


def test_a_capture_without_a_plan_is_none(folder):
    """Zarr makes the group with the first array of the plan; the record comes when the plan is whole."""
    folder.write_json("captures/c/zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
    assert read_capture(folder, "c") is None
    assert read_capture(folder, "d") is None


def test_a_damaged_capture_record_names_its_place(folder):
    folder.write_json("captures/c/zarr.json", {"attributes": {"actstore_capture": {"name": 3}}})
    with pytest.raises(FormatError) as caught:
        read_capture(folder, "c")
    assert str(caught.value) == f"{folder}/captures/c/zarr.json: name should be str, found 3."
