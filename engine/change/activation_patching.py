"""Dynamic activation patching: a model generates with another model's activations in place of chosen neurons'.

At each step the donor reads the text so far, its activations of the chosen neurons replace those of the model at every
position, and the model's greedy token is appended for both (Chen et al., NeurIPS 2025, arXiv 2406.14144). In causal models
nothing that was computed for earlier positions changes when a token is appended, neither the donor's activations nor the
model's keys and values under them: each step is one new token through both. Knows nothing about stores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from actstore.engine.models.cache import keeping, kept_by
from actstore.engine.models.intervene import intervened, replace
from actstore.engine.models.patching import head_hook, hooked
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import random_neurons

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.engine.models.intervene import Change
    from actstore.engine.models.load import LoadedModel

REFUSALS: Final = (
    r"(?i)\b(I('m| am) (very |so )?sorry|I apologi[sz]e|I can('t|not|\s?not)|I('m| am) (not able|unable) to|I won't"
    r"|as an AI)\b"
)
"""How models that refuse usually put it: a scorer for safety in the absence of a trained one."""


@dataclass(frozen=True)
class Donor:
    """The model whose activations are put in place, and of which neurons."""

    model: LoadedModel
    neurons: Mapping[int, NDArray[np.int64]]
    """Layer → indices of the neurons that are replaced."""


class Scorer(Protocol):
    """F: how much of the behaviour in question a generation shows."""

    def __call__(self, prompt: Sequence[int], generated: Sequence[int]) -> float:
        """The score of a generation, as token ids, after its prompt."""
        ...


@dataclass(frozen=True)
class Contains:
    """1 where the text of the generation matches a regular expression, 0 where it does not."""

    pattern: str
    text: Callable[[Sequence[int]], str]
    """Token ids to text."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InvalidInputError(
                f"The scorer's regular expression {self.pattern!r} cannot be read: {error}."
            ) from None

    def __call__(self, prompt: Sequence[int], generated: Sequence[int]) -> float:
        """Whether the generation matches, as 0 or 1."""
        return float(re.search(self.pattern, self.text(generated)) is not None)


@dataclass(frozen=True)
class LogLikelihood:
    """The mean log probability a judge gives to the tokens of the generation: how much like the judge's own it reads."""

    judge: LoadedModel

    def __call__(self, prompt: Sequence[int], generated: Sequence[int]) -> float:
        """Nats a token; NaN for an empty generation."""
        if not generated:
            return float("nan")
        ids = torch.tensor([[*prompt, *generated]], device=self.judge.device)
        with torch.inference_mode():
            logits = self.judge.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])
        return float(chosen.double().mean())


def generate(
    model: LoadedModel,
    prompt: Sequence[int],
    n_tokens: int,
    donor: Donor | None = None,
    *,
    stop: Sequence[int] = (),
    cached: bool = True,
) -> list[int]:
    """The greedy continuation of `prompt` by up to `n_tokens`, patched from `donor` at all positions where one is given.

    Ends after a token of `stop`, which is kept. Ties go to the smaller token id. With `cached` False the whole text is read
    anew at every step, which gives the same tokens up to rounding, at n_tokens times the price.

    Raises `InvalidInputError` for models that are not causal decoders, a donor of another vocabulary or other widths, an empty
    prompt and one that leaves no room in the context.
    """
    for reader in (model, *([donor.model] if donor else [])):
        _check_readable(reader, prompt, n_tokens)
    if donor is not None:
        check_donor(model, donor)
    text, generated = _Text(model, cached), list[int]()
    donating = None if donor is None or not donor.neurons else (_Text(donor.model, cached), donor)
    new = list(prompt)
    while len(generated) < n_tokens:
        changes = {} if donating is None else _donated(*donating, new)
        token = int(text.read(new, changes).argmax())
        generated.append(token)
        new = [token]
        if token in stop:
            break
    return generated


class _Text:
    """A text that one model reads as it grows."""

    def __init__(self, model: LoadedModel, cached: bool) -> None:
        self._model, self._cached = model, cached
        self._ids: list[int] = []
        self._kept: Any = None

    @property
    def reads_new_only(self) -> bool:
        """Whether the next pass runs over the new tokens alone."""
        return self._kept is not None

    def read(self, new: Sequence[int], changes: Mapping[int, Change]) -> Tensor:
        """The logits [vocabulary] after `new` tokens, with activations changed on the way."""
        self._ids += new
        ids = torch.tensor([new if self.reads_new_only else self._ids], device=self._model.device)
        n_positions = ids.shape[1]
        arguments = keeping(self._model.model, self._kept) if self._cached else {"use_cache": False}
        with (
            torch.inference_mode(),
            intervened(self._model, changes),
            hooked(self._model.model, head_hook(self._model, n_positions - 1, n_positions)),
        ):
            output = self._model.model(input_ids=ids, **arguments)
        if self._cached:  # a model that keeps nothing is read the whole text again
            self._kept = kept_by(output)
        logits: Tensor = output.logits[0, -1]
        return logits.float()


def _donated(text: _Text, donor: Donor, new: Sequence[int]) -> dict[int, Change]:
    """The changes that put the donor's activations of its neurons in place, over the positions that it just read."""
    seen: dict[int, Tensor] = {}
    chosen = {layer: torch.from_numpy(np.asarray(n, np.int64)) for layer, n in donor.neurons.items() if len(n)}

    def reading(layer: int) -> Change:
        def read(values: Tensor) -> Tensor:
            seen[layer] = values[..., chosen[layer].to(values.device)].clone()
            return values

        return read

    text.read(new, {layer: reading(layer) for layer in chosen})
    return {layer: replace(neurons, seen[layer]) for layer, neurons in chosen.items()}


def _check_readable(model: LoadedModel, prompt: Sequence[int], n_tokens: int) -> None:
    spec = model.spec
    if spec.kind != "causal":
        raise InvalidInputError(
            f"expected a causal decoder to generate with, and {spec.name} ({spec.model_type}) is of kind {spec.kind!r}; choose "
            "another model"
        )
    if not prompt:
        raise InvalidInputError("expected prompts of at least one token, found an empty one; leave it out")
    if spec.context is not None and len(prompt) + n_tokens - 1 > spec.context:
        raise InvalidInputError(
            f"{spec.name} reads at most {spec.context} tokens, and a prompt of {len(prompt)} with {n_tokens} new ones is"
            " longer; shorten the prompt or lower --tokens"
        )


def check_donor(model: LoadedModel, donor: Donor) -> None:
    """Raise `InvalidInputError` unless the donor's tokens and its neurons' layers are the model's."""
    one, two = model.spec, donor.model.spec
    if one.n_vocabulary != two.n_vocabulary:
        raise InvalidInputError(
            f"expected two models of one vocabulary, and {one.name} has {one.n_vocabulary} tokens and {two.name}"
            f" {two.n_vocabulary}; choose a model and its fine-tuned copy"
        )
    for layer, neurons in donor.neurons.items():
        widths = [spec.layers[layer].neurons if 0 <= layer < len(spec.layers) else None for spec in (one, two)]
        if widths[0] is None or widths[0] != widths[1]:
            raise InvalidInputError(
                f"expected layer {layer} alike in both models, found {widths[0]} neurons in {one.name} and {widths[1]} in"
                f" {two.name}; choose two models of one architecture"
            )
        if len(neurons) and not 0 <= int(np.min(neurons)) <= int(np.max(neurons)) < widths[0]:
            raise InvalidInputError(
                f"expected neurons 0 to {widths[0] - 1} in layer {layer} of {one.name}, found {int(np.max(neurons))}"
            )


@dataclass(frozen=True)
class PatchingSettings(Typed):
    """How generations are made and what they are held against."""

    n_tokens: int = 32
    n_random: int = 3
    """Random sets of neurons, each of the size of the chosen, layer by layer."""
    seed: int = 0
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_tokens < 1 or self.n_random < 0:
            raise InvalidInputError(
                f"--tokens must be at least 1 and --random at least 0, found {self.n_tokens} and {self.n_random}."
            )


@dataclass(frozen=True)
class PatchedScores:
    """F of every prompt's generation by one way of generating, and the causal effect C."""

    scores: NDArray[np.float64]
    n_neurons: int
    effect: float
    """`E[F − F(M₁)] / E[F(M₂) − F(M₁)]`; NaN where the two models score alike."""


@dataclass(frozen=True)
class PatchingEvaluation:
    """The causal effect of a set of neurons, beside that of random ones."""

    first: NDArray[np.float64]
    """F of M₁'s own generations; shape [prompt]."""
    second: NDArray[np.float64]
    """F of M₂'s."""
    patched: PatchedScores
    random: tuple[PatchedScores, ...]
    generated: tuple[tuple[list[int], list[int], list[int]], ...]
    """A prompt's generations by M₁, M₂ and the patched M₁."""


def causal_effect(patched: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """`C = E[F(patched) − F(M₁)] / E[F(M₂) − F(M₁)]` over prompts; NaN where the denominator is 0."""
    gap = float((second - first).mean())
    return float((patched - first).mean()) / gap if gap else float("nan")


def evaluate_patching(
    first: LoadedModel,
    donor: Donor,
    prompts: Sequence[Sequence[int]],
    scorer: Scorer,
    settings: PatchingSettings | None = None,
    *,
    on_prompt: Callable[[int, int], None] = lambda done, n_prompts: None,
) -> PatchingEvaluation:
    """How much of what sets the donor M₂ apart from `first` = M₁ comes with its activations of the donor's neurons.

    Raises `InvalidInputError` as `generate` does, before anything is generated, and without prompts.
    """
    settings = settings or PatchingSettings()
    if not prompts:
        raise InvalidInputError("expected at least one prompt, found none; give a file with a prompt a line")
    check_donor(first, donor)
    for prompt in prompts:
        for model in (first, donor.model):
            _check_readable(model, prompt, settings.n_tokens)
    widths = {spec.layer: spec.neurons for spec in first.spec.layers}
    rng = np.random.default_rng(settings.seed)
    donors = [
        donor,
        *(Donor(donor.model, random_neurons(donor.neurons, widths, rng)) for _ in range(settings.n_random)),
    ]
    scores = np.zeros((2 + len(donors), len(prompts)))
    generated = []
    for number, prompt in enumerate(prompts):
        made = [generate(model, prompt, settings.n_tokens, stop=settings.stop) for model in (first, donor.model)]
        made += [generate(first, prompt, settings.n_tokens, each, stop=settings.stop) for each in donors]
        scores[:, number] = [scorer(prompt, ids) for ids in made]
        generated.append((made[0], made[1], made[2]))
        on_prompt(number + 1, len(prompts))
    results = [
        PatchedScores(row, sum(map(len, each.neurons.values())), causal_effect(row, scores[0], scores[1]))
        for each, row in zip(donors, scores[2:], strict=True)
    ]
    return PatchingEvaluation(scores[0], scores[1], results[0], tuple(results[1:]), tuple(generated))
