"""A capture's images and answers run through the model again, exactly as they were read, or with a new answer.

Needs the model and its processor.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.models.generate import GenerationSettings, generate
from actstore.engine.multimodal.captions import special_tokens
from actstore.engine.multimodal.source_images import find_image
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.vision.inputs import EncodedPrompt, VisionProcessor
    from actstore.engine.multimodal.captions import Caption
    from actstore.store.reader import Capture


class Replay:
    """Runs the windows of a capture of images again."""

    def __init__(self, model: LoadedModel, processor: VisionProcessor, capture: Capture) -> None:
        """Take the capture's model; `InvalidInputError` for another one."""
        self.model, self.processor, self.capture = model, processor, capture
        check_model(capture.folder, capture.record.model_fingerprint, fingerprint_of(model), model.spec.name)
        self._documents = capture.documents().to_pylist()

    def encode(self, caption: Caption, *, with_answer: bool = True) -> EncodedPrompt:
        """What the model read of a document, with its answer or up to it.

        `InvalidInputError` where the image no longer exists, or where the processor makes other tokens of it than were
        captured.
        """
        row, record = self._documents[caption.document], self.capture.record
        size = (int(row["width"]), int(row["height"]))
        image, reason = find_image(caption.image, record.plan.corpus, size)
        if image is None:
            raise InvalidInputError(f"The image of document {caption.document} is needed, but {reason}.")
        prefix = str(record.settings.get("prefix") or "")
        encoded = self.processor.encode(image, str(row["prompt"] or ""), caption.ids.tolist(), prefix=prefix)
        if encoded.n_prompt != caption.first or encoded.ids[encoded.n_prompt :].tolist() != caption.ids.tolist():
            raise InvalidInputError(
                f"The processor of {self.model.spec.name} makes other tokens of document {caption.document} than were captured:"
                f" a prompt of {encoded.n_prompt} and not {caption.first}."
            )
        if with_answer:
            return encoded
        return self.processor.encode(image, str(row["prompt"] or ""), "", prefix=prefix)

    def arguments(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """The model's arguments, on its device and in its dtype."""
        ids, mask, extra = self.processor.collate(prompts)
        model = self.model
        moved = {name: value.to(model.device) for name, value in extra.items()}
        moved = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in moved.items()}
        if mask is not None:
            moved["attention_mask"] = mask.to(model.device)
        return {"input_ids": ids.to(model.device), **moved}

    def logits(self, prompts: Sequence[EncodedPrompt]) -> Tensor:
        """The logits [window, position, vocabulary] of windows that fit in one batch, in float32, with gradients if enabled."""
        logits: Tensor = self.model.model(**self.arguments(prompts), use_cache=False).logits
        return logits.float()

    def answers(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> list[list[int]]:
        """The token ids of the model's greedy answers, special ones left out.

        Prompts of one length run as one batch, in their order.
        """
        n_tokens = sum(len(prompt.ids) + max_new_tokens for prompt in prompts)
        settings = GenerationSettings(max_new_tokens=max_new_tokens, batch_tokens=n_tokens)
        answers = generate(self.model, self.processor, prompts, settings)
        return [[token for token in ids.tolist() if token not in self._special] for ids in answers]

    @cached_property
    def _special(self) -> frozenset[int]:
        return special_tokens(self.capture.store)
