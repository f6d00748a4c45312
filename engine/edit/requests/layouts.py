"""The layouts of files of requests, as one table: our own, and those of the published sets.

CounterFact (Meng et al., NeurIPS 2022, arXiv 2202.05262), zsRE as ROME distributes it, E-IC and E-VQA of MMEdit
(Cheng et al., EMNLP 2023, arXiv 2310.08475). Each row becomes one `Request` with its tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from actstore.engine.edit.requests.request import Case, Request
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Row = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """One layout of rows."""

    help: str
    fields: frozenset[str]
    """A row that has all of these fields is of the layout."""
    read: Callable[[Row, str, Path], Request | None]
    """(row, where it is, the folder of images) → the request; None for a row that the authors leave out too."""


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"{where}: expected a text as {name!r}, found {value!r:.60}.")
    return value


def _texts(value: object, name: str, where: str) -> list[str]:
    """A text, or a list of texts, as a list; [] where there is nothing."""
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) and text for text in values):
        raise InvalidInputError(f"{where}: expected a text or a list of texts as {name!r}, found {value!r:.60}.")
    return values


def _image(value: object, name: str, where: str, images: Path) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"{where}: expected the path of an image as {name!r}, found {value!r:.60}.")
    return images / value


def _after_blank(text: str) -> str:
    """The text as it follows a prompt."""
    return text if text[:1].isspace() else f" {text}"


def _pairs(value: object, name: str, where: str, *, optional_answer: bool) -> Iterator[tuple[str, str | None]]:
    """(prompt, answer) of a list of prompts, or of objects with `prompt` and `answer`, `target` or `ground_truth`."""
    if not isinstance(value, list):
        raise InvalidInputError(f"{where}: expected a list as {name!r}, found {value!r:.60}.")
    for item in value:
        if isinstance(item, str) and item and optional_answer:
            yield item, None
            continue
        if not isinstance(item, dict):
            raise InvalidInputError(f"{where}: {name!r} holds objects with a prompt and an answer, found {item!r:.60}.")
        prompt = _text(item, "prompt", where)
        answer = next((item[key] for key in ("answer", "target", "ground_truth") if key in item), None)
        while (
            isinstance(answer, list) and answer
        ):  # KnowEdit lists the acceptable answers, the first of them the usual one
            answer = answer[0]
        if answer is None and optional_answer:
            yield prompt, None
        elif isinstance(answer, str) and answer:
            yield prompt, answer
        else:
            raise InvalidInputError(
                f"{where}: expected the answer to {prompt[:40]!r} in {name!r}, found {answer!r:.60}."
            )


def _read_plain(row: Row, where: str, images: Path) -> Request:
    image, target = _image(row.get("image"), "image", where, images), _text(row, "target", where)
    prompts, other = _texts(row["prompt"], "prompt", where), None if "other" not in row else _text(row, "other", where)
    tests = [
        Case(text, "text-generality", target, image, where, other)
        for text in _texts(row.get("paraphrases"), "paraphrases", where)
    ]
    for path in _texts(row.get("images"), "images", where):
        tests += [Case(prompt, "image-generality", target, images / path, where) for prompt in prompts]
    for item in row.get("locality", []):
        own = item.get("image") if isinstance(item, dict) else None
        ((prompt, answer),) = _pairs([item], "locality", where, optional_answer=True)
        kind = "text-locality" if own is None else "image-locality"
        tests.append(Case(prompt, kind, answer, _image(own, "image", where, images), where))
    tests += [
        Case(prompt, "portability", answer, image, where)
        for prompt, answer in _pairs(row.get("portability", []), "portability", where, optional_answer=False)
    ]
    tests += [Case(text, "fluency", None, image, where) for text in _texts(row.get("generation"), "generation", where)]
    subject = row.get("subject")
    if subject is not None:
        _text(row, "subject", where)
    return Request(tuple(prompts), target, subject, image, tuple(tests), where, other)


def _read_counterfact(row: Row, where: str, images: Path) -> Request:
    rewrite = row["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise InvalidInputError(f"{where}: expected an object as 'requested_rewrite', found {rewrite!r:.60}.")
    subject, prompt = _text(rewrite, "subject", where), _text(rewrite, "prompt", where)
    new, true = (rewrite.get(name) for name in ("target_new", "target_true"))
    if not isinstance(new, dict) or not isinstance(true, dict):
        raise InvalidInputError(f"{where}: expected objects with a 'str' as 'target_new' and 'target_true'.")
    target, old = _after_blank(_text(new, "str", where)), _text(true, "str", where)
    # ROME's rewriting of zsRE into this layout has no true answer, but the end of a text in its place.
    known = None if old.startswith("<|") else _after_blank(old)
    tests = [
        Case(text, "text-generality", target, None, where, known)
        for text in _texts(row.get("paraphrase_prompts"), "paraphrase_prompts", where)
    ]
    for name, answer in (("neighborhood_prompts", known), ("attribute_prompts", target)):
        for text, own in _pairs(row.get(name, []), name, where, optional_answer=True):
            # A neighbour should still say what is true of both; what has the new attribute anyway has no other answer.
            other = target if own is None and answer is not None and answer != target else None
            answer_here = answer if own is None else _after_blank(own)
            tests.append(Case(text, "text-locality", answer_here, None, where, other))
    tests += [
        Case(text, "fluency", None, None, where)
        for text in _texts(row.get("generation_prompts"), "generation_prompts", where)
    ]
    return Request((prompt.replace("{}", subject),), target, subject, None, tuple(tests), where, known)


def _read_zsre(row: Row, where: str, images: Path) -> Request | None:
    if row["alt"] == "":
        return None
    target = _after_blank(_text(row, "alt", where))
    tests = [
        Case(text, "text-generality", target, None, where) for text in _texts(row.get("rephrase"), "rephrase", where)
    ]
    if row.get("loc"):
        tests.append(
            Case(_as_question(_text(row, "loc", where)), "text-locality", _locality_answer(row, where), None, where)
        )
    tests += _portability(row.get("portability"), where)
    subject = row.get("subject")
    return Request(
        (_text(row, "src", where),), target, subject if isinstance(subject, str) else None, None, tuple(tests), where
    )


def _as_question(text: str) -> str:
    """A question of Natural Questions, which is stored without its mark; ROME adds it too."""
    return text if text.rstrip().endswith("?") else f"{text}?"


def _locality_answer(row: Row, where: str) -> str | None:
    answer = row.get("loc_ans")
    return None if not answer else _after_blank(_text(row, "loc_ans", where))


def _portability(value: object, where: str) -> Iterator[Case]:
    """Questions that follow from the new fact: EasyEdit's `New Question`, or KnowEdit's lists by kind."""
    if not isinstance(value, dict):
        return
    if "New Question" in value:
        yield Case(
            _text(value, "New Question", where),
            "portability",
            _after_blank(_text(value, "New Answer", where)),
            None,
            where,
        )
        return
    for name, items in value.items():
        for prompt, answer in _pairs(items or [], name, where, optional_answer=False):
            yield Case(prompt, "portability", _after_blank(str(answer)), None, where)


def _read_mmedit(row: Row, where: str, images: Path) -> Request | None:
    if row["alt"] == "":
        return None
    image, target = _image(row["image"], "image", where, images), _after_blank(_text(row, "alt", where))
    prompt = _text(row, "src", where)
    tests = [
        Case(text, "text-generality", target, image, where) for text in _texts(row.get("rephrase"), "rephrase", where)
    ]
    if row.get("image_rephrase"):
        other = _image(row["image_rephrase"], "image_rephrase", where, images)
        tests.append(Case(prompt, "image-generality", target, other, where))
    if row.get("loc"):
        tests.append(Case(_text(row, "loc", where), "text-locality", _locality_answer(row, where), None, where))
    if row.get("m_loc"):
        other = _image(row["m_loc"], "m_loc", where, images)
        answer = _after_blank(_text(row, "m_loc_a", where)) if row.get("m_loc_a") else None
        tests.append(Case(_text(row, "m_loc_q", where), "image-locality", answer, other, where))
    return Request((prompt,), target, None, image, tuple(tests), where)


LAYOUTS: Final = {
    "counterfact": Layout("CounterFact", frozenset({"requested_rewrite"}), _read_counterfact),
    "mmedit": Layout("E-IC and E-VQA of MMEdit", frozenset({"src", "alt", "image"}), _read_mmedit),
    "zsre": Layout("zsRE, as ROME distributes it", frozenset({"src", "alt"}), _read_zsre),
    "plain": Layout("prompt, target, and lists of tests", frozenset({"prompt", "target"}), _read_plain),
}
"""Name → layout; of those whose fields a row has, the first is its own."""


def find_layout(row: Row) -> Layout | None:
    """The layout of a row; None where it has none."""
    return next((layout for layout in LAYOUTS.values() if layout.fields <= row.keys()), None)
