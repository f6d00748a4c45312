"""`explain` as people and machines use it, on a planted store and a server of rules; and the same in Python and SQL."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from planted_capture import make_windows, plant_capture
from rule_server import RuleServer, rule_server

import actstore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

FEW = ("--context", 12, "--exemplars", 6, "--tests", 4, "--quantiles", 2)


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """`actstore explain …`."""
    return partial(cli, "explain")


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Two neurons, of which the second never fires."""
    rules = [lambda ids: (ids == 7).astype(np.float32), lambda ids: np.zeros(len(ids), np.float32)]
    plant_capture(tmp_path / "s", make_windows(60), [rules])
    return str(tmp_path / "s")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuleServer]:
    """A server of rules, and its key."""
    monkeypatch.setenv("MY_KEY", "sk-secret")
    monkeypatch.setenv("COLUMNS", "120")
    with rule_server() as state:
        yield state


def test_neurons_are_explained_scored_and_found_in_sql(
    cli: Callable[..., Result], store: str, server: RuleServer, tmp_path: Path
) -> None:
    asking = ("--endpoint", server.url, "--explainer-model", "rules", "--key-variable", "MY_KEY", *FEW)
    done = cli(store, "L0.N0,L0.N1", *asking, "--score", "detection,fuzzing,graph")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "L0.N0: the token w7"
    assert lines[1].startswith("    detection 1.00 (0.")
    assert "named 1.00" in lines[1]
    assert lines[2].endswith("explanations 'explanations', 1 neuron explained now, 4 scores made, 5 requests.")
    assert done.err == "Warning: Left out: L0.N1, as it never fires.\n"
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"sk-secret" in file.read_bytes()]
    again = cli(store, "L0.N0", *asking, "--score", "detection", "--json").json
    assert (again["requests"], again["explained"]) == (0, [])
    assert (again["explanations"][0]["explanation"], again["explanations"][0]["detection"]) == ("the token w7", 1)
    opened = actstore.open(store)
    query = (
        "select name, explanation, detection from explanations where explanation ilike '%W7%' order by detection desc"
    )
    assert opened.sql(query).to_pylist() == [{"name": "L0.N0", "explanation": "the token w7", "detection": 1.0}]
    query = "select kind, count(*) n, avg(correct::int) share from explanation_questions where method = 'detection' group by 1"
    assert {row["kind"]: row["share"] for row in opened.sql(query).to_pylist()} == {"exemplar": 1, "random": 1}
    with pytest.raises(actstore.errors.InvalidInputError, match="explanation_questions, explanations, neurons"):
        opened.sql("select * from nothing")


def test_a_dry_run_shows_prompts_and_counts_tokens(cli: Callable[..., Result], store: str) -> None:
    line = (store, "L0.N0,L0.N1", "--explainer-model", "rules", "--dry-run", "--score", "detection", *FEW)
    shown = cli(*line)
    assert shown.status == 0, shown.err
    assert "<< w7>>" in shown.out
    assert "Description: (the explanation)" in shown.out
    assert "counted by 4 bytes per token" in shown.out
    found = cli(*line, "--json").json
    assert (found["requests"], len(found["prompts"])) == (3, 3)
    assert found["tokens"] == sum(row["n_tokens"] for row in found["prompts"]) > 100
    assert actstore.open(store).sql("select 1 x").num_rows == 1
    assert cli(store, "L0.N0", "--explainer-model", "rules").status == 2, "nothing was begun"


def test_what_cannot_be_done_is_refused_in_one_sentence(
    refused: Callable[..., str], store: str, server: RuleServer
) -> None:
    refuse: Any = partial(refused)
    to_server = ("--endpoint", server.url, "--explainer-model", "rules", *FEW)
    assert refuse(store, "L0.N0") == (
        "There are no explanations 'explanations' yet, so somebody must be asked for them: pass --endpoint, a server's "
        "address, and --explainer-model, what it calls the model."
    )
    assert "Name the neurons to explain, by NEURONS or --layers" in refuse(store, *to_server)
    assert "Expected --score to hold some of detection, fuzzing, graph, found 'guess'" in refuse(
        store, "L0.N0", *to_server, "--score", "graph,guess"
    )
    assert "Layer 0 has neurons 0 to 1 at mlp.post, found neuron 9" in refuse(store, "L0.N9", *to_server)
    assert "--share must be above 0" in refuse(store, "L0.N0", *to_server, "--share", 0)
    server.refusals = [(403, {}, b'{"error": {"message": "no such project"}}')]
    assert refuse(store, "L0.N0", *to_server).startswith(
        f"The server at {server.url[7:-3]} refuses: HTTP status 403 (no such"
    )
    assert server.requests != []


def test_python_gives_the_same(store: str, server: RuleServer) -> None:
    opened = actstore.open(store)
    few: Any = {"context": 12, "exemplars": 6, "tests": 4, "quantiles": 2}
    asked: Any = {"explainer_model": "rules", "score": ["detection"], **few}
    plan = opened.explain(["L0.N0"], dry_run=True, **asked)
    assert plan.table["purpose"].to_pylist() == ["explanation", "detection", "detection"]
    answer = opened.explain((0, 0), endpoint=server.url, **asked)
    assert answer.table.to_pylist()[0]["detection"] == 1
    assert (answer.details.n_requests, answer.warnings) == (3, ())
    assert opened.explain.table("explanations").to_pylist() == answer.table.to_pylist()
    with pytest.raises(actstore.errors.NotFoundError, match=r"has no explanations 'mine'\. Those it has: explan"):
        opened.explain.table("mine")
    with pytest.raises(actstore.errors.InvalidInputError, match="quantiles is an integer, found the text '2'"):
        opened.explain("L0.N0", endpoint=server.url, **asked | {"quantiles": "2"})
