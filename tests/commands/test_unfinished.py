"""What reads an unfinished capture says so once on standard error, whatever it is and whatever it prints."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

import pytest

import actstore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("unfinished") / "finished"
    actstore.capture(
        str(tiny_model), str(corpus), target, name="main", context=32, max_tokens=600, label_columns=["language"],
        options=actstore.RunOptions(memory=40_000),
    )  # fmt: skip
    return target


@pytest.fixture(scope="module")
def store(finished: Path) -> Path:
    """The same without one of its blocks, as an interrupted run leaves it."""
    target = shutil.copytree(finished, finished.parent / "unfinished")
    for key in ("blocks/1.json", "neurons.parquet", "committed.json"):  # the last are written when every block is there
        (target / "captures/main" / key).unlink()
    shutil.rmtree(target / "captures/main/statistics")
    return target


@pytest.fixture
def sentence(store: Path) -> str:
    capture = actstore.open(store).peek("main")
    n = capture.record.plan.n_blocks
    assert len(capture.blocks) == n - 1
    return (
        f"Capture 'main' is unfinished: {n - 1} of {n} blocks are stored, and the answer covers no more. "
        "To finish it, run the command that began it again, with "
    )


READING = (
    "top S L0.N3",
    "stats S",
    "stats S --by language",
    "export S --neurons L0.N3 --output OUT/l0.parquet",
    "contributions S --at 0:5",
    "coverage S",
    "coverage probe S --by language --positive en --negative fr",
    "change S OTHER",
    "graphs build S --neurons L0.N3,L1.N7 --name RUN",
    "graphs repeats S",
)


@pytest.mark.parametrize("line", READING)
def test_a_command_warns_once(
    cli: Callable[..., Result], store: Path, finished: Path, tmp_path: Path, sentence: str, line: str
) -> None:
    for extra in ((), ("--json", "--quiet")):
        known = {"S": store, "OTHER": finished, "RUN": f"graphs{len(extra)}"}
        words = [known.get(word, word.replace("OUT/", f"{tmp_path}/")) for word in line.split()]
        done = cli(*words, *extra)
        assert done.status == 0, done.err
        assert done.err.splitlines().count(f"Warning: {sentence}--resume.") == 1
        assert done.err.count("unfinished") == 1
    assert done.json


def test_a_query_warns_where_it_reads_the_capture(cli: Callable[..., Result], store: Path, sentence: str) -> None:
    for query in ("select count(*) from tokens", "select count(*) from main.neurons"):
        assert cli("sql", store, query, "--json").err == f"Warning: {sentence}--resume.\n"
    for query in ("select count(*) from vocabulary", "select 'main'", "show tables"):
        assert cli("sql", store, query, "--json").err == ""


def test_a_finished_capture_and_what_tells_itself_warn_of_nothing(
    cli: Callable[..., Result], store: Path, finished: Path
) -> None:
    assert "unfinished" not in cli("top", finished, "L0.N3").err
    for line in (("info", store), ("verify", store), ("verify", store, "--refill", 1)):
        done = cli(*line)
        assert (done.status, "Warning" in done.err) == (0, False)
        assert "of" in done.out


def test_python_is_warned_once_per_capture_by_the_logger(
    store: Path, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "actstore"):
        opened = actstore.open(store)
        opened.info()
        assert not caplog.records
        opened.neuron("L0.N3").exemplars(2)
        opened.neurons()
        opened.sql("select count(*) from tokens")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("actstore", "WARNING")
    assert record.getMessage() == f"{sentence}`resume=True`."
