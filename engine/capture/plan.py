"""Documents to windows to blocks: every token's place in the store, decided before the model runs.

The same corpus, tokenizer and settings give the same plan, byte for byte. How a plan is laid out on disk is in
`store.capture.plan`.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from actstore.engine.capture.answers.positions import Positions
from actstore.engine.capture.plan_labels import Labels
from actstore.engine.capture.token_census import TokenCensus
from actstore.engine.capture.tokenising import check_ids, tokenise
from actstore.engine.inputs.corpus import CorpusDigest
from actstore.store.arguments import Typed
from actstore.store.capture.plan import PlannedWindow, PlanWriter
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import PlanRecord
from actstore.store.layout import GENERATED, SLOT_MULTIPLE, SPECIAL, TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from actstore.engine.capture.plan_count import PlanCount
    from actstore.engine.inputs.corpus import Document
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.storage.folder import Folder

LOOKAHEAD_WINDOWS: Final = 256
"""How far ahead the packer looks for a window that fills the rest of a block."""


@dataclass(frozen=True)
class PlanSettings(Typed):
    """How documents become windows, batches and blocks."""

    context: int
    """Longest window, special tokens included."""
    overlap: int = 0
    """Tokens at a window's start that repeat the window before: read as context, not stored twice."""
    begin: Literal["auto", "always", "never"] = "auto"
    """Special tokens around each window: as the tokenizer puts them (documents that come as ids are taken as they are), at
    least a begin-of-text token, or none."""
    positions: str = "all"
    """Which positions of a window are stored: `all`, `last` (its last text token), comma-separated indices, or of windows with
    an answer `generated` (those that predict it, and its own), alone or among indices."""
    batch_tokens: int = 4096
    block_slots: int = 16_384
    max_padding: float = 1 / 16
    """Largest share of a batch's positions that may be padding."""
    max_tokens: int | None = None
    """Planning stops at this number of stored tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 1:
            raise InvalidInputError(
                f"A window holds at least 1 token, found a context of {self.context}. Raise `context`."
            )
        if not 0 <= self.overlap < self.context:
            raise InvalidInputError(
                f"The overlap must lie between 0 and the context less one ({self.context - 1}), found {self.overlap}."
            )
        if self.block_slots % SLOT_MULTIPLE:
            raise InvalidInputError(f"Blocks are multiples of {SLOT_MULTIPLE} slots, found {self.block_slots}.")
        n_kept = Positions(self.positions, of_images=False).at_most(self.context)
        if n_kept > self.block_slots:
            raise InvalidInputError(
                f"A window keeps up to {n_kept} tokens, more than a block of {self.block_slots} slots holds. "
                "Raise `memory`, or name fewer `positions`."
            )


def block_size(context: int, target: int, *, stored_everywhere: bool = True) -> int:
    """The number of slots of a block near `target`: a multiple of the window, so that full windows leave no gap.

    Windows of which few positions are stored leave gaps of any length: `target` rounded down.
    """
    if not stored_everywhere:
        return max(SLOT_MULTIPLE, target // SLOT_MULTIPLE * SLOT_MULTIPLE)
    windows = max(1, round(target / context))
    return -(-windows * context // SLOT_MULTIPLE) * SLOT_MULTIPLE


class Windower:
    """Cuts tokenised documents into windows."""

    def __init__(
        self, settings: PlanSettings, tokenizer: TextTokenizer | None, special_ids: frozenset[int] = frozenset()
    ) -> None:
        """Windows as `settings` say; without a tokenizer, ids are taken as they are, and `special_ids` stand for no text."""
        self._settings, self._positions = settings, Positions(settings.positions, of_images=False)
        prefix, suffix = (tokenizer.prefix, tokenizer.suffix) if tokenizer else ((), ())
        self._specials = np.array(sorted(tokenizer.special_ids if tokenizer else special_ids), np.int32)
        if settings.begin == "never":
            prefix = suffix = ()
        elif settings.begin == "always" and not prefix:
            begin = tokenizer.begin if tokenizer else None
            if begin is None:
                raise InvalidInputError(
                    '`begin="always"` needs a tokenizer that names a begin-of-text token, and there is none. Pass '
                    '`begin="auto"`.'
                )
            prefix = (begin,)
        self.around = prefix, suffix
        """The special tokens put before and behind every window."""
        self._prefix, self._suffix = np.array(prefix, np.int32), np.array(suffix, np.int32)
        self._capacity = settings.context - len(prefix) - len(suffix)
        if self._capacity <= settings.overlap:
            raise InvalidInputError(
                f"A window of {settings.context} tokens leaves {self._capacity} for text after special tokens, which must "
                f"exceed the overlap of {settings.overlap}. Raise `context` or lower `overlap`."
            )

    def answered(
        self, ids: NDArray[np.int32], document: int, labels: tuple[int, ...], n_prompt: int, source: str
    ) -> Iterator[PlannedWindow]:
        """The one window of a prompt with its answer; `InvalidInputError` where it is longer than a window.

        Special tokens of the answer, such as its end, enter no statistic, as those of the prompt do not.
        """
        if len(ids) > self._settings.context:
            raise InvalidInputError(
                f"{source} takes {len(ids):,} tokens with its answer, more than a window of {self._settings.context:,}. Raise "
                "`context`."
            )
        modality = np.where(np.isin(ids, self._specials), SPECIAL, TEXT).astype(np.uint8)
        modality[n_prompt:][modality[n_prompt:] == TEXT] = GENERATED
        kept = self._positions.kept(modality, n_prompt)
        if len(kept):
            yield PlannedWindow(document, ids, kept, modality[kept], labels)

    def windows(self, ids: NDArray[np.int32], document: int, labels: tuple[int, ...]) -> Iterator[PlannedWindow]:
        """The windows of one document in reading order; no token is cut off, none is stored twice."""
        step = self._capacity - self._settings.overlap
        n_before, n_after = len(self._prefix), len(self._suffix)
        # Once per document: looking up the tokens of each window took a quarter of the time of planning.
        modalities = np.where(np.isin(ids, self._specials), SPECIAL, TEXT).astype(np.uint8)
        for start in range(0, max(1, len(ids) - self._settings.overlap), step):
            content = ids[start : start + self._capacity]
            repeated = self._settings.overlap if start else 0
            inputs = np.concatenate([self._prefix, content, self._suffix])
            modality = np.full(len(inputs), SPECIAL, np.uint8)
            modality[n_before : len(inputs) - n_after] = modalities[start : start + self._capacity]
            kept = self._kept(len(inputs), modality)
            first_new = n_before + repeated
            kept = kept[(kept < n_before) | (kept >= first_new)]
            if len(kept):
                yield PlannedWindow(document, inputs, kept, modality[kept], labels)

    def _kept(self, length: int, modality: NDArray[np.uint8]) -> NDArray[np.int32]:
        if self._settings.positions == "all":
            return np.arange(length, dtype=np.int32)
        return self._positions.kept(modality, length)


def pack_blocks(windows: Iterable[PlannedWindow], block_slots: int) -> Iterator[list[PlannedWindow]]:
    """Blocks of whole windows, in order but for windows drawn forward to fill the end of a block."""
    stream = iter(windows)
    waiting: deque[PlannedWindow] = deque()
    block: list[PlannedWindow] = []
    room = block_slots
    while True:
        while len(waiting) < LOOKAHEAD_WINDOWS and (window := next(stream, None)) is not None:
            waiting.append(window)
        if not waiting:
            break
        fitting = 0
        if len(waiting[0].kept) > room:
            sizes = [len(w.kept) for w in waiting]
            fitting = max(range(len(sizes)), key=lambda i: sizes[i] if sizes[i] <= room else -1)
        if len(waiting[fitting].kept) > room:
            yield block
            block, room = [], block_slots
            continue
        window = waiting[fitting]
        del waiting[fitting]
        block.append(window)
        room -= len(window.kept)
    if block:
        yield block


def batch_windows(windows: list[PlannedWindow], batch_tokens: int, max_padding: float) -> list[list[PlannedWindow]]:
    """The windows of a block in batches of like length, longest first, each within the token and padding bounds."""
    batches: list[list[PlannedWindow]] = []
    longest = n_tokens = 0
    for window in sorted(windows, key=lambda w: -len(w.ids)):
        count = len(batches[-1]) + 1 if batches else 1
        area = longest * count
        if not batches or area > batch_tokens or area - n_tokens - len(window.ids) > max_padding * area:
            batches.append([])
            longest, n_tokens = len(window.ids), 0
        batches[-1].append(window)
        n_tokens += len(window.ids)
    return batches


class DocumentObserver(Protocol):
    """Looks at every document that is planned, in order, and says at the end what is wrong with all of them together."""

    def observe(self, document: Document, ids: NDArray[Any]) -> None:
        """Look at one more document and its token ids, which are of the model's vocabulary."""

    def conclude(self, corpus: str, n_documents: int) -> Iterable[str]:
        """Sentences to warn the user with; `InvalidInputError` where the capture would be of no use."""


@dataclass(frozen=True)
class TextPlanner:
    """Writes the plan of documents of text or of token ids, which it takes one at a time."""

    settings: PlanSettings
    corpus: str
    """The name of what the documents come from."""
    tokenizer: TextTokenizer | None
    n_vocabulary: int | None
    label_columns: tuple[str, ...] = ()
    special_ids: frozenset[int] = frozenset()
    """The tokens that stand for no text, where there is no tokenizer to say it."""
    observers: tuple[DocumentObserver, ...] = ()
    """Beside the census of tokens and the labels. They see what is planned, which `max_tokens` may make less than is read."""
    on_progress: Callable[[int, int], None] = lambda documents, tokens: None
    on_warning: Callable[[str], None] = lambda sentence: None
    """Called at the end, once for each sentence of an observer."""

    def write(
        self, documents: Iterable[Document], folder: Folder, capture: str, count: PlanCount | None = None
    ) -> PlanRecord:
        """Tokenise `documents`, write their plan into `capture`, return its record; `InvalidInputError` for an empty corpus.

        With `count`, nothing is written: it counts, and the record lacks its fingerprint.
        """
        settings, as_json = self.settings, dataclasses.asdict(self.settings)
        writer = count if count is not None else PlanWriter(folder, capture, settings.block_slots, as_json)
        digest, labels = CorpusDigest(), Labels(self.label_columns)
        windower = Windower(settings, self.tokenizer, self.special_ids)
        census = (TokenCensus(self.tokenizer, *windower.around),) if self.tokenizer else ()
        observers = (labels, *census, *self.observers)
        try:
            windows = self._windows(documents, writer, digest, labels, windower, observers)
            for block in pack_blocks(windows, settings.block_slots):
                writer.add_block(batch_windows(block, settings.batch_tokens, settings.max_padding))
            _expect_windows(writer.n_windows, self.corpus, settings.positions)
            sentences = [s for observer in observers for s in observer.conclude(self.corpus, writer.n_documents)]
            label_values = tuple(labels.ids)
            fingerprint = writer.close(label_values)
        except BaseException:
            writer.abandon()
            raise
        for sentence in sentences:
            self.on_warning(sentence)
        return PlanRecord(
            fingerprint=fingerprint,
            corpus=self.corpus,
            corpus_fingerprint=digest.hexdigest(),
            tokenizer_fingerprint=self.tokenizer.fingerprint if self.tokenizer else "",
            settings=as_json,
            label_columns=self.label_columns,
            labels=label_values,
            n_documents=writer.n_documents,
            n_windows=writer.n_windows,
            n_tokens=writer.n_tokens,
            block_slots=settings.block_slots,
            n_blocks=writer.n_blocks,
        )

    def _windows(
        self,
        documents: Iterable[Document],
        writer: PlanWriter | PlanCount,
        digest: CorpusDigest,
        labels: Labels,
        windower: Windower,
        observers: tuple[DocumentObserver, ...],
    ) -> Iterator[PlannedWindow]:
        """The windows of every document, which is then in the table of documents and seen by the observers."""
        # Ids come with the special tokens of whoever tokenised them; more are added only on request.
        as_they_are = dataclasses.replace(self.settings, begin="never")
        plain = Windower(as_they_are, self.tokenizer, self.special_ids) if self.settings.begin == "auto" else windower
        n_tokens, max_tokens = 0, self.settings.max_tokens
        for document, ids in tokenise(documents, self.tokenizer):
            digest.update(document)
            check_ids(ids, document.source, self.n_vocabulary)
            for observer in observers:
                observer.observe(document, ids)
            row = {"source": document.source, "sha256": document.sha256, "n_tokens": len(ids)}
            row |= answer_columns(document, self.label_columns)
            number = writer.add_document(row | {c: document.labels.get(c, "") for c in self.label_columns})
            cut = windower if document.ids is None else plain
            of_document = ids.astype(np.int32), number, labels.of(document.labels)
            for window in (
                cut.windows(*of_document)
                if document.answered is None
                else plain.answered(*of_document, document.answered.n_prompt, document.source)
            ):
                yield window
                n_tokens += len(window.kept)
                if max_tokens is not None and n_tokens >= max_tokens:
                    return
            self.on_progress(number + 1, n_tokens)


ANSWER_COLUMNS: Final = ("prompt", "answer", "answer_number", "generated", "n_prompt")
"""What the table of documents has of a prompt with its answer, beside what it has of every document."""


def answer_columns(document: Document, label_columns: tuple[str, ...]) -> dict[str, object]:
    """`ANSWER_COLUMNS` of a prompt with an answer; nothing of another document. No label may have their names."""
    if (answered := document.answered) is None:
        return {}
    if taken := [column for column in label_columns if column in ANSWER_COLUMNS]:
        raise InvalidInputError(
            f"A label column of answers cannot be called {taken[0]!r}: taken are {', '.join(ANSWER_COLUMNS)}. Rename it."
        )
    values = (answered.prompt, answered.answer, answered.number, True, answered.n_prompt)
    return dict(zip(ANSWER_COLUMNS, values, strict=True))


def _expect_windows(n_windows: int, corpus: str, positions: str) -> None:
    if n_windows == 0:
        answers = " Is `generate=True` missing?" if "generated" in positions else ""
        raise InvalidInputError(
            f"The corpus {corpus} holds no token to store. Check the path and `positions`.{answers}"
        )
