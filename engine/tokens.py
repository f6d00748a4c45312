"""Text to token ids and back: the model's tokenizer, its special tokens, its vocabulary as a table.

The one place that loads a transformers tokenizer; what it writes into a store (`tokenizer.json`, the vocabulary) is all
that readers need. Knows nothing about windows or models.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actstore.engine.padding import PaddingCount
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


class TextTokenizer:
    """A Hugging Face tokenizer with its policy on special tokens made explicit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap `tokenizer`."""
        self._tokenizer = tokenizer
        self.prefix, self.suffix = self._template()

    @classmethod
    def load(cls, name_or_path: str, *, trust_remote_code: bool = False) -> TextTokenizer:
        """The tokenizer saved with a model; `InvalidInputError` where there is none."""
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code))
        except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InvalidInputError(
                f"No usable tokenizer was found with {name_or_path} ({reason}). "
                "Name one with --tokenizer, or capture a corpus of token ids (--ids-column)."
            ) from None

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The token ids of each text, special tokens that the tokenizer would add left out."""
        if self._tokenizer.is_fast:
            encodings = self._tokenizer._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(e.ids, np.int32) for e in encodings]
        return [
            np.array(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int32)
            for text in texts
        ]

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def _template(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens put before and after every text, from how the tokenizer wraps a probe."""
        bare = list(self._tokenizer("a", add_special_tokens=False)["input_ids"])
        wrapped = list(self._tokenizer("a", add_special_tokens=True)["input_ids"])
        for at in range(len(wrapped) - len(bare) + 1):
            if wrapped[at : at + len(bare)] == bare:
                return tuple(wrapped[:at]), tuple(wrapped[at + len(bare) :])
        return (), ()

    @property
    def begin(self) -> int | None:
        """The token that opens a text: begin-of-text, else the encoder's class token."""
        for name in ("bos_token_id", "cls_token_id"):
            token = getattr(self._tokenizer, name, None)
            if token is not None:
                return int(token)
        return None

    def count_padding(self) -> PaddingCount:
        """A count, still of nothing, of documents that begin or end with this tokenizer's padding."""
        return PaddingCount(self._tokenizer)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text; the unknown token stands for some."""
        return frozenset(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and, of a fast tokenizer, everything else that shapes its ids."""
        content = self.to_json() or json.dumps(sorted(self._tokenizer.get_vocab().items()))
        return hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> str | None:
        """The tokenizer in the `tokenizers` library's format; None where it has no fast form."""
        if not self._tokenizer.is_fast:
            return None
        # Padding and truncation are switched by mere use, and `encode` applies neither.
        state = json.loads(self._tokenizer._tokenizer.to_str())
        state["padding"] = state["truncation"] = None
        return json.dumps(state, ensure_ascii=False)

    def vocabulary(self) -> pa.Table:
        """A row per token id: `token`, its `piece` in the vocabulary, the `text` and `bytes` it stands for, `special`."""
        pieces = self._tokenizer.convert_ids_to_tokens(list(range(len(self._tokenizer))))
        contents = token_bytes(pieces, self._is_byte_level, self.special_ids)
        return pa.table(
            {
                "token": pa.array(range(len(pieces)), pa.int32()),
                "piece": pa.array([p if p is not None else "" for p in pieces], pa.string()),
                "text": pa.array([c.decode(errors="replace") for c in contents], pa.string()),
                "bytes": pa.array(contents, pa.binary()),
                "special": pa.array([i in self.special_ids for i in range(len(pieces))], pa.bool_()),
            }
        )

    @cached_property
    def _is_byte_level(self) -> bool:
        state = self.to_json()
        return state is not None and '"ByteLevel"' in state


def token_bytes(pieces: Sequence[str | None], byte_level: bool, special_ids: frozenset[int]) -> list[bytes]:
    """The bytes each vocabulary piece stands for: byte-level alphabets, SentencePiece blanks and `<0xNN>`, WordPiece."""
    alphabet = {character: byte for byte, character in byte_alphabet().items()}
    continued = sum(p is not None and p.startswith("##") for p in pieces) > len(pieces) // 100
    contents: list[bytes] = []
    for token, piece in enumerate(pieces):
        if piece is None:
            contents.append(b"")
        elif token in special_ids:
            contents.append(piece.encode())
        elif byte_level and all(c in alphabet for c in piece):
            contents.append(bytes(alphabet[c] for c in piece))
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            contents.append(bytes([int(piece[3:5], 16)]))
        elif continued:
            contents.append((piece[2:] if piece.startswith("##") else f" {piece}").encode())
        else:
            contents.append(piece.replace("\u2581", " ").encode())
    return contents


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next code point from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in printable)
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}
