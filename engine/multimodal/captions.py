"""The answers of a capture as text and tokens: which token begins a word, and which position predicted it.

Words are aligned to token ids by the bytes of each token in the store's vocabulary, so that no tokenizer is needed and nothing
can shift: the reference code of Pan et al. (2024) loses the alignment after the first word that is not a noun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.store.errors import InvalidInputError
from actstore.store.layout import GENERATED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.store.capture.plan import BlockPlan
    from actstore.store.model.root import Root
    from actstore.store.reader import Capture


@dataclass(frozen=True, eq=False)
class Caption:
    """The model's answer to one document, and where it is in the capture."""

    document: int
    image: str | None
    """The image's path as it was given."""
    block: int
    first: int
    """Position of the answer's first token in its window; the position before predicts it."""
    ids: NDArray[np.int32]
    """The answer's tokens."""
    text: str
    ends: NDArray[np.int64]
    """Byte of the text at which each token of the answer ends; special tokens have no bytes."""
    offsets: NDArray[np.int64]
    """The column of each position of the window in the block's [neuron, token] arrays; -1 where it was not captured."""

    @property
    def words(self) -> NDArray[np.int32]:
        """The answer's tokens without special ones, such as the end of text that generated answers have."""
        return self.ids[np.diff(self.ends, prepend=0) > 0]

    def token_at(self, character: int) -> int:
        """The token of the answer in which a character of the text begins."""
        byte = len(self.text[:character].encode("utf-8", "surrogateescape"))
        return int(np.searchsorted(self.ends, byte, side="right"))

    def predicting(self, token: int) -> int:
        """The position of the window that predicts a token of the answer."""
        return self.first + token - 1


def read_captions(capture: Capture, documents: Sequence[int] | None = None) -> list[Caption]:
    """The answers of all committed documents, or of some, ascending; documents without an answer are left out.

    A document's answer begins at its `n_prompt`, or, where the capture does not have that, at the first token marked as
    generated. Raises `InvalidInputError` where no document has an answer, and where a document was read in several windows.
    """
    table = capture.documents()
    names = table.column_names
    n_prompt = table["n_prompt"].to_pylist() if "n_prompt" in names else [None] * table.num_rows
    images = table["image"].to_pylist() if "image" in names else [None] * table.num_rows
    special = special_tokens(capture.store)
    selected = None if documents is None else set(documents)
    if selected and (unknown := sorted(selected - set(range(table.num_rows)))):
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has documents 0 to {table.num_rows - 1}, found document {unknown[0]}."
        )
    captions: dict[int, Caption] = {}
    for block in capture.blocks:
        plan = capture.block_plan(block)
        for document, ids, offsets, modality in _windows(capture, plan):
            if selected is not None and document not in selected:
                continue
            first = n_prompt[document]
            first = _first_generated(offsets, modality) if first is None else int(first)
            if first is None or not 1 <= first < len(ids):
                continue
            if document in captions:
                raise InvalidInputError(
                    f"Document {document} of capture {capture.record.name!r} was read in several windows, and its answer is "
                    "not in one of them. Capture it in one window, with a larger `context`."
                )
            text, ends = spell(capture.store, ids[first:], special)
            captions[document] = Caption(document, images[document], block, first, ids[first:], text, ends, offsets)
    if not captions:
        raise InvalidInputError(
            f"Capture {capture.record.name!r} holds no answer to a prompt. Capture images with captions, or with "
            "`generate=True`."
        )
    return [captions[document] for document in sorted(captions)]


def _windows(
    capture: Capture, plan: BlockPlan
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.int64], NDArray[np.uint8]]]:
    """(document, ids [position], column of each position in the block or -1, modality of those captured) of every window."""
    columns = {
        name: plan.windows[name].tolist() for name in ("document", "input_start", "n_inputs", "slot_start", "n_slots")
    }
    for document, start, n, slot, n_slots in zip(*columns.values(), strict=True):
        ids = plan.inputs[start - columns["input_start"][0] :][:n]
        begin = slot - plan.block * capture.record.plan.block_slots
        offsets = np.full(n, -1, np.int64)
        offsets[plan.position[begin : begin + n_slots]] = np.arange(begin, begin + n_slots)
        yield document, ids, offsets, plan.modality[begin : begin + n_slots]


def _first_generated(offsets: NDArray[np.int64], modality: NDArray[np.uint8]) -> int | None:
    generated = np.flatnonzero(modality == GENERATED)
    return int(np.flatnonzero(offsets >= 0)[generated[0]]) if len(generated) else None


def special_tokens(store: Root) -> frozenset[int]:
    """The ids of the vocabulary's special tokens; empty where the store has no vocabulary."""
    table = store.vocabulary
    return (
        frozenset() if table is None else frozenset(np.flatnonzero(np.asarray(table["special"].to_pylist())).tolist())
    )


def spell(store: Root, ids: NDArray[np.integer[Any]], special: frozenset[int]) -> tuple[str, NDArray[np.int64]]:
    """The text of tokens, and the byte at which each ends; bytes that are not UTF-8 become lone surrogates."""
    spelled = [b"" if token in special else store.token_bytes(token) for token in ids.tolist()]
    text = b"".join(spelled).decode("utf-8", "surrogateescape")
    return text, np.cumsum([len(piece) for piece in spelled]).astype(np.int64)
