"""The old word and the new one of a rewrite: their tokens, spelled as a capture's texts have them.

Reads the store's vocabulary; needs no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.contributions.targets import find_target
from actstore.store.errors import InvalidInputError
from actstore.store.layout import GENERATED
from actstore.store.model.tokenizer import StoredTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.capture.plan import BlockPlan
    from actstore.store.model.root import Root
    from actstore.store.reader import Capture


@dataclass(frozen=True)
class Replacement:
    """A word, and the word that takes its place."""

    old: tuple[int, ...]
    """Its tokens."""
    new: tuple[int, ...]
    old_text: str
    """With the blank before it, where the texts have one."""
    new_text: str

    @property
    def is_single(self) -> bool:
        """Whether each is one token."""
        return len(self.old) == len(self.new) == 1


def tokens_of(store: Root, text: str) -> tuple[int, ...]:
    """The tokens of a text; `InvalidInputError` where no tokens spell it."""
    try:
        return (find_target(store, text).token,)
    except InvalidInputError:
        tokens = (
            StoredTokenizer(store.folder, store.vocabulary).encode_word(text) if store.vocabulary is not None else ()
        )
        if not tokens:
            raise InvalidInputError(
                f"{store.model.name} has no tokens for the word {text!r}. Check `old` and `new`, and their spaces."
            ) from None
        return tuple(tokens)


def find_replacement(capture: Capture, old: str, new: str) -> Replacement:
    """The two words as the capture's texts have them: as they are given, or each with a blank before it.

    `InvalidInputError` for a word that no tokens spell, one that the texts do not hold, and two that are the same.
    """
    store = capture.store
    if not old.strip() or not new.strip():
        raise InvalidInputError("Expected two words, `old` and `new`, found an empty one.")
    candidates: list[tuple[int, Replacement]] = []
    first_error: InvalidInputError | None = None
    for before, after in _blanks(store, old, new):
        texts = before + old + after, before + new + after
        try:
            candidate = Replacement(tokens_of(store, texts[0]), tokens_of(store, texts[1]), *texts)
        except InvalidInputError as error:
            first_error = first_error or error
            continue
        candidates.append((count_occurrences(capture, candidate.old), candidate))
    if not candidates:
        assert first_error is not None
        raise first_error
    # Where a word is one token with the blank, texts have it so; pieces of it may occur anywhere.
    n, replacement = max(candidates, key=lambda pair: (pair[0] > 0, len(pair[1].old) == 1, pair[0]))
    if not n:
        raise InvalidInputError(
            f"The word {old!r} does not occur in capture {capture.record.name!r}: there is nothing to learn its neurons from. "
            "Check `old`, or name another `capture`."
        )
    if replacement.old == replacement.new:
        raise InvalidInputError(f"`old` and `new` are the same word, {replacement.old_text!r}.")
    return replacement


def _blanks(store: Root, old: str, new: str) -> list[tuple[str, str]]:
    """What may come before and after the two words in texts: nothing, or a blank where the tokenizer has it."""
    ends_words = store.vocabulary is not None and StoredTokenizer(store.folder, store.vocabulary).ends_words
    if any(word.startswith(" ") or (ends_words and word.endswith(" ")) for word in (old, new)):
        return [("", "")]
    return [("", ""), ("", " ") if ends_words else (" ", "")]


def starts_of(inputs: NDArray[np.int32], word: Sequence[int]) -> NDArray[np.int64]:
    """The places at which a word begins in the ids of one window."""
    n = len(inputs) - len(word) + 1
    if n <= 0:
        return np.empty(0, np.int64)
    matches = np.ones(n, bool)
    for i, token in enumerate(word):
        matches &= inputs[i : i + n] == token
    return np.flatnonzero(matches)


def count_occurrences(capture: Capture, word: Sequence[int]) -> int:
    """How often a word occurs in what the model read, where something comes before it."""
    total = 0
    for block in capture.blocks:
        plan = capture.block_plan(block)
        ends = np.cumsum(plan.windows["n_inputs"])
        starts = starts_of(plan.inputs, word)
        window = np.searchsorted(ends, starts, side="right")
        inside = starts + len(word) <= ends[window]
        first = np.concatenate([[0], ends[:-1]])[window]
        total += int((inside & (starts > first)).sum())
    return total


def answer_slots(plan: BlockPlan, *, has_answers: bool) -> NDArray[np.bool_]:
    """Which slots of a block predict a token of an answer; all of them where the capture holds no answers."""
    if not has_answers:
        return np.ones(len(plan.position), bool)
    window = np.repeat(np.arange(len(plan.windows["window"])), plan.windows["n_slots"])
    follows = (window[1:] == window[:-1]) & (plan.position[1:] == plan.position[:-1] + 1)
    predicts = np.zeros(len(window), bool)
    predicts[:-1] = follows & (plan.modality[1:] == GENERATED)
    return predicts


def has_answers(capture: Capture) -> bool:
    """Whether a capture's windows hold answers, given or generated, after their prompts."""
    return bool((capture.plan.array("tokens/modality") == GENERATED).any())
