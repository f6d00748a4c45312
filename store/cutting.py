"""Texts cut into tokens by the store's own tokenizer.json and vocabulary, for readers without a tokenizer library.

What it does not know how to do as the tokenizer does it, it refuses. Knows nothing about the special tokens that open and
close a window.
"""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.layout import TOKENIZER_KEY
from actstore.store.root import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from actstore.store.folder import Folder

GPT_2_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` parts a text into (Radford et al. 2019)."""
SPACES: Final = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's white space."""


class Vocabulary:
    """A vocabulary by the bytes its tokens stand for."""

    def __init__(self, table: pa.Table) -> None:
        self.pieces: list[str] = table["piece"].to_pylist()
        self.bytes: list[bytes] = table["bytes"].to_pylist()
        special: list[bool] = table["special"].to_pylist()
        spelling = [len(p) == 6 and p.startswith("<0x") and p.endswith(">") for p in self.pieces]
        order = sorted(range(len(self.bytes)), key=lambda i: (special[i], spelling[i], i), reverse=True)
        self.ids = {self.bytes[i]: i for i in order if self.bytes[i]}
        """The token of some bytes; of several the one that is meant."""


class Cutter:
    """Cuts words, and whole texts, into tokens."""

    def __init__(self, folder: Folder, vocabulary: pa.Table) -> None:
        self.known = Vocabulary(vocabulary)
        state = read_tokenizer(folder) or "{}"
        try:
            self._state: dict[str, Any] = json.loads(state)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{folder}/{TOKENIZER_KEY} is damaged: {error}.") from None
        if not isinstance(self._state, dict):
            raise FormatError(
                f"{folder}/{TOKENIZER_KEY} should hold a JSON object, found {type(self._state).__name__}."
            )
        model = self._state.get("model")
        self._model: dict[str, Any] = model if isinstance(model, dict) else {}
        self._byte_level = '"ByteLevel"' in state

    def word(self, word: str) -> list[int]:
        """The tokens that a word is cut into by the tokenizer's own merges or scores; empty where they cannot spell it.

        A word brings along what precedes it, such as a space. Where the store holds no such model, the longest token first.
        """
        kind = self._model.get("type")
        if kind == "BPE":
            if self._model.get("ignore_merges") and (token := self.known.ids.get(word.encode())) is not None:
                return [token]
            return self._merge(self._symbols(word))
        if kind == "Unigram":
            return self._likeliest(word.encode())
        return self._longest_first(word.encode())

    def text(self, text: str) -> list[int]:
        """The tokens of a text, as the tokenizer has them without those it puts around a text.

        `InvalidInputError` where the tokenizer does something to texts that is not known here, or its tokens cannot spell one.
        """
        if self._model.get("type") not in ("BPE", "Unigram"):
            raise self._unknown(f"a model {self._model.get('type')!r}")
        tokens: list[int] = []
        for part, token in self._added(text):
            if token is not None:
                tokens.append(token)
                continue
            for word in self._words(part, is_first=not tokens):
                found = self.word(word)
                if word and not found:
                    raise InvalidInputError(f"The store's tokens cannot spell {word!r}. Give token ids instead.")
                tokens += found
        return tokens

    def _added(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The parts of a text between tokens added to the vocabulary, and these."""
        added = {item["content"]: int(item["id"]) for item in self._state.get("added_tokens", [])}
        if not added:
            yield text, None
            return
        longest_first = sorted(added, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            if part:
                yield part, added.get(part)

    def _words(self, text: str, *, is_first: bool) -> list[str]:
        for step in _steps(self._state.get("normalizer"), "normalizers"):
            text = self._normalised(step, text)
        words = [text]
        for step in _steps(self._state.get("pre_tokenizer"), "pretokenizers"):
            words = [part for word in words for part in self._parted(step, word, is_first=is_first)]
        words = [word.replace("\u2581", " ") for word in words] if not self._byte_level else words
        if self._model["type"] == "BPE" and self._spaces_begin_pieces:
            # No merge can reach over such a border: the same tokens, without the square of the text's length.
            words = [part for word in words for part in re.findall(r" *[^ ]+| +", word)]
        return words

    @cached_property
    def _spaces_begin_pieces(self) -> bool:
        return not any(re.search(rb"[^ ] ", content) for content in self.known.bytes)

    def _normalised(self, step: dict[str, Any], text: str) -> str:
        kind, pattern = step["type"], step.get("pattern")
        if kind in ("NFC", "NFD", "NFKC", "NFKD"):
            return unicodedata.normalize(kind, text)
        if kind == "Lowercase":
            return text.lower()
        if kind == "Prepend":
            return step["prepend"] + text if text else text
        if kind == "Replace" and isinstance(pattern, dict) and "String" in pattern:
            return text.replace(pattern["String"], step["content"])
        raise self._unknown(f"a normalizer {kind!r}")

    def _parted(self, step: dict[str, Any], text: str, *, is_first: bool) -> list[str]:
        kind, pattern = step["type"], step.get("pattern")
        if kind == "ByteLevel":
            if step.get("add_prefix_space") and text and not text[0].isspace():
                text = f" {text}"
            return (
                [found[0] for found in _pattern(GPT_2_WORDS).finditer(text)] if step.get("use_regex", True) else [text]
            )
        if kind == "Metaspace":
            scheme = step.get("prepend_scheme", "always")
            text = text.replace(" ", step["replacement"])
            if (scheme == "always" or (scheme == "first" and is_first)) and not text.startswith(step["replacement"]):
                text = step["replacement"] + text
            space = re.escape(step["replacement"])
            return re.findall(f"{space}[^{space}]*|[^{space}]+", text) if step.get("split", True) else [text]
        if kind == "Digits":
            return re.findall(r"\d|\D+" if step.get("individual_digits") else r"\d+|\D+", text)
        if (
            kind == "Split"
            and isinstance(pattern, dict)
            and step.get("behavior") == "Isolated"
            and not step.get("invert")
        ):
            found = _pattern(pattern["Regex"]) if "Regex" in pattern else re.compile(re.escape(pattern["String"]))
            return list(_isolated(found, text))
        raise self._unknown(f"a pre-tokenizer {kind!r}")

    def _unknown(self, what: str) -> InvalidInputError:
        return InvalidInputError(
            f"The store's tokenizer has {what}, which is not known here. Install the library tokenizers, or give token ids."
        )

    def _symbols(self, text: str) -> list[bytes]:
        """What merging begins with: bytes, or characters, spelled by byte where the vocabulary has none."""
        if self._byte_level:
            return [bytes([byte]) for byte in text.encode()]
        ids = self.known.ids
        parts = ([c.encode()] if c.encode() in ids else [bytes([b]) for b in c.encode()] for c in text)
        return [symbol for part in parts for symbol in part]

    @cached_property
    def _ranks(self) -> dict[tuple[bytes, bytes], int]:
        of_piece = {piece: self.known.bytes[i] for i, piece in enumerate(self.known.pieces)}
        ranks: dict[tuple[bytes, bytes], int] = {}
        for rank, merge in enumerate(self._model.get("merges", [])):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            if left in of_piece and right in of_piece:
                ranks.setdefault((of_piece[left], of_piece[right]), rank)
        return ranks

    def _merge(self, symbols: list[bytes]) -> list[int]:
        ranks = self._ranks
        while len(symbols) > 1:
            best = min(range(len(symbols) - 1), key=lambda i: ranks.get((symbols[i], symbols[i + 1]), math.inf))
            if (symbols[best], symbols[best + 1]) not in ranks:
                break
            symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]
        return self._ids(symbols)

    def _ids(self, symbols: Sequence[bytes]) -> list[int]:
        ids = self.known.ids
        return [ids[s] for s in symbols] if all(s in ids for s in symbols) else []

    @cached_property
    def _scores(self) -> list[float]:
        scores = {piece: score for piece, score in self._model.get("vocab", [])}
        return [scores.get(piece, -math.inf) for piece in self.known.pieces]

    def _likeliest(self, text: bytes) -> list[int]:
        """The cut with the largest sum of scores, as a unigram model makes it."""
        known, scores = self.known, self._scores
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

    def _longest_first(self, text: bytes) -> list[int]:
        ids = self.known.ids
        tokens: list[int] = []
        start = 0
        while start < len(text):
            stop = next((stop for stop in range(len(text), start, -1) if text[start:stop] in ids), None)
            if stop is None:
                return []
            tokens.append(ids[text[start:stop]])
            start = stop
        return tokens


def _steps(step: dict[str, Any] | None, plural: str) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, one after another."""
    if step is not None and step["type"] == "Sequence":
        for one in step[plural]:
            yield from _steps(one, plural)
    elif step is not None:
        yield step


def _isolated(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """What a pattern finds in a text, and what lies between."""
    at = 0
    for found in pattern.finditer(text):
        if found.start() > at:
            yield text[at : found.start()]
        if found[0]:
            yield found[0]
        at = found.end()
    if at < len(text):
        yield text[at:]


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    r"""A tokenizer's pattern for Python's `re`, which has no \p{L}, and for which U+001C to U+001F are spaces."""
    within, out, at = False, [], 0
    for part in re.finditer(r"\\p\{(\w+)\}|\\.|[\[\]]", pattern):
        out.append(pattern[at : part.start()])
        at = part.end()
        if part[0] in "[]":
            within = part[0] == "["
        characters = SPACES if part[0] in (r"\s", r"\S") else _class(part[1]) if part[1] else ""
        negated = "^" if part[0] == r"\S" else ""
        out.append(part[0] if not characters else characters if within else f"[{negated}{characters}]")
    return re.compile("".join(out) + pattern[at:])


@cache
def _class(category: str) -> str:
    """All characters of a Unicode category, or of those that begin so, as ranges."""
    points = (c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)).startswith(category))
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    if not ranges:
        raise InvalidInputError(
            f"The store's tokenizer has a pattern of characters {category!r}, which is not known here. Install the library "
            "tokenizers, or give token ids."
        )
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in ranges)
