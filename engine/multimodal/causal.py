"""Whether neurons cause the word: noise on their write vectors, and what the model then says about the image.

For each noun of a caption σ·N(0, I) is added to the write vectors of its k neurons (Pan et al. 2024, section 4.4), and the
model answers again: is the noun still in its answer, and how probable is it at its position? Other rankings and as many
random neurons are treated alike, with noise of the same size. Needs the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from actstore.engine.multimodal.captions import special_tokens, spell
from actstore.engine.multimodal.noise import Noise, can_hook, noisy_weights, noisy_windows
from actstore.engine.multimodal.nouns import words
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.engine.multimodal.noise import Neurons
    from actstore.engine.multimodal.replay import Replay
    from actstore.engine.multimodal.result import Multimodal, Noun


@dataclass(frozen=True)
class CausalSettings(Typed):
    """Size of the noise, and number of nouns."""

    sigma: float = 10.0
    """Of the noise, as a multiple of the root mean square of all entries of the layer's write vectors."""
    seed: int = 0
    """Random seed of the noise, and of the nouns that are tested."""
    max_nouns: int | None = 200
    """Maximum number of nouns, those of random captions; None: all."""
    max_new_tokens: int | None = None
    """Maximum length of an answer; None: as when the capture was generated, or a few more than its longest answer has."""
    batch_tokens: int = 16_384
    """Token positions per forward pass; affects rounding only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma > 0 or (self.max_nouns is not None and self.max_nouns < 1):
            raise InvalidInputError(
                f"`sigma` is above zero and `max_nouns` at least 1, found {self.sigma} and {self.max_nouns}."
            )


@dataclass(frozen=True, eq=False)
class Effect:
    """The effect of noise on the neurons of one ranking; each array has one entry per noun."""

    gone: NDArray[np.bool_]
    """Whether the noun was in the model's answer and no longer is."""
    changed: NDArray[np.bool_]
    """Whether any token of the answer changed."""
    before: NDArray[np.float64]
    """The probability of the noun's first sub-token where it is predicted, given the original answer before it."""
    after: NDArray[np.float64]

    @property
    def drop(self) -> NDArray[np.float64]:
        """By how much the probability falls, relative to `before`; below zero where it rises."""
        return 1 - self.after / np.maximum(self.before, 1e-12)


def choose_nouns(result: Multimodal, settings: CausalSettings) -> list[int]:
    """The numbers of the nouns that are tested, ascending: those of random captions, up to `max_nouns`."""
    by_caption: dict[int, list[int]] = {}
    for number, noun in enumerate(result.nouns):
        by_caption.setdefault(noun.caption, []).append(number)
    order = np.random.default_rng(settings.seed).permutation(list(by_caption)).tolist()
    drawn = [number for caption in order for number in by_caption[caption]]
    return sorted(drawn[: settings.max_nouns])


def causal_effect(
    rankings: Mapping[str, Multimodal],
    replay: Replay,
    settings: CausalSettings | None = None,
    on_caption: Callable[[int, int], None] = lambda done, n: None,
) -> dict[str, Effect]:
    """The effect of noise on each noun's neurons, for every ranking of the same nouns; which nouns: `choose_nouns`.

    All nouns and rankings of a caption run in one batch, each window with its own noise, which is equivalent to noise on the
    weights (`noise`). Nouns that the undisturbed model does not say (their captions were given, not generated) are left out,
    and all effects are over the same nouns. Afterwards the weights are as they were.

    Raises `InvalidInputError` as `Replay.encode` does, and where no noun is left.
    """
    settings = settings or CausalSettings()
    result = next(iter(rankings.values()))
    by_caption: dict[int, list[int]] = {}
    for number in choose_nouns(result, settings):
        by_caption.setdefault(result.nouns[number].caption, []).append(number)
    outcomes: dict[str, list[_Outcome]] = {name: [] for name in rankings}
    for done, (caption, numbers) in enumerate(by_caption.items()):
        trial = _Trial(replay, result, caption, settings)
        undisturbed = trial.undisturbed([result.nouns[number] for number in numbers])
        said = [(number, outcome) for number, outcome in zip(numbers, undisturbed, strict=True) if outcome.says_noun]
        disturbed = trial.disturbed(
            [(result.nouns[number], ranking.neurons_of(number)) for ranking in rankings.values() for number, _ in said]
        )
        for name in rankings:
            outcomes[name] += [next(disturbed).compared_with(outcome) for _, outcome in said]
        on_caption(done + 1, len(by_caption))
    if not next(iter(outcomes.values())):
        raise InvalidInputError(
            f"{replay.model.spec.name} says none of the {sum(map(len, by_caption.values()))} nouns itself: their captions are "
            "not its own. Capture with `generate=True`."
        )
    return {
        name: Effect(
            np.array([not outcome.says_noun for outcome in of_ranking]),
            np.array([outcome.changed for outcome in of_ranking]),
            np.array([outcome.before for outcome in of_ranking], np.float64),
            np.array([outcome.probability for outcome in of_ranking], np.float64),
        )
        for name, of_ranking in outcomes.items()
    }


class _Outcome(NamedTuple):
    """What a model says where one noun is due."""

    says_noun: bool
    answer: list[int]
    probability: float
    before: float = 1.0
    changed: bool = False

    def compared_with(self, other: _Outcome) -> _Outcome:
        return self._replace(before=other.probability, changed=self.answer != other.answer)


class _Trial:
    """One caption's image, answered again with noise and without."""

    def __init__(self, replay: Replay, result: Multimodal, caption: int, settings: CausalSettings) -> None:
        self._replay, self._settings = replay, settings
        self._special = special_tokens(replay.capture.store)
        self._full = replay.encode(result.captions[caption])
        self._prompt = replay.encode(result.captions[caption], with_answer=False)
        longest = max(len(entry.ids) for entry in result.captions) + 4
        recorded = replay.capture.record.settings
        bound = int(recorded["max_new_tokens"]) if recorded.get("generate") else longest
        self._n_new = settings.max_new_tokens or min(longest, bound)  # an answer that was cut off is cut off again

    def undisturbed(self, nouns: Sequence[Noun]) -> list[_Outcome]:
        (answer,) = self._replay.answers([self._prompt], self._n_new)
        with torch.inference_mode():
            probabilities = self._replay.logits([self._full])[0].softmax(-1)
        return [self._outcome(noun, answer, float(probabilities[noun.position, noun.token])) for noun in nouns]

    def disturbed(self, tests: Sequence[tuple[Noun, Neurons]]) -> Iterator[_Outcome]:
        """One outcome per (noun, neurons), with noise on these neurons."""
        model, settings = self._replay.model, self._settings
        layers = {layer for _, neurons in tests for layer, _ in neurons}
        length = len(self._prompt.ids) + self._n_new
        n_windows = max(1, settings.batch_tokens // length) if can_hook(model, layers) else 1
        for first in range(0, len(tests), n_windows):
            batch = tests[first : first + n_windows]
            noises = [Noise(neurons, settings.sigma, settings.seed) for _, neurons in batch]
            with noisy_windows(model, noises) if n_windows > 1 else noisy_weights(model, noises[0]):
                with torch.inference_mode():
                    logits = self._replay.logits([self._full] * len(batch))
                    rows = [logits[i, noun.position].softmax(-1) for i, (noun, _) in enumerate(batch)]
                answers = self._replay.answers([self._prompt] * len(batch), self._n_new)
            for (noun, _), row, answer in zip(batch, rows, answers, strict=True):
                yield self._outcome(noun, answer, float(row[noun.token]))

    def _outcome(self, noun: Noun, answer: list[int], probability: float) -> _Outcome:
        text, _ = spell(self._replay.capture.store, np.array(answer, np.int64), self._special)
        said = any(word.word == noun.word for word in words(text)) or (
            " " in noun.word and noun.word in text.casefold()
        )
        return _Outcome(said, answer, probability)
