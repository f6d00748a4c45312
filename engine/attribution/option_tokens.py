"""Prompts as token ids, and the token of each option, taken from the tokenised continuation.

The tokens of "A" alone are not those that a model would put after "Answer:". So every prompt is tokenised with each of its
options appended; their common prefix is what the model reads, and the token that follows it is the option's. That holds
whatever a tokenizer merges across the end of the prompt.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from actstore.engine.capture.tokenising import check_ids
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.inputs.questions import Query
    from actstore.engine.models.tokenizer.load import TextTokenizer

TooLong = Literal["cut", "skip", "refuse"]


@dataclass(frozen=True)
class LongPrompts:
    """One way to treat prompts that are longer than the model's context."""

    label: str
    """What tables call it."""
    help: str
    """One sentence for the command line and the documentation."""


TOO_LONG: Final[dict[TooLong, LongPrompts]] = {
    "cut": LongPrompts("cut", "Leave out the beginning of the prompt."),
    "skip": LongPrompts("skip", "Leave out the query."),
    "refuse": LongPrompts("refuse", "Stop with an error."),
}
"""The values that `too_long` takes."""


@dataclass(frozen=True)
class TokenisedPrompt:
    """The ids of a prompt that the model reads, and the tokens of its options."""

    ids: NDArray[np.int32]
    """[position]; with the special tokens that the tokenizer puts before a text."""
    option_tokens: tuple[int, ...]
    """The first token of each option."""
    n_cut: int
    """Number of tokens left out at the beginning, so that the rest fits the model's context."""
    as_text: bool
    """Whether the ids are those of the prompt alone; False where the tokenizer merges across its end."""
    position: int = -1
    """Where the model predicts the option: its last token, or the mask."""


class PromptTokenizer:
    """Tokenises the prompts of queries for a model."""

    def __init__(
        self, tokenizer: TextTokenizer, *, context: int | None, n_vocabulary: int | None, too_long: TooLong
    ) -> None:
        """`too_long`, a key of `TOO_LONG`, says what happens to prompts of more than `context` tokens."""
        if too_long not in TOO_LONG:
            raise InvalidInputError(f"Expected `too_long` to be one of {', '.join(TOO_LONG)}, found {too_long!r}.")
        self._tokenizer, self._context, self._n_vocabulary = tokenizer, context, n_vocabulary
        self._too_long = too_long
        self._prefix = np.array(tokenizer.prefix, np.int32)

    def prompts(self, query: Query) -> list[TokenisedPrompt] | None:
        """The prompts of a query, or None where it is to be skipped.

        Raises `InvalidInputError` for options that do not begin with distinct tokens, and for ids that the model does not
        have.
        """
        prompts = []
        for number, (prompt, options) in enumerate(zip(query.prompts, query.options, strict=True), start=1):
            source = f"Query {query.name!r}, prompt {number},"
            if query.masked:
                raise InvalidInputError(
                    f"{source} has a mask, and the model continues texts. Name a masked encoder, or ask with 'question', or "
                    "with 'prompts' that end where the answer begins."
                )
            ids_alone, ids, tokens = self._tokenise(source, prompt, options)
            check_ids(np.append(ids, tokens), source, self._n_vocabulary)
            n_cut = 0
            if self._context is not None and len(self._prefix) + len(ids) > self._context:
                if self._too_long == "skip":
                    return None
                n_cut = len(self._prefix) + len(ids) - self._context
                if self._too_long == "refuse":
                    raise InvalidInputError(
                        f"{source} has {len(self._prefix) + len(ids)} tokens, and the model reads at most {self._context}. "
                        'Cut the beginning off with `too_long="cut"`, or leave such queries out with `too_long="skip"`.'
                    )
            whole = np.concatenate([self._prefix, ids[n_cut:]])
            prompts.append(TokenisedPrompt(whole, tokens, n_cut, len(ids_alone) == len(ids)))
        return prompts

    def _tokenise(
        self, source: str, prompt: str, options: Sequence[str]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], tuple[int, ...]]:
        """The ids of the prompt alone, those before an option, and the options' tokens."""
        attempts = []
        for separator in _separators(prompt):
            ids_alone, *continuations = self._tokenizer.encode(
                [prompt, *(f"{prompt}{separator}{option}" for option in options)]
            )
            n_common = _n_common(continuations)
            tokens = tuple(int(ids[n_common]) if n_common < len(ids) else -1 for ids in continuations)
            if len(set(tokens)) == len(tokens) and -1 not in tokens and n_common:
                return ids_alone, continuations[0][:n_common], tokens
            attempts.append(tokens)
        raise InvalidInputError(
            f"{source} has options {', '.join(options)} that do not begin with distinct tokens after it: the tokenizer "
            f"gives {' or '.join(str(list(tokens)) for tokens in attempts)}. Change the end of the prompt."
        )


def _separators(prompt: str) -> tuple[str, str]:
    """The separators to try between a prompt and its answer, the likelier first.

    A space; none after white space, nor after a character of a script without spaces (Chinese and Japanese, "回答：").
    """
    last = prompt[-1:]
    is_closed = not last or last.isspace() or unicodedata.east_asian_width(last) in ("W", "F")
    return ("", " ") if is_closed else (" ", "")


def _n_common(sequences: Sequence[NDArray[np.int32]]) -> int:
    """The length of the common prefix of the sequences."""
    shortest = min(map(len, sequences))
    stacked = np.stack([ids[:shortest] for ids in sequences])
    same = (stacked == stacked[0]).all(axis=0)
    return int(np.argmin(same)) if not same.all() else shortest
