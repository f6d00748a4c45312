"""Documents, how a corpus is to be read, and the fingerprint of a whole corpus.

A document is text, or token ids, with its labels and the source it came from.
"""

import hashlib
import json
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

DecodingErrors = Literal["strict", "replace"]
StdinFormat = Literal["text", "jsonl"]


@dataclass(frozen=True, eq=False)
class Answered:
    """What the ids of a document are where they are a prompt and a model's answer to it."""

    n_prompt: int
    """Position of the answer's first token."""
    prompt: str = ""
    """The prompt as it stood in the corpus; empty where that was token ids."""
    answer: str = ""
    """The answer's text, without special tokens."""
    number: int = 0
    """Of the answers to one prompt, from 0."""
    made_of: "Document | None" = None
    """The document of the corpus that was answered; None where the corpus itself has the answer."""


@dataclass(frozen=True, eq=False)
class Document:
    """One document: either `text` or `ids` (int64, `[token]`), never both.

    `source` is for people: a path, `path:line` in JSON lines (from 1), `path:row` in tables (from 0), or `<stdin>`.
    A label without a value is the empty string. Of a prompt with an answer, `ids` are both, and `answered` says which is which.
    """

    source: str
    text: str | None = None
    ids: npt.NDArray[np.int64] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    answered: Answered | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.ids is None):
            raise InvalidInputError(
                f"A document is text or token ids, one of the two: {self.source} has both or neither."
            )
        if self.ids is not None and (self.ids.ndim != 1 or self.ids.dtype != np.int64):
            raise InvalidInputError(
                f"Token ids of a document are int64 along one axis: {self.source} has {self.ids.dtype} of shape "
                f"{self.ids.shape}."
            )

    @property
    def is_empty(self) -> bool:
        """Whether it has no character and no token; white space counts as content."""
        return not self.text if self.ids is None else self.ids.size == 0

    @cached_property
    def sha256(self) -> str:
        """The SHA-256, in hexadecimal, of the text as UTF-8 or of the ids as little-endian int64."""
        content = (self.text or "").encode() if self.ids is None else self.ids.astype("<i8").tobytes()
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class CorpusOptions(Typed):
    """What to read of a corpus, and how to treat faults in it.

    `pattern` selects files by name in a folder; the default reads every file and skips those that hold NUL bytes.
    A record that has both columns is read as text unless `prefer_ids`. With errors="replace", bytes that are not UTF-8
    become U+FFFD; "strict" stops at them. Reading ends after `max_documents` that are not empty.
    """

    text_column: str = "text"
    ids_column: str = "input_ids"
    label_columns: tuple[str, ...] = ()
    prefer_ids: bool = False
    errors: DecodingErrors = "strict"
    pattern: str = "*"
    max_documents: int | None = None
    stdin_format: StdinFormat = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("errors", DecodingErrors), ("stdin_format", StdinFormat)):
            value, choices = getattr(self, name), get_args(allowed)
            if value not in choices:
                raise InvalidInputError(f"`{name}` is one of {', '.join(choices)}: found {value!r}.")
        if self.max_documents is not None and self.max_documents < 1:
            raise InvalidInputError(f"`max_documents` is at least 1, found {self.max_documents}.")


class CorpusDigest:
    """A fingerprint of documents in their order, built one document at a time.

    It depends on content and labels, not on sources, so that a corpus that was moved keeps its fingerprint. Text and
    token ids of the same tokens differ.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"actstore corpus 1\n")

    def update(self, document: Document) -> None:
        """Add the next document; of one that a model has answered, what was in the corpus, once for all of its answers."""
        labels = json.dumps(document.labels, sort_keys=True).encode()
        if (answered := document.answered) is not None:
            if answered.made_of is not None:
                if answered.number == 0:
                    self.update(answered.made_of)
                return
            labels += struct.pack("<q", answered.n_prompt)
        kind = b"text" if document.ids is None else b"ids_"
        # The length keeps one document's labels from running into the next document.
        self._hash.update(kind + bytes.fromhex(document.sha256) + struct.pack("<q", len(labels)) + labels)

    def hexdigest(self) -> str:
        """The SHA-256 of everything added so far, in hexadecimal; more may be added afterwards."""
        return self._hash.hexdigest()
