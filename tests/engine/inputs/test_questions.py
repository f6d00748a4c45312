"""Questions files in their three forms, and every way in which one is not what it must be."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from actstore.engine.inputs.questions import Query, QuestionOptions, fingerprint, read_questions
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]

PROMPT = "Who?\n A. x\n B. y\n C. z\nAnswer:"


def prepared(**changes: Any) -> dict[str, Any]:
    row = {"sentences": [PROMPT, PROMPT], "obj_label": ["A", "C"], "relation_name": "en", "year": 1}
    return {"first": row | changes, "second": row}


def plain(**changes: Any) -> dict[str, Any]:
    return {"question": "Who?", "options": ["x", "y", "z"], "answer": "y", "subject": "people"} | changes


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file: text as it is, a list as JSON lines, anything else as JSON."""

    def write(content: Any, name: str = "questions.json", **how: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content, **how), encoding="utf-8")
        return path

    return write


def test_compressed_files_are_read(tmp_path: Path) -> None:
    for name, content in (("a.json.gz", json.dumps(prepared())), ("b.jsonl.gz", json.dumps(plain()))):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content.encode()))
        assert len(list(read_questions(path))) == (2 if name == "a.json.gz" else 1)
    path.write_bytes(gzip.compress(content.encode())[:-6])
    with pytest.raises(InvalidInputError, match=r"b\.jsonl\.gz cannot be read \(Compressed file ended before"):
        list(read_questions(path))


@pytest.mark.parametrize(("name", "kind"), [("a.csv", "csv"), ("a.tsv.gz", "tsv"), ("a.parquet", "parquet")])
def test_tables_are_no_questions(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_text("question,options,answer\n")
    with pytest.raises(InvalidInputError) as caught:
        list(read_questions(path))
    assert str(caught.value) == (f"Questions are JSON, or JSON lines, and {path} is {kind} by its suffix. Convert it.")


@pytest.mark.parametrize("indent", [None, 1], ids=["on one line", "over many"])
def test_prepared_prompts_are_taken_as_they_are(write: Write, indent: int | None) -> None:
    first, second = read_questions(write(prepared(), indent=indent))
    labels = {"relation_name": "en", "year": "1"}
    assert first == Query("first", (PROMPT,) * 2, ("A", "C"), (("A", "B", "C"),) * 2, labels, prepared=True)
    assert second.name == "second"


@pytest.mark.parametrize(
    ("prompt", "letters"),
    [
        ("回答哪个?\n A. 甲\n B. 乙\n\n回答：", "AB"),
        ("P. D. James is\n A. a poet\n B. a writer\nResponse:", "AB"),  # initials in front look like an option
        ("A. C. Doyle is\n I. one\n A. a poet\n B. a writer\nResponse:", "AB"),
        ("Which?\nA) one\nB) two\nC) three\nD) four\nE) five\nAnswer: ", "ABCDE"),
        ("Which?\n\tA: one\n\tB: A. two\nAnswer:", "AB"),
    ],
)
def test_letters_are_those_of_the_prompts_own_lines(write: Write, prompt: str, letters: str) -> None:
    (query,) = read_questions(write([{"prompts": [prompt], "answers": ["B."]}]))
    assert query.options == (tuple(letters),)
    assert query.prompts == (prompt,)
    assert query.answers == ("B",)


def test_plain_rows_become_three_prompts_with_options_in_several_orders(write: Write) -> None:
    rows = [plain(question=f"Who is {i}?", options=["x", "y", "z", "v"]) for i in range(40)]
    queries = list(read_questions(write(rows)))
    assert [q.name for q in queries] == [str(i) for i in range(1, 41)]
    letters = Counter(answer for query in queries for answer in query.answers)
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > 10, "the right option stands anywhere"
    for i, query in enumerate(queries):
        assert query.labels == {"subject": "people"}
        assert len(set(query.prompts)) == 3
        for prompt, answer, options in zip(query.prompts, query.answers, query.options, strict=True):
            lines = [line for line in prompt.splitlines() if line.startswith(" ")]
            assert f"Who is {i}?" in prompt
            assert sorted(line[4:] for line in lines) == ["v", "x", "y", "z"]
            assert f" {answer}. y" in lines
            assert options == tuple("ABCD")
            assert prompt.rstrip().endswith(":"), "the letter comes next"


def test_the_order_of_options_depends_on_the_seed_and_the_question_and_nothing_else(write: Write) -> None:
    rows = [plain(id="a"), plain(id="b"), plain(id="c", question="Whom?")]
    path, turned = write(rows), write(rows[::-1], "turned.jsonl")
    assert list(read_questions(path)) == list(read_questions(turned))[::-1]
    other = list(read_questions(path, QuestionOptions(seed=1, templates=20)))
    assert other[0].answers != next(read_questions(path, QuestionOptions(templates=20))).answers
    assert other[0].answers != other[1].answers


@pytest.mark.parametrize(
    ("options", "answer"),
    [(["x", "y"], "y"), (["x", "y"], "B"), ({"A": "x", "B": "y"}, "B."), ({"B": "y", "A": "x"}, "y"), ([3, 4], 4)],
)  # fmt: skip
def test_the_answer_is_a_letter_or_an_options_text(write: Write, options: Any, answer: Any) -> None:
    (query,) = read_questions(write([plain(options=options, answer=answer)]))
    right = "4" if answer == 4 else "y"
    assert all(f" {letter}. {right}" in p for p, letter in zip(query.prompts, query.answers, strict=True))


def test_a_list_of_rows_a_byte_order_mark_and_empty_lines_are_read(write: Write) -> None:
    rows = json.dumps([plain(), plain(id="other")])
    assert [q.name for q in read_questions(write("\ufeff" + rows))] == ["1", "other"]
    lines = f"\n{json.dumps(plain())}\n\n{json.dumps(plain())}\n"
    assert [q.name for q in read_questions(write(lines))] == ["2", "4"]


def test_only_so_many_prompts_and_queries(write: Write) -> None:
    options = QuestionOptions(templates=1, max_queries=1)
    (query,) = read_questions(write(prepared()), options)
    assert (query.prompts, query.answers, len(query.options)) == ((PROMPT,), ("A",), 1)
    (query,) = read_questions(write([plain(), {"question": 3}]), options)
    assert len(query.prompts) == 1
    assert len(next(read_questions(write([plain()]), QuestionOptions(templates=5))).prompts) == 5


def test_the_fingerprint_covers_prompts_answers_and_the_labels_that_are_kept(write: Write) -> None:
    def of(content: Any, *columns: str) -> str:
        return fingerprint(read_questions(write(content)), columns)

    same = of(prepared(), "relation_name")
    assert of(prepared(other="column"), "relation_name") == same
    assert of(prepared(obj_label=["B", "C"]), "relation_name") != same
    assert of(prepared(sentences=[PROMPT, PROMPT + " "]), "relation_name") != same
    assert of(prepared(relation_name="fr"), "relation_name") != same
    assert of(prepared()) != same


BAD = {
    "empty": ("", "is empty"),
    "blank lines": ("\n\n", "is empty"),
    "no query": ("{}", "holds no question"),
    "empty list": ("[]", "holds no question"),
    "not JSON": ("What is this?", "is not JSON"),
    "a number": ("3", "is JSON, but int"),
    "a bad line": (json.dumps(plain()) + "\n{oops\n", "questions.json:2 is not JSON"),
    "a row that is none": ([plain(), ["x"]], "questions.json:2 should be an object, found list"),
    "an entry that is none": ({"first": 3, "second": {}}, "entry 'first', should be an object, found int"),
    "no prompts": (prepared(sentences=[], obj_label=[]), "entry 'first', has no prompts"),
    "sentences no list": (prepared(sentences="Who?"), "list of texts as 'sentences'"),
    "no answers": ([{"prompts": [PROMPT]}], "questions.json:1 should have a list of texts as 'answers', found None"),
    "mixed lengths": (prepared(obj_label=["A"]), "has 2 sentences and 1 obj_label"),
    "answer not there": (prepared(obj_label=["A", "D"]), "prompt 2 has the answer 'D', not among its options A, B, C"),
    "letter missing": (prepared(sentences=["?\n A. x\n C. z\n:"] * 2), "prompt 1 lacks the option B"),
    "letter twice": (prepared(sentences=["?\n A. x\n B. y\n B. z\n:"] * 2), "prompt 1 has the option B twice"),
    "empty option": (prepared(sentences=["?\n A. x\n B.\n C. z\n:"] * 2), "nothing after the option B"),
    "one option": (prepared(sentences=["?\n A. x\n:"] * 2), "prompt 1 has 1 options"),
    "no options": (prepared(sentences=["?:"] * 2), "prompt 1 has 0 options"),
    "key twice": ('{\n"a": {"sentences": []},\n"a": {"sentences": []}}', "has 'a' twice"),
    "letter twice by key": ('{"question": "?", "options": {"A": "x", "A": "y"}, "answer": "A"}', "has 'A' twice"),
    "name twice": ([plain(id="q"), plain(id="q")], "questions.json:2 has the name 'q', as has an earlier query"),
    "asks nothing": ([{"text": "hello"}], "asks nothing"),
    "no question": ([plain(question=" ")], "no text for its 'question'"),
    "no options list": ([plain(options=None)], "should have 2 to 26 'options'"),
    "one option only": ([plain(options=["y"])], "found 1"),
    "missing by letter": ([plain(options={"A": "y", "C": "x"})], "lacks the option B"),
    "empty text": ([plain(options=["y", ""])], "no text for the option B"),
    "an option twice": ([plain(options=["x", "y", "x"])], "has the option 'x' twice"),
    "answer none": ([plain(answer="w")], "questions.json:1 has the answer 'w', not among its options 'x', 'y', 'z'"),
    "no answer": ([{k: v for k, v in plain().items() if k != "answer"}], "has the answer None"),
    "answer of two minds": (
        [plain(options=["B", "C", "A"], answer="B")],
        "is the letter of 'C' and the text of another",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_sentence_that_says_where(write: Write, case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(InvalidInputError) as caught:
        list(read_questions(write(content)))
    assert message in str(caught.value)
    assert "questions.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_a_missing_file_and_counts_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    with pytest.raises(NotFoundError, match=r"no questions file .*questions\.json"):
        list(read_questions(path))
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InvalidInputError, match=r"in UTF-8: .* is neither .* at byte 7"):
        list(read_questions(path))
    with pytest.raises(InvalidInputError, match="`templates` of 1 or more, found 0"):
        QuestionOptions(templates=0)
    with pytest.raises(InvalidInputError, match="Expected `max_queries` of 1 or more"):
        QuestionOptions(max_queries=0)


def test_lines_are_read_as_they_are_asked_for(write: Write) -> None:
    queries = read_questions(write([plain(), plain(), {"question": "no options"}]))
    assert next(queries).name == "1"
    assert next(queries).name == "2"
    with pytest.raises(InvalidInputError, match=r"questions\.json:3"):
        next(queries)
