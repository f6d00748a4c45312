"""Files of cases and of requests: JSON lines, or a JSON array of the same rows.

A row with a `kind` is one case. Any other is a request in one of the `LAYOUTS`; where cases are read, it stands for its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.engine.edit.case_kinds import CASE_KINDS
from actstore.engine.edit.requests.layouts import LAYOUTS, find_layout
from actstore.engine.edit.requests.request import Case, Request
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def read_cases(path: str | Path, rows: Sequence[int] = (), images: str | Path | None = None) -> list[Case]:
    """The cases of a file, those of its requests among them.

    A case has `prompt`, `kind`, `target` or `answer`, and optionally `image` and `other`, an answer that should be less
    probable. Images are relative to the folder `images`, by default the file's. `rows`: numbers of rows, from 1; all where
    empty. `InvalidInputError` naming the row for anything else.
    """
    cases: list[Case] = []
    for where, row, folder in _rows(path, rows, images):
        if "kind" in row or not (layout := find_layout(row)):
            cases.append(_case(row, where, folder))
        elif (request := layout.read(row, where, folder)) is not None:
            cases += request.cases()
    return cases


def read_requests(path: str | Path, rows: Sequence[int] = (), images: str | Path | None = None) -> tuple[Request, ...]:
    """The requests of a file, in any of the `LAYOUTS`; parameters and errors as of `read_cases`."""
    requests = []
    for where, row, folder in _rows(path, rows, images):
        layout = None if "kind" in row else find_layout(row)
        if layout is None:
            known = "; ".join(f"{', '.join(sorted(known.fields))} ({known.help})" for known in LAYOUTS.values())
            raise InvalidInputError(
                f"{where} is no request: found the fields {', '.join(map(repr, row)) or 'none'}, expected those of one of "
                f"these layouts: {known}."
            )
        if (request := layout.read(row, where, folder)) is not None:
            requests.append(request)
    if not requests:
        raise InvalidInputError(f"The cases {path} hold no request with a target.")
    return tuple(requests)


def requests_of(
    prompts: Sequence[str], target: str | None, subject: str | None, cases: str | Path | None, rows: Sequence[int] = (),
    images: str | Path | None = None,
) -> tuple[Request, ...]:  # fmt: skip
    """The requests that a command or a call names: one of prompts and a target, or those of a file; none for two words.

    `InvalidInputError` for both, and for half of one.
    """
    if cases is not None:
        if prompts or target is not None or subject is not None:
            raise InvalidInputError("Give a `prompt` and its `target`, or `cases`, which hold both: one of the two.")
        return read_requests(cases, rows, images)
    if rows or images is not None:
        raise InvalidInputError("`row` and `images` belong to a file of `cases`, which was not given.")
    if not prompts and target is None:
        if subject is not None:
            raise InvalidInputError("`subject` belongs to a `prompt`, which was not given.")
        return ()
    if not prompts or target is None:
        raise InvalidInputError("A `prompt` needs a `target`, and a `target` a `prompt`: give both.")
    return (Request(tuple(prompts), target, subject),)


def _rows(
    path: str | Path, numbers: Sequence[int], images: str | Path | None
) -> Iterator[tuple[str, dict[str, Any], Path]]:
    """(where, row, folder of images) of the rows of some numbers."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"The cases {path} cannot be read: {error}.") from None
    folder = path.parent if images is None else Path(images)
    n_rows = 0
    for n_rows, (where, value) in enumerate(_values(path, text), 1):
        if numbers and n_rows not in numbers:
            continue
        row = value() if callable(value) else value
        if not isinstance(row, dict):
            raise InvalidInputError(f"{where} should be an object with a prompt, a kind and a target.")
        yield where, row, folder
    if not n_rows:
        raise InvalidInputError(f"The cases {path} hold no line.")
    if missing := [number for number in numbers if not 1 <= number <= n_rows]:
        raise InvalidInputError(f"The cases {path} have rows 1 to {n_rows}, found {missing[0]}. Check `row`.")


def _values(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """(where, value) of each row; of lines, a function that parses it, so that only rows that are wanted must be right."""
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except ValueError:
            values = None  # lines, of which the first is a list
        if isinstance(values, list) and values:
            yield from ((f"{path} row {number}", value) for number, value in enumerate(values, 1))
            return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _parser(line, where)


def _parser(line: str, where: str) -> Any:
    def parse() -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{where} should be a JSON object: {error}.") from None

    return parse


def _case(value: dict[str, Any], where: str, folder: Path) -> Case:
    if not isinstance(value.get("prompt"), str):
        raise InvalidInputError(f"{where} should be an object with a prompt, a kind and a target.")
    kind = value.get("kind")
    if kind not in CASE_KINDS:
        raise InvalidInputError(f"{where}: the kind of a case is one of {', '.join(CASE_KINDS)}, found {kind!r}.")
    answer = value.get("target", value.get("answer"))
    needs_answer = CASE_KINDS[kind].needs_answer
    if not (answer is None and not needs_answer) and (not isinstance(answer, str) or not answer):
        raise InvalidInputError(f"{where}: expected the text of the target (or answer), found {answer!r}.")
    image = value.get("image")
    if image is not None and not isinstance(image, str):
        raise InvalidInputError(f"{where}: an image is a path, found {image!r}.")
    other = value.get("other")
    if other is not None and (not isinstance(other, str) or not other or answer is None):
        raise InvalidInputError(
            f"{where}: `other` is the text that the target should be more probable than, found {other!r:.60}."
        )
    return Case(value["prompt"], kind, answer, None if image is None else folder / image, where, other)
