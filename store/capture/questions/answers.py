"""The answers of a questions file: what the model read and said at every prompt, as two tables.

Made by `actstore attribute`, which commits them with each block; read here without torch.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from actstore.store.calls import checks
from actstore.store.capture.commits import read_file
from actstore.store.capture.tables import read_capture_table, write_capture_table
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError, finding
from actstore.store.files.parquet import read_table, undamaged
from actstore.store.layout import block_answers_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.capture.reader import Capture
    from actstore.store.model.root import Root

ANSWERS: Final = pa.schema([("document", pa.int32()), ("probabilities", pa.list_(pa.float32()))])
"""What is committed with each block: the probability of every option's letter, by prompt."""

_TABLES: Final = ("prompts", "queries")


def has_attributions(capture: Capture) -> bool:
    """Whether `actstore attribute` made the capture."""
    return capture.record.settings.get("command") == "attribute"


@checks
class Answers:
    """What is committed of the answers in a capture that `actstore attribute` made."""

    def __init__(self, capture: Capture) -> None:
        """Read those of `capture`; `InvalidInputError` where it has none."""
        if not has_attributions(capture):
            raise InvalidInputError(
                f"Capture {capture.record.name!r} of {capture.folder} has no attributions. Make them with "
                "`actstore.attribute(model, questions, store)`, and name that capture with `capture`."
            )
        self.capture: Capture = capture
        self.store: Root = capture.store

    @cached_property
    def prompts(self) -> pa.Table:
        """One row per committed prompt, of queries with all prompts committed.

        Columns: query (its row in `queries`), prompt, document, text, answer, target, options, option_tokens,
        probabilities (of each option's letter), probability (of the right one), predicted (the most probable; the earlier
        where two are), correct, n_cut.
        """
        documents, rows = self._documents, self._prompt_documents
        chosen = documents.take(pa.array(rows))
        query = np.repeat(np.arange(len(self._starts)), self._counts)
        answered = self._answers.take(pa.array(rows))["probabilities"].combine_chunks()
        n_options = np.diff(answered.offsets.to_numpy())
        starts = np.cumsum([0, *n_options[:-1]]) if len(n_options) else np.empty(0, np.int64)
        flat = answered.flatten().to_numpy()
        best = np.array([int(np.argmax(flat[a : a + n])) for a, n in zip(starts, n_options, strict=True)], np.int64)
        options, answers = chosen["options"].to_pylist(), chosen["answer"].to_pylist()
        right = np.array([letters.index(a) for letters, a in zip(options, answers, strict=True)], np.int64)
        return pa.table(
            {
                "query": pa.array(query, pa.int32()),
                "prompt": chosen["prompt"].cast(pa.int32()),
                "document": chosen["document"].cast(pa.int32()),
                "text": chosen["text"],
                "answer": chosen["answer"],
                "target": chosen["target"],
                "options": chosen["options"],
                "option_tokens": chosen["option_tokens"],
                "probabilities": answered,
                "probability": pa.array(flat[starts + right], pa.float32()),
                "predicted": pa.array([o[b] for o, b in zip(options, best.tolist(), strict=True)], pa.string()),
                "correct": pa.array(best == right, pa.bool_()),
                "n_cut": chosen["n_cut"],
            }
        )

    @cached_property
    def queries(self) -> pa.Table:
        """One row per query with all prompts committed, in the order of the file.

        Columns: query (its name), the label columns, n_prompts, n_correct, correct (the model's most probable option is right
        in more than half of its prompts), probability (of the right letter, mean over its prompts), first_prompt (its first
        row in `prompts`).
        """
        first_documents = self._documents.take(pa.array(self._starts))
        prompts = self.prompts
        query = prompts["query"].to_numpy()
        n_correct = np.bincount(query, prompts["correct"].to_numpy(zero_copy_only=False), len(self._starts))
        probability = np.bincount(query, prompts["probability"].to_numpy().astype(np.float64), len(self._starts))
        first = np.cumsum([0, *self._counts[:-1]]) if len(self._counts) else np.empty(0, np.int64)
        return pa.table(
            {
                "query": first_documents["query"],
                **{column: first_documents[column] for column in self.capture.record.plan.label_columns},
                "n_prompts": pa.array(self._counts, pa.int32()),
                "n_correct": pa.array(n_correct.astype(np.int32)),
                "correct": pa.array(2 * n_correct > self._counts, pa.bool_()),
                "probability": pa.array(probability / np.maximum(self._counts, 1)),
                "first_prompt": pa.array(first, pa.int32()),
            }
        )

    def prompt_ids(self, row: int) -> NDArray[np.int32]:
        """The token ids that the model read for a prompt, by its row in `prompts`, special ones included; shape [position]."""
        if not 0 <= row < self.prompts.num_rows:
            raise NotFoundError(f"There are prompts 0 to {self.prompts.num_rows - 1}, found {row}.")
        slot = int(self._slot_of_document[self._prompt_documents[row]])
        size = self.capture.record.plan.block_slots
        plan = self.capture.block_plan(slot // size)
        ends = np.cumsum(plan.windows["n_inputs"])
        first = int(ends[slot % size - 1]) if slot % size else 0
        return plan.inputs[first : int(ends[slot % size])]

    def prompt_position(self, row: int) -> int:
        """The position of a prompt's ids at which the model answers: the last, or that of the mask."""
        slot = int(self._slot_of_document[self._prompt_documents[row]])
        return int(self.capture.plan.array("tokens/position", slice(slot, slot + 1))[0])

    @cached_property
    def _documents(self) -> pa.Table:
        return self.capture.documents().to_arrow()

    @cached_property
    def _answers(self) -> pa.Table:
        """The probabilities of every document's options, one row per document; null where it is not committed."""
        folder, name = self.capture.folder, self.capture.record.name
        of_documents: list[Any] = [None] * self._documents.num_rows
        for block in self.capture.blocks:
            key = block_answers_key(name, block)
            read_file(folder, self.capture.record, block, key)  # to be checked before it is believed
            with undamaged(folder, key):
                table = read_table(folder, key)
                for document, values in zip(*(table[c].to_pylist() for c in ANSWERS.names), strict=True):
                    of_documents[document] = values
        return pa.table({"probabilities": pa.array(of_documents, ANSWERS.field("probabilities").type)})

    @cached_property
    def _slot_of_document(self) -> NDArray[np.int64]:
        """Where each document's one token lies; -1 where its block is not committed."""
        slots = np.full(self._documents.num_rows, -1, np.int64)
        windows = self.capture.windows()
        committed = np.isin(windows["block"].to_numpy(), self.capture.blocks)
        slots[windows["document"].to_numpy()[committed]] = windows["slot_start"].to_numpy()[committed]
        return slots

    @cached_property
    def _complete(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First document and number of documents of each query whose prompts are all committed."""
        number = self._documents["prompt"].to_numpy()
        starts = np.flatnonzero(number == 0)
        counts = np.diff(np.append(starts, len(number)))
        n_committed = np.add.reduceat((self._slot_of_document >= 0).astype(np.int64), starts)
        has_all = n_committed == counts
        return starts[has_all], counts[has_all]

    @property
    def _starts(self) -> NDArray[np.int64]:
        return self._complete[0]

    @property
    def _counts(self) -> NDArray[np.int64]:
        return self._complete[1]

    @cached_property
    def _prompt_documents(self) -> NDArray[np.int64]:
        """The document of each row of `prompts`."""
        parts = [np.arange(a, a + n) for a, n in zip(self._starts.tolist(), self._counts.tolist(), strict=True)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    @cached_property
    def _row_of_document(self) -> NDArray[np.int64]:
        rows = np.full(self._documents.num_rows, -1, np.int64)
        rows[self._prompt_documents] = np.arange(len(self._prompt_documents))
        return rows


def answer_tables(capture: Capture) -> dict[str, pa.Table]:
    """The tables `prompts` and `queries` of a capture of questions: those of `Answers`, prompts with their query's name.

    Read from the capture where it is finished, and so without every block's answers.
    """
    if capture.is_finished:
        with suppress(NotFoundError):  # of an earlier version, or lost, which `verify` says
            return {table: read_capture_table(capture.folder, capture.record, table) for table in _TABLES}
    return _answer_tables(Answers(capture))


def _answer_tables(answers: Answers) -> dict[str, pa.Table]:
    names = answers.queries["query"].take(answers.prompts["query"])
    return {"prompts": answers.prompts.set_column(0, "query", names), "queries": answers.queries}


def write_answers(capture: Capture) -> None:
    """Write the `prompts` and `queries` tables into a capture whose blocks are committed, for other programs to read."""
    for table, rows in _answer_tables(Answers(capture)).items():
        write_capture_table(capture.folder, capture.record, table, rows)


def damaged_answers(capture: Capture) -> Iterator[tuple[str, str]]:
    """(file below the capture, what is wrong) of every written table that is not what documents and blocks say."""
    for table, expected in _answer_tables(Answers(capture)).items():
        try:
            found = read_capture_table(capture.folder, capture.record, table)
        except (FormatError, NotFoundError) as error:
            yield f"{table}.parquet", finding(error)
            continue
        if not found.equals(expected.combine_chunks()) and found.to_pylist() != expected.to_pylist():
            yield f"{table}.parquet", "not what the answers say"
