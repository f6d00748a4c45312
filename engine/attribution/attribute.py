"""Attributions of a questions file: which neurons account for the right letter of every prompt, kept as a capture.

Every prompt is a document of one window, of which the last position is kept, at three sites: `mlp.post`, the activations ā;
`attribution.ig`, their integrated gradients; `attribution.gradient`, ∂P/∂a at ā; all in float32. What the model answered is
committed with each block. Knows nothing about what is made of attributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from actstore.engine.attribution.block_filler import AttributionFiller
from actstore.engine.attribution.question_plan import AttributeReport, AttributeSettings, QuestionPlanner
from actstore.engine.capture.packing import staged_arrays
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.run import Run, RunOptions, check_options, check_target
from actstore.engine.inputs.questions import fingerprint, read_questions
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.models.sources import ModelSource
from actstore.store.arguments import argument, given_fields
from actstore.store.capture.answers import write_answers
from actstore.store.capture.attribution_kinds import GRADIENT, IG
from actstore.store.capture.attributions import Attributions
from actstore.store.capture.plan import Plan
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import CaptureRecord
from actstore.store.model import root
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.layers import ModelSpec
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.capture.statistics import CaptureStatistics
    from actstore.store.capture.writer import CaptureWriter

__all__ = ["AttributeReport", "AttributeSettings", "attribute"]


def attribute(
    model: ModelInput,
    questions: str | Path,
    store: str | Path,
    *,
    name: str = "questions",
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
    report: AttributeReport | None = None,
    **settings: Any,
) -> Attributions:
    """Attribute the right answers of a questions file to the neurons of `model`; the finished attributions, open for reading.

    `model` is what `capture` takes. `settings` are the fields of `AttributeSettings`. With `options.resume`, an interrupted run
    is continued; settings left out are then as they were. `progress` counts prompts. Errors are those of `capture`, and of
    `read_questions`.

    >>> actstore.attribute("gpt2", "questions.json", "gpt2.actstore")
    """
    options = argument("options", options, RunOptions | None) or RunOptions()
    progress = argument("progress", progress, CaptureProgress | None) or CaptureProgress()
    asked = given_fields(AttributeSettings, settings, "An attribution")
    check_options(name, options)
    source = ModelSource.of(model)
    spec = source.inspect(trust_remote_code=options.trust_remote_code)
    if spec.kind != "causal" or not spec.causal:
        raise InvalidInputError(
            f"{spec.name} is not a model that continues a text ({spec.kind}), and only such a model answers a prompt with the "
            "letter that follows it. Name a decoder."
        )
    folder = Folder(store, read_only=False)
    check_target(folder, name, spec, options.resume)
    run = _AttributeRun(
        folder, name, spec, str(questions), options, progress, report or AttributeReport(), source=source
    )
    run.carry_out(asked)
    return Attributions(Store(folder).capture(name))


@dataclass
class _AttributeRun(Run):
    """One call of `attribute`; `corpus` is the questions file."""

    command: ClassVar[str] = "attribute"

    report: AttributeReport

    def _begin(self, requested: Mapping[str, Any]) -> tuple[CaptureRecord, LoadedModel, TextTokenizer | None]:
        settings = AttributeSettings(**requested)
        widths = _widths(self.spec, settings.layers)
        tokenizer = self._load_tokenizer()
        planner = QuestionPlanner(self.corpus, settings, self.spec, tokenizer, self.report, self.progress)
        plan = planner.write(self.folder, self.name)
        model = self._load(self.options.dtype)
        sites = ("mlp.post", IG, GRADIENT) if settings.gradients else ("mlp.post",)
        record = CaptureRecord(
            name=self.name,
            created=root.now(),
            written_by=root.written_by(),
            model_fingerprint=fingerprint_of(model),
            dtype=str(model.dtype).removeprefix("torch."),
            precision="exact",
            sites={site: {str(layer): width for layer, width in widths.items()} for site in sites},
            gate_sign=(),
            keep=None,
            n_exemplars=20,
            settings={"command": self.command, **settings.to_json()},
            plan=plan,
            float_dtype="float32",
        )
        if root.is_store(self.folder):
            check_model(self.folder, root.read_root(self.folder).fingerprint, record.model_fingerprint, self.spec.name)
        return record, model, tokenizer

    def _check_same(self, record: CaptureRecord, requested: Mapping[str, Any]) -> LoadedModel:
        recorded = AttributeSettings.from_json(record.settings)
        differences = [
            f"{name} is {getattr(recorded, name)} there and {value} now"
            for name, value in requested.items()
            if getattr(recorded, name) != value
        ]
        if not differences:
            if self._load_tokenizer().fingerprint != record.plan.tokenizer_fingerprint:
                differences.append("the tokenizer is another")
            queries = read_questions(self.corpus, recorded.questions)
            if fingerprint(queries, record.plan.label_columns) != record.plan.corpus_fingerprint:
                differences.append(f"the questions in {self.corpus} are not those planned from {record.plan.corpus}")
        self._refuse(differences)
        return self._load_again(record)

    def _fill_blocks(self, record: CaptureRecord, model: LoadedModel, writer: CaptureWriter, blocks: list[int]) -> None:
        plan = Plan(self.folder, record.name, record.plan)
        staged = list(staged_arrays(record))
        filler = AttributionFiller(
            model,
            record,
            lambda: {key: writer.buffer(key, shape, dtype) for key, shape, dtype in staged},
            plan.table("documents"),
        )
        for filled in filler.fill(map(plan.block, blocks), self.progress):
            writer.submit(filled.block, filled.arrays, filled.encode_statistics, filled.began, filled.files)

    def _finish(self, record: CaptureRecord, total: CaptureStatistics) -> None:
        write_answers(Store(self.folder).capture(record.name))
        super()._finish(record, total)


def _widths(spec: ModelSpec, layers: tuple[int, ...] | None) -> dict[int, int]:
    """Layer → neurons of the chosen layers, of which none may be a routed expert."""
    text = spec.part_layers("language")
    dense = {layer: spec.layers[layer].neurons for layer in text if spec.layers[layer].expert is None}
    chosen = text if layers is None else layers
    if not chosen:
        raise InvalidInputError(f"At least one layer must be attributed to. {spec.name} has {len(spec.layers)}.")
    for layer in sorted(chosen):
        if not 0 <= layer < len(spec.layers):
            raise InvalidInputError(f"{spec.name} has layers 0 to {len(spec.layers) - 1}, found layer {layer}.")
        if layer not in dense:
            raise InvalidInputError(
                f"Layer {layer} of {spec.name} is a routed expert, which not every token reaches. Choose among the dense "
                f"layers with --layers: {', '.join(map(str, dense)) or 'there are none'}."
            )
    return {layer: dense[layer] for layer in sorted(set(chosen))}
