"""`coverage` and `coverage probe` from the command line: what they say, what they refuse, what they do not need."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import pytest

from actstore.engine.capture.api import RunOptions, capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]


def criteria(*names: str) -> list[str]:
    """The options that name criteria."""
    return [word for name in names for word in ("--criterion", name)]


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore coverage …` in this process."""
    return functools.partial(cli, "coverage")


@pytest.fixture(scope="module")
def store(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures of the tiny model: `corpus`, `training` without values, `last` positions, `first` positions."""
    path = tmp_path_factory.mktemp("coverage") / "store"
    common: dict[str, Any] = {"context": 64, "label_columns": ("language",), "options": RunOptions(memory=100_000)}
    capture(str(tiny_model), corpus, path, max_documents=12, **common)
    capture(str(tiny_model), corpus, path, name="training", precision="none", max_documents=6, **common)
    capture(str(tiny_model), corpus, path, name="last", positions="last", **common)
    capture(str(tiny_model), corpus, path, name="first", positions="0,1", max_documents=6, **common)
    return path


def test_criteria_of_a_capture_and_of_its_labels(cli: Callable[..., Result], store: Path) -> None:
    done = cli(store, "--capture", "corpus", "--reference", "training", "--by", "language", "--json")
    assert (done.status, done.err) == (0, "")
    value = json.loads(done.out)
    names = [(row["criterion"], row["parameter"]) for row in value["criteria"]]
    assert names == [("nc", 0.25), ("nc", 0.5), ("nc", 0.75), ("kmnc", 1000), ("nbc", None), ("snac", None), ("tknc", 10),
                     ("tknp", 10)]  # fmt: skip
    assert set(value["labels"]) == {"en", "fr", "py"}
    assert value["samples"] == sum(label["samples"] for label in value["labels"].values())
    for whole, *parts in zip(
        value["criteria"], *(label["criteria"] for label in value["labels"].values()), strict=True
    ):
        assert max(p["covered"] for p in parts) <= whole["covered"] <= sum(p["covered"] for p in parts)
    shown = cli(
        store,
        "--capture",
        "corpus",
        "--criterion",
        "tknc",
        "--criterion",
        "nc",
        "--thresholds",
        "0.9",
        "--by",
        "language",
    )
    assert [line.split()[0] for line in shown.out.splitlines()] == ["criterion", "samples", "TKNC", "NC"]
    assert "language=py" in shown.out
    same = cli(store, "--capture", "corpus", "--reference", "corpus", "--criterion", "nbc", "--json")
    assert json.loads(same.out)["criteria"][0]["covered"] == 0


def test_states_of_two_captures_merge_into_one(cli: Callable[..., Result], store: Path, tmp_path: Path) -> None:
    options = (
        "--capture",
        "corpus",
        *criteria("nc", "tknc", "tknp", "tfc"),
        "--distance",
        "0.05",
        "--json",
    )
    first = json.loads(cli(store, *options, "--output", tmp_path / "state").out)
    again = json.loads(cli(store, *options, "--merge", tmp_path / "state").out)
    assert again["samples"] == 2 * first["samples"]
    assert [row["covered"] for row in again["criteria"]] == [row["covered"] for row in first["criteria"]]
    refused = cli(store, *options, "--top", "3", "--merge", tmp_path / "state")
    assert refused.status == 2
    assert "top is 3 in one and 10 in the other" in refused.err


def test_few_samples_are_said(cli: Callable[..., Result], store: Path) -> None:
    done = cli(store, "--capture", "corpus", "--positions", "last")
    assert done.status == 0
    assert "has only 13 samples at these positions" in done.err  # of 12 documents, one is longer than a window


def test_a_probe_for_each_layer(cli: Callable[..., Result], store: Path) -> None:
    done = cli("probe", store, "--capture", "last", "--by", "language", "--positive", "py", "--json")
    assert done.status == 0, done.err
    value = json.loads(done.out)
    assert [row["layer"] for row in value["layers"]] == [0, 1, "all"]
    assert all(0 <= row[key] <= 1 for row in value["layers"] for key in ("accuracy", "auroc"))
    shown = cli(
        "probe", store, "--capture", "last", "--by", "language", "--positive", "py", "--negative", "en", "--layers", "1"
    )
    assert "language=py against language=en: trained on" in shown.out
    assert "L1" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("S", "--criterion", "kmnc"), "compare values with the ranges of another capture"),
        (("S", "--criterion", "tfc"), "needs the distance beyond which a vector is new"),
        (("S", "--by", "topic"), "has no label 'topic'. Its labels are: language"),
        (("S", "--thresholds", "1.5"), "--thresholds are numbers from 0"),
        (("S", "--capture", "training"), "statistics only"),
        (
            ("S", "--capture", "first", "--positions", "last"),
            "needs those that the windows end in. Capture again with",
        ),
        (("S", "--merge", "nowhere"), "There is no file nowhere"),
        (("S", "--reference", "b"), "has no capture 'b'"),
        (("S", "--output", "/nowhere/x"), "The folder of /nowhere/x does not exist"),
        (("probe", "S", "--by", "language", "--positive", "de"), "No document has language=de"),
        (("probe", "S", "--by", "language", "--positive", "en", "--layers", "7"), ", found 7."),
        (("probe", "S", "--by", "language", "--positive", "en", "--ridge", "0"), "must be above 0, found 0.0"),
        (
            ("probe", "S", "--by", "language", "--positive", "en", "--capture", "first"),
            "needs those that the windows end in",
        ),
    ],
)
def test_what_has_no_answer(cli: Callable[..., Result], store: Path, arguments: tuple[str, ...], message: str) -> None:
    done = cli(*(store if argument == "S" else argument for argument in arguments))
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("S", "--capture", "corpus", "--reference", "training", "--json"),
        ("probe", "S", "--capture", "last", "--by", "language", "--positive", "py", "--json"),
    ],
)
def test_neither_transformers_nor_torch_is_needed(
    run_without: Callable[..., Any], arguments: tuple[str, ...], store: Path
) -> None:
    filled = (store if argument == "S" else argument for argument in arguments)
    done = run_without(("transformers", "tokenizers", "torch"), ("coverage", *filled))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
