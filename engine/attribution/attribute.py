"""Attributions of a questions file: which neurons account for the right letter of every prompt, stored as a capture.

Every prompt is a document of one window, of which the last position, or that of its mask, is stored at three sites: `mlp.post`,
or another whose activations are attributed to, the activations ā; `attribution.ig`, their integrated gradients;
`attribution.gradient`, ∂P/∂a at ā; all in float32. With scope "sequence" there are no gradients, and the others are the
mean of activations and the sum of integrated gradients over positions. What the model answered is committed with each block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from actstore.engine.attribution.block_filler import fill_attributions
from actstore.engine.attribution.question_plan import AttributeReport, AttributeSettings, QuestionPlanner
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.run import Run, RunOptions, check_options
from actstore.engine.capture.target import check_target
from actstore.engine.inputs.questions import fingerprint, read_questions
from actstore.engine.models.fingerprint import check_root, fingerprint_of
from actstore.engine.models.sources import ModelSource
from actstore.engine.models.writing.path import is_scaled
from actstore.kernels.pack.statistics import STATISTICS
from actstore.store.arguments import argument, given_fields
from actstore.store.calls import checked
from actstore.store.capture.questions.attribution_kinds import GRADIENT, IG
from actstore.store.capture.questions.attributions import Attributions
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import CaptureRecord
from actstore.store.model import root
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from actstore.engine.attribution.integrated_gradients import Scope
    from actstore.engine.attribution.option_tokens import TooLong
    from actstore.engine.capture.steps.filler import FillBlocks
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.layers import ModelSpec
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.tokenizer.load import TextTokenizer

__all__ = ["AttributeReport", "AttributeSettings", "attribute"]


@checked
def attribute(
    model: ModelInput,
    questions: str | Path,
    store: str | Path,
    *,
    name: str = "questions",
    steps: int | None = None,
    site: str | None = None,
    scope: Scope | None = None,
    layers: int | Sequence[int] | None = None,
    gradients: bool | None = None,
    templates: int | None = None,
    seed: int | None = None,
    max_queries: int | None = None,
    label_columns: Sequence[str] | None = None,
    too_long: TooLong | None = None,
    max_rows: int | None = None,
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
    report: AttributeReport | None = None,
) -> Attributions:
    """Attribute the right answers of a questions file to the neurons of `model`; the finished attributions, open for reading.

    `model` is what `capture` takes. `questions` is a path of prepared JSON, or of rows of question, options and answer (JSONL).
    `store` is where the store is, or is to be; `name` names the capture in it. `options` say how the run is carried out;
    `progress` counts prompts; `report` counts prompts that were cut, skipped or merged with their option. All other parameters
    are fields of `AttributeSettings`; None is the default, given in brackets, or in a run that is resumed what it began with:

    - `steps`: steps of the integral from 0 to the activations [16]
    - `site`: whose activations, "mlp.post", or of attention "attn.q", "attn.k", "attn.v" or "attn.z" ["mlp.post"]
    - `scope`: whether activations are scaled where the answer is predicted, "position", or at all positions of a prompt
      together, "sequence"; a neuron's attribution is then the sum over positions, its activation the mean ["position"]
    - `layers`: the layers that are attributed to [all of the text stack]
    - `gradients`: whether gradients are taken; else activations and answers only, from one pass per prompt [True]
    - `templates`: prompts per query [3; of prepared prompts all there are]
    - `seed`: random seed of the order of options in templates [0]
    - `max_queries`: maximum number of queries to read [all]
    - `label_columns`: columns kept as labels [`relation_name`; of rows every column whose values recur]
    - `too_long`: what is done with prompts longer than the context: "cut", "skip" or "refuse" ["cut"]
    - `max_rows`: the memory bound, how many token rows run at once [256]

    Errors are those of `capture`, and of `read_questions`; a value of the wrong type is an `InvalidInputError`.

    >>> actstore.attribute("gpt2", "questions.json", "gpt2.actstore", steps=20, label_columns=["relation_name"])
    """
    requested = _given_settings(locals())
    options = argument("options", options, RunOptions | None) or RunOptions()
    progress = argument("progress", progress, CaptureProgress | None) or CaptureProgress()
    report = argument("report", report, AttributeReport | None) or AttributeReport()
    check_options(name, options)
    source = ModelSource.of(model)
    spec = _inspect(source, options)
    folder = Folder(store, read_only=False, sync=options.sync, storage_options=options.storage_options)
    check_target(folder, name, spec, options.resume)
    run = _AttributeRun(folder, name, spec, str(questions), options, progress, report, source=source)
    run.carry_out(requested)
    return Attributions(Store(folder).capture(name))


def _given_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the arguments of `attribute`, by name, of the types of `AttributeSettings`; without those left out."""
    return given_fields(
        AttributeSettings, {f.name: arguments[f.name] for f in fields(AttributeSettings)}, "An attribution"
    )


def _inspect(source: ModelSource, options: RunOptions) -> ModelSpec:
    """What is known of the model without loading it; `InvalidInputError` unless it predicts the next token, or masked ones."""
    spec = source.inspect(dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    if spec.kind not in ("causal", "encoder") or spec.n_vocabulary is None:
        raise InvalidInputError(
            f"{spec.name} neither continues a text nor predicts what is masked in one ({spec.kind}): it answers no prompt. "
            "Name a decoder, or a masked encoder."
        )
    return spec


@dataclass
class _AttributeRun(Run):
    """One call of `attribute`; `corpus` is the questions file."""

    command: ClassVar[str] = "attribute"

    report: AttributeReport

    def _begin(self, requested: Mapping[str, Any]) -> tuple[CaptureRecord, LoadedModel, TextTokenizer | None]:
        settings = AttributeSettings(**requested)
        widths = _widths(self.spec, settings.layers, settings.site)
        tokenizer = self._load_tokenizer()
        planner = QuestionPlanner(self.corpus, settings, self.spec, tokenizer, self.report, self.progress)
        plan = planner.write(self.folder, self.name)
        model = self._load(self.options.dtype)
        # Over a sequence, the mean of gradients times the mean of activations is no score: gradients are not kept.
        computed = (IG, GRADIENT) if settings.scope == "position" else (IG,)
        sites = (settings.site, *computed) if settings.gradients else (settings.site,)
        # A contribution to the right letter's logit is a term of it with what its position scales the layer's output with.
        has_contributions = settings.site == "mlp.post" and settings.scope == "position" and self.spec.kind == "causal"
        scaled = [layer for layer in widths if has_contributions and is_scaled(model.scaled_by(layer))]
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
            statistics=tuple(STATISTICS),
            float_dtype="float32",
            write_scale=tuple(scaled),
        )
        check_root(self.folder, record.model_fingerprint, self.spec.name)
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

    def fill_blocks(self) -> FillBlocks:
        """What fills the blocks of prompts."""
        return fill_attributions


def _widths(spec: ModelSpec, layers: tuple[int, ...] | None, site: str) -> dict[int, int]:
    """Layer → neurons of the layers to attribute to, of which none may be a routed expert, or lack the site."""
    text = spec.part_layers("language")
    if site != "mlp.post":
        having = tuple(layer for layer in spec.layers_of(site) if layer in text)
        if not having:
            raise InvalidInputError(f"{spec.name} has no site {site!r}. Its sites are {', '.join(spec.sites)}.")
        if layers == () or (lacking := set(layers or ()) - set(having)):
            what = f"Layer {min(lacking)} of {spec.name} has no site {site!r}" if layers else "No layer is named"
            raise InvalidInputError(
                f"{what}. Layers with it: {', '.join(map(str, having))}. Check `layers` and `site`."
            )
        return {layer: spec.width(layer, site) for layer in sorted(set(having if layers is None else layers))}
    dense = {layer: spec.layers[layer].neurons for layer in text if spec.layers[layer].expert is None}
    selected = text if layers is None else layers
    if not selected:
        raise InvalidInputError(
            f"At least one layer must be attributed to. {spec.name} has {len(spec.layers)}. Check `layers`."
        )
    for layer in sorted(selected):
        if not 0 <= layer < len(spec.layers):
            raise InvalidInputError(
                f"{spec.name} has layers 0 to {len(spec.layers) - 1}, found layer {layer}. Check `layers`."
            )
        if layer not in dense:
            raise InvalidInputError(
                f"Layer {layer} of {spec.name} is a routed expert, which not every token reaches. Set `layers` to "
                f"some of the dense layers: {', '.join(map(str, dense)) or 'there are none'}."
            )
    return {layer: dense[layer] for layer in sorted(set(selected))}
