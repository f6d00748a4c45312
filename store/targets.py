"""Target tokens: from the text that a user writes to the one token that has it, or to the tokens it is cut into.

Reads the store's vocabulary and tokenizer.json; needs no tokenizer library. Knows nothing about contributions.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.layout import TOKENIZER_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from actstore.store.folder import Folder
    from actstore.store.reader import Store


class Target(NamedTuple):
    """A token asked about."""

    token: int
    text: str


def find_target(store: Store, asked: str | int) -> Target:
    """The token with exactly the text that is asked for, or with that id.

    Of several tokens with one text, the ordinary comes before the special one and the one that spells a single byte, then
    the smaller id. `InvalidInputError` where no token has the text, saying which tokens the text is.
    """
    if isinstance(asked, int):
        limit = store.model.n_vocabulary
        if asked < 0 or (limit is not None and asked >= limit):
            raise InvalidInputError(
                f"Token ids of {store.model.name} go from 0 to {(limit or 1) - 1}, found {asked}. Mend --target-id."
            )
        return Target(asked, store.token_text(asked))
    if store.vocabulary is None:
        raise InvalidInputError(
            f"{store.folder} was captured from token ids and knows no text for them: name the target {asked!r} by its id, "
            "with --target-id."
        )
    vocabulary = _Vocabulary(store.vocabulary)
    token = vocabulary.ids.get(asked.encode())
    if token is None:
        raise InvalidInputError(_refusal(store, vocabulary, asked))
    return Target(token, store.token_text(token))


class _Vocabulary:
    """A vocabulary by the bytes its tokens stand for."""

    def __init__(self, table: pa.Table) -> None:
        self.pieces: list[str] = table["piece"].to_pylist()
        self.bytes: list[bytes] = table["bytes"].to_pylist()
        special: list[bool] = table["special"].to_pylist()
        spelling = [len(p) == 6 and p.startswith("<0x") and p.endswith(">") for p in self.pieces]
        order = sorted(range(len(self.bytes)), key=lambda i: (special[i], spelling[i], i), reverse=True)
        self.ids = {self.bytes[i]: i for i in order if self.bytes[i]}
        """The token of some bytes; of several the one that is meant."""


def _refusal(store: Store, vocabulary: _Vocabulary, asked: str) -> str:
    if not asked:
        return "A target is the text of one token, found an empty one. Mend --target."
    tokens = cut(store.folder, store.vocabulary, asked)
    if not tokens:
        return (
            f"The target {asked!r} is no token of {store.model.name}, and none of its tokens spell it. Mend --target."
        )
    named = ", ".join(f"{store.token_text(t)!r} ({t})" for t in tokens)
    other = asked[1:] if asked.startswith(" ") else f" {asked}"
    hint = f", or {other!r}, which is one token" if other and other.encode() in vocabulary.ids else ""
    first = store.token_text(tokens[0])
    is_named = vocabulary.ids.get(first.encode()) == tokens[0]
    offer = f"--target {first!r}" if is_named else f"--target-id {tokens[0]}"
    return (
        f"The target {asked!r} is not one token of {store.model.name} but {len(tokens)}: {named}. "
        f"Ask for the first, {offer}{hint}."
    )


def cut(folder: Folder, vocabulary: pa.Table | None, text: str) -> list[int]:
    """The tokens that a text is cut into by the tokenizer's own merges or scores; empty where its tokens cannot spell it.

    As the tokenizer does it for one word with what precedes it: rules that part a longer text into words beforehand
    (and those that change its letters) are not applied. Where the store holds no such model, it is the longest token first.
    """
    if vocabulary is None:
        return []
    known = _Vocabulary(vocabulary)
    model, byte_level = _tokenizer_model(folder)
    if model.get("type") == "BPE":
        return _merge(known, model, _symbols(known, text, byte_level))
    if model.get("type") == "Unigram":
        scores = {piece: score for piece, score in model.get("vocab", [])}
        return _likeliest(known, text.encode(), [scores.get(piece, -math.inf) for piece in known.pieces])
    return _longest_first(known, text.encode())


def _tokenizer_model(folder: Folder) -> tuple[dict[str, Any], bool]:
    try:
        state = folder.read(TOKENIZER_KEY)
    except NotFoundError:
        return {}, False
    model = json.loads(state).get("model")
    return (model if isinstance(model, dict) else {}), b'"ByteLevel"' in state


def _symbols(known: _Vocabulary, text: str, byte_level: bool) -> list[bytes]:
    """What merging begins with: bytes, or characters, spelled by byte where the vocabulary has none."""
    if byte_level:
        return [bytes([byte]) for byte in text.encode()]
    parts = ([c.encode()] if c.encode() in known.ids else [bytes([b]) for b in c.encode()] for c in text)
    return [symbol for part in parts for symbol in part]


def _merge(known: _Vocabulary, model: dict[str, Any], symbols: list[bytes]) -> list[int]:
    of_piece = {piece: known.bytes[i] for i, piece in enumerate(known.pieces)}
    ranks: dict[tuple[bytes, bytes], int] = {}
    for rank, merge in enumerate(model.get("merges", [])):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left in of_piece and right in of_piece:
            ranks.setdefault((of_piece[left], of_piece[right]), rank)
    while len(symbols) > 1:
        best = min(range(len(symbols) - 1), key=lambda i: ranks.get((symbols[i], symbols[i + 1]), math.inf))
        if (symbols[best], symbols[best + 1]) not in ranks:
            break
        symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]
    return _ids(known, symbols)


def _ids(known: _Vocabulary, symbols: Sequence[bytes]) -> list[int]:
    return [known.ids[s] for s in symbols] if all(s in known.ids for s in symbols) else []


def _likeliest(known: _Vocabulary, text: bytes, scores: list[float]) -> list[int]:
    """The cut with the largest sum of scores, as a unigram model makes it."""
    longest = max(map(len, known.ids), default=0)
    best: list[tuple[float, int, int]] = [
        (0.0, 0, -1)
    ]  # of every prefix: its score, where its last token begins, which
    for stop in range(1, len(text) + 1):
        found = (-math.inf, 0, -1)
        for start in range(max(0, stop - longest), stop):
            token = known.ids.get(text[start:stop])
            if token is not None and best[start][0] + scores[token] > found[0]:
                found = best[start][0] + scores[token], start, token
        best.append(found)
    tokens: list[int] = []
    stop = len(text)
    while stop and best[stop][2] >= 0:
        tokens.insert(0, best[stop][2])
        stop = best[stop][1]
    return tokens if not stop else []


def _longest_first(known: _Vocabulary, text: bytes) -> list[int]:
    tokens: list[int] = []
    start = 0
    while start < len(text):
        stop = next((stop for stop in range(len(text), start, -1) if text[start:stop] in known.ids), None)
        if stop is None:
            return []
        tokens.append(known.ids[text[start:stop]])
        start = stop
    return tokens
