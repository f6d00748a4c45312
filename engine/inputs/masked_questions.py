"""Rows of a questions file whose prompts hold a mask, for models that predict what is masked: cloze texts, and sequences.

A cloze row has `cloze`, a text with `[MASK]` in it or a list of such texts that ask the same, `options` and `answer`: words
or pieces that may stand in its place. A row of a sequence, such as a protein, has `sequence` and `position`, that of a residue
counted from 1 or a list of them, each masked in a prompt of its own; its options are the 20 amino acids unless it has others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

MASK: Final = "[MASK]"
"""Where a prompt is masked, whatever the model's own token for it is."""
AMINO_ACIDS: Final = tuple("ACDEFGHIKLMNPQRSTVWY")
MASKED_KEYS: Final = frozenset({"cloze", "sequence", "position"})
"""Columns that are no labels of a row with a mask."""
MAX_OPTIONS: Final = 1000

Prompts = tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, ...], ...]]
"""Prompts, the right option of each, and its options."""


def masked_prompts(source: str, row: Mapping[str, object], n_prompts: int | None) -> Prompts | None:
    """The prompts of a row with a mask, at most `n_prompts`; None of a row without one.

    `InvalidInputError`, naming the row, where it lacks something or its answer is not among its options.
    """
    if "question" in row:
        return None
    if "cloze" in row:
        texts = _cloze(source, row["cloze"])[:n_prompts]
        options = _options(source, row, None)
        answers = (_answer(source, row.get("answer"), options),) * len(texts)
    elif "sequence" in row:
        texts, answers = _residues(source, row)
        texts, answers = texts[:n_prompts], answers[:n_prompts]
        options = _options(source, row, AMINO_ACIDS)
        answers = tuple(_answer(source, answer, options) for answer in answers)
    else:
        return None
    return texts, answers, (options,) * len(texts)


def _cloze(source: str, value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidInputError(f"{source} should have a text, or a list of texts, as 'cloze', found {value!r:.60}.")
    for text in texts:
        if text.count(MASK) != 1:
            raise InvalidInputError(
                f"{source} should have {MASK} once in each text of its 'cloze', found it {text.count(MASK)} times in "
                f"{text!r:.60}."
            )
    return tuple(texts)


def _residues(source: str, row: Mapping[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    sequence, position = row["sequence"], row.get("position")
    if not isinstance(sequence, str) or not sequence.strip() or any(letter.isspace() for letter in sequence.strip()):
        raise InvalidInputError(
            f"{source} should have letters without blanks as its 'sequence', found {sequence!r:.60}."
        )
    sequence = sequence.strip()
    positions: list[int] = []
    for at in position if isinstance(position, list) else [position]:
        if not isinstance(at, int) or isinstance(at, bool) or not 1 <= at <= len(sequence):
            raise InvalidInputError(
                f"{source} should have a 'position' from 1 to {len(sequence)}, the length of its sequence, or a list of them; "
                f"found {at!r:.60}."
            )
        positions.append(at)
    if not positions:
        raise InvalidInputError(f"{source} has no position: its list is empty.")
    texts = tuple(f"{sequence[: at - 1]}{MASK}{sequence[at:]}" for at in positions)
    return texts, tuple(sequence[at - 1] for at in positions)


def _options(source: str, row: Mapping[str, object], default: tuple[str, ...] | None) -> tuple[str, ...]:
    options = row.get("options", default)
    if not isinstance(options, list | tuple) or not 2 <= len(options) <= MAX_OPTIONS:
        raise InvalidInputError(
            f"{source} should have a list of 2 to {MAX_OPTIONS:,} 'options' for what is masked, found {options!r:.60}."
        )
    for option in options:
        if not isinstance(option, str) or not option.strip():
            raise InvalidInputError(f"{source} should have texts as its 'options', found {option!r:.60}.")
    stripped = tuple(option.strip() for option in options)
    if len(set(stripped)) < len(stripped):
        raise InvalidInputError(f"{source} has an option twice. Which one is right could not be told.")
    return stripped


def _answer(source: str, answer: object, options: tuple[str, ...]) -> str:
    text = answer.strip() if isinstance(answer, str) else answer
    if not isinstance(text, str) or text not in options:
        shown = ", ".join(map(repr, options[:20]))
        raise InvalidInputError(f"{source} has the answer {answer!r:.60}, not among its options {shown}.")
    return text
