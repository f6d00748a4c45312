"""Prompts with a mask as token ids, and the token of each option, which stands in the mask's place.

Every prompt is tokenised with its mask and with each of its options there: what is around it must come out the same, and the
option as one token. So an option is the piece that the model would have read at this place, with or without a blank before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.attribution.option_tokens import TokenisedPrompt
from actstore.engine.capture.tokenising import check_ids
from actstore.engine.inputs.masked_questions import MASK
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.attribution.option_tokens import TooLong
    from actstore.engine.inputs.questions import Query
    from actstore.engine.models.tokenizer.load import TextTokenizer


class MaskedPromptTokenizer:
    """Tokenises the prompts of queries for a model that predicts what is masked."""

    def __init__(
        self, tokenizer: TextTokenizer, *, context: int | None, n_vocabulary: int | None, too_long: TooLong
    ) -> None:
        """As `PromptTokenizer`; `InvalidInputError` for a tokenizer without a token for the mask."""
        token, text = tokenizer.named_id("mask"), tokenizer.mask_text
        if token is None or text is None:
            raise InvalidInputError(
                "The tokenizer names no mask token, and prompts are masked by it. Name another with `tokenizer`."
            )
        self._tokenizer, self._context, self._n_vocabulary = tokenizer, context, n_vocabulary
        self._mask, self._mask_text, self._too_long = token, text, too_long
        self._prefix, self._suffix = (np.array(ids, np.int32) for ids in (tokenizer.prefix, tokenizer.suffix))

    def prompts(self, query: Query) -> list[TokenisedPrompt] | None:
        """The prompts of a query, or None where it is to be skipped; a prompt without a mask gets one behind it.

        Raises `InvalidInputError` for options that are not one token each, and distinct, and for ids that the model lacks.
        """
        prompts = []
        for number, (prompt, options) in enumerate(zip(query.prompts, query.options, strict=True), start=1):
            source = f"Query {query.name!r}, prompt {number},"
            ids, at, tokens = self._tokenise(source, prompt if query.masked else f"{prompt.rstrip()} {MASK}", options)
            check_ids(np.append(ids, tokens), source, self._n_vocabulary)
            n_ids = len(self._prefix) + len(ids) + len(self._suffix)
            n_cut = 0 if self._context is None else max(0, n_ids - self._context)
            if n_cut and self._too_long == "skip":
                return None
            if n_cut > (0 if self._too_long == "refuse" else at):
                reason = "" if self._too_long == "refuse" else "; its mask would be cut off with its beginning"
                raise InvalidInputError(
                    f"{source} has {n_ids} tokens, and the model reads at most {self._context}{reason}. Leave such queries out "
                    'with `too_long="skip"`.'
                )
            whole = np.concatenate([self._prefix, ids[n_cut:], self._suffix])
            prompts.append(TokenisedPrompt(whole, tokens, n_cut, True, len(self._prefix) + at - n_cut))
        return prompts

    def _tokenise(
        self, source: str, prompt: str, options: Sequence[str]
    ) -> tuple[NDArray[np.int32], int, tuple[int, ...]]:
        """The ids with the mask, its position, and the options' tokens."""
        masked, *filled = self._tokenizer.encode(
            [prompt.replace(MASK, self._mask_text), *(prompt.replace(MASK, option) for option in options)]
        )
        positions = np.flatnonzero(masked == self._mask)
        if len(positions) != 1:
            raise InvalidInputError(
                f"{source} should hold one mask for the tokenizer, found {len(positions)}. Write {MASK} once, and the model's "
                f"own {self._mask_text} nowhere."
            )
        at = int(positions[0])
        tokens = []
        for option, ids in zip(options, filled, strict=True):
            others_alike = len(ids) == len(masked) and (np.delete(ids, at) == np.delete(masked, at)).all()
            if not others_alike or int(ids[at]) == self._tokenizer.unknown:
                raise InvalidInputError(
                    f"{source} has the option {option!r}, which is not one token of the model's in place of the mask: the "
                    f"tokenizer gives {ids[max(0, at - 1) : at + 3].tolist()} around it. Choose options of one token."
                )
            tokens.append(int(ids[at]))
        if len(set(tokens)) < len(tokens):
            raise InvalidInputError(
                f"{source} has options {', '.join(options)} that are not distinct tokens: {tokens}. Change them."
            )
        return masked, at, tuple(tokens)
