"""Answers of a model to prompts with images: by its own `generate`, in batches, stored group by group until a plan has them.

The ids are exactly those that the model generated; decoding and encoding again would change some.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from actstore.engine.models.generation.sampling import Sampling
from actstore.engine.models.tokenizer.special_tokens import configs_of
from actstore.store.arguments import Typed
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.files.records import verify_checksum, with_checksum
from actstore.store.layout import generated_key, generated_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.vision.inputs import EncodedPrompt, VisionProcessor
    from actstore.store.storage.folder import Folder

    Ids = NDArray[np.int32]

GROUP_PROMPTS: Final = 64
"""Prompts per group: the maximum that an interrupted run has to answer again."""
GROUP_NBYTES: Final = 256 << 20
"""Bytes of pixels at which a group ends, if it has fewer prompts."""


@dataclass(frozen=True)
class GenerationSettings(Typed):
    """How answers are generated: the most probable token each time, or sampled where `temperature` or `top_p` is given."""

    max_new_tokens: int = 50
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    """Random seed of sampling: each answer has random numbers of its own, whatever else is in its batch."""
    batch_tokens: int = 4096
    """Maximum number of positions of the prompts of one batch, answers included."""

    @property
    def is_sampled(self) -> bool:
        """Whether answers are sampled."""
        return not self.sampling.is_greedy

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.temperature, self.top_p, self.seed)


def generate(
    model: LoadedModel,
    processor: VisionProcessor,
    prompts: Sequence[EncodedPrompt],
    settings: GenerationSettings,
    *,
    stream: int = 0,
    on_answers: Callable[[int, int], None] = lambda n_prompts, n_tokens: None,
) -> list[Ids]:
    """The answer of `model` to each prompt: the ids generated after it, up to and including an end-of-text token.

    Prompts of one length that fit together go through the model in one batch: nothing is padded, so every answer is that of the
    prompt alone, up to rounding, sampled or not. What the model's own generation settings add (penalties, beams) is switched
    off. `stream` numbers the call among others of one seed: what is drawn for a prompt depends on the seed, on `stream` and on
    the prompt's place among `prompts`. `on_answers(n_prompts, n_tokens)` is called after every batch.
    """
    answers: dict[int, Ids] = {}
    batches = _batches(processor, prompts, settings)
    for batch in batches:
        batch_answers = _answer(model, processor, [prompts[i] for i in batch], settings, [(stream, i) for i in batch])
        answers |= dict(zip(batch, batch_answers, strict=True))
        on_answers(len(batch), sum(map(len, batch_answers)))
    return [answers[i] for i in range(len(prompts))]


def _batches(
    processor: VisionProcessor, prompts: Sequence[EncodedPrompt], settings: GenerationSettings
) -> list[list[int]]:
    """Indices of the prompts of each batch: of one length, fitting together, within the maximum number of tokens."""
    batches: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        length = len(prompt.ids)
        max_prompts = max(1, settings.batch_tokens // (length + settings.max_new_tokens))
        for batch in batches:
            first = prompts[batch[0]]
            if len(batch) < max_prompts and len(first.ids) == length and processor.fits_together(first, prompt):
                batch.append(index)
                break
        else:
            batches.append([index])
    return batches


def _answer(
    model: LoadedModel,
    processor: VisionProcessor,
    prompts: Sequence[EncodedPrompt],
    settings: GenerationSettings,
    numbers: Sequence[tuple[int, int]],
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
    inputs: dict[str, Any] = {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None) for key, value in extra.items()
    }
    inputs["input_ids"] = ids.to(model.device)
    inputs["attention_mask"] = (torch.ones_like(ids) if mask is None else mask).to(model.device)
    config = _config(model, n_new)
    if settings.is_sampled:
        inputs["logits_processor"] = LogitsProcessorList([DrawnTokens(settings.sampling, numbers, n_new)])
    with torch.inference_mode():
        ids_out = model.model.generate(**inputs, generation_config=config).cpu()  # type: ignore[operator]
    # A model that reads embeddings returns the new ids only; one that reads ids, the prompt's too.
    if ids_out.shape[1] >= n_positions and torch.equal(ids_out[:, :n_positions], ids):
        ids_out = ids_out[:, n_positions:]
    ends = _end_tokens(config)
    return [_until_end(row, ends) for row in ids_out.numpy().astype(np.int32)]


class DrawnTokens(LogitsProcessor):
    """Leaves of each text's logits the token that its own random numbers choose, the only one that is finite."""

    def __init__(self, sampling: Sampling, numbers: Sequence[tuple[int, ...]], n_tokens: int) -> None:
        """numbers: as `Sampling.draws` takes them, of each text of a batch."""
        self._sampling = sampling
        self._draws = [sampling.draws(number, n_tokens) for number in numbers]
        self._step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The logits [text, vocabulary] of the next token, those of all others -∞; called once per token."""
        rows = zip(scores, self._draws, strict=True)
        tokens = [self._sampling.token(logits.float().cpu(), float(draws[self._step])) for logits, draws in rows]
        self._step += 1
        chosen = torch.full_like(scores, float("-inf"))
        chosen[torch.arange(len(tokens)), torch.tensor(tokens)] = 0
        return chosen  # type: ignore[return-value]


def _config(model: LoadedModel, n_new: int) -> GenerationConfig:
    config, own = configs_of(model.model)
    text = config.get_text_config()
    tokens = {
        name: getattr(own, name, None) if getattr(own, name, None) is not None else getattr(text, name, None)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    }
    if tokens["pad_token_id"] is None:
        ends = tokens["eos_token_id"]
        tokens["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=n_new,
        do_sample=False,  # what is drawn, `DrawnTokens` draws
        temperature=1.0,
        top_p=1.0,
        top_k=50,
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
    """The ids up to and including the first end-of-text token: what follows is padding."""
    positions = np.flatnonzero(np.isin(row, list(ends)))
    return row[: positions[0] + 1].copy() if len(positions) else row.copy()


class AnswerFile:
    """Answers group by group in a capture's folder, so that interrupted generation continues where it stopped."""

    def __init__(self, folder: Folder, capture: str, key: str, *, resume: bool) -> None:
        """Answers generated under `key`, which identifies model and settings; earlier ones are removed unless `resume`."""
        self._folder, self._capture, self._key = folder, capture, key
        if not resume:
            self.remove()

    def read(self, group: int, documents: Sequence[str]) -> list[Ids] | None:
        """The stored answers of a group; None where there are none for these documents (their SHA-256), or damaged ones."""
        key = generated_key(self._capture, group)
        try:
            stored = self._folder.read_json(key)
            verify_checksum(stored, f"{self._folder}/{key}")
        except (NotFoundError, FormatError):
            return None
        # Those of an earlier version have no checksum: they are generated again.
        if "checksum" not in stored or stored.get("key") != self._key or stored.get("documents") != list(documents):
            return None
        return [np.array(ids, np.int32) for ids in stored["answers"]]

    def write(self, group: int, documents: Sequence[str], answers: Sequence[Ids]) -> None:
        """Store the answers of a group."""
        value = {"key": self._key, "documents": list(documents), "answers": [ids.tolist() for ids in answers]}
        self._folder.write(generated_key(self._capture, group), json.dumps(with_checksum(value)).encode())

    def remove(self) -> None:
        """Remove all stored answers."""
        self._folder.delete(generated_prefix(self._capture))


def answers_key(model_fingerprint: str, dtype: str, settings: GenerationSettings, prepared: str) -> str:
    """The hash of everything but the documents that the answers in an `AnswerFile` depend on.

    `prepared` describes how prompts are prepared: the processor, and the given beginning of the answer.
    """
    parts = [model_fingerprint, dtype, asdict(settings), prepared]
    if settings.is_sampled:  # drawn for each answer by itself: those of earlier versions depended on their batch
        parts.append("each")
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
