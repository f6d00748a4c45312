"""One capture of a corpus of text: its plan, its blocks, and the same again, resumed.

What can be wrong is refused before the model's weights are loaded. What every run does is in `run`, how a block is filled in
`block_filler`, how documents become windows in `plan`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actstore.engine.capture.answers.answering import TextAnswerer
from actstore.engine.capture.answers.positions import Positions
from actstore.engine.capture.block_filler import fill_blocks
from actstore.engine.capture.padding import PaddingCount
from actstore.engine.capture.plan import PlanSettings, TextPlanner, block_size
from actstore.engine.capture.run import Run
from actstore.engine.capture.settings import CaptureSettings
from actstore.engine.capture.sizes import bytes_per_slot, memory_of_model, planned_slots
from actstore.engine.inputs.corpus import STDIN, CorpusDigest, CorpusOptions, CorpusReport, read_corpus
from actstore.engine.models.fingerprint import check_root, fingerprint_of
from actstore.engine.models.generation.text import check_generates
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.engine.models.writing.path import is_scaled
from actstore.kernels.pack.statistics import STATISTICS
from actstore.store.capture.tokens.write_scale import SUMMED
from actstore.store.errors import InvalidInputError
from actstore.store.files.precision import PRECISIONS
from actstore.store.files.records import CaptureRecord, PlanRecord
from actstore.store.model import root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.engine.capture.plan_count import PlanCount
    from actstore.engine.capture.steps.filler import FillBlocks
    from actstore.engine.inputs.memory_corpus import MemoryCorpus
    from actstore.engine.models.load import LoadedModel, ModelSpec
    from actstore.engine.models.tokenizer.load import TextTokenizer

BLOCK_SLOTS = 16_384
FEW_SLOTS = 1024
"""Slots per block where a window keeps a handful of positions: the most that a run that is killed has to do again."""


@dataclass
class CorpusRun(Run):
    """One call of `capture` on a corpus of text."""

    command: ClassVar[str] = "capture"

    report: CorpusReport
    documents: str | MemoryCorpus
    """What `corpus` is the name of."""

    def check(self) -> None:
        """Raise `InvalidInputError` where the model reads no text."""
        if self.spec.kind == "vision":
            raise InvalidInputError(
                f"{self.spec.name} reads images, and {self.corpus} is a corpus of text. Name a model that reads text."
            )

    def _begin(self, requested: Mapping[str, object]) -> tuple[CaptureRecord, LoadedModel, TextTokenizer | None]:
        return self.begin(requested)

    def begin(
        self, requested: Mapping[str, object], count: PlanCount | None = None
    ) -> tuple[CaptureRecord, LoadedModel, TextTokenizer | None]:
        """As `_begin`; with `count`, the plan is counted there instead of written."""
        settings = CaptureSettings.resolve(requested, self.spec)
        if settings.part != "language":
            raise InvalidInputError(
                f"The {settings.part} part reads images, and {self.corpus} is text. Leave `part` out."
            )
        widths = settings.widths(self.spec)
        tokenizer = self._tokenizer(settings)
        if not settings.generate:
            plan = self._write_plan(settings, widths, tokenizer, count)
            model = self._load(self.options.dtype)
            fingerprint = fingerprint_of(model)
        else:
            if count is not None:
                raise InvalidInputError(
                    "How long answers take shows only when they are generated. Capture a few with `max_documents` to see."
                )
            check_generates(self.spec)  # before weights are loaded
            if settings.overlap:
                raise InvalidInputError(
                    "A prompt with its answer is one window, which repeats none before it. Leave `overlap` out."
                )
            model = self._load(self.options.dtype)
            fingerprint = fingerprint_of(model)
            check_root(self.folder, fingerprint, self.spec.name)
            answerer = self._answerer(model, fingerprint, tokenizer, settings)
            if self.documents != STDIN and settings.max_tokens is None:  # else not all are read, or they are read once
                answerer.check(read_corpus(self.documents, settings.of(CorpusOptions)))
            plan = self._write_plan(settings, widths, tokenizer, None, answerer)
        record = capture_record(self.name, self.spec, model, fingerprint, settings, widths, plan)
        check_root(self.folder, record.model_fingerprint, self.spec.name)
        return record, model, tokenizer

    def _write_plan(
        self,
        settings: CaptureSettings,
        widths: dict[str, dict[int, int]],
        tokenizer: TextTokenizer | None,
        count: PlanCount | None,
        answerer: TextAnswerer | None = None,
    ) -> PlanRecord:
        n_gate = sum(widths.get("mlp.post", {}).values()) if settings.gate_sign else 0
        dtype = self.options.dtype if self.options.dtype != "auto" else self.spec.dtype
        slot_nbytes = bytes_per_slot(widths, settings.precision, dtype, n_gate)
        positions = Positions(settings.positions, of_images=False)
        is_whole = not positions.are_few or positions.of_answers
        most = BLOCK_SLOTS if is_whole else min(BLOCK_SLOTS, FEW_SLOTS)
        usual = memory_of_model(self.spec, dtype)
        slots = planned_slots(slot_nbytes, self.options.memory, settings.block_tokens, most, usual)
        assert settings.context is not None
        plan_settings = PlanSettings(
            context=settings.context,
            overlap=settings.overlap,
            begin=settings.begin,
            positions=settings.positions,
            batch_tokens=settings.batch_tokens,
            block_slots=block_size(settings.context, slots, stored_everywhere=is_whole),
            max_tokens=settings.max_tokens,
        )
        trusted = self.options.trust_remote_code
        cut = () if answerer is None else (answerer.count_cut(),)
        planner = TextPlanner(
            plan_settings,
            self.corpus,
            tokenizer,
            self.spec.n_vocabulary,
            settings.label_columns,
            frozenset() if tokenizer else self.source.special_ids(trust_remote_code=trusted),
            observers=(self._count_padding(tokenizer), *cut),
            on_progress=self.progress.planned,
            on_warning=self.report.warn,
        )
        documents = read_corpus(self.documents, settings.of(CorpusOptions), self.report)
        answered = documents if answerer is None else answerer.answer(documents)
        return planner.write(answered, self.folder, self.name, count)

    def _answerer(
        self, model: LoadedModel, fingerprint: str, tokenizer: TextTokenizer | None, settings: CaptureSettings
    ) -> TextAnswerer:
        prefix = () if tokenizer is None or settings.begin == "never" else tokenizer.prefix
        if settings.begin == "always" and not prefix and tokenizer is not None and tokenizer.begin is not None:
            prefix = (tokenizer.begin,)
        place = self.folder, self.name, self.options.resume
        return TextAnswerer.of(model, fingerprint, tokenizer, prefix, settings, place, self.progress)

    def _count_padding(self, tokenizer: TextTokenizer | None) -> PaddingCount:
        """A count by the padding token of the tokenizer, or of the model's configuration where there is no tokenizer."""
        if tokenizer is not None:
            return PaddingCount(tokenizer.named_tokens)
        return PaddingCount(self.source.config(trust_remote_code=self.options.trust_remote_code).get_text_config())

    def _tokenizer(self, settings: CaptureSettings) -> TextTokenizer | None:
        try:
            return self._load_tokenizer()
        except InvalidInputError:
            # A corpus of ids needs none; whether this is one shows when its first document is read.
            if self.options.tokenizer is not None or not self._is_tokenised(settings):
                raise
            return None

    def _is_tokenised(self, settings: CaptureSettings) -> bool:
        first = (
            next(iter(read_corpus(self.documents, settings.of(CorpusOptions))), None)
            if self.documents != STDIN
            else None
        )
        return first is not None and first.ids is not None

    def _check_same(self, record: CaptureRecord, requested: Mapping[str, object]) -> LoadedModel:
        """Refuse to resume with anything that differs from what was begun, naming it."""
        recorded = CaptureSettings.from_json(record.settings)
        differences = recorded.differences(requested)
        if not differences:
            tokenizer = self._tokenizer(recorded)
            if (tokenizer.fingerprint if tokenizer else "") != record.plan.tokenizer_fingerprint:
                differences.append("the tokenizer is another")
            if self._corpus_fingerprint(recorded, record.plan) != record.plan.corpus_fingerprint:
                differences.append(f"the corpus {self.corpus} is not what was planned from {record.plan.corpus}")
        self._refuse(differences)
        return self._load_again(record)

    def _corpus_fingerprint(self, settings: CaptureSettings, plan: PlanRecord) -> str:
        digest = CorpusDigest()
        documents = read_corpus(self.documents, settings.of(CorpusOptions), self.report)
        for document in itertools.islice(documents, -(-plan.n_documents // settings.answers)):
            digest.update(document)
        longer = settings.max_tokens is None and next(documents, None) is not None
        return "" if longer else digest.hexdigest()

    def fill_blocks(self) -> FillBlocks:
        """What fills the blocks of text."""
        return fill_blocks


def capture_record(
    name: str,
    spec: ModelSpec,
    model: LoadedModel,
    fingerprint: str,
    settings: CaptureSettings,
    widths: dict[str, dict[int, int]],
    plan: PlanRecord,
) -> CaptureRecord:
    """The record of a capture with these settings and this plan, from now on."""
    gated = {s.layer for s in spec.layers if s.gated}
    of_language = [layer for layer in widths.get("mlp.post", ()) if spec.layers[layer].part == "language"]
    scaled = [layer for layer in of_language if is_scaled(model.scaled_by(layer))]
    return CaptureRecord(
        name=name,
        created=root.now(),
        written_by=root.written_by(),
        model_fingerprint=fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        precision=settings.precision,
        sites={site: {str(k): v for k, v in layers.items()} for site, layers in widths.items()},
        gate_sign=tuple(layer for layer in widths["mlp.post"] if layer in gated) if settings.gate_sign else (),
        keep=settings.keep if PRECISIONS[settings.precision].uses_keep else None,
        n_exemplars=settings.exemplars,
        settings=settings.to_json() | ({SUMMED: scaled} if settings.contributions and scaled else {}),
        plan=plan,
        statistics=tuple(STATISTICS),
        write_scale=tuple(scaled) if PRECISIONS[settings.precision].keeps_values else (),
    )
