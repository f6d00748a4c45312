"""One capture of images from beginning to end, and the same again, resumed.

Images are read, prompted and, with `generate`, answered while the plan is written; then every window is run once more with its
answer, in one pass. What every run does is in `run`, what a plan is made of in `images.plan`.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from actstore.engine.capture.answers.positions import Positions
from actstore.engine.capture.block_filler import fill_blocks
from actstore.engine.capture.corpus_run import BLOCK_SLOTS, FEW_SLOTS, capture_record
from actstore.engine.capture.images.batches import ImageBatches, open_library
from actstore.engine.capture.images.plan import ImagePlanner
from actstore.engine.capture.images.prompts import Captioner, Prompter
from actstore.engine.capture.run import Run
from actstore.engine.capture.settings import ImageSettings
from actstore.engine.capture.sizes import bytes_per_slot, memory_of_model, planned_slots
from actstore.engine.inputs.images import ImageDigest, ImageOptions, read_images
from actstore.engine.models.fingerprint import check_root, fingerprint_of
from actstore.engine.models.generate import AnswerFile, GenerationSettings, answers_key
from actstore.engine.models.vision.inputs import VisionProcessor
from actstore.store.capture.plan import Plan
from actstore.store.errors import InvalidInputError
from actstore.store.layout import SLOT_MULTIPLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pyarrow as pa
    from torch import Tensor

    from actstore.engine.capture.block_filler import Batches
    from actstore.engine.capture.images.prompts import Prepared
    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.capture.steps.filler import FillBlocks
    from actstore.engine.inputs.corpus import CorpusReport
    from actstore.engine.models.load import LoadedModel, ModelSpec
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.capture.writer import CaptureWriter
    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder


def sees_and_reads(spec: ModelSpec) -> bool:
    """Whether a model reads an image within a text, and goes on from there."""
    return "vision" in spec.parts and "language" in spec.parts and spec.kind in ("causal", "encoder-decoder")


@dataclass
class ImageRun(Run):
    """One call of `capture` on images; `corpus` is where they are.

    Every document is one window: the prompt with its image, and the answer, which is the caption given or, with `generate`,
    what the model answers. An interrupted generation is continued too.
    """

    command: ClassVar[str] = "capture"

    report: CorpusReport

    def check(self) -> None:
        """Raise `InvalidInputError` where the model reads no text with an image, or the tokenizer is to be another."""
        if not sees_and_reads(self.spec):
            what = "reads no text with an image" if "vision" in self.spec.parts else "reads text only"
            raise InvalidInputError(
                f"{self.corpus} holds images, and {self.spec.name} ({self.spec.model_type}) {what}. Name a vision-language "
                "model, such as one of the LLaVA family, or a corpus of text."
            )
        if self.options.tokenizer is not None:
            raise InvalidInputError("Images are captured through the model's own processor. Leave `tokenizer` out.")

    def _begin(self, requested: Mapping[str, object]) -> tuple[CaptureRecord, LoadedModel, TextTokenizer | None]:
        settings = ImageSettings.resolve(_for_images(requested), self.spec)
        Positions(settings.positions)
        processor = self._processor
        prompter = Prompter(self.corpus, settings, processor, self.report, self.options.strict)
        prompts = prompter.prepare()
        # An image that opens, with a prompt that has a placeholder for it, before weights are loaded.
        first = next(prompts)
        prompts = itertools.chain((first,), prompts)
        if settings.part != "language":
            settings = self._with_like_layers(settings, first, named=settings.layers is not None)
        widths = settings.widths(self.spec)
        if settings.generate:
            prompts = self._captioner(settings).answer(prompts)
        planner = ImagePlanner(
            self.corpus, settings, processor, self._block_slots(settings, widths), self.progress.planned
        )
        plan, patches_sha256 = planner.write(self._counted(prompts), self.folder, self.name, prompter.digest.hexdigest)
        record = capture_record(self.name, self.spec, self._model, self._fingerprint, settings, widths, plan)
        further = {
            "n_read": prompter.n_read,
            "images_at": str(Path(self.corpus).absolute()),
            "processor_fingerprint": processor.fingerprint,
        }
        record = dataclasses.replace(record, settings={**record.settings, **further}, patches_sha256=patches_sha256)
        check_root(self.folder, record.model_fingerprint, self.spec.name)
        return record, self._model, processor.tokenizer

    @cached_property
    def _processor(self) -> VisionProcessor:
        if self.source.model is not None and not self.source.model.name_or_path:
            raise InvalidInputError(
                f"This {self.spec.name} in memory has no name or path by which to find its processor. Save both with "
                "save_pretrained, and name that folder."
            )
        return VisionProcessor.load(self.spec.name, trust_remote_code=self.options.trust_remote_code)

    @cached_property
    def _model(self) -> LoadedModel:
        return self._load(self.options.dtype)

    def _let_go(self) -> None:
        super()._let_go()
        self.__dict__.pop("_model", None)

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of(self._model)

    def _counted(self, prompts: Iterator[Prepared]) -> Iterator[Prepared]:
        for prepared in prompts:
            self.report.n_documents += 1
            self.report.n_uncaptioned_images += not prepared.caption and not prepared.generated
            yield prepared

    def _captioner(self, settings: ImageSettings) -> Captioner:
        generation = settings.of(GenerationSettings)
        prepared = f"{self._processor.fingerprint} {settings.prefix}"
        key = answers_key(self._fingerprint, str(self._model.dtype), generation, prepared)
        answers = AnswerFile(self.folder, self.name, key, resume=self.options.resume)
        return Captioner(self._model, self._processor, settings, answers, self.progress)

    def _with_like_layers(self, settings: ImageSettings, first: Prepared, *, named: bool) -> ImageSettings:
        """The settings with those layers of the part that have one row per position, as one forward pass shows."""
        expected = len(self._processor.part_patches(first.encoded, settings.part))
        layers = settings.chosen_layers(self.spec)
        ids, mask, extra = self._processor.collate([first.encoded])
        n_rows: dict[int, int] = {}

        def count(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
            n_rows[layer] = values.numel() // values.shape[-1]

        self._model.forward(ids, mask, layers=layers, extra=extra, sink=count)
        unlike = tuple(layer for layer in layers if n_rows.get(layer) != expected)
        alike = tuple(layer for layer in layers if layer not in unlike)
        if unlike and (named or not alike):
            raise InvalidInputError(
                f"Layer {unlike[0]} of {self.spec.name} ({self.spec.layers[unlike[0]].module}) holds "
                f"{n_rows.get(unlike[0], 0)} rows for an image, and its {settings.part} part {expected} positions. Leave it "
                "out of `layers`."
            )
        self.report.layers_left_out = unlike
        return dataclasses.replace(settings, layers=alike)

    def _block_slots(self, settings: ImageSettings, widths: dict[str, dict[int, int]]) -> int:
        n_gate = sum(widths.get("mlp.post", {}).values()) if settings.gate_sign else 0
        dtype = self.options.dtype if self.options.dtype != "auto" else self.spec.dtype
        most = FEW_SLOTS if Positions(settings.positions).are_few else BLOCK_SLOTS
        slot_nbytes = bytes_per_slot(widths, settings.precision, dtype, n_gate)
        usual = memory_of_model(self.spec, dtype)
        slots = planned_slots(slot_nbytes, self.options.memory, settings.block_tokens, most, usual)
        return max(SLOT_MULTIPLE, slots // SLOT_MULTIPLE * SLOT_MULTIPLE)

    def _check_same(self, record: CaptureRecord, requested: Mapping[str, object]) -> LoadedModel:
        """Refuse to resume with anything that differs from what was begun, naming it."""
        recorded = image_settings(record)
        differences = recorded.differences(_for_images(requested))
        if not differences:
            if self._processor.tokenizer.fingerprint != record.plan.tokenizer_fingerprint:
                differences.append("the tokenizer is another")
            if prepares_otherwise(self._processor, record):
                differences.append("the settings of the image processor, or its chat template, are others")
            if self._corpus_fingerprint(recorded, record) != record.plan.corpus_fingerprint:
                differences.append(f"the images in {self.corpus} are not those planned from {record.plan.corpus}")
        self._refuse(differences)
        return self._load_again(record)

    def _corpus_fingerprint(self, settings: ImageSettings, record: CaptureRecord) -> str:
        digest = ImageDigest()
        documents = read_images(self.corpus, settings.of(ImageOptions))
        for document in itertools.islice(documents, record.settings["n_read"]):
            digest.update(document)
        longer = settings.max_tokens is None and next(documents, None) is not None
        return "" if longer else digest.hexdigest()

    def fill_blocks(self) -> FillBlocks:
        """What fills the blocks of images, which are where they were planned from."""
        return partial(fill_image_blocks, self._processor, (self.corpus,))


def fill_image_blocks(
    processor: VisionProcessor,
    locations: tuple[str, ...],
    folder: Folder,
    record: CaptureRecord,
    model: LoadedModel,
    writer: CaptureWriter,
    blocks: Iterable[int],
    progress: CaptureProgress,
) -> None:
    """Run the model over `blocks` of a capture of images and commit each; `locations` as for `image_batches`."""
    documents = Plan(folder, record.name, record.plan, record.plan_files).table("documents")
    batches = image_batches(record, documents, processor, locations)
    fill_blocks(folder, record, model, writer, blocks, progress, batches)


def image_batches(
    record: CaptureRecord, documents: pa.Table, processor: VisionProcessor, locations: tuple[str, ...] = ()
) -> Batches:
    """What makes the batches of a capture of images; `locations` say where these are now, if not where they were."""
    if prepares_otherwise(processor, record):
        raise InvalidInputError(
            f"The settings of the model's image processor, or its chat template, are not those with which capture "
            f"{record.name!r} was made. Restore the files of the processor in the model's folder, or name the model as it was."
        )
    settings = image_settings(record)
    locations = locations or (record.plan.corpus, record.settings["images_at"])
    return ImageBatches(processor, settings, documents, open_library(documents, locations, settings))


def prepares_otherwise(processor: VisionProcessor, record: CaptureRecord) -> bool:
    """Whether a processor makes other inputs of an image or a prompt than a capture was begun with; old records do not say."""
    return record.settings.get("processor_fingerprint") not in (None, processor.fingerprint)


def image_settings(record: CaptureRecord) -> ImageSettings:
    """The settings with which a capture of images was made."""
    return ImageSettings.from_json(record.settings)


def _for_images(requested: Mapping[str, object]) -> Mapping[str, object]:
    for name in ImageSettings.TEXT_ONLY:
        if name in requested:
            raise InvalidInputError(
                f"`{name}` is for corpora of text, and what is captured here are images. Leave it out."
            )
    return requested
