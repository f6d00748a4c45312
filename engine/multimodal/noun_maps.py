"""Maps of nouns: where on its image each noun's neurons are active, or contribute to the noun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from actstore.engine.multimodal.patch_maps import NeuronSet, map_neurons
from actstore.engine.multimodal.result import FORMS
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from actstore.engine.multimodal.patch_maps import PatchMap
    from actstore.engine.multimodal.result import Multimodal


@dataclass(frozen=True)
class MapKind:
    """What a noun's map shows."""

    help: str
    weights: Callable[[Multimodal, int], Sequence[float] | None]
    """(nouns, number of a noun) → what its neurons' activations are multiplied with; None: nothing."""


MAPS: Final = {
    "contribution": MapKind(
        "what the neurons would contribute to the noun", lambda result, number: result.products_of(number)
    ),
    "activation": MapKind("the neurons' activations, whatever their sign; the paper's", lambda result, number: None),
}


def check_map(kind: str) -> None:
    """Raise `InvalidInputError` unless there are maps of a kind."""
    if kind not in MAPS:
        raise InvalidInputError(f"A map shows {' or '.join(MAPS)}, found {kind!r}. Check `map_of`.")


def map_nouns(result: Multimodal, kind: str = "contribution") -> Iterator[tuple[int, PatchMap]]:
    """(number of the noun, map over its image) of every noun whose image has patches in the capture; `kind`: a key of `MAPS`.

    Raises `InvalidInputError` for another kind, and as `map_neurons` does.
    """
    check_map(kind)
    nouns_of: dict[int, list[int]] = {}
    for number, noun in enumerate(result.nouns):
        nouns_of.setdefault(result.captions[noun.caption].document, []).append(number)
    sets = {
        document: [
            NeuronSet(result.neurons_of(number), weights := MAPS[kind].weights(result, number), weights is not None)
            for number in numbers
        ]
        for document, numbers in nouns_of.items()
    }
    for document, which, patch_map in map_neurons(result.capture, sets, FORMS[result.settings.forms[0]].site):
        yield nouns_of[document][which], patch_map
