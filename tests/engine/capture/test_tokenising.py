"""Documents are tokenised ahead of whoever plans them, who notices nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actstore.engine.capture.tokenising import tokenise
from actstore.engine.inputs.documents import Document
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class Lengths:
    """A tokenizer whose ids are the lengths of texts; it counts its calls."""

    n_calls = 0

    def encode(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """One id per text."""
        self.n_calls += 1
        return [np.array([len(text)], np.int32) for text in texts]


def document(number: int) -> Document:
    """One of a text as long as its number; every seventh has ids of its own."""
    ids = np.array([-number], np.int64) if number % 7 == 0 else None
    return Document(f"d{number}", None if ids is not None else "x" * number, ids)


def test_ids_come_with_their_documents_in_order() -> None:
    tokenizer: Any = Lengths()
    found = [(d.source, int(ids[0])) for d, ids in tokenise(map(document, range(200)), tokenizer)]
    assert found == [(f"d{i}", -i if i % 7 == 0 else i) for i in range(200)]
    assert tokenizer.n_calls == 4
    assert list(tokenise((), tokenizer)) == []


def test_one_group_is_encoded_ahead_and_a_document_that_is_not_reached_does_not_fail() -> None:
    read: list[int] = []

    def documents() -> Iterator[Document]:
        for number in range(100):
            read.append(number)
            yield document(number)
        raise InvalidInputError("document 100 is not text")

    tokenizer: Any = Lengths()
    stream = tokenise(documents(), tokenizer)
    assert next(stream)[0].source == "d0"
    assert len(read) > 64, "the second group is being read"
    for _ in range(63):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(InvalidInputError, match="document 100"):
        list(tokenise(documents(), tokenizer))
    with pytest.raises(InvalidInputError, match="Name one with `tokenizer`"):
        next(tokenise([document(1)], None))
