"""Signs that a corpus does not fit its tokenizer: unknown tokens, texts that give none, special tokens that are there twice.

Counted while a plan is made, reported before the model runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.engine.inputs.documents import Document
    from actstore.engine.models.tokenizer.load import TextTokenizer

MIN_TOKENS: Final = 16
"""Number of tokens of text below which a share means nothing."""
MAX_UNKNOWN: Final = 1 / 2
"""Largest share of the tokens of text that may be unknown without a warning."""
EXCERPT: Final = 40
"""Maximum number of characters shown of a text."""


class TokenCensus:
    """Counts of a corpus as it is tokenised."""

    def __init__(self, tokenizer: TextTokenizer, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> None:
        """`prefix` and `suffix` are put around every text."""
        self._tokenizer, self._ends = tokenizer, (prefix, suffix)
        unknown = tokenizer.unknown
        self._unknown = unknown if unknown is not None and unknown not in tokenizer.special_ids else -1
        self._specials = np.array(sorted(tokenizer.special_ids), np.int64)
        self.n_tokens = self.n_unknown = self.n_texts = self.n_without = 0
        self.n_doubled = [0, 0]
        self._example = ""

    def observe(self, document: Document, ids: NDArray[Any]) -> None:
        """Count a document's tokens; ids that came as such count for nothing but what is unknown."""
        n_unknown = int((ids == self._unknown).sum())
        self.n_tokens += len(ids) - int(np.isin(ids, self._specials).sum())
        self.n_unknown += n_unknown
        if document.text is None or document.ids is not None:
            return
        self.n_texts += 1
        self.n_without += not len(ids) and bool(document.text.strip())
        if not self._example and 2 * n_unknown >= len(ids):
            excerpt = " ".join(document.text[: 4 * EXCERPT].split())
            self._example = f"{excerpt[:EXCERPT]!r} of {document.source}"
        for end, (around, position) in enumerate(zip(self._ends, (0, -1), strict=True)):
            self.n_doubled[end] += bool(around) and len(ids) > 0 and int(ids[position]) == around[position]

    def conclude(self, corpus: str, n_documents: int) -> Iterator[str]:
        """What a user should know before the model runs, a sentence or two each."""
        advice = "Check that the tokenizer is the one for these texts, or name another with `tokenizer`."
        such_as = f", as in {self._example}" if self._example else ""
        if self.n_tokens >= MIN_TOKENS and self.n_unknown > MAX_UNKNOWN * self.n_tokens:
            share = 100 * self.n_unknown / self.n_tokens
            yield (
                f"{share:.1f} % of the corpus's {self.n_tokens:,} tokens of text are unknown to the tokenizer "
                f"({self._piece(self._unknown)}){such_as}. {advice}"
            )
        if self.n_without > MAX_UNKNOWN * self.n_texts:
            yield f"{self.n_without:,} of {self.n_texts:,} texts give no token at all{such_as}. {advice}"
        for around, position, n, verb in zip(self._ends, (0, -1), self.n_doubled, ("begin", "end"), strict=True):
            if n:
                yield (
                    f"{n:,} of {self.n_texts:,} texts already {verb} with {self._piece(around[position])}, which is put "
                    f"{'before' if verb == 'begin' else 'behind'} every text: it is there twice. Pass "
                    '`begin="never"` to add no special tokens.'
                )

    def _piece(self, token: int) -> str:
        return repr(self._tokenizer.vocabulary()["piece"][token].as_py())
