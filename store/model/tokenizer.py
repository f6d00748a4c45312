"""Tokenising by the store's own tokenizer.json and vocabulary, for readers without a tokenizer library.

A tokenizer with a step that is not implemented here is refused. Special tokens are not added.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from functools import cached_property
from typing import TYPE_CHECKING, Any

from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.layout import TOKENIZER_KEY
from actstore.store.model.root import read_tokenizer
from actstore.store.model.tokenizer_patterns import GPT_2_WORDS, isolated, parts_between, python_pattern
from actstore.store.model.tokenizer_state import BYTE_PIECE, is_byte_level, space_marks, steps, word_suffix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from actstore.store.storage.folder import Folder


class Vocabulary:
    """A vocabulary by the bytes that its tokens stand for."""

    def __init__(self, table: pa.Table) -> None:
        self.pieces: list[str] = table["piece"].to_pylist()
        self.bytes: list[bytes] = table["bytes"].to_pylist()
        special: list[bool] = table["special"].to_pylist()
        # A token may be called <0x41> without being the byte.
        spelling = [len(b) == 1 and BYTE_PIECE.fullmatch(p) for p, b in zip(self.pieces, self.bytes, strict=True)]
        order = sorted(range(len(self.bytes)), key=lambda i: (special[i], bool(spelling[i]), i), reverse=True)
        self.ids = {self.bytes[i]: i for i in order if self.bytes[i]}
        """Bytes → token; of several, one that is neither special nor spelled as a byte, then the lowest id."""


class StoredTokenizer:
    """Tokenises words and whole texts as the store's tokenizer does."""

    def __init__(self, folder: Folder, vocabulary: pa.Table) -> None:
        self.vocabulary = Vocabulary(vocabulary)
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
        self._state["model"] = self._model
        self._byte_level = is_byte_level(self._state)
        self.ends_words = bool(word_suffix(self._state))
        """Whether the space after a word belongs to the word's last token, and not to the next word's first."""

    def encode_word(self, word: str) -> list[int]:
        """The tokens of a word by the tokenizer's own merges or scores; empty where they cannot spell it.

        A word includes the space before it, or after it where tokens end words. Tokens added to the vocabulary are split off
        first. Where the store has neither merges nor scores, the longest token first.
        """
        tokens: list[int] = []
        for part, token in parts_between(word, self._added):
            of_part = [token] if token is not None else self._encode_part(part)
            if not of_part:
                return []
            tokens += of_part
        return tokens

    def _encode_part(self, word: str) -> list[int]:
        kind = self._model.get("type")
        if kind == "BPE":
            if self._model.get("ignore_merges") and (token := self.vocabulary.ids.get(word.encode())) is not None:
                return [token]
            return self._merge(self._symbols(word))
        if kind == "Unigram":
            return self._likeliest(word.encode())
        return self._longest_first(word.encode())

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without the special tokens that the tokenizer would put around it.

        `InvalidInputError` where the tokenizer has a step that is not implemented here, or its tokens cannot spell the text.
        """
        if self._model.get("type") not in ("BPE", "Unigram"):
            raise self._unknown(f"a model {self._model.get('type')!r}")
        if self.ends_words or self._model.get("continuing_subword_prefix"):
            raise self._unknown("a mark for where words end or go on")
        tokens: list[int] = []
        for part, token in self._parts_of_text(text):
            if token is not None:
                tokens.append(token)
                continue
            for word in self._words(part, is_first=not tokens):
                of_word = self._encode_part(word)
                if word and not of_word:
                    raise InvalidInputError(f"The store's tokens cannot spell {word!r}. Give token ids instead.")
                tokens += of_word
        return tokens

    def _parts_of_text(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The normalised parts of a text between added tokens, and these tokens.

        Some of them are searched in the text itself, the others in its normalised parts.
        """
        early = [item for item in self._added if not item.get("normalized")]
        late = [item | {"content": self._normal(item["content"])} for item in self._added if item.get("normalized")]
        for part, token in parts_between(text, early):
            if token is not None:
                yield part, token
            else:
                yield from parts_between(self._normal(part), late)

    @cached_property
    def _added(self) -> list[dict[str, Any]]:
        return [item for item in self._state.get("added_tokens") or () if item["content"]]

    def _normal(self, text: str) -> str:
        for step in steps(self._state.get("normalizer"), "normalizers"):
            text = self._normalised(step, text)
        return text

    def _words(self, text: str, *, is_first: bool) -> list[str]:
        words = [text]
        for step in steps(self._state.get("pre_tokenizer"), "pretokenizers"):
            words = [part for word in words for part in self._parted(step, word, is_first=is_first)]
        for mark in () if self._byte_level else space_marks(self._state):
            words = [word.replace(mark, " ") for word in words]
        if self._model["type"] == "BPE" and self._spaces_begin_pieces:
            # No merge crosses such a border: the same tokens, in time linear in the text's length instead of quadratic.
            words = [part for word in words for part in re.findall(r" *[^ ]+| +", word)]
        return words

    @cached_property
    def _spaces_begin_pieces(self) -> bool:
        return not any(re.search(rb"[^ ] ", content) for content in self.vocabulary.bytes)

    def _normalised(self, step: Mapping[str, Any], text: str) -> str:
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

    def _parted(self, step: Mapping[str, Any], text: str, *, is_first: bool) -> list[str]:
        kind, pattern = step["type"], step.get("pattern")
        if kind == "ByteLevel":
            if step.get("add_prefix_space") and text and not text[0].isspace():
                text = f" {text}"
            return (
                [match[0] for match in python_pattern(GPT_2_WORDS).finditer(text)]
                if step.get("use_regex", True)
                else [text]
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
            regex = python_pattern(pattern["Regex"]) if "Regex" in pattern else re.compile(re.escape(pattern["String"]))
            return list(isolated(regex, text))
        raise self._unknown(f"a pre-tokenizer {kind!r}")

    def _unknown(self, what: str) -> InvalidInputError:
        return InvalidInputError(
            f"The store's tokenizer has {what}, which is not known here. Install the library tokenizers, or give token ids."
        )

    def _symbols(self, text: str) -> list[bytes]:
        """What merging begins with: bytes, or characters, spelled byte by byte where the vocabulary does not have them."""
        # Where pieces are marked as the beginning or end of a word, the space is part of the symbol that it marks.
        begins = bool(self._model.get("continuing_subword_prefix")) and text.startswith(" ")
        ends = self.ends_words and text.endswith(" ")
        core = text[begins : len(text) - ends]
        symbols = [bytes([b]) for b in core.encode()] if self._byte_level else [c.encode() for c in core]
        if symbols:
            symbols[0] = b" " * begins + symbols[0]
            symbols[-1] += b" " * ends
        if self._byte_level:
            return symbols
        parts = ([symbol] if symbol in self.vocabulary.ids else [bytes([b]) for b in symbol] for symbol in symbols)
        return [symbol for part in parts for symbol in part]

    @cached_property
    def _ranks(self) -> dict[tuple[bytes, bytes], int]:
        of_piece = {piece: self.vocabulary.bytes[i] for i, piece in enumerate(self.vocabulary.pieces)}
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
        ids = self.vocabulary.ids
        return [ids[s] for s in symbols] if all(s in ids for s in symbols) else []

    @cached_property
    def _scores(self) -> list[float]:
        scores = {piece: score for piece, score in self._model.get("vocab", [])}
        return [scores.get(piece, -math.inf) for piece in self.vocabulary.pieces]

    def _likeliest(self, text: bytes) -> list[int]:
        """The segmentation with the largest sum of scores, as in a unigram model."""
        ids, scores = self.vocabulary.ids, self._scores
        longest = max(map(len, ids), default=0)
        best: list[tuple[float, int, int]] = [
            (0.0, 0, -1)
        ]  # per prefix: its score, the start of its last token, that token
        for stop in range(1, len(text) + 1):
            candidate = (-math.inf, 0, -1)
            for start in range(max(0, stop - longest), stop):
                token = ids.get(text[start:stop])
                if token is not None and best[start][0] + scores[token] > candidate[0]:
                    candidate = best[start][0] + scores[token], start, token
            best.append(candidate)
        tokens: list[int] = []
        stop = len(text)
        while stop and best[stop][2] >= 0:
            tokens.insert(0, best[stop][2])
            stop = best[stop][1]
        return tokens if not stop else []

    def _longest_first(self, text: bytes) -> list[int]:
        ids = self.vocabulary.ids
        tokens: list[int] = []
        start = 0
        while start < len(text):
            stop = next((stop for stop in range(len(text), start, -1) if text[start:stop] in ids), None)
            if stop is None:
                return []
            tokens.append(ids[text[start:stop]])
            start = stop
        return tokens
