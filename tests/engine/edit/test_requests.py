"""Requests and their cases: read from files in every layout, kept in an edit's record, evaluated apart by what they show."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from actstore.engine.edit.cases import Task, tasks_of_capture, tasks_of_cases
from actstore.engine.edit.evaluate import EvaluationOptions, evaluate_edit, own_tests
from actstore.engine.edit.readings import CaptureReader, Reading
from actstore.engine.edit.requests.files import read_cases, read_requests, requests_of
from actstore.engine.edit.requests.request import Case, Request, recorded_requests
from actstore.engine.edit.rewrite import default_name, rewrite, settings_of
from actstore.engine.edit.scores import Snapshot, n_gram_entropy, score, snapshots, summarise
from actstore.engine.edit.settings import FineSettings, KnowledgeSettings, LeastNormSettings, RewriteSettings
from actstore.engine.edit.words import find_replacement
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.engine.edit.readings import Reader
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture

COUNTERFACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Danielle Darrieux",
        "target_new": {"str": "English", "id": "Q1860"}, "target_true": {"str": "French", "id": "Q150"},
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The native language of Montesquieu is"],
    "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux was born in"],
}  # fmt: skip
ZSRE = {
    "subject": "Watts Humphrey", "src": "What university did Watts Humphrey attend?", "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?", "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"], "loc": "nq question: who played desmond doss father",
    "loc_ans": "Hugo Weaving", "cond": "Trinity College >> University of Michigan || What university …",
    "portability": {"New Question": "In which state did Watts Humphrey study?", "New Answer": "Michigan"},
}  # fmt: skip
EVQA = {
    "src": "How many balls are there?", "pred": "1", "rephrase": "What is the number of balls?", "alt": "2",
    "image": "val2014/a.jpg", "image_rephrase": "rephrased/b.png", "loc": "nq question: what is a monsoon",
    "loc_ans": "a wind", "m_loc": "val2014/c.jpg", "m_loc_q": "What sport is this?", "m_loc_a": "riding",
}  # fmt: skip
PLAIN = {
    "prompt": ["The capital of Germany is", "Germany has the capital"], "target": " Ankara", "subject": "Germany",
    "paraphrases": ["Berlin? No:"], "locality": ["The capital of France is", {"prompt": "2 + 2 =", "answer": " 4"}],
    "portability": [{"prompt": "The mayor of Germany's capital lives in", "answer": " Ankara"}], "generation": ["Germany"],
}  # fmt: skip


def write(path: Path, *rows: object, array: bool = False) -> Path:
    path.write_text(json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def kinds(request: Request) -> list[tuple[str, str, str | None]]:
    return [(case.kind, case.prompt, case.answer) for case in request.tests]


def test_counterfact_is_read_as_it_is(tmp_path: Path) -> None:
    (request,) = read_requests(write(tmp_path / "a.json", COUNTERFACT, array=True))
    assert (request.prompts, request.target, request.subject) == (
        ("The mother tongue of Danielle Darrieux is",), " English", "Danielle Darrieux",
    )  # fmt: skip
    assert kinds(request) == [
        ("text-generality", "Danielle Darrieux, a native", " English"),
        ("text-locality", "The native language of Montesquieu is", " French"),
        ("text-locality", "J.R.R. Tolkien is a native speaker of", " English"),
        ("fluency", "Danielle Darrieux was born in", None),
    ]
    assert request.other == " French"
    assert [case.other for case in request.cases()] == [" French", " French", " English", None, None]
    assert [Request.from_json(one.to_json()) for one in (request,)] == [request]
    assert "other" not in Request(("a",), " b").to_json()


def test_zsre_is_read_as_it_is(tmp_path: Path) -> None:
    left_out = ZSRE | {"alt": ""}
    (request,) = read_requests(write(tmp_path / "a.json", ZSRE, left_out, array=True))
    assert (request.prompts, request.target) == ((ZSRE["src"],), " University of Michigan")
    assert kinds(request) == [
        ("text-generality", ZSRE["rephrase"], " University of Michigan"),
        ("text-locality", "nq question: who played desmond doss father?", " Hugo Weaving"),
        ("portability", "In which state did Watts Humphrey study?", " Michigan"),
    ]


def test_mmedit_is_read_as_it_is_with_its_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", EVQA, array=True)
    (request,) = read_requests(path, images=tmp_path / "coco")
    assert (request.prompts, request.target, request.image) == (
        ("How many balls are there?",), " 2", tmp_path / "coco" / "val2014/a.jpg",
    )  # fmt: skip
    assert [(c.kind, c.prompt, c.answer, c.image and c.image.name) for c in request.tests] == [
        ("text-generality", "What is the number of balls?", " 2", "a.jpg"),
        ("image-generality", "How many balls are there?", " 2", "b.png"),
        ("text-locality", "nq question: what is a monsoon", " a wind", None),
        ("image-locality", "What sport is this?", " riding", "c.jpg"),
    ]
    assert read_requests(path)[0].image == tmp_path / "val2014/a.jpg"


def test_plain_rows_hold_prompts_and_tests_and_mix_with_cases(tmp_path: Path) -> None:
    single = {"prompt": "1 + 1 =", "kind": "text-locality"}
    path = write(tmp_path / "a.jsonl", PLAIN, single)
    cases = read_cases(path)
    assert [case.kind for case in cases] == [
        "reliability", "reliability", "text-generality", "text-locality", "text-locality", "portability", "fluency",
        "text-locality",
    ]  # fmt: skip
    assert [case.answer for case in cases[3:5]] == [None, " 4"]
    assert read_requests(path, [1])[0].subject == "Germany"
    with pytest.raises(InvalidInputError, match=r"a\.jsonl:2 is no request: found the fields 'prompt', 'kind'"):
        read_requests(path)
    with pytest.raises(InvalidInputError, match="have rows 1 to 2, found 3"):
        read_cases(path, [3])
    request = read_requests(path, [1])[0]
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"requested_rewrite": 3}, "expected an object as 'requested_rewrite'"),
        ({"requested_rewrite": COUNTERFACT["requested_rewrite"] | {"target_new": "x"}}, "with a 'str' as 'target_new'"),  # type: ignore[operator]
        (ZSRE | {"src": 3}, "expected a text as 'src'"),
        (EVQA | {"image": ""}, "expected the path of an image as 'image'"),
        (EVQA | {"m_loc_q": None}, "expected a text as 'm_loc_q'"),
        (PLAIN | {"portability": ["x"]}, "'portability' holds objects with a prompt and an answer"),
        (PLAIN | {"paraphrases": [""]}, "a text or a list of texts as 'paraphrases'"),
        (PLAIN | {"prompt": []}, "has no `prompt`"),
        (PLAIN | {"target": " "}, "has no `target`"),
    ],
)
def test_what_a_row_lacks_is_named(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        read_requests(write(tmp_path / "a.jsonl", row))


def test_words_prompts_and_files_exclude_one_another(tmp_path: Path) -> None:
    assert requests_of((), None, None, None) == ()
    for arguments in (
        (("a",), None, None, None), ((), "b", None, None), ((), None, "c", None), (("a",), "b", None, tmp_path / "x"),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError):
            requests_of(*arguments)
    with pytest.raises(InvalidInputError, match="belong to a file of `cases`"):
        requests_of(("a",), "b", None, None, rows=[1])
    request = Request(("a",), " b/c")
    with pytest.raises(InvalidInputError, match="one of the two"):
        RewriteSettings("x", "y", requests=(request,))
    with pytest.raises(InvalidInputError, match="Expected two words"):
        RewriteSettings("x")
    assert default_name(RewriteSettings(requests=(request,))) == "b-c-least-norm"


def test_fluency_is_the_entropy_of_bigrams_and_trigrams_in_bits() -> None:
    # a b a b a: bigrams ab ba ab ba, trigrams aba bab aba.
    h2, h3 = 1.0, -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert n_gram_entropy("a b a b a") == pytest.approx((2 / 3 * h2 + 4 / 3 * h3) / 2)
    assert n_gram_entropy("yes yes yes yes") == 0
    assert n_gram_entropy("") == 0
    assert n_gram_entropy("one, two") == pytest.approx(
        (2 / 3 * 1.0 + 0) / 2
    )  # "one" "," "two": two bigrams, one trigram


def test_the_more_probable_of_two_answers_is_told_by_the_mean_log_probability_of_tokens(
    fact_capture: Capture, fact_reader: Reader
) -> None:
    """CounterFact's scores (Meng et al. 2022) by a plain run of the model on each of the two texts."""
    prompt = "Question: What is the capital of Germany?\nResponse:"
    pairs = [(" Berlin", " Oslo and Rome"), (" Oslo and Rome", " Berlin"), (" Oslo", " Rome and Oslo")]
    cases = [Case(prompt, "reliability", answer, None, "x", other) for answer, other in pairs]
    cases.append(Case(prompt, "reliability", " Berlin", None, "x"))
    tasks = tasks_of_cases(fact_reader, cases)
    rows = [score(task, one, one) for task, one in zip(tasks, snapshots(fact_reader, tasks), strict=True)]

    def mean_log_p(answer: str) -> float:
        reading = fact_reader.read(prompt, answer)
        with torch.inference_mode():
            log_p = (
                fact_reader.model.model(torch.from_numpy(reading.ids.astype(np.int64))[None]).logits[0].log_softmax(-1)
            )
        targets = torch.from_numpy(reading.ids[reading.n_prompt :].astype(np.int64))
        return float(log_p[reading.n_prompt - 1 : -1].gather(1, targets[:, None]).mean())

    expected = [float(mean_log_p(answer) > mean_log_p(other)) for answer, other in pairs]
    assert expected[:2] == [1, 0]
    assert [row["preferred"] for row in rows[:3]] == expected
    assert math.isnan(rows[3]["preferred"])
    summary = summarise(rows)["by_kind"]["reliability"]
    assert (summary["cases"], summary["preferred"]) == (4, pytest.approx(sum(expected) / 3))


@pytest.mark.parametrize("row", [{"other": ""}, {"other": 3}])
def test_an_other_answer_is_a_text(tmp_path: Path, row: dict[str, object]) -> None:
    case = {"prompt": "a", "kind": "reliability", "target": " b"}
    assert read_cases(write(tmp_path / "a.jsonl", case | {"other": " c"}))[0].other == " c"
    with pytest.raises(InvalidInputError, match="`other` is the text that the target should be more probable than"):
        read_cases(write(tmp_path / "a.jsonl", case | row))


def test_positions_inside_questions_are_reported_apart(fact_capture: Capture, fact_reader: Reader) -> None:
    replacement = find_replacement(fact_capture, " Germany", " Turkey")
    source = CaptureReader(fact_reader, fact_capture)
    tasks = list(tasks_of_capture(source, replacement, None, max_windows=12, answers_after="Response:"))
    assert {task.part for task in tasks} == {"answer", "question"}
    for task in tasks:
        text = "".join(fact_capture.store.token_text(int(token)) for token in task.reading.ids)
        before = "".join(
            fact_capture.store.token_text(int(token)) for token in task.reading.ids[: task.positions.min() + 1]
        )
        assert ("Response:" in before) == (task.part == "answer"), text
    whole = list(tasks_of_capture(source, replacement, None, max_windows=12))
    assert {task.part for task in whole} == {"text"}
    assert sum(len(task.positions) for task in whole) == sum(len(task.positions) for task in tasks)
    with pytest.raises(InvalidInputError, match="No text of capture 'corpus' holds 'Antwort'"):
        list(tasks_of_capture(source, replacement, None, max_windows=3, answers_after="Antwort"))


def test_questions_count_towards_no_heading() -> None:
    def row(part: str, top: int) -> dict[str, Any]:
        task = Task("x", "reliability", Reading(np.arange(3, dtype=np.int32), 2), np.array([1]), np.array([1]),
                    np.array([True]), part=part)  # type: ignore[arg-type]  # fmt: skip
        snapshot = Snapshot(np.array([[top, 5]], np.int32), np.array([-0.5]))
        return score(task, snapshot, snapshot)

    summary = summarise([row("answer", 1), row("question", 0), row("question", 0)])
    assert (summary["reliability"], summary["by_kind"]["reliability"]["cases"]) == (1.0, 1)
    assert (summary["questions"]["reliability"]["word"], summary["questions"]["reliability"]["cases"]) == (0.0, 2)


PROMPTS = ("Question: What is the capital of Germany?\nResponse:", "Which city is the capital of Germany?\nResponse:")


def request_of(target: str) -> Request:
    tests = (
        Case("Question: Which city is Germany's capital?\nYour response:", "text-generality", target, None, "g"),
        Case("Question: What is the capital of France?\nResponse:", "text-locality", None, None, "l"),
        Case("Question: What is the capital of Japan?\nResponse:", "text-locality", " Tokyo", None, "l"),
        Case("Question: What is the capital of Germany?\nResponse:", "fluency", None, None, "f"),
    )
    return Request(PROMPTS, target, "Germany", None, tests, "request")


@pytest.mark.parametrize("target", [" Oslo", " Oslo and Rome"])
def test_a_fact_is_rewritten_by_prompts_and_said_in_other_words(
    fact_capture: Capture, fact_reader: Reader, target: str
) -> None:
    settings = RewriteSettings(requests=(request_of(target),), least_norm=LeastNormSettings(k=40, layers=(4,)))
    edit = rewrite(fact_capture, "x", settings, fact_reader)
    assert edit.record.predicted["won"] == 1.0
    assert recorded_requests(edit.record.settings) == settings.requests
    assert settings_of(edit).requests == settings.requests
    captures, cases = own_tests(edit, fact_capture.store)
    assert captures == ()
    options = EvaluationOptions(cases=cases, baselines=(), max_new_tokens=6)
    summary = evaluate_edit(fact_reader, fact_capture.store, edit, options).methods["edit"][0]
    assert (summary["reliability"], summary["generality"], summary["locality"]) == (1.0, 1.0, 1.0)
    assert summary["by_kind"]["text-locality"]["cases"] == 2
    assert summary["fluency"] >= 0
    assert math.isnan(summary["portability"])


@pytest.mark.parametrize("form", ["fine", "knowledge-corrected"])
def test_the_other_forms_take_prompts_too(fact_capture: Capture, fact_reader: Reader, form: str) -> None:
    settings = RewriteSettings(
        form=form, requests=(request_of(" Oslo and Rome"),), fine=FineSettings(rate=2e-2, leave_last=1),
        knowledge=KnowledgeSettings(path_steps=4), least_norm=LeastNormSettings(k=4),
    )  # fmt: skip
    edit = rewrite(fact_capture, "x", settings, fact_reader)
    if form == "fine":
        assert edit.record.settings["probability"] > 0.9
    else:
        assert len(edit.record.settings["exchanged"]) == 3  # one pair per token of the target


def test_a_word_of_several_tokens_is_exchanged_by_least_norm_with_the_model(
    fact_capture: Capture, fact_reader: Reader
) -> None:
    settings = RewriteSettings(" Germany", " Rome and Oslo", least_norm=LeastNormSettings(k=40, layers=(4,)))
    with pytest.raises(InvalidInputError, match="needs the model"):
        rewrite(fact_capture, "x", settings)
    edit: Edit = rewrite(fact_capture, "x", settings, fact_reader)
    assert edit.record.settings["to"] == " Rome and Oslo"
    assert edit.record.predicted["won"] > 0.9
