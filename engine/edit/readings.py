"""Readings: what a model is given to read, with an image or without, and the logits that it then has at some positions.

One interface for text models and for models of images and text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from actstore.engine.models.checkpoints import load_config
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.engine.models.tokenizer.special_tokens import configs_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.vision.inputs import VisionProcessor
    from actstore.store.reader import Capture

BATCH_TOKENS: Final = 4096
PER_TOKEN: Final = frozenset({"token_type_ids", "mm_token_type_ids", "cross_attention_mask"})
"""Inputs with one entry per token."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One window: a prompt and what follows it."""

    ids: NDArray[np.int32]
    n_prompt: int
    """The answer's first token is at this position."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """pixel_values and the like, of this window alone."""

    def cut(self, length: int) -> Reading:
        """Its first `length` tokens, with the same part of the inputs that have one entry per token."""
        extra = {key: value[:, :length] if key in PER_TOKEN else value for key, value in self.extra.items()}
        return Reading(self.ids[:length], min(self.n_prompt, length), extra)


class Reader:
    """Turns prompts, answers and images into readings, and runs a model on them."""

    def __init__(
        self, model: LoadedModel, tokenizer: TextTokenizer | None, processor: VisionProcessor | None = None
    ) -> None:
        """Take a causal model; `InvalidInputError` for another kind."""
        if model.spec.kind != "causal":
            raise InvalidInputError(
                f"Edits are made and evaluated by what a model says next, and {model.spec.name} is of kind "
                f"{model.spec.kind!r}. Choose a model that generates."
            )
        self.model, self.tokenizer, self.processor = model, tokenizer, processor

    @classmethod
    def load(cls, model: LoadedModel, name_or_path: str, *, trust_remote_code: bool = False) -> Reader:
        """With the tokenizer or processor that is saved with a model."""
        config = load_config(name_or_path, trust_remote_code=trust_remote_code)
        if hasattr(config, "vision_config"):
            from actstore.engine.models.vision.inputs import VisionProcessor

            processor = VisionProcessor.load(name_or_path, config, trust_remote_code=trust_remote_code)
            return cls(model, processor.tokenizer, processor)
        return cls(model, TextTokenizer.load(name_or_path, trust_remote_code=trust_remote_code))

    def read(
        self, prompt: str, answer: str | Sequence[int] = "", image: Image | None = None, prefix: str = ""
    ) -> Reading:
        """A prompt and its answer, as text or ids; with a processor, through its template.

        Text after text is tokenised as one, and the prompt ends where its own tokens do: a token that is part of
        both belongs to the answer. `InvalidInputError` for an image where the model has no processor, and for an empty prompt.
        """
        if self.processor is not None:
            encoded = self.processor.encode(image, prompt, answer, prefix=prefix)
            return Reading(encoded.ids, encoded.n_prompt, encoded.extra)
        if image is not None:
            raise InvalidInputError(f"{self.model.spec.name} reads no images. Leave the image out of the case.")
        if self.tokenizer is None:
            raise InvalidInputError(f"{self.model.spec.name} has no tokenizer to read {prompt[:40]!r} with.")
        before = self._encode(prompt + prefix)
        if not len(before):
            raise InvalidInputError("Expected a prompt of at least one token, found an empty one.")
        if not isinstance(answer, str):
            return Reading(np.concatenate([before, np.asarray(answer, np.int32)]), len(before))
        whole = self._encode(prompt + prefix + answer)
        n = min(len(before), len(whole))
        differs = np.flatnonzero(before[:n] != whole[:n])
        return Reading(whole, int(differs[0]) if len(differs) else n)

    def _encode(self, text: str) -> NDArray[np.int32]:
        """The ids of a text, after those that the tokenizer begins one with."""
        assert self.tokenizer is not None
        begin = self.tokenizer.prefix or ((self.tokenizer.begin,) if self.tokenizer.begin is not None else ())
        ids = self.tokenizer.encode([text])[0] if text else np.empty(0, np.int32)
        return np.concatenate([np.array(begin, np.int32), ids])

    def arguments(self, readings: Sequence[Reading]) -> dict[str, Any]:
        """The model's arguments for readings that fit in one batch: padded on the right, on its device, in its dtype."""
        longest = max(len(reading.ids) for reading in readings)
        ids = torch.zeros((len(readings), longest), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, reading in enumerate(readings):
            ids[row, : len(reading.ids)] = torch.from_numpy(reading.ids.astype(np.int64))
            mask[row, : len(reading.ids)] = 1
        extra: dict[str, Tensor] = {}
        if readings[0].extra:
            assert self.processor is not None
            _, _, extra = self.processor.collate(readings)  # type: ignore[arg-type]
        given: dict[str, Any] = {
            key: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for key, value in extra.items()
        }
        given["input_ids"] = ids.to(self.model.device)
        if not bool(mask.all()):
            given["attention_mask"] = mask.to(self.model.device)
        return given

    def batches(self, readings: Sequence[Reading], *, same_length: bool = False) -> Iterator[list[int]]:
        """Batches of readings, by number: similar in length, alike in inputs, at most `BATCH_TOKENS` positions."""
        order = sorted(range(len(readings)), key=lambda i: (len(readings[i].ids), i))
        batch: list[int] = []
        for number in order:
            reading = readings[number]
            if batch:
                first = readings[batch[0]]
                fits = (len(batch) + 1) * len(reading.ids) <= BATCH_TOKENS and self._fit(first, reading)
                if not fits or (same_length and len(first.ids) != len(reading.ids)):
                    yield batch
                    batch = []
            batch.append(number)
        if batch:
            yield batch

    def _fit(self, one: Reading, other: Reading) -> bool:
        if one.extra.keys() != other.extra.keys():
            return False
        if not one.extra:
            return True
        assert self.processor is not None
        return self.processor.fits_together(one, other)  # type: ignore[arg-type]

    @torch.inference_mode()
    def logits(self, readings: Sequence[Reading], positions: Sequence[NDArray[np.int64]]) -> list[Tensor]:
        """The logits [position, vocabulary] of each reading at its positions, float32 on the CPU."""
        logits: dict[int, Tensor] = {}
        for batch in self.batches(readings):
            output = self.model.model(**self.arguments([readings[i] for i in batch]), use_cache=False).logits
            for row, number in enumerate(batch):
                rows = torch.from_numpy(positions[number]).to(output.device)
                logits[number] = output[row, rows].float().cpu()
        return [logits[number] for number in range(len(readings))]

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Reading], max_new_tokens: int = 50) -> list[list[int]]:
        """The greedy answer to each prompt, by the model's own `generate`, up to an end-of-text token, which is kept.

        `InvalidInputError` for a model of a class with which transformers cannot generate.
        """
        if not prompts:
            return []
        answers: dict[int, list[int]] = {}
        _, config = configs_of(self.model.model)
        if config is None:
            raise InvalidInputError(
                f"{self.model.spec.name} cannot generate: its class {type(self.model.model).__name__} is no GenerationMixin of "
                "transformers. Leave out `generate`, and cases of fluency."
            )
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        pad = config.pad_token_id if config.pad_token_id is not None else ends[0] if ends[0] is not None else 0
        for batch in self.batches(prompts, same_length=True):
            given = self.arguments([prompts[i] for i in batch])
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            n_prompt = given["input_ids"].shape[1]
            windows = self.model.model.generate(  # type: ignore[operator]
                **given, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=pad
            ).tolist()
            for number, ids in zip(batch, windows, strict=True):
                new = ids[n_prompt:]
                stop = next((n for n, token in enumerate(new) if token in ends), len(new) - 1)
                answers[number] = new[: stop + 1]
        return [answers[number] for number in range(len(prompts))]

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text, special ones left out."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return self.tokenizer.decode(ids)


class CapturedWindow(NamedTuple):
    """A window of a capture, as the model read it."""

    window: int
    document: int
    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    """The positions that the capture holds."""


class CaptureReader:
    """The windows of a capture, as the model read them."""

    def __init__(self, reader: Reader, capture: Capture) -> None:
        self.reader, self.capture = reader, capture
        self._documents = capture.documents().to_pylist()
        self.has_images = any(row.get("image") is not None or row.get("image_sha256") for row in self._documents[:1])

    def windows(self, max_windows: int | None = None) -> Iterator[CapturedWindow]:
        """The windows of committed blocks, in order; at most `max_windows`, the first ones."""
        n_done = 0
        for block in self.capture.blocks:
            plan = self.capture.block_plan(block)
            inputs = np.cumsum([0, *plan.windows["n_inputs"]])
            slots = np.cumsum([0, *plan.windows["n_slots"]])
            for row, window in enumerate(plan.windows["window"].tolist()):
                if max_windows is not None and n_done >= max_windows:
                    return
                ids = plan.inputs[inputs[row] : inputs[row + 1]]
                positions = plan.position[slots[row] : slots[row + 1]]
                yield CapturedWindow(window, int(plan.windows["document"][row]), ids, positions)
                n_done += 1

    def n_prompt(self, document: int) -> int | None:
        """Where a document's answer begins; None where there is none."""
        n_prompt = self._documents[document].get("n_prompt")
        return None if n_prompt is None else int(n_prompt)

    def answer_start(self, ids: NDArray[np.int32], marker: str | None) -> int:
        """Where the text after the last `marker` in a window begins, as a position; 0 where there is none.

        The first token that reaches beyond the marker is the answer's.
        """
        if not marker:
            return 0
        pieces = [self.capture.store.token_text(int(token)) for token in ids]
        found = "".join(pieces).rfind(marker)
        if found < 0:
            return 0
        ends = np.cumsum([len(piece) for piece in pieces])
        return int(np.searchsorted(ends, found + len(marker), side="right"))

    def source(self, document: int) -> str:
        """Where a document came from."""
        return str(self._documents[document]["source"])

    def reading(self, document: int, ids: NDArray[np.int32]) -> Reading:
        """The reading of a window whose prompt is as captured and whose answer may differ.

        `InvalidInputError` where its image no longer exists, or the processor makes other tokens of the prompt than were
        captured.
        """
        row = self._documents[document]
        if not self.has_images:
            return Reading(ids, len(ids))
        first = int(row["n_prompt"])
        image = self._image(row)
        prefix = str(self.capture.record.settings.get("prefix") or "")
        reading = self.reader.read(str(row["prompt"] or ""), ids[first:].tolist(), image, prefix)
        if reading.n_prompt != first or reading.ids[:first].tolist() != ids[:first].tolist():
            raise InvalidInputError(
                f"The processor of {self.reader.model.spec.name} makes other tokens of document {row['document']} "
                f"({row['source']}) than were captured. Use the processor that the capture was made with."
            )
        return reading

    def _image(self, row: Mapping[str, Any]) -> Image | None:
        if row.get("image") is None:
            return None
        corpus = Path(self.capture.record.plan.corpus)
        folder = corpus if corpus.is_dir() else corpus.parent
        file = next((path for path in (Path(row["image"]), folder / row["image"]) if path.is_file()), None)
        if file is None:
            raise InvalidInputError(f"The image of document {row['document']}, {row['image']}, no longer exists.")
        return open_image(file)


def open_image(file: Path) -> Image:
    """An image as the model sees it: upright, in RGB; `InvalidInputError` where it cannot be decoded."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"The image {file} cannot be read: {' '.join(str(error).split())}.") from None
