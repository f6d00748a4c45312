"""Neurons by name, by layer and index, and by running number, and random draws of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.neurons import NeuronIndex, neuron_name, neuron_names, parse_neuron, random_neurons

WIDTHS = st.dictionaries(st.integers(0, 200), st.integers(1, 30), min_size=1, max_size=6).map(
    lambda widths: dict(sorted(widths.items()))
)


@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_a_name_is_read_back(layer: int, index: int) -> None:
    name = neuron_name(layer, index)
    assert parse_neuron(name) == (layer, index)
    assert parse_neuron(f"  {name.lower()}\n") == (layer, index)


def test_names_are_spelled_as_everywhere() -> None:
    assert neuron_name(3, 17) == "L3.N17"
    assert neuron_names([3, 0], [17, 5]) == ["L3.N17", "L0.N5"]
    with pytest.raises(ValueError, match="zip"):
        neuron_names([3, 0], [17])


@pytest.mark.parametrize(
    "name",
    ["", "3.17", "L3", "L3.N", "L.N17", "L3N17", "L-1.N2", "L3.N17.5", "L3.N17.", "xL3.N17", "L3.N17 L4.N1", "L².N1"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_neuron(name)
    assert str(caught.value) == f"A neuron is named by layer and index, such as L3.N17, found {name!r}."


@given(WIDTHS)
def test_running_numbers_count_layer_after_layer(widths: dict[int, int]) -> None:
    index = NeuronIndex(widths)
    every = [(layer, i) for layer, width in widths.items() for i in range(width)]
    assert len(index) == len(every)
    assert [index.number(*neuron) for neuron in every] == list(range(len(every)))
    numbers = np.arange(len(every))
    assert index.pairs(numbers) == every
    assert index.names(numbers) == [neuron_name(*neuron) for neuron in every]
    assert index.starts.tolist() == [0, *np.cumsum(list(widths.values())).tolist()]


@given(WIDTHS, st.data())
def test_numbers_are_located_in_any_order_and_shape(widths: dict[int, int], data: st.DataObject) -> None:
    index = NeuronIndex(widths)
    drawn = data.draw(
        st.lists(st.integers(0, len(index) - 1), min_size=0, max_size=12).filter(lambda x: len(x) % 2 == 0)
    )
    numbers = np.array(drawn, np.int64).reshape(-1, 2)
    layers, indices = index.locate(numbers)
    assert layers.shape == indices.shape == numbers.shape
    assert [index.number(*pair) for pair in zip(layers.flat, indices.flat, strict=True)] == drawn


@pytest.mark.parametrize("neuron", [(0, 0), (1, 3), (1, -1), (2, 0), (4, 1), (5, 0)])
def test_a_neuron_that_is_not_numbered_is_refused(neuron: tuple[int, int]) -> None:
    """Instead of the number of another."""
    with pytest.raises(
        NotFoundError, match=rf"^Neuron {re.escape(neuron_name(*neuron))} is not among the 4 numbered here\.$"
    ):
        NeuronIndex({1: 3, 4: 1}).number(*neuron)


def test_no_layers_have_no_neurons() -> None:
    index = NeuronIndex({})
    assert len(index) == 0
    assert index.pairs(np.zeros(0, np.int64)) == []


@given(WIDTHS, st.data())
def test_random_neurons_are_others_and_as_many(widths: dict[int, int], data: st.DataObject) -> None:
    selected = {
        layer: np.array(sorted(data.draw(st.sets(st.integers(0, width - 1)))), np.int64)
        for layer, width in widths.items()
    }
    n_selected, n_all = sum(map(len, selected.values())), sum(widths.values())
    drawn = random_neurons(selected, widths, np.random.default_rng(data.draw(st.integers(0, 99))))
    assert sum(map(len, drawn.values())) == min(n_selected, n_all - n_selected)
    for layer, indices in drawn.items():
        assert len(indices) > 0
        assert indices.tolist() == sorted(set(indices.tolist()))
        assert ((indices >= 0) & (indices < widths[layer])).all()
        assert not set(indices.tolist()) & set(selected[layer].tolist())
        # As many of each layer while it has others.
        assert len(indices) >= min(len(selected[layer]), widths[layer] - len(selected[layer]))


def test_random_neurons_are_drawn_evenly() -> None:
    """Every neuron that may be drawn is drawn equally often, and one seed gives one draw."""
    selected, widths = {0: np.array([0, 1])}, {0: 8, 1: 5}
    counts = np.zeros(8, np.int64)
    for seed in range(3000):
        drawn = random_neurons(selected, widths, np.random.default_rng(seed))
        assert list(drawn) == [0]
        counts[drawn[0]] += 1
    assert counts[:2].tolist() == [0, 0]
    assert np.abs(counts[2:] - 1000).max() < 150  # six standard deviations
    again = [random_neurons(selected, widths, np.random.default_rng(7))[0].tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_random_neurons_of_a_full_layer_come_from_the_others() -> None:
    drawn = random_neurons({0: np.arange(4)}, {0: 4, 1: 10, 2: 1}, np.random.default_rng(0))
    assert 0 not in drawn
    assert sum(map(len, drawn.values())) == 4
