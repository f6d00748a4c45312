"""The plan of an attribution run: its prompts, their labels, and the blocks they are stored in.

A prompt is a document of one window, of which the position is stored where the model predicts the answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from actstore.engine.attribution.integrated_gradients import SCOPES, Scope
from actstore.engine.attribution.masked_tokens import MaskedPromptTokenizer
from actstore.engine.attribution.option_tokens import PromptTokenizer, TooLong
from actstore.engine.capture.plan_labels import MAX_LABELS_PER_COLUMN, Labels
from actstore.engine.inputs.questions import Query, QuestionOptions, fingerprint, read_questions
from actstore.engine.models.names import HEAD_SITES
from actstore.store.arguments import Typed
from actstore.store.capture.plan import PlannedWindow, PlanWriter
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import PlanRecord
from actstore.store.layout import TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actstore.engine.attribution.option_tokens import TokenisedPrompt
    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.models.layers import ModelSpec
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.storage.folder import Folder

ATTRIBUTED_SITES: Final = ("mlp.post", *HEAD_SITES)
"""Where there is an activation to attribute to, and a path from 0 to it that the model follows."""
BLOCK_PROMPTS: Final = 64
"""Prompts per block: the maximum that a run that was killed has to repeat."""
MAX_DEFAULT_LABELS: Final = 64
"""A column of plain rows with more distinct values is a label only where `label_columns` names it."""
RESERVED_COLUMNS: Final = (
    "document", "source", "sha256", "n_tokens", "query", "prompt", "text", "answer", "target", "options", "option_tokens",
    "n_cut", "probabilities", "probability", "predicted", "correct", "n_prompts", "n_correct", "first_prompt",
)  # fmt: skip


@dataclass(frozen=True)
class AttributeSettings(Typed):
    """Everything that determines the contents of the store; a resumed run must repeat it."""

    steps: int = 16
    """Steps of the integral from 0 to the activations."""
    site: str = "mlp.post"
    """Whose activations: those of MLP neurons, or of attention's projections, a key of `names.HEAD_SITES`."""
    scope: Scope = "position"
    """Whether activations are scaled where the answer is predicted, or at all positions of a prompt; a key of `SCOPES`."""
    layers: tuple[int, ...] | None = None
    """The layers to attribute to; None is all of the text stack."""
    templates: int | None = None
    """Prompts per query; None is 3, and of prepared prompts all there are."""
    seed: int = 0
    """Random seed of the order of options in templates."""
    max_queries: int | None = None
    """Maximum number of queries to read."""
    label_columns: tuple[str, ...] | None = None
    """Columns kept as labels; None is `relation_name` of prepared JSON, and of plain rows every column whose values recur."""
    gradients: bool = True
    """Whether gradients are taken; False keeps activations and answers only, from one pass per prompt."""
    max_rows: int = 256
    """The memory bound of `PathSettings`; it changes rounding only, which is why a resumed run must repeat it."""
    too_long: TooLong = "cut"
    """What happens to prompts longer than the model's context; a key of `option_tokens.TOO_LONG`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "max_rows"):
            if (value := getattr(self, name)) < 1:
                raise InvalidInputError(f"`{name}` must be at least 1, found {value}.")
        if self.site not in ATTRIBUTED_SITES:
            raise InvalidInputError(f"`site` is one of {', '.join(ATTRIBUTED_SITES)}, found {self.site!r}.")
        if self.scope not in SCOPES:
            raise InvalidInputError(f"`scope` is one of {', '.join(SCOPES)}, found {self.scope!r}.")
        if self.scope == "sequence" and not self.gradients:
            raise InvalidInputError(
                "Expected `gradients` with a `scope` of 'sequence': without them the activations where the answer is predicted "
                "are all that is stored. Leave out one of the two."
            )

    @property
    def questions(self) -> QuestionOptions:
        """How the questions file is read."""
        return QuestionOptions(self.templates, self.seed, self.max_queries)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        known = {field.name for field in dataclasses.fields(cls)}
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k in known}
        return cls(**fields)


@dataclass
class AttributeReport:
    """How many prompts were changed or left out; counted while they are planned."""

    n_skipped: int = 0
    """Queries left out because one of their prompts is longer than the model's context."""
    n_cut: int = 0
    """Prompts whose beginning was cut off to fit the context."""
    n_merged: int = 0
    """Prompts whose last token the tokenizer merges with the option, so that the model reads the prompt without it."""


@dataclass(frozen=True)
class QuestionPlanner:
    """Writes the plan of one questions file for one model."""

    questions: str
    settings: AttributeSettings
    spec: ModelSpec
    tokenizer: TextTokenizer
    report: AttributeReport
    progress: CaptureProgress

    def write(self, folder: Folder, capture: str) -> PlanRecord:
        """Write the plan into `capture`; `InvalidInputError` for a mistake in the file, and where no query is left."""
        label_columns = self.label_columns()
        positions = "mask" if self.spec.kind == "encoder" else "last"
        as_json = {"context": self.spec.context, "positions": positions, "block_slots": BLOCK_PROMPTS}
        writer = PlanWriter(folder, capture, BLOCK_PROMPTS, as_json)
        labels = Labels(label_columns)
        try:
            windows = self._windows(writer, labels)
            while block := list(itertools.islice(windows, BLOCK_PROMPTS)):
                writer.add_block([[window] for window in block])
            self._expect_prompts(writer.n_windows)
            if self.settings.label_columns is not None:  # else columns are kept that nobody asked for
                labels.warn_of_single_values(self.questions)
            plan_fingerprint = writer.close(tuple(labels.ids))
        except BaseException:
            writer.abandon()
            raise
        return PlanRecord(
            fingerprint=plan_fingerprint,
            corpus=self.questions,
            corpus_fingerprint=fingerprint(read_questions(self.questions, self.settings.questions), label_columns),
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            settings=as_json,
            label_columns=label_columns,
            labels=tuple(labels.ids),
            n_documents=writer.n_documents,
            n_windows=writer.n_windows,
            n_tokens=writer.n_tokens,
            block_slots=BLOCK_PROMPTS,
            n_blocks=writer.n_blocks,
        )

    def _expect_prompts(self, n_prompts: int) -> None:
        if not n_prompts:
            raise InvalidInputError(
                f"No query of {self.questions} fits the model's context of {self.spec.context} tokens. Set "
                '`too_long="cut"`.'
            )

    def _windows(self, writer: PlanWriter, labels: Labels) -> Iterator[PlannedWindow]:
        """The window of every prompt, in the order of the file; its document is written to the table before."""
        is_masked = self.spec.kind == "encoder"
        kind: type[MaskedPromptTokenizer | PromptTokenizer] = MaskedPromptTokenizer if is_masked else PromptTokenizer
        prompts = kind(
            self.tokenizer,
            context=self.spec.context,
            n_vocabulary=self.spec.n_vocabulary,
            too_long=self.settings.too_long,
        )
        for query in read_questions(self.questions, self.settings.questions):
            tokenised = prompts.prompts(query)
            if tokenised is None:
                self.report.n_skipped += 1
                continue
            for number, prompt in enumerate(tokenised):
                document = writer.add_document(self._row(query, number, prompt, labels.columns))
                kept = np.array([prompt.position % len(prompt.ids)], np.int32)
                yield PlannedWindow(document, prompt.ids, kept, np.array([TEXT], np.uint8), labels.of(query.labels))
            self.progress.planned(writer.n_documents, writer.n_documents)

    def _row(
        self, query: Query, number: int, prompt: TokenisedPrompt, label_columns: tuple[str, ...]
    ) -> dict[str, Any]:
        """The row of the documents table for one prompt."""
        self.report.n_cut += prompt.n_cut > 0
        self.report.n_merged += not prompt.as_text
        options, answer, text = query.options[number], query.answers[number], query.prompts[number]
        row = {
            "source": f"{Path(self.questions).name}: {query.name}",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "n_tokens": len(prompt.ids),
            "query": query.name,
            "prompt": number,
            "text": text,
            "answer": answer,
            "target": prompt.option_tokens[options.index(answer)],
            "options": list(options),
            "option_tokens": list(prompt.option_tokens),
            "n_cut": prompt.n_cut,
        }
        return row | {column: query.labels.get(column, "") for column in label_columns}

    def label_columns(self) -> tuple[str, ...]:
        """The columns kept as labels; reads, and so checks, the whole file."""
        values: dict[str, set[str]] = {}
        n_queries = 0
        prepared = False
        for query in read_questions(self.questions, self.settings.questions):
            n_queries, prepared = n_queries + 1, query.prepared
            for column, value in query.labels.items():
                if len(distinct := values.setdefault(column, set())) <= MAX_LABELS_PER_COLUMN:
                    distinct.add(value)
        if self.settings.label_columns is None:
            if prepared:
                return tuple(column for column in ("relation_name",) if column in values)
            recurring = (
                c for c, distinct in values.items() if len(distinct) <= MAX_DEFAULT_LABELS and len(distinct) < n_queries
            )
            return tuple(column for column in recurring if column not in RESERVED_COLUMNS)
        for column, n_named in Counter(self.settings.label_columns).items():
            if n_named > 1:
                raise InvalidInputError(f"The label column {column!r} is named twice. Name it once in `label_columns`.")
            if column in RESERVED_COLUMNS:
                raise InvalidInputError(
                    f"A label column cannot be called {column!r}, a column that actstore writes. Rename it in the file."
                )
            if column not in values:
                existing_columns = ", ".join(values) or "none"
                raise InvalidInputError(
                    f"No query of {self.questions} has a column {column!r}. The columns are: {existing_columns}."
                )
        return self.settings.label_columns
