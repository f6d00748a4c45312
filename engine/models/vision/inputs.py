"""Images and prompts as model inputs, by the model's own processor, and the patch of each image position.

Holds the families' plain prompts and how windows are put together; `layouts` says which patch each position holds.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.engine.models.vision.layouts import LAYOUTS, Layout
from actstore.engine.models.vision.patch_geometry import Patches, View
from actstore.store import layout as stored
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import PIL.Image
    from numpy.typing import NDArray

__all__ = ["EncodedPrompt", "Patches", "VisionProcessor"]

_CHAT = "<|im_start|>user\n{image}\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
_QWEN = "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
_IDEFICS = "User:{image}{prompt}<end_of_utterance>\nAssistant:"

PLAIN_PROMPTS: dict[str, str] = {
    "llava": "USER: {image}\n{prompt} ASSISTANT:",
    "llava_next": "USER: {image}\n{prompt} ASSISTANT:",
    "llava_onevision": _CHAT,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "instructblip": "{prompt}",
    "blip-2": "{prompt}",
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "paligemma": "{image}{prompt}",
    "gemma3": "<start_of_turn>user\n{image}{prompt}<end_of_turn>\n<start_of_turn>model\n",
    "internvl": _CHAT,
    "mllama": "{image}{begin}{prompt}",
}
"""Model type → prompt where the processor has no chat template; {image} is the slot, {begin} the begin-of-text token."""

SLOTLESS = frozenset({"instructblip", "blip-2"})
"""Families whose processor itself puts the image before the prompt."""

_PER_TOKEN = ("token_type_ids", "mm_token_type_ids", "cross_attention_mask")
"""Inputs with one entry per token of the window (axis 1)."""

_PADDED = (*_PER_TOKEN, "qformer_input_ids", "qformer_attention_mask")
"""Inputs whose axis 1 may differ between windows that run together."""

_UNUSED = frozenset({"input_ids", "attention_mask", "labels", "num_crops", "num_patches", "rows", "cols"})

_NAMES = frozenset({"processor_class", "auto_map", "transformers_version", "tokenizer", "video_processor"})
"""Settings of a processor that do not affect images and prompts."""


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """One window: a prompt with its image, and the answer."""

    ids: NDArray[np.int32]  # [position]; image placeholders expanded, as the model reads them
    modality: NDArray[np.uint8]  # [position]; TEXT, SPECIAL, IMAGE or, of the answer's tokens, GENERATED
    n_prompt: int  # the answer's first token is at this position
    extra: dict[str, Tensor]  # pixel_values and the like, of this window alone
    patches: Patches  # of the language model's image positions
    layout: Layout | None  # of all parts; None without an image


class VisionProcessor:
    """A model's processor: images and prompts to inputs, and input positions to patches of the image."""

    def __init__(self, processor: Any, config: Any, name: str) -> None:
        """Wrap `processor`, of a model with this configuration."""
        if config.model_type not in LAYOUTS:
            raise InvalidInputError(
                f"expected a vision-language model of one of the families {', '.join(sorted(LAYOUTS))}, and {name} is of"
                f" type {config.model_type!r}: choose another model, or capture it on text"
            )
        self._processor, self._config, self._name = processor, config, name
        self._trust_remote_code = False
        self._complete()
        self.tokenizer = TextTokenizer(processor.tokenizer)

    def _complete(self) -> None:
        """Set what older processor files leave to the model's configuration."""
        defaults = {
            "patch_size": getattr(self._config.vision_config, "patch_size", None),
            "vision_feature_select_strategy": getattr(self._config, "vision_feature_select_strategy", None),
            "num_query_tokens": getattr(self._config, "num_query_tokens", None),
        }
        for name, value in defaults.items():
            if getattr(self._processor, name, value) is None:
                setattr(self._processor, name, value)

    @classmethod
    def load(cls, name_or_path: str, config: Any = None, *, trust_remote_code: bool = False) -> VisionProcessor:
        """The processor saved with a model, with image processors of PIL (torchvision is not needed).

        Raises `InvalidInputError` where there is none, naming the files that would hold it.
        """
        from actstore.engine.models.checkpoints import load_config
        from actstore.engine.models.vision.processors import load_processor

        name = str(name_or_path)
        config = config or load_config(name, trust_remote_code=trust_remote_code)
        processor = cls(load_processor(name, config, trust_remote_code=trust_remote_code), config, name)
        processor._trust_remote_code = trust_remote_code
        processor.tokenizer.check(name)
        return processor

    def __reduce__(self) -> tuple[Callable[[str], VisionProcessor], tuple[str]]:
        """By its name: another process loads it anew."""
        return partial(VisionProcessor.load, trust_remote_code=self._trust_remote_code), (self._name,)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of its settings for images and prompts: sizes, means, chat template; not the tokenizer."""
        settings = {k: v for k, v in self._processor.to_dict().items() if k not in _NAMES}
        template = getattr(self._processor, "chat_template", None)
        return hashlib.sha256(json.dumps([settings, template], sort_keys=True, default=str).encode()).hexdigest()

    def encode(
        self, image: PIL.Image.Image | None, prompt: str, answer: str | Sequence[int] = "", *, prefix: str = ""
    ) -> EncodedPrompt:
        """One window of an image, a prompt about it and an answer (text, or token ids that the model generated).

        The prompt goes through the processor's chat template where it has one, else into the family's plain prompt; a slot in
        it (`<image>`, or as the processor calls it) says where the image goes, else it goes first. `prefix` is a given
        beginning of the answer, which counts as part of the prompt. Prefix and answer are tokenised on their own.

        Raises `InvalidInputError` for a prompt whose rendering has no slot for the image, or a slot and no image.
        """
        text = self._render(prompt, image is not None)
        inputs = self._process(image, text)
        prompt_ids = inputs["input_ids"][0].numpy()
        prefix_ids = self._tokenize(prefix)
        answer_ids = self._tokenize(answer) if isinstance(answer, str) else np.asarray(answer, np.int32)
        ids = np.concatenate([prompt_ids, prefix_ids, answer_ids]).astype(np.int32)
        n_prompt = len(prompt_ids) + len(prefix_ids)
        extra = {key: value for key, value in inputs.items() if key not in _UNUSED}
        for key in _PER_TOKEN:
            if key in extra:
                extra[key] = self._lengthened(key, extra[key], len(ids))
        layout = None
        image_positions = np.flatnonzero(ids[: len(prompt_ids)] == self._image_token_id)
        if image is not None:
            view = View(image.height, image.width)
            image_processor = self._processor.image_processor
            layout = LAYOUTS[self._config.model_type](image_processor, self._config, view, extra)
            if len(layout.language) != len(image_positions):
                raise InvalidInputError(
                    f"expected {len(layout.language)} image positions in a window of {self._name}, and its processor made"
                    f" {len(image_positions)}: the processor's files and config.json do not fit together"
                )
        return EncodedPrompt(
            ids=ids,
            modality=self._modality(ids, image_positions, n_prompt),
            n_prompt=n_prompt,
            extra=extra,
            patches=Patches.nowhere(0) if layout is None else layout.language.at(image_positions),
            layout=layout,
        )

    def _modality(self, ids: NDArray[np.int32], image_positions: NDArray[np.int64], n_prompt: int) -> NDArray[np.uint8]:
        special = np.isin(ids, list(self.tokenizer.special_ids))
        modality: NDArray[np.uint8] = np.where(special, stored.SPECIAL, stored.TEXT).astype(np.uint8)
        modality[image_positions] = stored.IMAGE
        modality[n_prompt:] = stored.GENERATED
        return modality

    def _tokenize(self, text: str) -> NDArray[np.int32]:
        return self.tokenizer.encode([text])[0] if text else np.empty(0, np.int32)

    @cached_property
    def _slot(self) -> str:
        """The placeholder of the image in a prompt."""
        slot = getattr(self._processor, "image_token", None) or "<image>"
        return str(getattr(slot, "content", slot))

    @cached_property
    def _image_token_id(self) -> int:
        for name in ("image_token_id", "image_token_index"):
            if getattr(self._config, name, None) is not None:
                return int(getattr(self._config, name))
        return int(self._processor.tokenizer.convert_tokens_to_ids(self._slot))

    def _render(self, prompt: str, has_image: bool) -> str:
        """The prompt in the chat template or plain form, with the image's slot in it."""
        before, slot, after = prompt.partition(self._slot)
        if self._slot in after or (slot and not has_image):
            raise InvalidInputError(
                f"expected one image for each slot {self._slot!r} of the prompt {prompt!r}, and there is"
                f" {'one image' if has_image else 'none'}: leave one slot, or none and it goes first"
            )
        if getattr(self._processor, "chat_template", None):
            rendered = self._from_template(before.strip("\n"), after.lstrip("\n") if slot else "", has_image)
        else:
            form = PLAIN_PROMPTS[self._config.model_type] if not slot else "{prompt}"
            begin = self._processor.tokenizer.bos_token or ""
            rendered = form.format(image=self._slot if has_image else "", prompt=prompt, begin=begin)
        if has_image and self._slot not in rendered and self._config.model_type not in SLOTLESS:
            raise InvalidInputError(
                f"expected the prompt {prompt!r} to have the image slot {self._slot!r} once it is in the chat template of"
                f" {self._name}, found {rendered!r}: write the slot into the prompt, or fix the template"
            )
        return rendered

    def _from_template(self, before: str, after: str, has_image: bool) -> str:
        content = [{"type": "text", "text": before}] if before else []
        # Without a slot, the whole prompt is `before`, and the image goes first.
        slot = [{"type": "image"}] if has_image else []
        content = [*content, *slot, {"type": "text", "text": after}] if after else [*slot, *content]
        rendered: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return rendered

    def _process(self, image: PIL.Image.Image | None, text: str) -> Mapping[str, Tensor]:
        begin = self._processor.tokenizer.bos_token
        # A begin-of-text token that the template has written is not to be added again.
        keywords: dict[str, Any] = {"add_special_tokens": False} if begin and begin in text else {}
        if image is None:
            outputs = self._processor.tokenizer(text, return_tensors="np", **keywords)
        else:
            outputs = self._processor(images=image.convert("RGB"), text=text, return_tensors="np", **keywords)
        arrays = {key: np.asarray(value) for key, value in outputs.items() if key not in _UNUSED - {"input_ids"}}
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    def _lengthened(self, key: str, values: Tensor, length: int) -> Tensor:
        """An input [1, token, …] with entries for the tokens of prefix and answer, as generation would append them."""
        missing = length - values.shape[1]
        if not missing:
            return values
        if key == "cross_attention_mask":
            return torch.cat([values, values[:, -1:].expand(-1, missing, *values.shape[2:])], dim=1)
        fill = 1 if self._config.model_type == "paligemma" and key == "token_type_ids" else 0
        return torch.cat([values, values.new_full((1, missing), fill)], dim=1)

    def fits_together(self, a: EncodedPrompt, b: EncodedPrompt) -> bool:
        """Whether two windows can run in one batch; they need not be of the same length."""
        return a.extra.keys() == b.extra.keys() and all(
            key in _PADDED or a.extra[key].shape[1:] == b.extra[key].shape[1:] for key in a.extra
        )

    def collate(self, prompts: Sequence[EncodedPrompt]) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Token ids [window, position] padded on the right, their mask (None without padding) and the further inputs."""
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = torch.from_numpy(prompt.ids.astype(np.int64))
            mask[row, : len(prompt.ids)] = 1
        extra = {key: _concatenated([prompt.extra[key] for prompt in prompts], key) for key in prompts[0].extra}
        return ids, None if bool(mask.all()) else mask, extra

    def tower_patches(self, encoded: EncodedPrompt, n_rows: int | None = None) -> Patches:
        """The patch of each row of the vision tower's layers, for one window."""
        return self.part_patches(encoded, "vision", n_rows)

    def part_patches(self, encoded: EncodedPrompt, part: str, n_rows: int | None = None) -> Patches:
        """The patch of each row of a part's layers ("vision", "projector") for one window; the image positions of "language".

        Raises `InvalidInputError` where the part has another number of rows than `n_rows`.
        """
        patches = encoded.patches
        if part != "language":
            patches = getattr(encoded.layout, part) if encoded.layout is not None else Patches.nowhere(0)
        if n_rows is not None and len(patches) != n_rows:
            raise InvalidInputError(
                f"expected {len(patches)} rows of {self._name}'s {part} part for one window, found {n_rows}"
            )
        return patches


def _concatenated(parts: Sequence[Tensor], key: str) -> Tensor:
    """The windows' inputs one after another; those with one entry per token are padded with zeros to the longest."""
    if key in _PADDED:
        longest = max(part.shape[1] for part in parts)
        parts = [
            torch.cat([part, part.new_zeros((len(part), longest - part.shape[1], *part.shape[2:]))], dim=1)
            for part in parts
        ]
    return torch.cat(list(parts))
