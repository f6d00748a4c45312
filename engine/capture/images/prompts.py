"""Documents of images prepared for a model: opened, prompted, answered, encoded; what cannot be used is skipped and reported.

A stream: at most one group of encoded prompts is in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actstore.engine.inputs.image_files import ImageError, decode
from actstore.engine.inputs.images import ImageDigest, ImageOptions, read_images
from actstore.engine.models.generate import GROUP_NBYTES, GROUP_PROMPTS, GenerationSettings, generate
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image

    from actstore.engine.capture.progress import CaptureProgress
    from actstore.engine.capture.settings import ImageSettings
    from actstore.engine.inputs.corpus import CorpusReport
    from actstore.engine.inputs.images import ImageDocument
    from actstore.engine.models.generate import AnswerFile, Ids
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.vision.inputs import EncodedPrompt, VisionProcessor


@dataclass(frozen=True, eq=False)
class Prepared:
    """One document as the model will read it."""

    document: ImageDocument
    entry: int
    """Its number among all documents of the location, from 0, those that were passed over counted."""
    width: int
    height: int
    prompt: str
    caption: str
    """What stands for the answer, as text; empty where there is none."""
    generated: bool
    encoded: EncodedPrompt

    @property
    def sha256(self) -> str:
        """The SHA-256, in hexadecimal, of image, prompt and caption."""
        parts = [self.document.image.sha256, self.prompt, self.caption]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass
class Prompter:
    """Opens and encodes the documents of a location."""

    location: str
    settings: ImageSettings
    processor: VisionProcessor
    report: CorpusReport
    strict: bool = False
    """Stop at the first image that cannot be used."""
    n_read: int = field(default=0, init=False)
    digest: ImageDigest = field(default_factory=ImageDigest, init=False)
    """Of every document read so far."""

    def prepare(self) -> Iterator[Prepared]:
        """Every document that can be used, in order; `InvalidInputError` at the end where there was none."""
        n_usable = 0
        first_reason = ""
        for entry, document in enumerate(read_images(self.location, self.settings.of(ImageOptions))):
            self.n_read = entry + 1
            self.digest.update(document)
            try:
                prepared = self._prepare(document, entry)
            except ImageError as error:
                if self.strict:
                    raise InvalidInputError(f"{error} Repair it, or leave out `strict` to skip it.") from None
                first_reason = first_reason or str(error)
                self.report.skip_image(error.source, error.reason)
                continue
            n_usable += 1
            yield prepared
        if not n_usable:
            first_reason = first_reason if self.n_read == 1 else (
                f"None of the {self.n_read} images of {self.location} can be used; the first: {first_reason}"
            )  # fmt: skip
            raise InvalidInputError(first_reason)

    def _prepare(self, document: ImageDocument, entry: int) -> Prepared:
        image, n_frames = decode(document.image.read(), document.image.source)
        prompt = self.settings.prompt if document.prompt is None else document.prompt
        caption = "" if self.settings.generate else document.caption or ""
        encoded = encode(self.processor, document, image, prompt, caption, self.settings.prefix)
        if len(encoded.ids) > (self.settings.context or len(encoded.ids)):
            raise ImageError(
                document.image.source,
                f"takes {len(encoded.ids):,} tokens with its prompt, more than the context of {self.settings.context:,}",
            )
        self.report.n_animated_images += n_frames > 1
        return Prepared(document, entry, image.width, image.height, prompt, caption, False, encoded)


def encode(
    processor: VisionProcessor,
    document: ImageDocument,
    image: Image.Image,
    prompt: str,
    answer: str | Sequence[int],
    prefix: str,
) -> EncodedPrompt:
    """What the model reads of a document; `ImageError` where the processor cannot take its image."""
    try:
        return processor.encode(image, prompt, answer, prefix=prefix)
    except InvalidInputError as error:
        raise InvalidInputError(f"{document.source}: {error}") from None
    except (ValueError, RuntimeError, TypeError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        size = f"{image.width} × {image.height} pixels"
        raise ImageError(document.image.source, f"({size}) is refused by the model's processor ({reason})") from None


@dataclass(frozen=True)
class Captioner:
    """Lets the model answer prepared prompts, group by group."""

    model: LoadedModel
    processor: VisionProcessor
    settings: ImageSettings
    answers: AnswerFile
    progress: CaptureProgress

    def answer(self, prompts: Iterator[Prepared]) -> Iterator[Prepared]:
        """The same, each with the model's answer behind its prompt."""
        for number, group in enumerate(_groups(prompts)):
            keys = [prepared.sha256 for prepared in group]
            answers = self.answers.read(number, keys)
            if answers is None:
                answers = generate(
                    self.model,
                    self.processor,
                    [prepared.encoded for prepared in group],
                    self.settings.of(GenerationSettings),
                    stream=number,
                    on_answers=self.progress.answered,
                )
                self.answers.write(number, keys, answers)
            else:
                self.progress.answered(len(group), sum(map(len, answers)))
            for index, answer in enumerate(answers):
                # Encoded anew, for what belongs to each position (masks, kinds of token) grows with the answer.
                prepared, group[index] = group[index], None  # type: ignore[call-overload]
                yield self._with(prepared, answer)

    def _with(self, prepared: Prepared, answer: Ids) -> Prepared:
        document = prepared.document
        image = document.image.open()
        encoded = encode(self.processor, document, image, prepared.prompt, answer.tolist(), self.settings.prefix)
        caption = self.processor.tokenizer.decode(answer).strip()
        return dataclasses.replace(prepared, caption=caption, generated=True, encoded=encoded)


def _groups(prompts: Iterator[Prepared]) -> Iterator[list[Prepared]]:
    """Consecutive prompts, as many as a group may have; where groups end depends on the prompts only."""
    group: list[Prepared] = []
    nbytes = 0
    for prepared in prompts:
        size = sum(tensor.nbytes for tensor in prepared.encoded.extra.values())
        if group and (len(group) == GROUP_PROMPTS or nbytes + size > GROUP_NBYTES):
            yield group
            group, nbytes = [], 0
        group.append(prepared)
        nbytes += size
    if group:
        yield group
