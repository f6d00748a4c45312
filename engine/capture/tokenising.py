"""Documents to token ids, some documents ahead of whoever plans them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from actstore.engine.inputs.documents import Document
    from actstore.engine.models.tokenizer.load import TextTokenizer


def tokenise(documents: Iterable[Document], tokenizer: TextTokenizer | None) -> Iterator[tuple[Document, NDArray[Any]]]:
    """Each document with its token ids, encoded in groups so that the tokenizer's own threads have work.

    While one group is planned, the next is encoded: planning takes one core about as long as encoding does.
    """
    groups, waiting = _groups(documents), None
    with ThreadPoolExecutor(1, thread_name_prefix="actstore-tokenizer") as pool:
        failure: Exception | None = None
        while failure is None:
            following = None
            try:
                if (group := next(groups, None)) is not None:
                    following = group, pool.submit(_encode, group, tokenizer)
            except Exception as error:  # of a document that comes after those that wait, and may not be needed
                failure = error
            if waiting is not None:
                yield from zip(waiting[0], waiting[1].result(), strict=True)
            if following is None:
                break
            waiting = following
        if failure is not None:
            raise failure


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    n_characters = 0
    for document in documents:
        group.append(document)
        n_characters += len(document.text or "")
        if len(group) >= 64 or n_characters > 1 << 20:
            yield group
            group, n_characters = [], 0
    if group:
        yield group


def _encode(group: list[Document], tokenizer: TextTokenizer | None) -> list[NDArray[Any]]:
    texts = [d.text for d in group if d.ids is None and d.text is not None]
    if texts and tokenizer is None:
        raise InvalidInputError("This corpus is text, and there is no tokenizer for it. Name one with `tokenizer`.")
    encoded = iter(tokenizer.encode(texts) if tokenizer and texts else ())
    return [document.ids if document.ids is not None else next(encoded) for document in group]


def check_ids(ids: NDArray[Any], source: str, n_vocabulary: int | None) -> None:
    """Raise `InvalidInputError` where an id lies outside the model's vocabulary."""
    if n_vocabulary is not None and len(ids) and int(ids.max()) >= n_vocabulary:
        raise InvalidInputError(
            f"Token ids must be below the model's vocabulary of {n_vocabulary}, found {int(ids.max())} in {source}. "
            "The corpus was tokenised for another model."
        )
