"""`actstore naica evaluate` on a few questions to the demo fact model."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from actstore.engine.attribution.attribute import attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Result  # type: ignore[import-not-found]

DEMO = Path(__file__).resolve().parents[3] / "demo" / "models" / "fact-llama"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("naica-evaluate")
    questions = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    some = dict(list(questions.items())[:9:3] + list(questions.items())[-9::3])
    (folder / "questions.json").write_text(json.dumps(some), encoding="utf-8")
    attribute(str(DEMO), folder / "questions.json", folder / "store", steps=2)
    return folder / "store"


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore naica evaluate …` in this process."""
    return functools.partial(cli, "naica", "evaluate")


def test_the_tables_and_their_numbers_as_one_document(store: Path, cli: Callable[..., Result]) -> None:
    arguments = (store, "--seeds", 1, "--method", "naica", "--method", "random", "--device", "cpu")
    shown = cli(*arguments)
    assert shown.status == 0, shown.err
    for text in ("PCR boost", "QRNCA", "random neurons", "held-out", "biology", "top neurons"):
        assert text in shown.out
    value = json.loads(cli(*arguments, "--json").out)
    assert value["capture"] == "questions"
    assert [(row["protocol"], row["method"], row["operation"]) for row in value["summary"][:2]] == [
        ("prompt", "naica", "boost"),
        ("prompt", "naica", "suppress"),
    ]
    assert len(value["measurements"]) == len(value["summary"]) == 3 * 2 * 2
    assert {"pcr", "pcr_sd", "related_percent", "unrelated_flips", "log_odds_ratio"} <= value["summary"][0].keys()
    assert [row["label"] for row in value["prediction"]] == ["biology", "units"]


def test_fewer_queries_and_one_protocol(store: Path, cli: Callable[..., Result]) -> None:
    found = cli(
        store, "--seeds", 1, "--protocol", "prompt", "--max-queries", 4, "--method", "naica", "--by",
        "relation_name", "--json", "--device", "cpu",
    )  # fmt: skip
    value = json.loads(found.out)
    assert [(row["method"], row["queries"]) for row in value["summary"]] == [("naica", 4), ("naica", 4)]
    assert value["prediction"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "colour"), "no label 'colour'. Their labels are: relation_name"),
        (("--max-queries", "1"), "of 2 or more, found 1"),
        (("--capture", "corpus"), "no capture 'corpus'"),
        (("--dtype", "bfloat16", "--seeds", "1"), "holds another model"),
    ],
)
def test_mistakes_are_one_sentence(
    store: Path, cli: Callable[..., Result], arguments: tuple[str, ...], message: str
) -> None:
    found = cli(store, *arguments)
    assert (found.status, found.out) == (2, "")
    assert message in found.err.replace("\n", " ")
