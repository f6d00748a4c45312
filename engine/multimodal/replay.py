"""A capture's images and answers run through the model again: as they were read, with a new answer, or with patches moved.

Needs the model and its processor.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.engine.models.generate import GenerationSettings, generate
from actstore.engine.multimodal.captions import special_tokens
from actstore.engine.multimodal.source_images import find_image
from actstore.store.errors import InvalidInputError
from actstore.store.layout import IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
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


@dataclass(frozen=True)
class PatchOrder:
    """A random order of the patches of each window among the language model's input embeddings, by a seed and its document.

    As published (Pan et al. 2024, section 4.3): what the vision tower made of each patch stays as it is, and comes at another
    place of the text. Images whose pixels are shuffled are in `shuffle`.
    """

    model: LoadedModel
    seed: int = 0

    def of(self, encoded: EncodedPrompt, document: int) -> NDArray[np.int64]:
        """[position] Which position's embedding each position of a window gets; its own, unless it is a patch."""
        order, patches = np.arange(len(encoded.ids)), np.flatnonzero(encoded.modality == IMAGE)
        order[patches] = np.random.default_rng([self.seed, document]).permutation(patches)
        return order

    @contextmanager
    def applied(self, encoded: EncodedPrompt, document: int) -> Iterator[None]:
        """While open, one pass over the window alone reads its patches in this order.

        `InvalidInputError` at the end where the language model was handed no input embeddings, as one that reads images by
        attention to them.
        """
        order = torch.from_numpy(self.of(encoded, document)).to(self.model.device)
        changed: list[bool] = []

        def permute(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            embeddings = kwargs.get("inputs_embeds")
            if changed or embeddings is None or embeddings.dim() != 3 or embeddings.shape[1] != len(order):
                return None
            changed.append(True)
            return args, kwargs | {"inputs_embeds": embeddings[:, order]}

        with ExitStack() as stack:
            for path in self._ancestors():
                module = self.model.model.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(permute, with_kwargs=True).remove)
            yield
        if not changed:
            raise InvalidInputError(
                f"{self.model.spec.name} has no patches among the input embeddings of its language model. Shuffle pixels: "
                '`regions="pixels"`, with a capture of shuffled images as `shuffled`.'
            )

    def _ancestors(self) -> list[str]:
        """The paths of the modules that hold the first layer of the language model, the outermost first."""
        first = self.model.spec.part_layers("language")[0]
        parts = self.model.spec.layers[first].module.split(".")
        return [".".join(parts[:n]) for n in range(len(parts))]
