"""The bytes that each token of a fast tokenizer stands for, by its own state: normaliser, pre-tokenizer, model and decoder.

The bytes of a document's tokens, one after another, are the document, but for what the tokenizer itself changes or drops.
`slow_bytes` is the counterpart for tokenizers written in Python.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from actstore.store.model.tokenizer_state import BYTE_PIECE, is_byte_level, space_marks, steps, word_suffix

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

N_PAIRS: Final = 64
"""Pairs of words tried to find out whether words need a space between them."""


@dataclass(frozen=True)
class Spelling:
    """How the pieces of a vocabulary spell bytes."""

    byte_level: bool
    """Each character of a piece is GPT-2's stand-in for a byte."""
    byte_fallback: bool
    """`<0xNN>` is a byte."""
    replacements: tuple[tuple[str, str], ...]
    """What pieces contain, and what it stands for, such as "\u2581" for a space."""
    prefix: str
    """How pieces begin that continue a word; "" where none is marked so."""
    suffix: str
    """How pieces end that end a word; "" where none is marked so."""
    separate: bool
    """Spaces are dropped, and a piece without `prefix` begins a word: a space stands before it."""

    def bytes_of(self, piece: str) -> bytes:
        """The bytes of a piece of the model's own vocabulary."""
        if self.byte_fallback and (spelled := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(spelled[1], 16)])
        continues = bool(self.prefix) and piece.startswith(self.prefix)
        ends = bool(self.suffix) and piece.endswith(self.suffix)
        core = piece.removeprefix(self.prefix if continues else "").removesuffix(self.suffix if ends else "")
        before = b" " if self.separate and not continues else b""
        return before + self._core(core) + (b" " if ends else b"")

    def _core(self, text: str) -> bytes:
        if self.byte_level:
            return b"".join(_BYTES[c] for c in text) if all(c in _BYTES for c in text) else text.encode()
        for written, meant in self.replacements:
            text = text.replace(written, meant)
        return text.encode()


def fast_token_bytes(
    state: Mapping[str, Any],
    pieces: Sequence[str | None],
    special_ids: Collection[int],
    encode: Callable[[str], list[int]],
) -> list[bytes]:
    """The bytes of each token, by its id; special tokens are their own text, and a missing piece has none.

    `state` is that of tokenizer.json. Tokens added to the vocabulary are plain text, however the pieces of the model are
    spelled; those that the model itself merges too are spelled as the model's.
    """
    added = {int(item["id"]): item for item in state.get("added_tokens") or ()}
    spelling = find_spelling(state, [p for i, p in enumerate(pieces) if p and i not in added], encode)
    model_pieces = _pieces_of_the_model(state["model"])
    blanks = tuple(written for written, meant in spelling.replacements if meant == " ")
    normalise = _blank_before(state, blanks)
    contents: list[bytes] = []
    for token, piece in enumerate(pieces):
        item = added.get(token)
        if piece is None:
            contents.append(b"")
        elif token in special_ids:
            contents.append(str(item["content"] if item else piece).encode())
        elif item is not None and piece not in model_pieces:
            before = " " if spelling.separate or (item["normalized"] and normalise(item["content"])) else ""
            contents.append((before + item["content"]).encode())
        else:
            contents.append(spelling.bytes_of(piece))
    return contents


def find_spelling(state: Mapping[str, Any], words: Sequence[str], encode: Callable[[str], list[int]]) -> Spelling:
    """How a tokenizer with this state spells. `words` are pieces of its model; `encode` gives a text's ids."""
    model, marks = state["model"], space_marks(state)
    byte_level, kind, prefix = is_byte_level(state), model.get("type"), model.get("continuing_subword_prefix") or ""
    replacements = dict.fromkeys(marks, " ")
    falls_back = bool(model.get("byte_fallback"))
    for step in steps(state.get("decoder"), "decoders"):
        pattern = step.get("pattern")
        falls_back |= step["type"] == "ByteFallback"
        if step["type"] == "Metaspace":
            replacements[step["replacement"]] = " "
        elif step["type"] == "Replace" and isinstance(pattern, dict) and pattern.get("String"):
            replacements[pattern["String"]] = step["content"]
        elif step["type"] == "CTC" and step.get("word_delimiter_token"):
            replacements[step["word_delimiter_token"]] = " "
    drops_spaces = not byte_level and not marks
    return Spelling(
        byte_level=byte_level,
        byte_fallback=falls_back,
        replacements=tuple(replacements.items()),
        prefix=prefix,
        suffix=word_suffix(state),
        separate=drops_spaces
        and (kind == "WordPiece" or bool(prefix) or (kind == "WordLevel" and needs_spaces(words, encode))),
    )


def needs_spaces(words: Sequence[str], encode: Callable[[str], list[int]]) -> bool:
    """Whether two words of a vocabulary are only read as those two where a space stands between them."""
    usable = [word for word in itertools.islice(words, 100 * N_PAIRS) if word.isalnum()][: 2 * N_PAIRS]
    n_joined = n_spaced = 0
    for first, second in itertools.pairwise(usable):
        apart = encode(first) + encode(second)
        n_joined += encode(first + second) == apart
        n_spaced += encode(f"{first} {second}") == apart
    return n_spaced > n_joined


def _pieces_of_the_model(model: Mapping[str, Any]) -> frozenset[str]:
    """Pieces that the model itself produces; of a BPE model its characters and the results of its merges."""
    vocabulary = model.get("vocab") or ()
    if model.get("type") == "Unigram":
        return frozenset(piece for piece, _ in vocabulary)
    if model.get("type") != "BPE":
        return frozenset(vocabulary)
    if model.get("ignore_merges"):
        return frozenset(vocabulary)
    prefix = model.get("continuing_subword_prefix") or ""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or ())
    merged = {left + right.removeprefix(prefix) for left, right in pairs}
    return frozenset(merged.union(piece for piece in vocabulary if len(piece) == 1))


def _blank_before(state: Mapping[str, Any], blanks: Collection[str]) -> Callable[[str], bool]:
    """Whether the normaliser puts a space before a text: a token added to the vocabulary then takes it along."""
    prepended = any(
        step["type"] == "Prepend" and step["prepend"] in {" ", *blanks}
        for step in steps(state.get("normalizer"), "normalizers")
    )
    return lambda content: prepended and not content.startswith((" ", *blanks))


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next code point from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in printable)
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


_BYTES: Final = {character: bytes([byte]) for byte, character in byte_alphabet().items()}
