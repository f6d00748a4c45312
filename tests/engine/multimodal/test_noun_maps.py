"""Maps of nouns, by contribution and by activation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actstore.engine.multimodal.find import find_multimodal
from actstore.engine.multimodal.noun_maps import MAPS, map_nouns
from actstore.engine.multimodal.patch_maps import NeuronSet, map_neurons
from actstore.engine.multimodal.result import FindSettings
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.store.reader import Capture


@pytest.mark.parametrize("kind", MAPS)
def test_every_noun_has_the_map_of_its_neurons(planted: tuple[Capture, dict[str, Any]], kind: str) -> None:
    result = find_multimodal(planted[0], FindSettings(k=4, nouns="content"))
    maps = dict(map_nouns(result, kind))
    assert sorted(maps) == list(range(len(result.nouns)))
    for number, noun in enumerate(result.nouns):
        document = result.captions[noun.caption].document
        weights = result.products_of(number) if kind == "contribution" else None
        ((_, _, expected),) = map_neurons(result.capture, {document: [NeuronSet(result.neurons_of(number), weights)]})
        assert maps[number].document == document
        np.testing.assert_array_equal(maps[number].values, expected.values)


def test_other_maps_are_refused(planted: tuple[Capture, dict[str, Any]]) -> None:
    result = find_multimodal(planted[0], FindSettings(k=4, nouns="content"))
    with pytest.raises(InvalidInputError, match="shows contribution or activation, found 'size'"):
        list(map_nouns(result, "size"))
