"""Neurons explained and scored into a store: right where a rule is right, kept once, resumed, checked and copied."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import actstore
from actstore.engine.explain.graph_answers import count_named
from actstore.engine.explain.run import ExplainTask, explain_neurons, plan_requests
from actstore.engine.explain.settings import ExplainSettings, ServerSettings
from actstore.store.errors import (
    CaptureError,
    FormatError,
    InvalidInputError,
    ReadOnlyError,
    ServerError,
    UnlistableError,
)
from actstore.store.explanations.tables import explanation_table
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own_explanations

if TYPE_CHECKING:
    from pathlib import Path

    from rule_server import RuleServer

SETTINGS = ExplainSettings(context=12, exemplars=8, tests=8, quantiles=4)
ALL = ("detection", "fuzzing", "graph")


def task_of(server: RuleServer, *scores: str, requests: int = 4, **changes: Any) -> ExplainTask:
    reached = ServerSettings(server.url, key_variable="", requests=requests, retries=0)
    return replace(ExplainTask(explainer_model="rules", scores=scores, settings=SETTINGS, server=reached), **changes)


def run(store: Store, neurons: list[tuple[int, int]], task: ExplainTask) -> Any:
    return explain_neurons(store.capture(), Folder(store.folder, read_only=False), neurons, task)


def rows_of(store: Store, table: str = "explanations") -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in explanation_table(store.folder, table).to_pylist()}


def files_of(store: Store) -> dict[str, bytes]:
    root = store.folder.local_path()
    assert root is not None
    return {str(file.relative_to(root)): file.read_bytes() for file in (root / "explanations").rglob("*.json")}


def test_a_right_explanation_gets_full_marks_and_a_partial_one_does_not(store: Store, server: RuleServer) -> None:
    report = run(store, [(0, 0), (0, 1), (0, 3), (0, 4)], task_of(server, *ALL))
    assert (report.explained, report.malformed) == (["L0.N0", "L0.N1", "L0.N4"], [])
    assert report.skipped["L0.N3"] == "it never fires"
    assert report.skipped["L0.N4 detection"].startswith("it fires in too few different excerpts")
    rows = rows_of(store)
    seven, context = rows["L0.N0"], rows["L0.N1"]
    assert (seven["explanation"], seven["model"], seven["n_exemplars"]) == ("the token w7", "rules-2026", 8)
    for measure in ("detection", "fuzzing", "graph_detection", "graph_fuzzing", "named"):
        assert (measure, seven[measure]) == (measure, 1)
    assert (seven["detection_n"], seven["fuzzing_n"], seven["detection_malformed"]) == (16, 16, 0)
    assert 0.5 < seven["detection_low"] < seven["detection_high"] == 1
    # w3 is said to be enough, and is not: it is in excerpts without firing. The graph knows of w5 before it.
    assert context["explanation"] == "the token w3"
    assert context["detection"] < 1
    assert context["graph_detection"] > context["detection"]
    assert context["named"] == 1
    questions = explanation_table(store.folder, "explanation_questions").to_pylist()
    assert {row["method"] for row in questions} == {"detection", "fuzzing", "graph-detection", "graph-fuzzing"}
    wrong = [row for row in questions if row["name"] == "L0.N1" and not row["correct"] and row["method"] == "detection"]
    assert wrong
    assert all((row["kind"], row["truth"], row["answer"]) == ("random", False, True) for row in wrong)


def test_what_is_kept_tells_prompt_model_date_and_exemplars(store: Store, server: RuleServer) -> None:
    run(store, [(0, 0)], task_of(server))
    root = store.folder.local_path()
    assert root is not None
    kept = json.loads((root / "explanations/explanations/L0.N0.json").read_text())
    assert kept["prompt"] == server.requests[0]["messages"]
    assert kept["answer"].startswith("I looked at them all.")
    assert (kept["model"], kept["usage"]["prompt_tokens"]) == ("rules-2026", 7)
    assert kept["created"].startswith("20")
    capture = store.capture()
    tokens, values = capture.tokens().to_pylist(), capture.activations(0, 0)
    places = {(row["window"], row["position"]): place for place, row in enumerate(tokens)}
    for exemplar in kept["exemplars"]:
        place = places[exemplar["window"], exemplar["position"]]
        assert values[place] == pytest.approx(exemplar["value"])
        assert tokens[place]["id"] == 7
        assert exemplar["first"] <= exemplar["position"] <= exemplar["last"]


def test_a_run_goes_on_where_it_was_stopped_and_asks_for_nothing_twice(store: Store, server: RuleServer) -> None:
    server.refusals = [(200, {}, b"")] * 3 + [(401, {}, b"")]
    one_by_one = task_of(server, "detection", requests=1)
    with pytest.raises(ServerError, match="HTTP status 401"):
        run(store, [(0, 0), (0, 1)], one_by_one)
    before = files_of(store)
    assert [name.rpartition("/")[2] for name in before if "L0" in name] == ["L0.N0.json"]
    report = run(store, [(0, 0), (0, 1)], one_by_one)
    assert (report.explained, sorted(report.scored)) == (["L0.N1"], ["L0.N0 detection", "L0.N1 detection"])
    after = files_of(store)
    index = "explanations/explanations/files.json"
    assert {name: data for name, data in after.items() if name in before and name != index} == {
        name: data for name, data in before.items() if name != index
    }
    assert server.purposes()["explanation"] == 2
    n_requests = len(server.requests)
    assert run(store, [(0, 0), (0, 1)], one_by_one).n_requests == 0
    assert (len(server.requests), files_of(store)) == (n_requests, after)


def test_an_interrupted_run_keeps_what_was_answered(store: Store, server: RuleServer) -> None:
    def interrupt(done: int, n_neurons: int) -> None:
        if done:
            raise KeyboardInterrupt

    folder, task = Folder(store.folder, read_only=False), task_of(server, requests=1)
    with pytest.raises(CaptureError, match=r"interrupted\. What was answered is kept in explanations 'explanations'"):
        explain_neurons(store.capture(), folder, [(0, 0), (0, 1), (0, 2)], task, interrupt)
    assert "L0.N0" in rows_of(store)
    kept = {name: row["created"] for name, row in rows_of(store).items()}
    run(store, [(0, 0), (0, 1), (0, 2)], task)
    assert server.purposes()["explanation"] == 3
    assert kept.items() <= {name: row["created"] for name, row in rows_of(store).items()}.items()


def test_a_limit_takes_neurons_that_something_is_missing_of(store: Store, server: RuleServer) -> None:
    neurons = [(0, 0), (0, 1), (0, 2)]
    first, second, third = (run(store, neurons, task_of(server, limit=1)) for _ in range(3))
    assert [one.explained for one in (first, second, third)] == [["L0.N0"], ["L0.N1"], ["L0.N2"]]
    assert [one.n_left for one in (first, second, third)] == [2, 1, 0]


def test_answers_that_cannot_be_read_are_never_right(store: Store, server: RuleServer) -> None:
    server.answer = lambda messages: "I cannot help with that."
    report = run(store, [(0, 0)], task_of(server))
    assert (report.malformed, rows_of(store)) == (["L0.N0"], {})
    server.answer = lambda messages: "Explanation: w7" if "Explanation:" in messages[0]["content"] else "[1, 1]"
    run(store, [(0, 0)], task_of(server, "detection"))
    row = rows_of(store)["L0.N0"]
    assert (row["detection"], row["detection_malformed"], row["detection_n"]) == (0, 16, 16)


def test_a_dry_run_sends_and_writes_nothing_and_shows_what_would_be_sent(store: Store, server: RuleServer) -> None:
    before = {file: file.read_bytes() for file in store.folder.local_path().rglob("*") if file.is_file()}  # type: ignore[union-attr]
    task = task_of(server, *ALL)
    plan = plan_requests(store.capture(), store.folder, [(0, 0), (0, 3)], task)
    assert server.requests == []
    assert before == {file: file.read_bytes() for file in store.folder.local_path().rglob("*") if file.is_file()}  # type: ignore[union-attr]
    assert plan.skipped == {"L0.N3": "it never fires"}
    run(store, [(0, 0)], task)
    sent = [request["messages"] for request in server.requests]
    assert len(plan.requests) == len(plan.n_tokens) == len(sent)
    assert sent[0] == [*plan.requests[0].messages]
    assert [messages[0] for messages in sent[1:]] == [one.messages[0] for one in plan.requests[1:]]
    excerpts = [messages[1]["content"].partition("\n")[2] for messages in sent[1:]]
    assert excerpts == [one.messages[1]["content"].partition("\n")[2] for one in plan.requests[1:]]
    again = plan_requests(store.capture(), store.folder, [(0, 0), (0, 3)], task)
    assert again.requests == []


def test_the_graph_scores_without_a_server(store: Store, server: RuleServer) -> None:
    run(store, [(0, 0)], task_of(server))
    server.requests.clear()
    report = run(store, [(0, 0)], ExplainTask(scores=("graph",), settings=SETTINGS))
    assert (report.scored, server.requests) == (["L0.N0 graph-detection", "L0.N0 graph-fuzzing"], [])
    with pytest.raises(InvalidInputError, match="pass `endpoint`"):
        run(store, [(0, 0)], ExplainTask(scores=("detection",), settings=SETTINGS))
    with pytest.raises(InvalidInputError, match="There are no explanations 'mine' yet"):
        run(store, [(0, 0)], ExplainTask("mine", settings=SETTINGS))


def test_the_tokens_that_an_explanation_names() -> None:
    firings = {" Paris": 5, "ren": 3, "de": 2, "(": 4, " ": 1, "€": 1}
    assert count_named("the city of PARIS, and words being rendered", firings) == (8, 16)
    assert count_named('an opening parenthesis "("', firings) == (4, 16)
    assert count_named("de Gaulle", firings) == (2, 16)
    assert count_named("", {}) == (0, 0)


def test_explanations_of_a_name_are_made_alike(store: Store, server: RuleServer) -> None:
    run(store, [(0, 0)], task_of(server))
    with pytest.raises(InvalidInputError, match=r"were made with context 12, now 16: .*another `name`"):
        run(store, [(0, 1)], task_of(server, settings=replace(SETTINGS, context=16)))
    with pytest.raises(InvalidInputError, match="were made with explainer_model 'rules', now 'other'"):
        run(store, [(0, 1)], task_of(server, explainer_model="other"))
    with pytest.raises(InvalidInputError, match=r"a name that can be a folder's, found '\.\./x'"):
        run(store, [(0, 1)], task_of(server, name="../x"))
    with own_explanations(Folder(store.folder, read_only=False), "explanations"), pytest.raises(ReadOnlyError):
        run(store, [(0, 1)], task_of(server))
    run(store, [(0, 1)], task_of(server, name="other", settings=replace(SETTINGS, context=16)))
    found = actstore.open(store.folder.location).sql("select explanations, name from explanations order by 1")
    assert [(row["explanations"], row["name"]) for row in found.to_pylist()] == [
        ("explanations", "L0.N0"),
        ("other", "L0.N1"),
    ]


def test_verify_finds_what_is_damaged_lost_or_from_elsewhere(store: Store, server: RuleServer) -> None:
    run(store, [(0, 0), (0, 1)], task_of(server, "detection"))
    opened = actstore.open(store.folder.location)
    assert opened.verify() == []
    folder = store.folder.local_path("explanations/explanations")
    assert folder is not None
    whole = {file: file.read_bytes() for file in folder.glob("*.json")}

    def found() -> dict[str, str]:
        damage = {one.key.rpartition("/")[2]: one.what for one in actstore.open(store.folder.location).verify()}
        for file, data in whole.items():
            file.write_bytes(data)
        return damage

    text = folder / "L0.N0.json"
    text.write_text(text.read_text().replace("the token w7", "the token w8"))
    assert [*found()] == ["L0.N0.json"]
    text.write_bytes((folder / "L0.N1.json").read_bytes())
    assert "of another neuron" in found()["L0.N0.json"]
    text.unlink()
    assert found() == {"L0.N0.json": "missing"}
    (folder / "files.json").write_text("{}")
    assert [*found()] == ["files.json"]
    (folder / "record.json").write_text((folder / "record.json").read_text().replace("rules", "ruled"))
    assert [*found()] == ["record.json"]
    (folder / "record.json").unlink()
    assert found() == {"record.json": "missing"}
    (folder / "L0.N1.detection.json").write_text("{")
    with pytest.raises(FormatError, match=r"L0\.N1\.detection\.json"):
        opened.sql("select * from explanations")
    found()
    (store.folder.local_path("explanations.json") or folder).write_text('{"names": [], "checksum": "00000000"}')
    assert [*found()] == ["explanations.json"]


def test_a_location_that_cannot_be_listed_is_read_by_its_index(
    store: Store, server: RuleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, [(0, 0), (0, 1)], task_of(server, "detection"))
    expected = explanation_table(store.folder, "explanations")

    def refuse(self: Folder, prefix: str) -> list[str]:
        raise UnlistableError("Keys cannot be listed here.")

    monkeypatch.setattr(Folder, "names", refuse)
    found = explanation_table(Folder(store.folder), "explanations")
    assert found.num_rows == 2
    assert found.equals(expected)


def test_a_copy_has_them_and_later_copies_add_what_is_new(store: Store, server: RuleServer, tmp_path: Path) -> None:
    source, target = store.folder.location, tmp_path / "copy"
    run(store, [(0, 0)], task_of(server))
    assert actstore.copy(source, target).explanations == ("explanations",)
    run(store, [(0, 1)], task_of(server))
    first = target / "explanations/explanations/L0.N0.json"
    written = first.stat().st_mtime_ns
    actstore.copy(source, target)
    assert first.stat().st_mtime_ns == written
    assert files_of(Store(target)) == files_of(store)
    assert actstore.open(target).verify() == []
    assert actstore.open(target).explain.table().to_pylist() == actstore.open(source).explain.table().to_pylist()
    run(Store(target), [(0, 2)], task_of(server))
    server.answer = lambda messages: "Explanation: another sentence"
    run(store, [(0, 2)], task_of(server))
    with pytest.raises(InvalidInputError, match=r"explanations 'explanations' of its own, .*L0\.N2\.json"):
        actstore.copy(source, target)
