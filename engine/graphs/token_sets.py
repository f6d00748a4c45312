"""Which tokens of a vocabulary are meant by a text: the same text, the same but for case and spaces, a part of it, a pattern.

Reads the store's vocabulary; needs no tokenizer. Knows nothing about graphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore.store.errors import InvalidInputError
from actstore.store.model.tokenizer import StoredTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.model.root import Root

MATCHES: Final = ("normalised", "exact", "contains", "regex")


def find_tokens(store: Root, asked: Sequence[str | int], match: str = "normalised") -> NDArray[np.int64]:
    """The ids of the tokens that any of `asked` means, ascending; an int is an id.

    `normalised` compares without case and outer spaces, as the published graphs do; `exact` compares every character;
    `contains` looks for a part, `regex` for a pattern (RE2). `InvalidInputError` where one of them means no token.
    """
    if match not in MATCHES:
        raise InvalidInputError(f"Tokens are matched by {', '.join(MATCHES[:-1])} or {MATCHES[-1]}, found {match!r}.")
    found = [np.array([_check_id(store, a)]) if isinstance(a, int) else _by_text(store, a, match) for a in asked]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def normalised(texts: pa.Array) -> pa.Array:
    """Texts in small letters without the spaces around them; a text of nothing but spaces stays as it is."""
    trimmed = pc.utf8_trim_whitespace(pc.utf8_lower(texts))
    return pc.if_else(pc.equal(trimmed, ""), texts, trimmed)


def normal_classes(store: Root, n_tokens: int) -> NDArray[np.int64]:
    """For each token id below `n_tokens` the smallest id with the same normalised text; shape [token]."""
    classes = np.arange(n_tokens, dtype=np.int64)
    if store.vocabulary is None:
        return classes
    n = min(n_tokens, store.vocabulary.num_rows)
    # Tokens that are parts of characters have bytes of their own but no text of their own: they stay apart.
    texts = normalised(_texts(store).slice(0, n)).to_pylist()
    own = store.vocabulary["bytes"].slice(0, n).to_pylist()
    first: dict[str | bytes, int] = {}
    for token, (text, data) in enumerate(zip(texts, own, strict=True)):
        classes[token] = first.setdefault(data if "\ufffd" in text or not text else text, token)
    return classes


def _texts(store: Root) -> pa.Array:
    assert store.vocabulary is not None
    texts = store.vocabulary["text"]
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts


def _check_id(store: Root, token: int) -> int:
    limit = store.model.n_vocabulary
    if token < 0 or (limit is not None and token >= limit):
        raise InvalidInputError(f"Token ids of {store.model.name} go from 0 to {(limit or 1) - 1}, found {token}.")
    return token


def _by_text(store: Root, asked: str, match: str) -> NDArray[np.int64]:
    if store.vocabulary is None:
        raise InvalidInputError(
            f"{store.folder} was captured from token ids and knows no text for them: name {asked!r} by its id, with "
            "--activating-id or --context-id."
        )
    if not asked:
        raise InvalidInputError("A token to search for is an empty text. Name one.")
    texts = _texts(store)
    if match == "exact":
        hits = pc.or_(pc.equal(texts, asked), pc.equal(store.vocabulary["bytes"].combine_chunks(), asked.encode()))
    elif match == "normalised":
        hits = pc.equal(normalised(texts), normalised(pa.array([asked]))[0])
    elif match == "contains":
        hits = pc.match_substring(texts, asked)
    else:
        try:
            hits = pc.match_substring_regex(texts, asked)
        except pa.ArrowInvalid as error:
            reason = " ".join(str(error).split()).removeprefix("Invalid regular expression: ")
            raise InvalidInputError(f"The pattern {asked!r} is no regular expression: {reason}.") from None
    found: NDArray[np.int64] = np.flatnonzero(hits.to_numpy(zero_copy_only=False))
    if not len(found):
        raise InvalidInputError(_refusal(store, asked, match))
    tokens: NDArray[np.int64] = store.vocabulary["token"].to_numpy()[found].astype(np.int64)
    return tokens


def _refusal(store: Root, asked: str, match: str) -> str:
    said = f"No token of {store.model.name} matches {asked!r} (--match {match})."
    known = store.vocabulary if match in ("normalised", "exact") else None
    tokens = StoredTokenizer(store.folder, known).encode_word(asked) if known is not None else []
    if len(tokens) > 1:
        named = ", ".join(f"{store.token_text(t)!r} ({t})" for t in tokens)
        return f"{said} It is {len(tokens)} tokens: {named}. Search for one of them, or with --match contains."
    return f"{said} Search with --match contains, or by --activating-id and --context-id."
