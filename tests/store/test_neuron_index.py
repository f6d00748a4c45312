"""Neurons of several layers under one running number."""

import numpy as np
import pytest

from actstore.store.neurons import NeuronIndex


@pytest.fixture(params=[(0, 1, 5), (5, 0, 1)])
def index(request: pytest.FixtureRequest) -> NeuronIndex:
    """Layers of 3, 0 and 4 neurons, in any order of layers."""
    return NeuronIndex(dict(zip(request.param, (3, 0, 4), strict=True)))


def test_numbers_and_places_are_inverse(index: NeuronIndex) -> None:
    first, empty, last = index.layers.tolist()
    numbers = np.arange(len(index))
    layers, indices = index.locate(numbers)
    assert layers.tolist() == [first] * 3 + [last] * 4
    assert indices.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert index.numbers(layers, indices).tolist() == numbers.tolist()
    assert [index.number(layer, i) for layer, i in index.pairs(numbers)] == numbers.tolist()
    assert (index.of_layer(first), len(index.of_layer(empty)), index.of_layer(last)) == (range(3), 0, range(3, 7))
    assert index.layer_rows(numbers).tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert index.names(np.array([6, 0])) == [f"L{last}.N3", f"L{first}.N0"]


def test_the_shape_of_what_is_located_is_kept(index: NeuronIndex) -> None:
    layers, indices = index.locate(np.array([[0, 6], [3, 2]]))
    assert layers.shape == indices.shape == (2, 2)
    assert indices.tolist() == [[0, 3], [0, 2]]
