"""Which tokens of a vocabulary match a text: by the whole text, by the text without case and spaces, by a part, by a pattern.

From the vocabulary in the store; no tokenizer is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore.store.errors import InvalidInputError
from actstore.store.model.tokenizer import StoredTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from actstore.store.model.root import Root


def find_tokens(store: Root, texts: Sequence[str | int], match: str = "normalised") -> NDArray[np.int64]:
    """The ids of the tokens that match any of `texts`, ascending; an int is an id.

    match: one of `MATCHES`. `InvalidInputError` where one of the texts matches no token.
    """
    if match not in MATCHES:
        *names, last = MATCHES
        raise InvalidInputError(f"`match` must be {', '.join(names)} or {last}, found {match!r}.")
    ids = [np.array([_check_id(store, t)]) if isinstance(t, int) else _find_text(store, t, match) for t in texts]
    return np.unique(np.concatenate(ids)) if ids else np.empty(0, np.int64)


def normalised(texts: pa.Array) -> pa.Array:
    """Texts in lower case without outer spaces; a text of nothing but spaces stays as it is."""
    trimmed = pc.utf8_trim_whitespace(pc.utf8_lower(texts))
    return pc.if_else(pc.equal(trimmed, ""), texts, trimmed)


def normal_classes(store: Root, n_tokens: int) -> NDArray[np.int64]:
    """For each token id below `n_tokens` the smallest id with the same normalised text; shape [token]."""
    classes = np.arange(n_tokens, dtype=np.int64)
    if store.vocabulary is None:
        return classes
    n = min(n_tokens, store.vocabulary.num_rows)
    # Tokens that are parts of characters all have the same text, the replacement character: they are told apart by their bytes.
    texts = normalised(_texts(store).slice(0, n)).to_pylist()
    contents = store.vocabulary["bytes"].slice(0, n).to_pylist()
    first: dict[str | bytes, int] = {}
    for token, (text, data) in enumerate(zip(texts, contents, strict=True)):
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


def _find_text(store: Root, text: str, match: str) -> NDArray[np.int64]:
    if store.vocabulary is None:
        raise InvalidInputError(
            f"{store.folder} was captured from token ids and has no text for them: search for {text!r} by its token id."
        )
    if not text:
        raise InvalidInputError("A token to search for is an empty text. Pass the text of a token.")
    is_match = MATCHES[match].compare(store, text)
    rows: NDArray[np.int64] = np.flatnonzero(is_match.to_numpy(zero_copy_only=False))
    if not len(rows):
        raise InvalidInputError(_describe_no_match(store, text, match))
    tokens: NDArray[np.int64] = store.vocabulary["token"].to_numpy()[rows].astype(np.int64)
    return tokens


def _equals(store: Root, text: str) -> pa.Array:
    assert store.vocabulary is not None
    contents = store.vocabulary["bytes"].combine_chunks()
    return pc.or_(pc.equal(_texts(store), text), pc.equal(contents, text.encode()))


def _equals_normalised(store: Root, text: str) -> pa.Array:
    return pc.equal(normalised(_texts(store)), normalised(pa.array([text]))[0])


def _contains(store: Root, text: str) -> pa.Array:
    return pc.match_substring(_texts(store), text)


def _matches_pattern(store: Root, text: str) -> pa.Array:
    try:
        return pc.match_substring_regex(_texts(store), text)
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split()).removeprefix("Invalid regular expression: ")
        raise InvalidInputError(f"The pattern {text!r} is no regular expression: {reason}.") from None


@dataclass(frozen=True)
class Match:
    """A way in which a text matches tokens."""

    help: str
    compare: Callable[[Root, str], pa.Array]
    """(store, text) → [row of the vocabulary] whether the token matches."""
    is_of_whole_tokens: bool
    """Whether the text must be all of a token, so that a longer text may be several tokens."""


MATCHES: Final = {
    "normalised": Match(
        "the same but for case and outer spaces, as in Foote et al. (2023)", _equals_normalised, is_of_whole_tokens=True
    ),
    "exact": Match("the same in every character", _equals, is_of_whole_tokens=True),
    "contains": Match("the text is a part of the token", _contains, is_of_whole_tokens=False),
    "regex": Match("the pattern (RE2) occurs in the token", _matches_pattern, is_of_whole_tokens=False),
}
"""Name → way of matching."""


def _describe_no_match(store: Root, text: str, match: str) -> str:
    sentence = f'No token of {store.model.name} matches {text!r} (`match="{match}"`).'
    vocabulary = store.vocabulary if MATCHES[match].is_of_whole_tokens else None
    tokens = StoredTokenizer(store.folder, vocabulary).encode_word(text) if vocabulary is not None else []
    if len(tokens) > 1:
        names = ", ".join(f"{store.token_text(t)!r} ({t})" for t in tokens)
        return f'{sentence} It is {len(tokens)} tokens: {names}. Search for one of them, or with `match="contains"`.'
    return f'{sentence} Search with `match="contains"`, or by token id.'
