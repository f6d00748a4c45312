"""`actstore graphs evaluate` over a capture of the tiny model, and without any model at all."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import pytest

from actstore.engine.capture.api import capture
from actstore.engine.graphs.build import build_graphs
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]


@pytest.fixture(scope="module")
def store(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of the corpus, one of half of it, and graphs of two neurons."""
    path = tmp_path_factory.mktemp("evaluate") / "store"
    opened = capture(str(tiny_model), corpus, path, context=32, max_tokens=2000)
    capture(str(tiny_model), corpus, path, name="half", context=32, max_tokens=500)
    build_graphs(opened.store.capture("corpus"), Folder(path, read_only=False), name="two", neurons=[(0, 0), (1, 2)])
    return path


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore graphs evaluate …` in this process."""
    return functools.partial(cli, "graphs", "evaluate")


def asked(cli: Callable[..., Result], *arguments: object) -> dict[str, Any]:
    result = cli(*arguments, "--json")
    assert result.status == 0, result.err
    document: dict[str, Any] = json.loads(result.out)
    return document


def test_one_document_with_every_method_by_layer(store: Path, cli: Callable[..., Result]) -> None:
    found = asked(cli, store, "--curve", "-1,4", "--ordinary", 10, "--exemplars", 6)
    assert (found["neurons"], found["failed"]) == (48, 0)
    assert 0 < found["build_seconds"] < found["seconds"]
    for method in (found, *found["baselines"].values()):
        for kind in ("exemplars", "ordinary"):
            assert {"precision", "recall", "f1", "correlation", "undefined"} < set(method[kind])
            assert [row["layer"] for row in method[kind]["by_layer"]] == [0, 1]
    assert {"token lookup, exemplars, any", "bigram lookup, corpus, most"} < set(found["baselines"])
    assert [row["gain"] for row in found["curve"]] == [-1, 0.25, 4]
    medians = [row["nodes"]["median"] for row in found["curve"]]
    assert medians == sorted(medians, reverse=True)
    assert found["nodes"] == found["curve"][1]["nodes"]


def test_the_tables_show_a_row_a_method_and_a_column_a_layer(store: Path, cli: Callable[..., Result]) -> None:
    shown = cli(store, "--neurons", "L0.N0,L1.N2", "--curve", "2", "--also", "half", "--graphs", "two")
    assert shown.status == 0, shown.err
    for text in ("Held-out exemplars", "Ordinary text", "F1 L0", "F1 L1", "bigram lookup, corpus, any", "two ",
                 "F1 against the number of nodes", "2 neurons, 0 failed"):  # fmt: skip
        assert text in shown.out
    assert "may have learned from the windows that test them" in shown.err


def test_graphs_that_a_set_lacks_count_as_failed(store: Path, cli: Callable[..., Result]) -> None:
    found = asked(cli, store, "--neurons", "L0.N0,L0.N1", "--graphs", "two")
    assert found["failed"] == 0
    assert found["baselines"]["two"]["failed"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--share", "0"), "--share"),
        (("--exemplars", "1"), "--exemplars must be 2 or more"),
        (("--ordinary", "-1"), "--ordinary must be 0 or more"),
        (("--seed", "-3"), "--seed takes a whole number of 0 or more, found -3."),
        (("--curve", "a,b"), "--curve takes numbers"),
        (("--neurons", "L9.N0"), "no layer 9"),
        (("--neurons", "x"), "L3.N17"),
        (("--layers", "0,7"), "no layer 7"),
        (("--also", "corpus"), "evidence already"),
        (("--also", "nothing"), "no capture 'nothing'"),
        (("--graphs", "nothing"), "no graphs 'nothing'"),
        (("--site", "resid.post"), "no site 'resid.post'"),
        (("--kappa", "0"), "--kappa must be above 0"),
    ],
)
def test_one_sentence_says_what_is_wrong(
    store: Path, cli: Callable[..., Result], arguments: tuple[str, ...], said: str
) -> None:
    result = cli(store, *arguments)
    assert result.status == 2
    assert said in " ".join(result.err.split())
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_no_model_and_no_transformers(run_without: Callable[..., Any], store: Path) -> None:
    done = run_without(("transformers", "torch"), ("graphs", "evaluate", store, "--neurons", "L0.N1", "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["neurons"] == 1


def test_the_same_store_gives_the_same_numbers(store: Path, cli: Callable[..., Result]) -> None:
    first, second = (asked(cli, Store(store).folder.location, "--layers", "1") for _ in range(2))
    for volatile in ("seconds", "build_seconds"):
        first.pop(volatile)
        second.pop(volatile)
    assert first == second
