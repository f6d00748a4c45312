"""Padding that no attention mask names, in documents of token ids: counted, as transformers warns of it.

To drop it would be wrong, for an id may mean something else than its tokenizer says; to run it without a warning too, since a
model attends to padding that is not masked.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actstore.engine.inputs.documents import Document

_OTHER_TOKENS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "unk_token_id")


class PaddingCount:
    """Documents that begin or end with padding, by the token that pads."""

    def __init__(self, names: object | None) -> None:
        """The padding tokens that `names`, a tokenizer or a model's configuration, has; none where it is None.

        A token with another meaning too, and the end-of-text token, which pads where there is no token for it, must stand
        there twice.
        """
        others = {token for name in _OTHER_TOKENS for token in _ids(names, name)}
        pads = _ids(names, "pad_token_id")
        self._shortest = dict.fromkeys(_ids(names, "eos_token_id"), 2) | {pad: 1 + (pad in others) for pad in pads}
        self.n_documents: Counter[int] = Counter()

    def observe(self, document: Document, ids: NDArray[Any]) -> None:
        """Look at one more document; text has no padding, nor what a model generated: the end of its answer may look so."""
        if document.ids is None or not document.ids.size or document.answered is not None:
            return
        for token, shortest in self._shortest.items():
            ends = document.ids[:shortest], document.ids[-shortest:]
            if document.ids.size >= shortest and any(np.all(end == token) for end in ends):
                self.n_documents[token] += 1

    def conclude(self, corpus: str, n_documents: int) -> list[str]:
        """What a user should know: one sentence per token that pads."""
        return [
            f"Documents that begin or end with padding tokens (id {token}) and no attention_mask that masks them: {n:,}. The "
            "padding is run, stored and counted like any other token; give an attention_mask beside the ids, or leave the "
            "padding out."
            for token, n in self.n_documents.items()
        ]


def _ids(names: object | None, name: str) -> tuple[int, ...]:
    value = getattr(names, name, None)
    values = value if isinstance(value, Iterable) else (value,)
    return tuple(int(token) for token in values if token is not None)
