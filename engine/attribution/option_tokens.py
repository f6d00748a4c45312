"""Prompts as token ids, and the token that each option's letter would be: taken from the tokenised continuation.

What a tokenizer makes of "A" alone is not what a model would put after "Answer:". So every prompt is tokenised with each of
its letters behind it, and what all of these have in common is what the model reads; the token that follows in each is the
letter's. That holds whatever a tokenizer merges across the border. Knows nothing about models.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from actstore.engine.capture.plan import check_ids
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.inputs.questions import Query
    from actstore.engine.models.tokenizer.load import TextTokenizer

TooLong = Literal["cut", "skip", "refuse"]


@dataclass(frozen=True)
class TokenisedPrompt:
    """What the model reads of a prompt, and the tokens among which it then chooses."""

    ids: NDArray[np.int32]
    """[position] with the special tokens that the tokenizer puts before a text."""
    option_tokens: tuple[int, ...]
    """The token of each option's letter."""
    n_cut: int
    """Tokens left out at the beginning, so that the rest fits the model's context."""
    as_text: bool
    """Whether the ids are those of the prompt alone; otherwise the tokenizer merges across its end."""


class PromptTokenizer:
    """Tokenises the prompts of queries for a model."""

    def __init__(
        self, tokenizer: TextTokenizer, *, context: int | None, n_vocabulary: int | None, too_long: TooLong
    ) -> None:
        """Prompts of more than `context` tokens are cut at the beginning, or their query is skipped, or refused."""
        if too_long not in get_args(TooLong):
            raise InvalidInputError(f"--long is one of {', '.join(get_args(TooLong))}: found {too_long!r}.")
        self._tokenizer, self._context, self._n_vocabulary = tokenizer, context, n_vocabulary
        self._too_long = too_long
        self._prefix = np.array(tokenizer.prefix, np.int32)

    def prompts(self, query: Query) -> list[TokenisedPrompt] | None:
        """The prompts of a query, or None where it is to be skipped.

        Raises `InvalidInputError` for letters that no continuation gives distinct tokens, and for ids that the model does
        not have.
        """
        made = []
        for number, (prompt, letters) in enumerate(zip(query.prompts, query.options, strict=True), start=1):
            place = f"Query {query.name!r}, prompt {number},"
            own, ids, tokens = self._split(place, prompt, letters)
            check_ids(np.append(ids, tokens), place, self._n_vocabulary)
            n_cut = 0
            if self._context is not None and len(self._prefix) + len(ids) > self._context:
                if self._too_long == "skip":
                    return None
                n_cut = len(self._prefix) + len(ids) - self._context
                if self._too_long == "refuse":
                    raise InvalidInputError(
                        f"{place} has {len(self._prefix) + len(ids)} tokens, and the model reads at most {self._context}. "
                        "Cut the beginning off with --long cut, or leave such queries out with --long skip."
                    )
            whole = np.concatenate([self._prefix, ids[n_cut:]])
            made.append(TokenisedPrompt(whole, tokens, n_cut, len(own) == len(ids)))
        return made

    def _split(
        self, place: str, prompt: str, letters: Sequence[str]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], tuple[int, ...]]:
        """The prompt's ids by itself, those before the letters, and the letters' tokens."""
        tried = []
        for separator in _separators(prompt):
            own, *continued = self._tokenizer.encode([prompt, *(f"{prompt}{separator}{letter}" for letter in letters)])
            n_common = _n_common(continued)
            tokens = tuple(int(ids[n_common]) if n_common < len(ids) else -1 for ids in continued)
            if len(set(tokens)) == len(tokens) and -1 not in tokens and n_common:
                return own, continued[0][:n_common], tokens
            tried.append(tokens)
        raise InvalidInputError(
            f"{place} has options {', '.join(letters)} that do not begin with tokens of their own after it: the tokenizer "
            f"gives {' or '.join(str(list(tokens)) for tokens in tried)}. End the prompt otherwise."
        )


def _separators(prompt: str) -> tuple[str, str]:
    """What stands between a prompt and its answer, the likelier first.

    A space; none after white space, nor after a character of a script that writes none (Chinese and Japanese, "回答：").
    """
    last = prompt[-1:]
    is_closed = not last or last.isspace() or unicodedata.east_asian_width(last) in ("W", "F")
    return ("", " ") if is_closed else (" ", "")


def _n_common(sequences: Sequence[NDArray[np.int32]]) -> int:
    """How many ids the sequences have in common at their beginning."""
    shortest = min(map(len, sequences))
    stacked = np.stack([ids[:shortest] for ids in sequences])
    same = (stacked == stacked[0]).all(axis=0)
    return int(np.argmin(same)) if not same.all() else shortest
