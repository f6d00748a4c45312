"""Questions files: multiple-choice queries, each with the prompts that ask it.

Three forms are read, compressed where the name says so. Prepared JSON (Chen et al. 2025): an object of queries, name →
`sentences`, the prompts, with `obj_label`, the letter of each one's right answer, and any other columns; the options
are read from the prompts' own lines ` A. …`. Plain rows, in JSON lines or a JSON array: `question`, `options` (a list,
or an object by letter) and `answer` (a letter, or an option's text), put into templates with shuffled options. And rows with
`prompts` and `answers`, used as they are. Rows with a mask are those of `masked_questions`. Other columns are labels.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actstore.engine.inputs.filetypes import file_type, open_bytes
from actstore.engine.inputs.masked_questions import MASKED_KEYS, masked_prompts
from actstore.engine.inputs.textfiles import reading
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TEMPLATES: Final = (
    "Choose the right answer and give its letter only.\nQuestion: {question}\n{options}\n\nAnswer:",
    "A question follows, with several possible answers. One of them is right; reply with its letter.\n\n{question}\n"
    "{options}\n\nThe right letter is:",
    "{question}\n\nWhich of these is it?\n{options}\n\nReply with one letter.\nReply:",
)
DEFAULT_TEMPLATES: Final = len(TEMPLATES)

_INDENTED: Final = re.compile(r"^[ \t]+([A-Z])[.):][ \t]*(.*)$", re.MULTILINE)
_FLUSH: Final = re.compile(r"^([A-Z])[.):][ \t]*(.*)$", re.MULTILINE)
_PROMPT_KEYS: Final = {"sentences", "obj_label", "prompts", "answers", "question", "options", "answer", "id"}


@dataclass(frozen=True)
class Query:
    """One question in one or more prompts, with the right option of each."""

    name: str
    prompts: tuple[str, ...]
    """Each ends where the model is to put a letter, or holds `masked_questions.MASK`."""
    answers: tuple[str, ...]
    """The letter of the right option, by prompt; of a masked prompt, what stands in place of the mask."""
    options: tuple[tuple[str, ...], ...]
    """The letters of the options, by prompt, in their order there; of a masked prompt, the options themselves."""
    labels: dict[str, str] = field(default_factory=dict)
    """Every other column whose value is a text or a number."""
    prepared: bool = False
    """Whether it comes from prepared JSON, whose columns are not all meant as labels."""
    masked: bool = False
    """Whether its prompts hold a mask."""


@dataclass(frozen=True)
class QuestionOptions(Typed):
    """How a questions file is to be read."""

    templates: int | None = None
    """Number of prompts per query: made from templates, by default 3; of given prompts the first ones, by default all."""
    seed: int = 0
    """Random seed: decides, with a query's name and the template's number, the order of the options."""
    max_queries: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("templates", self.templates), ("max_queries", self.max_queries)):
            if value is not None and value < 1:
                raise InvalidInputError(f"Expected `{name}` of 1 or more, found {value}.")


def read_questions(path: str | Path, options: QuestionOptions | None = None) -> Iterator[Query]:
    """The queries of a file in their order, read as they are asked for where the file is JSON lines.

    Raises `NotFoundError` where there is no such file, and `InvalidInputError`, naming the entry or line, where it is no
    questions file: not JSON, no query at all, a missing option, a letter twice, an answer not among the options, a query
    without prompts or with more prompts than answers, a name twice.

    >>> queries = list(read_questions("questions.json"))
    """
    options = options or QuestionOptions()
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"There is no questions file {path}: expected JSON or JSON lines. Check the path.")
    names: set[str] = set()
    for source, name, row in _rows(path):
        query = _query(source, name, row, options)
        if query.name in names:
            raise InvalidInputError(
                f"{source} has the name {query.name!r}, as has an earlier query. Give each its own."
            )
        names.add(query.name)
        yield query
        if len(names) == options.max_queries:
            return
    if not names:
        raise InvalidInputError(f"{path} holds no question. Expected an object of queries, or one row per question.")


def fingerprint(queries: Iterator[Query], label_columns: tuple[str, ...]) -> str:
    """The SHA-256, in hexadecimal, of everything in queries that a capture with these label columns depends on."""
    digest = hashlib.sha256(b"actstore questions 1\n")
    for query in queries:
        labels = [query.labels.get(column, "") for column in label_columns]
        row = [query.name, query.prompts, query.answers, query.options, labels]
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _rows(path: Path) -> Iterator[tuple[str, str | None, object]]:
    """(source for messages, name or None where the file has none, row) of every query."""
    if (kind := file_type(path).format) not in ("text", "json", "json lines"):
        raise InvalidInputError(f"Questions are JSON, or JSON lines, and {path} is {kind} by its suffix. Convert it.")
    try:
        with reading(str(path)):
            with _open_text(path) as file:
                first = next((line for line in file if line.strip()), "")
            if not first:
                raise InvalidInputError(f"{path} is empty. Expected an object of queries, or one row per question.")
            row = _parse(first)
            is_lines = isinstance(row, dict) and _is_row(row)
            with _open_text(path) as file:
                yield from _lines(path, file) if is_lines else _whole(path, file.read())
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"Questions are JSON, or JSON lines, in UTF-8: {path} is neither ({error.reason} at byte {error.start}). Convert "
            "it."
        ) from None


def _open_text(path: Path) -> io.TextIOWrapper:
    """The file's text, decompressed as its name says."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig")


def _is_row(value: dict[str, object]) -> bool:
    """Whether an object on the first line is a row; a prepared file on one line is an object of objects."""
    return bool(value.keys() & (_PROMPT_KEYS | {"cloze", "sequence"})) or bool(
        value and not any(isinstance(v, dict) for v in value.values())
    )


def _lines(path: Path, file: Iterable[str]) -> Iterator[tuple[str, str | None, object]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            source = f"{path}:{number}"
            row = _parse(line, source)
            if row is None:
                raise InvalidInputError(f"{source} is not JSON. Expected one object per line: {line.strip()[:60]!r}.")
            yield source, str(number), row


def _whole(path: Path, text: str) -> Iterator[tuple[str, str | None, object]]:
    rows = _parse(text, str(path))
    if isinstance(rows, dict):
        for name, row in rows.items():
            yield f"{path}, entry {name!r},", name, row
    elif isinstance(rows, list):
        for number, row in enumerate(rows, start=1):
            yield f"{path}, entry {number},", str(number), row
    else:
        what = "not JSON" if rows is None else f"JSON, but {type(rows).__name__} and no object"
        raise InvalidInputError(f"{path} is {what}. Expected an object of queries, or one object per line.")


def _parse(text: str, source: str | None = None) -> object:
    """The JSON value in `text`, or None where it is none; an object with a key twice is refused where `source` is given."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        value = dict(pairs)
        if source is not None and len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise InvalidInputError(f"{source} has {repeated!r} twice in one object. Keep one of them.")
        return value

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError):
        return None


def _query(source: str, name: str | None, row: object, options: QuestionOptions) -> Query:
    if not isinstance(row, dict):
        raise InvalidInputError(f"{source} should be an object, found {type(row).__name__}.")
    name = str(row["id"]) if isinstance(row.get("id"), str | int) else str(name)
    labels = {
        key: str(value)
        for key, value in row.items()
        if key not in _PROMPT_KEYS and isinstance(value, str | int) and not isinstance(value, bool)
    }
    for prompts_key, answers_key in (("sentences", "obj_label"), ("prompts", "answers")):
        if prompts_key in row:
            prompts, answers, letters = _own_prompts(source, row, prompts_key, answers_key, options.templates)
            return Query(name, prompts, answers, letters, labels, prepared=prompts_key == "sentences")
    if (masked := masked_prompts(source, row, options.templates)) is not None:
        labels = {key: value for key, value in labels.items() if key not in MASKED_KEYS}
        return Query(name, *masked, labels, masked=True)
    if "question" not in row:
        columns = ", ".join(map(repr, row)) or "nothing"
        raise InvalidInputError(
            f"{source} asks nothing. Expected 'sentences' with 'obj_label', 'prompts' with 'answers', 'question' or 'cloze' "
            f"with 'options' and 'answer', or 'sequence' with 'position'; found {columns}."
        )
    question = row["question"]
    if not isinstance(question, str) or not question.strip():
        raise InvalidInputError(f"{source} has no text for its 'question', found {question!r}.")
    texts, right = _choices(source, row)
    n_templates = options.templates or DEFAULT_TEMPLATES
    filled = [_fill(question.strip(), texts, right, f"{options.seed}\0{name}", number) for number in range(n_templates)]
    shuffled = (tuple(string.ascii_uppercase[: len(texts)]),) * n_templates
    return Query(name, tuple(p for p, _ in filled), tuple(a for _, a in filled), shuffled, labels)


def _own_prompts(
    source: str, row: dict[str, object], prompts_key: str, answers_key: str, n_prompts: int | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The prompts of a row, their right letters, and the letters of their options."""
    prompts, answers = (_texts(source, row, key) for key in (prompts_key, answers_key))
    if not prompts:
        raise InvalidInputError(f"{source} has no prompts: {prompts_key!r} is empty.")
    if len(prompts) != len(answers):
        raise InvalidInputError(
            f"{source} has {len(prompts)} {prompts_key} and {len(answers)} {answers_key}. Each prompt needs one right letter."
        )
    letters = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        options = _letters(f"{source} prompt {number}", prompt)
        if _letter(answer) not in options:
            raise InvalidInputError(
                f"{source} prompt {number} has the answer {answer!r}, not among its options {', '.join(options)}."
            )
        letters.append(options)
    first = slice(n_prompts)
    return tuple(prompts[first]), tuple(map(_letter, answers[first])), tuple(letters[first])


def _texts(source: str, row: dict[str, object], key: str) -> list[str]:
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidInputError(f"{source} should have a list of texts as {key!r}, found {value!r:.60}.")
    return value


def _letter(answer: str) -> str:
    return answer.strip().rstrip(".):").strip()


def _letters(source: str, prompt: str) -> tuple[str, ...]:
    """The letters of a prompt's options: its lines ` A. …`, or `A. …` where none is indented, from the first A on."""
    for pattern in (_INDENTED, _FLUSH):
        # A question may have lines that look like options, such as initials; options begin with A.
        lines = pattern.findall(prompt)
        first = next((number for number, (letter, _) in enumerate(lines) if letter == "A"), len(lines))
        if lines := lines[first:]:
            break
    letters = [letter for letter, _ in lines]
    if len(letters) < 2:
        raise InvalidInputError(
            f"{source} has {len(letters)} options. Expected two lines or more such as ' A. …', ' B. …'."
        )
    for number, (letter, text) in enumerate(lines):
        expected = string.ascii_uppercase[number] if number < 26 else None
        if letter in letters[:number]:
            raise InvalidInputError(f"{source} has the option {letter} twice. Give each option its own letter.")
        if letter != expected:
            raise InvalidInputError(f"{source} lacks the option {expected}: its options are {', '.join(letters)}.")
        if not text.strip():
            raise InvalidInputError(f"{source} has nothing after the option {letter}.")
    return tuple(letters)


def _choices(source: str, row: dict[str, object]) -> tuple[list[str], str]:
    """The texts of a plain question's options, and which of them is right."""
    options, answer = row.get("options"), row.get("answer")
    if isinstance(options, dict):
        expected = list(string.ascii_uppercase[: len(options)])
        if sorted(options) != expected:
            missing = next((letter for letter in expected if letter not in options), expected[-1:])
            raise InvalidInputError(
                f"{source} lacks the option {missing}: its options are {', '.join(map(repr, options))}."
            )
        options = [options[letter] for letter in expected]
    if not isinstance(options, list) or not 2 <= len(options) <= 26:
        actual = f"{len(options)}" if isinstance(options, list) else f"{options!r:.60}"
        raise InvalidInputError(
            f"{source} should have 2 to 26 'options', a list or an object by letter; found {actual}."
        )
    texts = [str(option).strip() if isinstance(option, str | int | float) else "" for option in options]
    for letter, text in zip(string.ascii_uppercase, texts, strict=False):
        if not text:
            raise InvalidInputError(f"{source} has no text for the option {letter}.")
        if texts.count(text) > 1:
            raise InvalidInputError(f"{source} has the option {text!r} twice. Which one is right could not be told.")
    answer_text = str(answer).strip() if isinstance(answer, str | int | float) else ""
    by_letter = dict(zip(string.ascii_uppercase, texts, strict=False)).get(_letter(answer_text) if answer_text else "")
    by_text = answer_text if answer_text in texts else None
    if by_letter is not None and by_text is not None and by_letter != by_text:
        raise InvalidInputError(
            f"{source} has the answer {answer_text!r}, which is the letter of {by_letter!r} and the text of another option. "
            "Give the text of the right option another form."
        )
    right = by_letter or by_text
    if right is None:
        raise InvalidInputError(
            f"{source} has the answer {answer!r}, not among its options {', '.join(map(repr, texts))}."
        )
    return texts, right


def _fill(question: str, texts: list[str], right: str, seed: str, template: int) -> tuple[str, str]:
    """A prompt with its options shuffled, and the letter of the right one."""

    def order(text: str) -> bytes:
        # A hash sorts the same in every version of Python, which `random` does not promise.
        return hashlib.sha256(f"{seed}\0{template}\0{text}".encode()).digest()

    shuffled = sorted(texts, key=order)
    lines = "\n".join(f" {letter}. {text}" for letter, text in zip(string.ascii_uppercase, shuffled, strict=False))
    prompt = TEMPLATES[template % len(TEMPLATES)].format(question=question, options=lines)
    return prompt, string.ascii_uppercase[shuffled.index(right)]
