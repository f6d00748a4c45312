"""The tokens of a builder: sequences as they are given, or those of a capture that is there; windows, documents, labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pyarrow as pa

from actstore.engine.capture.plan_labels import Labels
from actstore.store.capture.plan import PlannedWindow
from actstore.store.errors import InvalidInputError
from actstore.store.layout import SPECIAL, TEXT
from actstore.store.tokens import UNKNOWN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.building.spool import Spool
    from actstore.store.capture.plan import PlanWriter
    from actstore.store.reader import Capture

MAX_WINDOW: Final = 16_384
"""Tokens of a window. A longer sequence is cut, as a block holds whole windows."""


@dataclass(frozen=True)
class Sequences:
    """Some sequences in one call, each with the rows of its tokens in every array."""

    rows: list[NDArray[np.int64]]
    """Of each, the indices of its tokens along the flattened axes of an array."""
    ids: list[NDArray[np.int32]]
    labels: list[dict[str, str]]
    sources: list[str | None]


class Planned(Protocol):
    """What is known of the tokens of a builder, in the order of their rows."""

    n_tokens: int
    label_columns: tuple[str, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""

    def documents(self, writer: PlanWriter) -> Sequence[tuple[str, str]]:
        """Write every document; the (column, value) pairs of their labels, by label id."""

    def windows(self) -> Iterator[PlannedWindow]:
        """The windows in the order of their rows."""


class GivenSequences:
    """Sequences one after another, each a document."""

    def __init__(self, spool: Spool, label_columns: tuple[str, ...], corpus: str) -> None:
        self._spool, self._labels, self._corpus = spool, Labels(label_columns), corpus
        self.label_columns = label_columns
        self._rows: list[dict[str, Any]] = []
        self._label_ids: list[tuple[int, ...]] = []
        self.n_tokens = 0
        self.special_ids: frozenset[int] = frozenset()

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return min(MAX_WINDOW, max((int(row["n_tokens"]) for row in self._rows), default=0))

    def check(self, sequences: Sequences) -> None:
        """`InvalidInputError` for a label that is in none of the columns."""
        for labels in sequences.labels:
            if unknown := set(labels) - set(self.label_columns):
                raise InvalidInputError(
                    f"`labels` names {sorted(unknown)[0]!r}, and the builder's labels are "
                    f"{', '.join(self.label_columns) or 'none'}. Pass `label_columns` when it is made."
                )

    def add(self, sequences: Sequences) -> None:
        """Add the sequences of a call."""
        for ids, labels, source in zip(sequences.ids, sequences.labels, sequences.sources, strict=True):
            self._label_ids.append(self._labels.of(labels))
            row = {
                "source": source if source is not None else f"{self._corpus}:{len(self._rows)}",
                "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
                "n_tokens": len(ids),
            }
            self._rows.append(row | {column: labels.get(column, "") for column in self.label_columns})
            self._spool.append_ids(ids)
            self.n_tokens += len(ids)

    def documents(self, writer: PlanWriter) -> Sequence[tuple[str, str]]:
        """Write every document; the (column, value) pairs of their labels, by label id."""
        for row in self._rows:
            writer.add_document(row)
        self._labels.check(self._corpus, len(self._rows))
        return tuple(self._labels.ids)

    def windows(self) -> Iterator[PlannedWindow]:
        """The windows in the order of their rows."""
        special, first = np.array(sorted(self.special_ids), np.int32), 0
        for document, (row, labels) in enumerate(zip(self._rows, self._label_ids, strict=True)):
            ids = self._spool.ids(first, row["n_tokens"])
            first += len(ids)
            for start in range(0, len(ids), MAX_WINDOW):
                part = ids[start : start + MAX_WINDOW]
                modality = np.where(np.isin(part, special), SPECIAL, TEXT).astype(np.uint8)
                yield PlannedWindow(document, part, np.arange(len(part), dtype=np.int32), modality, labels)


class SequencesOf:
    """The tokens of a capture that is there: the same windows, documents and labels, token for token."""

    def __init__(self, capture: Capture) -> None:
        if not capture.is_complete or capture.record.of_images:
            raise InvalidInputError(
                f"`tokens_of` names a complete capture of text, and capture {capture.record.name!r} is "
                f"{'one of images' if capture.record.of_images else 'not complete'}. Name another, or pass the tokens."
            )
        self._capture, self._plan = capture, capture.record.plan
        self.label_columns, self.n_tokens = self._plan.label_columns, self._plan.n_tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return int(self._capture.windows()["n_slots"].to_numpy().max())

    def documents(self, writer: PlanWriter) -> Sequence[tuple[str, str]]:
        """Write every document; the (column, value) pairs of their labels, by label id."""
        for row in self._capture.documents().to_pylist():
            writer.add_document({name: value for name, value in row.items() if name != "document"})
        return self._plan.labels

    def windows(self) -> Iterator[PlannedWindow]:
        """The windows in the order of their rows."""
        for block in self._capture.blocks:
            plan = self._capture.block_plan(block)
            inputs, slots = (np.cumsum([0, *plan.windows[name]]) for name in ("n_inputs", "n_slots"))
            for number, document in enumerate(plan.windows["document"].tolist()):
                kept = slice(slots[number], slots[number + 1])
                yield PlannedWindow(
                    document,
                    plan.inputs[inputs[number] : inputs[number + 1]],
                    plan.position[kept],
                    plan.modality[kept],
                    tuple(plan.labels[number].tolist()),
                )


class Vocabulary:
    """Token ids for texts of tokens, in the order in which they come; those of a store that has some."""

    def __init__(self, known: pa.Table | None) -> None:
        self._is_open = known is None
        self._ids: dict[str, int] = {}
        for token, text in zip(known["token"].to_pylist(), known["text"].to_pylist(), strict=True) if known else ():
            self._ids.setdefault(text, token)

    def ids(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """An id for each text; `InvalidInputError` for one that the store's vocabulary lacks."""
        for text in texts:
            if not isinstance(text, str):
                raise InvalidInputError(f"`texts` has one text per token, found {text!r:.60}.")
            if text not in self._ids:
                if not self._is_open:
                    raise InvalidInputError(
                        f"The store's vocabulary, to which one store keeps, has no token {text!r:.60}. Pass `ids`, or name "
                        "another store."
                    )
                self._ids[text] = len(self._ids)
        return np.array([self._ids[text] for text in texts], np.int32)

    def table(self) -> tuple[pa.Table, str]:
        """The vocabulary as a store keeps it, and its fingerprint."""
        texts = list(self._ids)
        columns = {
            "token": pa.array(range(len(texts)), pa.int32()),
            "piece": pa.array(texts, pa.string()),
            "text": pa.array(texts, pa.string()),
            "bytes": pa.array([text.encode() for text in texts], pa.binary()),
            "special": pa.array([False] * len(texts)),
        }
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        return pa.table(columns), digest


def sequences_of(shape: tuple[int, ...], given: Mapping[str, Any], vocabulary: Vocabulary | None) -> Sequences:
    """The sequences of a call whose arrays have the leading `shape`, [token] or [sequence, token].

    `given` has `ids`, `texts`, `mask`, `labels` and `source` as `CaptureBuilder.add` takes them.
    """
    n, length = shape if len(shape) == 2 else (1, shape[0])
    mask = _array(given["mask"], "mask", shape, bool).reshape(n, length)
    spans = [_span(row) for row in mask]
    if given["texts"] is not None:
        if given["ids"] is not None:
            raise InvalidInputError("Tokens have `ids` or `texts`, and both are given. Leave one out.")
        assert vocabulary is not None
        nested = given["texts"] if len(shape) == 2 else [given["texts"]]
        if [len(row) for row in nested] != [length] * n:
            raise InvalidInputError(
                f"`texts` has one text per token, for {n} × {length} tokens: found {[len(row) for row in nested][:8]}."
            )
        ids = [vocabulary.ids(list(row)[a:b]) for row, (a, b) in zip(nested, spans, strict=True)]
    else:
        all_ids = _array(given["ids"], "ids", shape, int).reshape(n, length).astype(np.int32)
        ids = [row[a:b] for row, (a, b) in zip(all_ids, spans, strict=True)]
    labels, sources = (_each(given[name], name, n, kind) for name, kind in (("labels", Mapping), ("source", str)))
    return Sequences(
        [row * length + np.arange(a, b) for row, (a, b) in enumerate(spans)],
        ids,
        [{str(k): str(v) for k, v in (one or {}).items()} for one in labels],
        sources,
    )


def _array(value: Any, name: str, shape: tuple[int, ...], kind: type) -> NDArray[Any]:
    """`ids` or `mask` of the leading shape; where it is None, ids that are not known, or a mask that leaves nothing out."""
    if value is None:
        return np.ones(shape, bool) if kind is bool else np.full(shape, UNKNOWN, np.int32)
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if kind is int and not np.issubdtype(array.dtype, np.integer):
        raise InvalidInputError(f"`{name}` are whole numbers, found {array.dtype}.")
    if array.shape == (1, *shape):
        array = array[0]
    if array.shape != shape:
        raise InvalidInputError(
            f"`{name}` has one entry per token, so the shape {shape} of the activations without their last axis: found "
            f"{array.shape}."
        )
    if kind is int and array.size and not (array.min() >= 0 and array.max() < UNKNOWN):
        raise InvalidInputError(f"`{name}` lie between 0 and {UNKNOWN - 1}, found {array.min()} to {array.max()}.")
    return array.astype(bool) if kind is bool else array


def _span(mask: NDArray[np.bool_]) -> tuple[int, int]:
    inside = np.flatnonzero(mask)
    if not len(inside):
        return 0, 0
    first, last = int(inside[0]), int(inside[-1]) + 1
    if last - first != len(inside):
        raise InvalidInputError(
            "`mask` leaves out padding before and behind a sequence, and this one has a hole. Pass the parts as sequences."
        )
    return first, last


def _each(value: Any, name: str, n: int, kind: type) -> list[Any]:
    """One value per sequence."""
    if value is None or isinstance(value, kind):
        return [value] * n
    values = list(value) if isinstance(value, Sequence) else [value]
    if len(values) != n or not all(one is None or isinstance(one, kind) for one in values):
        raise InvalidInputError(
            f"`{name}` is one for all, or a list with one for each of the {n} sequences: found {value!r:.60}."
        )
    return values
