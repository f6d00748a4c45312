"""The bytes that each token of a tokenizer written in Python stands for, by decoding its pieces.

Such a tokenizer does not state how its pieces spell text; decoding a piece between two others shows it. `fast_bytes` is the
counterpart for the `tokenizers` library.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from actstore.engine.models.tokenizer.fast_bytes import byte_alphabet, needs_spaces
from actstore.store.model.tokenizer_state import BYTE_PIECE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

_ALPHABET: Final = byte_alphabet()
_SPELLINGS: Final[tuple[Callable[[int], str], ...]] = (
    _ALPHABET.__getitem__,
    chr,
    "<0x{:02X}>".format,
    "{:02x}".format,
    "<|byte{}|>".format,
)
"""How a piece may write a byte."""
_PROBE: Final = "ꙮ"
"""A rare character of three bytes, two of which GPT-2's alphabet and Latin-1 write differently."""


def slow_token_bytes(
    tokenizer: Any, pieces: Sequence[Any], special_ids: Collection[int], encode: Callable[[str], list[int]]
) -> list[bytes]:
    """The bytes of each token, by its id; special and added tokens are their own text, and a missing piece has none."""
    added = {int(token): str(item) for token, item in _added(tokenizer).items()}
    own = [p for i, p in enumerate(pieces) if isinstance(p, str) and i not in special_ids and i not in added]
    spell = _find_spelling(tokenizer, own, encode)
    delimiter = getattr(tokenizer, "word_delimiter_token_id", None)
    contents: list[bytes] = []
    for token, piece in enumerate(pieces):
        if piece is None or isinstance(piece, bytes):
            contents.append(piece or b"")
        elif token == delimiter and token not in special_ids:
            contents.append(b" ")
        elif token in added or token in special_ids:
            contents.append(_encoded(added.get(token, piece)))
        else:
            contents.append(spell(piece))
    return contents


def _added(tokenizer: Any) -> dict[int, Any]:
    with suppress(NotImplementedError):
        return dict(tokenizer.added_tokens_decoder)
    return {}


def _find_spelling(tokenizer: Any, own: Sequence[str], encode: Callable[[str], list[int]]) -> Callable[[str], bytes]:
    join = _joiner(tokenizer)
    in_context = _in_context(join, own, encode)
    probe = _PROBE.encode()
    read = _pieces_of(tokenizer, _PROBE)
    write = next(
        (s for s in _SPELLINGS if join([s(b) for b in probe]).strip() == _PROBE or read == [*map(s, probe)]), None
    )
    if write is None:
        processor = getattr(tokenizer, "sp_model", None)
        if processor is None or not _has_byte_pieces(processor):
            return in_context
        write = _SPELLINGS[2]
    of_byte = {write(byte): bytes([byte]) for byte in range(256)}
    if write is _SPELLINGS[0]:
        return lambda piece: (
            b"".join(of_byte[c] for c in piece) if all(c in of_byte for c in piece) else _encoded(piece)
        )
    return lambda piece: of_byte[piece] if piece in of_byte else in_context(piece)


def _pieces_of(tokenizer: Any, text: str) -> list[Any]:
    """The pieces of a text; none where the tokenizer raises."""
    try:
        return list(tokenizer.tokenize(text))
    except Exception:  # a class may raise anything on a text of a kind that it does not expect
        return []


def _has_byte_pieces(processor: Any) -> bool:
    """Whether a SentencePiece model falls back to bytes."""
    n_pieces = int(processor.get_piece_size())
    return any(BYTE_PIECE.fullmatch(processor.id_to_piece(i)) and processor.is_byte(i) for i in range(n_pieces))


def _joiner(tokenizer: Any) -> Callable[[list[str]], str]:
    """The text that the tokenizer decodes a sequence of pieces to; "" where it cannot."""

    def join(pieces: list[str]) -> str:
        try:
            decoded = tokenizer.convert_tokens_to_string(pieces)
        except Exception:  # a class may raise anything on pieces that are not its own
            return ""
        text = decoded.get("text", "") if isinstance(decoded, dict) else decoded
        return text if isinstance(text, str) else ""

    return join


def _in_context(
    join: Callable[[list[str]], str], own: Sequence[str], encode: Callable[[str], list[int]]
) -> Callable[[str], bytes]:
    """The text that a piece adds between two others, without the space that belongs to these."""
    anchors = list(itertools.islice((piece for piece in own if join([piece]).strip().isalpha()), 2))
    if len(anchors) < 2:
        return _encoded
    if join([anchors[0], *own, anchors[0]]) == "".join([anchors[0], *own, anchors[0]]):
        return _encoded  # every piece is its own text
    texts = {anchor: join([anchor]).strip() for anchor in anchors}
    middle_of: dict[str, str | None] = {}
    for piece in own:
        anchor = anchors[piece == anchors[0]]
        middle_of[piece] = _between(texts[anchor], join([anchor, piece, anchor]).strip())
    middles = [middle for middle in middle_of.values() if middle]
    before, after = all(m[0] == " " for m in middles), all(m[-1] == " " and len(m) > 1 for m in middles)
    if not middles or not (before or after):
        trim: Callable[[str], str] = str
    elif before and after:
        # Spaces are between all pieces: part of the text where words are read with them, not where pieces are characters.
        words = [m.strip() for m in middles]
        between = " " if needs_spaces(words, encode) else ""
        return lambda piece: _encoded(between + (middle_of.get(piece) or f" {piece} ")[1:-1])
    else:
        trim = (lambda middle: middle[1:]) if before else (lambda middle: middle[:-1])
    return lambda piece: _encoded(trim(middle) if (middle := middle_of.get(piece)) is not None else piece)


def _between(around: str, whole: str) -> str | None:
    """The text between the same text at both ends; None where the ends differ."""
    fits = whole.startswith(around) and whole.endswith(around) and len(whole) >= 2 * len(around)
    return whole[len(around) : len(whole) - len(around)] if fits else None


def _encoded(piece: str) -> bytes:
    """A piece as UTF-8; nothing where it is half a surrogate pair, which no text contains."""
    return piece.encode(errors="ignore")
