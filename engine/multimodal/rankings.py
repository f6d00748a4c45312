"""The rankings of neurons as one table: the method's own, and the baselines it is compared with; and what may be permuted.

A new ranking is a function and a row here. Importing the tables loads neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.engine.devices.device import Device
    from actstore.engine.multimodal.result import Multimodal
    from actstore.kernels.top_k.api import TopK

    OnLayer = Callable[[int, int], None]
    Rank = Callable[[Multimodal, str, OnLayer, Device], TopK]


@dataclass(frozen=True)
class Ranking:
    """One way to rank the neurons of nouns."""

    label: str
    help: str
    rank: Rank | None
    """(nouns, site of the activations, progress: layers done and in all, device) → scores and neurons' numbers [noun, k].

    Scores descend. None where the model is needed, which a store alone cannot rank by: `gradients.rank_by_gradient`.
    """

    @property
    def needs_model(self) -> bool:
        """Whether neurons are ranked by running the model."""
        return self.rank is None


def _by_contribution(result: Multimodal, site: str, on_layer: OnLayer, device: Device) -> TopK:
    from actstore.engine.multimodal.ranker import Ranker

    return Ranker(result, site, with_weights=True, device=device).rank(on_layer)


def _by_activation(result: Multimodal, site: str, on_layer: OnLayer, device: Device) -> TopK:
    from actstore.engine.multimodal.ranker import Ranker

    return Ranker(result, site, with_weights=False, device=device).rank(on_layer)


def _at_random(result: Multimodal, site: str, on_layer: OnLayer, device: Device) -> TopK:
    from actstore.engine.multimodal.ranker import random_ranking

    return random_ranking(len(result.nouns), len(result.numbering), result.settings)


RANKINGS: Final = {
    "contribution": Ranking("contribution", "what a neuron adds to the noun's logit", _by_contribution),
    "activation": Ranking("activation", "a baseline: the activation alone", _by_activation),
    "random": Ranking("random neurons", "a baseline: neurons drawn at random for each noun", _at_random),
    "gradient": Ranking("activation × gradient", "a baseline that needs the model", None),
}
FROM_STORE: Final = tuple(name for name, ranking in RANKINGS.items() if not ranking.needs_model)
"""The rankings that need no model."""


@dataclass(frozen=True)
class Regions:
    """What is put in random order where region invariance is measured."""

    help: str


REGIONS: Final = {
    "embeddings": Regions("the patches among the language model's input embeddings, as published; runs the model"),
    "pixels": Regions("the patches of the image itself, in a capture of shuffled images"),
    "none": Regions("nothing: region invariance is not measured"),
}
"""Name → what is in random order for region invariance; the values that `regions` takes."""


def find_ranking(name: str) -> Rank:
    """The function of a ranking that needs no model; `InvalidInputError` where there is none of the name."""
    ranking = RANKINGS.get(name)
    if ranking is None or ranking.rank is None:
        raise InvalidInputError(f"`by` is one of {', '.join(FROM_STORE)}, found {name!r}.")
    return ranking.rank
