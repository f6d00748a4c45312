"""Answers of a model to prompts with images: by its own `generate`, in batches, kept group by group until a plan has them.

The ids are what the model gave, exactly; decoding and encoding again would change some. Knows nothing about plans.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from transformers import GenerationConfig

from actstore.store.arguments import Typed
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.layout import generated_key, generated_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.vision.inputs import EncodedPrompt, VisionProcessor
    from actstore.store.storage.folder import Folder

    Ids = NDArray[np.int32]

GROUP_PROMPTS: Final = 64
"""Prompts a group: what an interrupted run has to answer again, at most."""
GROUP_NBYTES: Final = 256 << 20
"""Bytes of pixels at which a group ends before."""


@dataclass(frozen=True)
class GenerationSettings(Typed):
    """How answers are made: the likeliest token each time, or drawn where `temperature` or `top_p` is given."""

    max_new_tokens: int = 50
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    """Of what is drawn; with the same seed, prompts and machine the same answers come."""
    batch_tokens: int = 4096
    """Prompts of one batch take so many positions at most, answers included."""

    @property
    def is_sampled(self) -> bool:
        """Whether answers are drawn at random."""
        return self.temperature is not None or self.top_p is not None


def generate(
    model: LoadedModel,
    processor: VisionProcessor,
    prompts: Sequence[EncodedPrompt],
    settings: GenerationSettings,
    *,
    stream: int = 0,
    on_answers: Callable[[int, int], None] = lambda n_prompts, n_tokens: None,
) -> list[Ids]:
    """The answer of `model` to each prompt: the ids that it gives after it, up to an end-of-text token, which is kept.

    Prompts of one length that fit together go through the model in one batch: nothing is padded, so every answer is what the
    prompt alone would give, up to rounding. Whatever the model's own generation settings add (penalties, beams) is switched
    off. `stream` numbers the call among others of one seed. `on_answers` hears of prompts answered and tokens made.
    """
    answers: dict[int, Ids] = {}
    batches = _batches(processor, prompts, settings)
    for number, batch in enumerate(batches):
        made = _answer(model, processor, [prompts[i] for i in batch], settings, (settings.seed, stream, number))
        answers |= dict(zip(batch, made, strict=True))
        on_answers(len(batch), sum(map(len, made)))
    return [answers[i] for i in range(len(prompts))]


def _batches(
    processor: VisionProcessor, prompts: Sequence[EncodedPrompt], settings: GenerationSettings
) -> list[list[int]]:
    """Places of prompts that go together: of one length, fitting together, within the bound on tokens."""
    batches: list[list[int]] = []
    for place, prompt in enumerate(prompts):
        length = len(prompt.ids)
        most = max(1, settings.batch_tokens // (length + settings.max_new_tokens))
        for batch in batches:
            first = prompts[batch[0]]
            if len(batch) < most and len(first.ids) == length and processor.fits_together(first, prompt):
                batch.append(place)
                break
        else:
            batches.append([place])
    return batches


def _answer(
    model: LoadedModel,
    processor: VisionProcessor,
    prompts: Sequence[EncodedPrompt],
    settings: GenerationSettings,
    seed: tuple[int, int, int],
) -> list[Ids]:
    ids, mask, extra = processor.collate(prompts)
    n_positions = ids.shape[1]
    n_new = settings.max_new_tokens
    if model.spec.context is not None:
        n_new = min(n_new, model.spec.context - n_positions)
    if n_new < 1:
        raise InvalidInputError(
            f"A prompt of {n_positions} tokens leaves no room for an answer in {model.spec.name}'s context of "
            f"{model.spec.context}. Shorten `prompt`."
        )
    given: dict[str, Any] = {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None) for key, value in extra.items()
    }
    given["input_ids"] = ids.to(model.device)
    given["attention_mask"] = (torch.ones_like(ids) if mask is None else mask).to(model.device)
    config = _config(model, settings, n_new)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:7], "little"))
        made = model.model.generate(**given, generation_config=config).cpu()  # type: ignore[operator]
    # A model that is given embeddings returns what is new; one that is given ids, all of them.
    if made.shape[1] >= n_positions and torch.equal(made[:, :n_positions], ids):
        made = made[:, n_positions:]
    ends = _end_tokens(config)
    return [_until_end(row, ends) for row in made.numpy().astype(np.int32)]


def _config(model: LoadedModel, settings: GenerationSettings, n_new: int) -> GenerationConfig:
    own = model.model.generation_config
    text = model.model.config.get_text_config()
    tokens = {
        name: getattr(own, name, None) if getattr(own, name, None) is not None else getattr(text, name, None)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    }
    if tokens["pad_token_id"] is None:
        ends = tokens["eos_token_id"]
        tokens["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    drawn = {"temperature": settings.temperature or 1.0, "top_p": settings.top_p or 1.0, "top_k": 0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=n_new,
        do_sample=settings.is_sampled,
        **(drawn if settings.is_sampled else {"temperature": 1.0, "top_p": 1.0, "top_k": 50}),
        num_beams=1,
        num_return_sequences=1,
        min_length=0,
        repetition_penalty=1.0,
        encoder_repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
        use_cache=True,
        **tokens,
    )


def _end_tokens(config: GenerationConfig) -> set[int]:
    ends = config.eos_token_id
    return set(ends) if isinstance(ends, list | tuple) else set() if ends is None else {int(ends)}


def _until_end(row: Ids, ends: set[int]) -> Ids:
    """The ids up to the first end-of-text token, which is kept: what follows is padding."""
    found = np.flatnonzero(np.isin(row, list(ends)))
    return row[: found[0] + 1].copy() if len(found) else row.copy()


class AnswerFile:
    """Answers group by group in a capture's folder, so that generation that was stopped goes on where it was."""

    def __init__(self, folder: Folder, capture: str, key: str, *, resume: bool) -> None:
        """Answers made under `key`, which stands for model and settings; begin anew unless `resume`."""
        self._folder, self._capture, self._key = folder, capture, key
        if not resume:
            self.remove()

    def read(self, group: int, documents: Sequence[str]) -> list[Ids] | None:
        """The answers of a group kept earlier; None where there are none for these documents (their SHA-256)."""
        try:
            kept = self._folder.read_json(generated_key(self._capture, group))
        except (NotFoundError, FormatError):
            return None
        if kept.get("key") != self._key or kept.get("documents") != list(documents):
            return None
        return [np.array(ids, np.int32) for ids in kept["answers"]]

    def write(self, group: int, documents: Sequence[str], answers: Sequence[Ids]) -> None:
        """Keep the answers of a group."""
        value = {"key": self._key, "documents": list(documents), "answers": [ids.tolist() for ids in answers]}
        self._folder.write(generated_key(self._capture, group), json.dumps(value).encode())

    def remove(self) -> None:
        """Drop everything that was kept."""
        self._folder.delete(generated_prefix(self._capture))


def answers_key(model_fingerprint: str, dtype: str, settings: GenerationSettings, prepared: str) -> str:
    """What answers kept by `AnswerFile` depend on besides the documents, as one hash.

    `prepared` says how prompts are made ready: by which processor, with which beginning of the answer.
    """
    parts = [model_fingerprint, dtype, asdict(settings), prepared]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
