"""Text to token ids and back: the model's tokenizer, its special tokens, its vocabulary as a table.

The only module that loads a transformers tokenizer; readers need only what a store holds of it (`tokenizer.json` and the
vocabulary).
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.engine.models.tokenizer.fast_bytes import fast_token_bytes
from actstore.engine.models.tokenizer.faults import find_fault
from actstore.engine.models.tokenizer.slow_bytes import slow_token_bytes
from actstore.engine.models.tokenizer.special_tokens import special_ids
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

_ADVICE: Final = "Pass one as `tokenizer`, or capture a corpus of token ids (`ids_column`)."


class TextTokenizer:
    """A Hugging Face tokenizer whose special tokens are explicit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap `tokenizer`."""
        self._tokenizer = tokenizer
        self.prefix, self.suffix = self._template()

    @classmethod
    def load(cls, name_or_path: str, *, trust_remote_code: bool = False) -> TextTokenizer:
        """The tokenizer saved with a model; `InvalidInputError` where there is none."""
        from transformers import AutoTokenizer, PreTrainedTokenizerBase

        try:
            loaded = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
            tokenizer = cls(loaded) if isinstance(loaded, PreTrainedTokenizerBase) else None
        except Exception as error:  # transformers and the tokenizers library raise bare ones too
            reason = " ".join(str(error).split())[:200]
            raise InvalidInputError(
                f"No usable tokenizer was found with {name_or_path} ({reason}). {_ADVICE}"
            ) from None
        if tokenizer is None:
            raise InvalidInputError(
                f"The {type(loaded).__name__} found with {name_or_path} is no single tokenizer. {_ADVICE}"
            )
        tokenizer.check(name_or_path)
        return tokenizer

    def check(self, name_or_path: str) -> None:
        """Raise `InvalidInputError` where it can read no text: a default one, or one of which files are missing."""
        if self.fault:
            raise InvalidInputError(f"The tokenizer found with {name_or_path} reads no text: {self.fault}. {_ADVICE}")

    @cached_property
    def fault(self) -> str:
        """Why it can read no text, as the end of a sentence; "" where it can."""
        return find_fault(self.vocabulary(), self.unknown, self._state)

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
        return str(self._tokenizer.decode([i for i in map(int, ids) if i not in self.special_ids]))

    @property
    def chat_template(self) -> str | None:
        """The template of its chats, as text; None where it has none."""
        template = getattr(self._tokenizer, "chat_template", None)
        return None if template is None else template if isinstance(template, str) else json.dumps(template)

    def in_chat_template(self, prompt: str) -> str:
        """What a user says, `prompt`, as a chat up to where the answer begins, special tokens written out.

        `InvalidInputError` where the template cannot take it.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
                )
            )
        except Warning:  # raised only where the user turned warnings into errors
            raise
        except Exception as error:  # a template is a program, and may raise anything
            reason = " ".join(str(error).split())[:200]
            raise InvalidInputError(
                f"The chat template of the tokenizer takes no single message of a user ({reason}). Pass `chat=False`."
            ) from None

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

    @property
    def named_tokens(self) -> object:
        """The library's tokenizer, with `pad_token_id`, `eos_token_id` and the like."""
        return self._tokenizer

    def named_id(self, kind: str) -> int | None:
        """The id of the token that the tokenizer names as its `bos`, `eos`, `mask`, `unk` or `pad`; None where it has none."""
        token = getattr(self._tokenizer, f"{kind}_token_id", None)
        return None if token is None else int(token)

    @property
    def mask_text(self) -> str | None:
        """What the mask token is in a text; None where there is none."""
        text = getattr(self._tokenizer, "mask_token", None)
        return None if text is None else str(text)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text; the unknown token stands for text."""
        return special_ids(self._tokenizer)

    @property
    def unknown(self) -> int | None:
        """The token for text that the vocabulary cannot spell."""
        token = self._tokenizer.unk_token_id
        return None if token is None else int(token)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and, of a fast tokenizer, everything else that its ids depend on."""
        content = self.to_json() or json.dumps(sorted(self._tokenizer.get_vocab().items()))
        return hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> str | None:
        """The tokenizer in the `tokenizers` library's format; None where it has no fast form."""
        return None if self._state is None else json.dumps(self._state, ensure_ascii=False)

    @cached_property
    def _state(self) -> dict[str, Any] | None:
        if not self._tokenizer.is_fast:
            return None
        state: dict[str, Any] = json.loads(self._tokenizer._tokenizer.to_str())
        # Padding and truncation change with every call of the library, and `encode` applies neither.
        state["padding"] = state["truncation"] = None
        return state

    def vocabulary(self) -> pa.Table:
        """One row per token id: `token`, its `piece` in the vocabulary, the `text` and `bytes` it stands for, `special`.

        The bytes of a text's tokens, one after another, are those of the text, but for what the tokenizer itself changes:
        see the page on the store's format.
        """
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> pa.Table:
        pieces = self._pieces()
        contents = self._contents(pieces)
        names = [p.decode(errors="replace") if isinstance(p, bytes) else p or "" for p in pieces]
        return pa.table(
            {
                "token": pa.array(range(len(pieces)), pa.int32()),
                "piece": pa.array([name.encode(errors="replace").decode() for name in names], pa.string()),
                "text": pa.array([c.decode(errors="replace") for c in contents], pa.string()),
                "bytes": pa.array(contents, pa.binary()),
                "special": pa.array([i in self.special_ids for i in range(len(pieces))], pa.bool_()),
            }
        )

    def _contents(self, pieces: list[Any]) -> list[bytes]:
        """The bytes of each token."""

        def encode(text: str) -> list[int]:
            return [int(i) for i in self.encode([text])[0]]

        if self._state is None:
            return slow_token_bytes(self._tokenizer, pieces, self.special_ids, encode)
        return fast_token_bytes(self._state, pieces, self.special_ids, encode)

    def _pieces(self) -> list[Any]:
        """The piece of each id; None where there is none, bytes where the tokenizer's pieces are bytes."""
        tokenizer = self._tokenizer
        vocabulary = tokenizer.get_vocab()
        n = max(len(tokenizer), 1 + max(vocabulary.values(), default=-1))
        pieces: list[Any] = list(tokenizer.convert_ids_to_tokens(list(range(n))))
        # A class that translates reads ids by its target's vocabulary, and texts by its source's.
        source: dict[str, int] = getattr(tokenizer, "get_src_vocab", dict)()
        for piece, token in [*source.items(), *((p, t) for p, t in vocabulary.items() if pieces[t] == "\ufffd")]:
            pieces[token] = piece
        return pieces
