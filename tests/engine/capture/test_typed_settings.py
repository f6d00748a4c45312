"""Settings of the wrong type: refused by name before anything is written, wherever a dataclass of settings is the API."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from typing import TYPE_CHECKING, Any, get_args, get_origin

import numpy as np
import pytest

import actstore
from actstore.engine.capture.api import capture
from actstore.engine.capture.estimate import estimate
from actstore.engine.capture.run import RunOptions
from actstore.engine.capture.settings import CaptureSettings, ImageSettings
from actstore.store.arguments import Typed, field_types
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.files.records import CaptureRecord
from actstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path


def _settings_classes() -> list[type]:
    """Every dataclass of settings: those called so, and those that are checked."""
    found: dict[str, type] = {}
    for package in ("engine", "store"):
        root = importlib.import_module(f"actstore.{package}")
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            for item in vars(importlib.import_module(module.name)).values():
                named = isinstance(item, type) and item.__name__.endswith(("Settings", "Options"))
                ours = isinstance(item, type) and item.__module__.startswith("actstore.")
                if ours and item is not Typed and dataclasses.is_dataclass(item) and (named or issubclass(item, Typed)):
                    found[f"{item.__module__}.{item.__name__}"] = item
    return [found[name] for name in sorted(found)]


CLASSES = _settings_classes()


class Nothing:
    """Of no type that a setting has."""


@pytest.mark.parametrize("settings", CLASSES, ids=lambda c: f"{c.__module__.removeprefix('actstore.')}.{c.__name__}")
def test_every_field_of_every_settings_class_is_checked(settings: type) -> None:
    assert issubclass(settings, Typed), "settings are Typed"
    needed: dict[str, Any] = {
        "context": 64, "by": "topic", "old": "a", "new": "b", "operations": (), "kind": "suppress", "neurons": ("L0.N1",),
        "sites": ("mlp.post",), "layers": (0,),
    }  # fmt: skip
    required = {
        field.name: needed[field.name]
        for field in dataclasses.fields(settings)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    for name, kind in field_types(settings).items():
        if kind is Any:
            continue
        with pytest.raises(InvalidInputError, match=rf"^{name} is .+, found .*Nothing"):
            settings(**required | {name: Nothing()})
        if get_origin(kind) is tuple and get_args(kind)[0] is str:
            with pytest.raises(InvalidInputError, match=rf"^{name} is a sequence of texts such as \('x',\), found"):
                settings(**required | {name: "x"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_columns": "language"}, "label_columns is a sequence of texts such as ('language',), found the text"),
        ({"sites": "mlp.post"}, "sites is a sequence of texts such as ('mlp.post',), found the text 'mlp.post'"),
        ({"exemplars": 2.0}, "exemplars is an integer, found the number 2.0"),
        ({"max_tokens": "100"}, "max_tokens is an integer or None, found the text '100'"),
        ({"max_tokens": 1e3}, "max_tokens is an integer or None, found the number 1000.0"),
        ({"context": 64.0}, "context is an integer or None, found the number 64.0"),
        ({"layers": "0"}, "layers is a sequence of integers such as (0, 1) or None, found the text '0'"),
        ({"layers": [0.5]}, "layers is a sequence of integers such as (0, 1) or None, found the list [0.5]"),
        ({"keep": "0.1", "precision": "sparse"}, "keep is a number, found the text '0.1'"),
        ({"pattern": ["*.py"]}, "pattern is a text, found the list ['*.py']"),
        ({"batch_tokens": True}, "batch_tokens is an integer, found True"),
        ({"gate_sign": "no"}, "gate_sign is True or False or None, found the text 'no'"),
        ({"positions": 1.5}, "positions is a text, found the number 1.5"),
        ({"positions": []}, "positions is a text, found the list []"),
        ({"positions": ["last"]}, "positions is a sequence of integers such as (0, 1), found the list ['last']"),
        ({"options": {"resume": True}}, "options is a RunOptions or None, found the dictionary"),
        ({"name": 3}, "name is a text, found the integer 3"),
    ],
)
def test_a_capture_with_a_setting_of_another_type_writes_nothing(
    tiny_model: Path, corpus: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        capture(str(tiny_model), corpus, tmp_path / "store", **{"max_tokens": 200} | given)
    assert message in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_every_setting_is_a_parameter_of_capture_and_of_estimate() -> None:
    functions = {"capture": capture, "estimate": estimate}
    parameters = {name: inspect.signature(function).parameters for name, function in functions.items()}
    assert parameters["capture"] == parameters["estimate"]
    settings = [field.name for field in dataclasses.fields(ImageSettings)]
    first = list(parameters["capture"]).index("report") + 1
    assert list(parameters["capture"])[first:] == settings
    assert all(parameters["capture"][name].default is None for name in settings)
    documented = re.findall(r"^    - `(\w+)`: .* \[(.+)\]$", capture.__doc__ or "", re.MULTILINE)
    assert [name for name, _ in documented] == settings
    for name, default in documented:
        value = getattr(ImageSettings, name)
        if value not in (None, (), ""):
            assert ast.literal_eval(default) == value, name


@pytest.mark.parametrize("function", [capture, estimate])
def test_a_misspelt_setting_is_refused_with_the_one_that_was_meant(function: Any, tmp_path: Path) -> None:
    expected = rf"^actstore\.{function.__name__} has no parameter 'precison'\. Did you mean 'precision'\?$"
    with pytest.raises(InvalidInputError, match=expected):
        function("nowhere", "nothing", tmp_path / "store", precison="half")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "1GB"}, "memory is an integer or None, found the text '1GB'"),
        ({"resume": "no"}, "resume is True or False, found the text 'no'"),
        ({"threads": 2.5}, "threads is an integer or None, found the number 2.5"),
    ],
)
def test_options_of_a_run_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        RunOptions(**options)
    assert str(refused.value) == f"{message}."


def test_what_can_mean_nothing_else_is_recorded_as_if_it_had_been_given_right(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "layers": 1, "sites": ["mlp.post"], "label_columns": ["language"], "positions": [0, -1], "max_tokens": np.int64(9),
        "exemplars": np.int32(2),
    }  # fmt: skip
    done = capture(str(tiny_model), corpus, tmp_path / "store", **given)
    settings = done.record.settings
    assert (settings["layers"], settings["positions"], settings["max_tokens"]) == ([1], "0,-1", 9)
    assert CaptureSettings.from_json(json.loads(json.dumps(settings))).positions == "0,-1"
    again = capture(str(tiny_model), corpus, tmp_path / "store", options=RunOptions(resume=True), **given)
    assert again.is_complete
    assert ImageSettings(positions=-1).positions == "-1"  # type: ignore[arg-type]


def test_a_record_that_could_not_be_read_again_is_not_written(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    record = capture(str(tiny_model), corpus, tmp_path / "store", max_tokens=100).record
    for change in ({"n_exemplars": 2.0}, {"plan": dataclasses.replace(record.plan, label_columns="topic")}):
        with pytest.raises(actstore.errors.FormatError, match="The CaptureRecord to be written"):
            dataclasses.replace(record, **change).to_json()
    assert CaptureRecord.from_json(record.to_json(), "x") == record


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda store: store.neuron("x", 1), "A neuron is named by layer and index"),
        (lambda store: store.neuron(0.0, 1), "layer is an integer or a text, found the number 0.0"),
        (lambda store: store.neuron(0, "1"), "neuron is an integer or None, found the text '1'"),
        (lambda store: store.neuron(0, True), "neuron is an integer or None, found True"),
        (lambda store: store.capture(3), "name is a text or None, found the integer 3"),
        (lambda store: store.neurons(3), "name is a text or None, found the integer 3"),
        (lambda store: store.sql(3), "query is a text, found the integer 3"),
        (lambda store: store.graph(0, 1, 3), "name is a text, found the integer 3"),
        (lambda store: store.neuron(0, 1).exemplars(k="3"), "k is an integer, found the text '3'"),
        (lambda store: store.neuron(0, 1).exemplars(context=-1), "0 or more, found -1"),
        (lambda store: store.neuron(0, 1).activations(site=3), "site is a text, found the integer 3"),
        (lambda store: store.contributions(" the", k="3"), "k is an integer, found the text '3'"),
        (lambda store: store.contributions(1.5), "target is "),
        (lambda store: store.contributions(" the", at=(0, 1.5)), "at is a sequence of integers"),
        (lambda store: store.contributions(" the", gain="no"), "gain is True or False, found the text 'no'"),
        (lambda store: store.capture().block_values("0", 0), "layer is an integer, found the text '0'"),
        (lambda store: store.capture().block_values(0, "0"), "block is an integer, found the text '0'"),
        (lambda store: actstore.open(None), "location is a text or a path, found None"),
        (lambda store: actstore.open(["a"]), "location is a text or a path, found the list ['a']"),
    ],
    ids=[f"question-{i}" for i in range(19)],
)
def test_questions_to_a_store_are_checked(planted_store: Path, ask: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        ask(Store(planted_store))
    assert message in str(refused.value)


@pytest.fixture(scope="module")
def planted_store(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store that answers."""
    path = tmp_path_factory.mktemp("typed") / "store"
    capture(str(tiny_model), corpus, path, max_tokens=100)
    return path


@pytest.mark.parametrize("stop", [{"max_tokens": 100}, {"max_documents": 3}, {}], ids=["tokens", "documents", "none"])
def test_a_misspelt_label_is_refused_however_planning_ends(
    tiny_model: Path, corpus: Path, tmp_path: Path, stop: dict[str, int]
) -> None:
    with pytest.raises(InvalidInputError, match="label column 'langauge'"):
        capture(str(tiny_model), corpus, tmp_path / "store", label_columns=("langauge",), **stop)
    assert not (tmp_path / "store").exists()


def test_a_label_that_some_documents_have_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"text": "one two three four", **({"topic": "a"} if i % 2 else {})} for i in range(40)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, stop in (("some", {"max_tokens": 60}), ("all", {})):
        done = capture(str(tiny_model), tmp_path / "c.jsonl", tmp_path / name, label_columns=("topic",), **stop)
        assert done.record.plan.labels == (("topic", ""), ("topic", "a"))


def test_a_store_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFoundError, match="There is no store at nowhere"):
        actstore.open("nowhere")
