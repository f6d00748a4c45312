"""Texts that a causal model continues, several at once, each as it would be continued alone up to rounding.

Prompts of different lengths share a batch without padding: all of them are read as far as the shortest goes, and then, token by
token, the rest of the longer prompts beside what was generated for the shorter ones. So no model needs to know of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from actstore.engine.models.cache import cache_arguments, cache_of
from actstore.engine.models.patching import head_hook, hooked
from actstore.engine.models.tokenizer.special_tokens import configs_of
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.generation.sampling import Sampling
    from actstore.engine.models.layers import ModelSpec
    from actstore.engine.models.load import LoadedModel

    Ids = NDArray[np.int32]

MAX_SPREAD: Final = 1 / 4
"""Largest difference in length of the prompts of a batch, as a share of the tokens that are generated: steps in which the
shorter ones may have ended already."""


@dataclass(frozen=True)
class TextPrompt:
    """A text to be continued."""

    ids: Ids
    """[position]; with the special tokens in front that the model expects."""
    number: tuple[int, ...]
    """Tells it from all others of a run: what is drawn for it depends on this and the seed."""
    max_new_tokens: int


@dataclass(frozen=True)
class Ends:
    """What ends a text: one of the tokens, or a text that is complete once a token is appended. Both are kept."""

    tokens: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] = lambda ids: ""
    """Token ids to text."""

    def reached(self, generated: Sequence[int]) -> bool:
        """Whether the last of the generated tokens ends the text."""
        if generated[-1] in self.tokens:
            return True
        if not self.texts:
            return False
        # A character takes four tokens at most, one per byte: what comes before them completes no text now.
        tail = generated[-4 * max(map(len, self.texts)) - 4 :]
        return any(text in self.decode(tail) for text in self.texts)


def check_generates(spec: ModelSpec) -> None:
    """Raise `InvalidInputError` unless a model continues texts."""
    if spec.kind != "causal" or spec.n_vocabulary is None:
        raise InvalidInputError(
            f"{spec.name} ({spec.model_type}) does not continue a text: it is of kind {spec.kind!r}. Name a causal model to "
            "let it answer."
        )


def end_tokens(model: LoadedModel) -> frozenset[int]:
    """The tokens that end a text by the model's own settings of generation, or its configuration."""
    own, of_generation = configs_of(model.model)
    for config in (of_generation, own.get_text_config()):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return frozenset(ends) if isinstance(ends, list | tuple) else frozenset({int(ends)})
    return frozenset()


def continue_texts(
    model: LoadedModel,
    prompts: Sequence[TextPrompt],
    sampling: Sampling,
    ends: Ends,
    *,
    batch_tokens: int = 4096,
    on_texts: Callable[[int, int], None] = lambda n_texts, n_tokens: None,
) -> list[Ids]:
    """What `model` generates after each prompt, in their order, what ends it included.

    A batch has at most `batch_tokens` positions, or one prompt. `on_texts(n_texts, n_tokens)` is called after every batch.
    Raises `InvalidInputError` for a model that continues no text, and for an empty prompt.
    """
    check_generates(model.spec)
    if any(not len(prompt.ids) for prompt in prompts):
        raise InvalidInputError("Expected prompts of at least one token, found an empty one. Leave it out.")
    texts: dict[int, Ids] = {}
    for batch in text_batches(prompts, batch_tokens):
        generated = _continue([prompts[i] for i in batch], model, sampling, ends)
        texts |= dict(zip(batch, generated, strict=True))
        on_texts(len(batch), sum(map(len, generated)))
    return [texts[i] for i in range(len(prompts))]


def text_batches(prompts: Sequence[TextPrompt], batch_tokens: int) -> list[list[int]]:
    """The indices of the prompts of every batch, those of like length together."""
    batches: list[list[int]] = []
    shortest = longest = 0
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids)):
        prompt = prompts[index]
        length = len(prompt.ids)
        whole = max(longest, length + prompt.max_new_tokens)
        is_like = length - shortest <= MAX_SPREAD * prompt.max_new_tokens
        if batches and is_like and whole * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
            longest = whole
        else:
            batches.append([index])
            shortest, longest = length, length + prompt.max_new_tokens
    return batches


def _continue(prompts: Sequence[TextPrompt], model: LoadedModel, sampling: Sampling, ends: Ends) -> list[Ids]:
    draws = [sampling.draws(prompt.number, prompt.max_new_tokens) for prompt in prompts]
    texts: list[list[int]] = [[] for _ in prompts]
    ended = [prompt.max_new_tokens < 1 for prompt in prompts]
    n_read = min(len(prompt.ids) for prompt in prompts)
    reader = _GrowingTexts(model)
    column = np.stack([prompt.ids[:n_read] for prompt in prompts])
    while not all(ended):
        logits = reader.read(column)
        column = np.zeros((len(prompts), 1), np.int32)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            if n_read < len(prompt.ids):
                column[row] = prompt.ids[n_read]
            elif not ended[row]:
                text.append(sampling.token(logits[row], float(draws[row][len(text)])))
                ended[row] = len(text) == prompt.max_new_tokens or ends.reached(text)
                column[row] = text[-1]
        n_read += 1
    return [np.array(text, np.int32) for text in texts]


class _GrowingTexts:
    """Texts of one length that a model reads as they grow, its keys and values kept where it has a cache."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._ids = np.empty((0, 0), np.int32)
        self._cache: Any = None  # whatever the model returns as its cache

    def read(self, new: Ids) -> Tensor:
        """The logits [text, vocabulary] after the `new` tokens [text, position], on the CPU."""
        model = self._model
        self._ids = new if not self._ids.size else np.concatenate([self._ids, new], axis=1)
        ids = new if self._cache is not None else self._ids
        window = torch.from_numpy(ids.astype(np.int64)).to(model.device)
        n_positions = window.shape[1]
        arguments = cache_arguments(model.model, self._cache)
        with torch.inference_mode(), hooked(model.model, head_hook(model, n_positions - 1, n_positions)):
            output = model.model(input_ids=window, **arguments)
        self._cache = cache_of(output)  # None where there is none: the whole text is then read at every step
        logits = getattr(output, "logits", None)
        if logits is None:
            raise ModelError(
                f"{model.spec.name} returns no logits: expected a model with a language-model head. Name another model."
            )
        last: Tensor = logits[:, -1].float().cpu()
        return last
