"""Do the neurons cause the word? Noise on their write vectors, and what the model then says of the image.

For each noun of a caption σ·N(0, I) is added to the write vectors of its k neurons (Pan et al. 2024, section 4.4), and the
model is asked again: is the noun still in its answer, and how probable is it where it stood? Other rankings and as many
random neurons are treated alike, with noise of the same size. Needs the model; knows nothing about how neurons were chosen.
"""

from __future__ import annotations

from contextlib import nullcontext
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
    """How neurons are disturbed, and how many nouns are looked at."""

    sigma: float = 10.0
    """Of the noise, as a multiple of the root mean square of all entries of the layer's write vectors."""
    seed: int = 0
    """Of the noise, and of which nouns are looked at."""
    max_nouns: int | None = 200
    """Those of captions taken at random; None takes all."""
    max_new_tokens: int | None = None
    """Of an answer; as many as when the capture was generated, or a few more than its longest answer has, unless given."""
    batch_tokens: int = 16_384
    """Token positions that run at once; changes rounding only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma > 0 or (self.max_nouns is not None and self.max_nouns < 1):
            raise InvalidInputError(
                f"Noise is above zero and falls on at least one noun, found sigma {self.sigma} and {self.max_nouns} nouns."
            )


@dataclass(frozen=True, eq=False)
class Effect:
    """What noise on the neurons of one ranking did; an entry a noun."""

    gone: NDArray[np.bool_]
    """Whether the noun was in the model's answer and no longer is."""
    changed: NDArray[np.bool_]
    """Whether any token of the answer is another."""
    before: NDArray[np.float64]
    """The probability of the noun's first sub-token where it is predicted, the answer before it being as it was."""
    after: NDArray[np.float64]

    @property
    def drop(self) -> NDArray[np.float64]:
        """How far the probability falls, as a share of what it was; below zero where it rises."""
        return 1 - self.after / np.maximum(self.before, 1e-12)


def choose_nouns(found: Multimodal, settings: CausalSettings) -> list[int]:
    """The nouns that are looked at, ascending: those of captions at random, until they are `max_nouns` or all."""
    by_caption: dict[int, list[int]] = {}
    for number, noun in enumerate(found.nouns):
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
    """The effect of noise on each noun's neurons, for every ranking of the same nouns; see `choose_nouns`.

    All nouns and rankings of a caption run side by side, each window with noise of its own, which is the same as noise on
    the weights (`noise`). Nouns that the undisturbed model does not say of its image (their captions were given, not
    generated) are left out, and all effects are over the same nouns. Weights are as they were.

    Raises `InvalidInputError` as `Replay.encode` does, or where no noun is left.
    """
    settings = settings or CausalSettings()
    found = next(iter(rankings.values()))
    by_caption: dict[int, list[int]] = {}
    for number in choose_nouns(found, settings):
        by_caption.setdefault(found.nouns[number].caption, []).append(number)
    rows: dict[str, list[_Outcome]] = {name: [] for name in rankings}
    for done, (caption, numbers) in enumerate(by_caption.items()):
        trial = _Trial(replay, found, caption, settings)
        before = trial.undisturbed([found.nouns[number] for number in numbers])
        said = [(number, at) for number, at in zip(numbers, before, strict=True) if at.says]
        asked = [
            (found.nouns[number], ranking.neurons_of(number)) for ranking in rankings.values() for number, _ in said
        ]
        outcomes = iter(trial.disturbed(asked))
        for name in rankings:
            rows[name] += [next(outcomes).against(at) for _, at in said]
        on_caption(done + 1, len(by_caption))
    if not next(iter(rows.values())):
        raise InvalidInputError(
            f"{replay.model.spec.name} says none of the {sum(map(len, by_caption.values()))} nouns looked at when asked: their "
            "captions are not its own. Capture with --generate."
        )
    return {
        name: Effect(
            np.array([not outcome.says for outcome in outcomes]),
            np.array([outcome.changed for outcome in outcomes]),
            np.array([outcome.before for outcome in outcomes], np.float64),
            np.array([outcome.probability for outcome in outcomes], np.float64),
        )
        for name, outcomes in rows.items()
    }


class _Outcome(NamedTuple):
    """How a model takes one noun."""

    says: bool
    answer: list[int]
    probability: float
    before: float = 1.0
    changed: bool = False

    def against(self, other: _Outcome) -> _Outcome:
        return self._replace(before=other.probability, changed=self.answer != other.answer)


class _Trial:
    """One caption's image asked about again, with noise and without."""

    def __init__(self, replay: Replay, found: Multimodal, caption: int, settings: CausalSettings) -> None:
        self._replay, self._settings = replay, settings
        self._special = special_tokens(replay.capture.store)
        self._full = replay.encode(found.captions[caption])
        self._prompt = replay.encode(found.captions[caption], with_answer=False)
        longest = max(len(entry.ids) for entry in found.captions) + 4
        recorded = replay.capture.record.settings
        bound = int(recorded["max_new_tokens"]) if recorded.get("generate") else longest
        self._n_new = settings.max_new_tokens or min(longest, bound)  # what was cut off then is cut off again

    def undisturbed(self, nouns: Sequence[Noun]) -> list[_Outcome]:
        (answer,) = self._replay.answers([self._prompt], self._n_new)
        with torch.inference_mode():
            probabilities = self._replay.logits([self._full])[0].softmax(-1)
        return [self._outcome(noun, answer, float(probabilities[noun.position, noun.token])) for noun in nouns]

    def disturbed(self, asked: Sequence[tuple[Noun, Neurons]]) -> Iterator[_Outcome]:
        """An outcome for each noun, with noise on the neurons beside it."""
        model, settings = self._replay.model, self._settings
        layers = {layer for _, neurons in asked for layer, _ in neurons}
        length = len(self._prompt.ids) + self._n_new
        most = max(1, settings.batch_tokens // length) if can_hook(model, layers) else 1
        for first in range(0, len(asked), most):
            some = asked[first : first + most]
            noises = [Noise(neurons, settings.sigma, settings.seed) for _, neurons in some]
            with (
                noisy_windows(model, noises) if most > 1 else noisy_weights(model, noises[0]) if some else nullcontext()
            ):
                with torch.inference_mode():
                    logits = self._replay.logits([self._full] * len(some))
                    rows = [logits[i, noun.position].softmax(-1) for i, (noun, _) in enumerate(some)]
                answers = self._replay.answers([self._prompt] * len(some), self._n_new)
            for (noun, _), row, answer in zip(some, rows, answers, strict=True):
                yield self._outcome(noun, answer, float(row[noun.token]))

    def _outcome(self, noun: Noun, answer: list[int], probability: float) -> _Outcome:
        text, _ = spell(self._replay.capture.store, np.array(answer, np.int64), self._special)
        said = any(word.word == noun.word for word in words(text)) or (
            " " in noun.word and noun.word in text.casefold()
        )
        return _Outcome(said, answer, probability)
