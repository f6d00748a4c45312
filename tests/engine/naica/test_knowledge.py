"""Knowledge neurons: planted ones are found, and the share moves as it is said to."""

from __future__ import annotations

import numpy as np
import pytest
from planted_attributions import PlantedAttributions

from actstore.engine.naica.knowledge import Refinement, knowledge_neurons
from actstore.engine.naica.stored_knowledge import each_knowledge_neurons, size_warning
from actstore.store.errors import InvalidInputError


def plant(counts: dict[int, int], n_prompts: int = 20, n_neurons: int = 60) -> np.ndarray:
    """Attributions [prompt, neuron] in which neuron n is kept by `counts[n]` prompts; the rest are a tenth of the largest."""
    values = np.full((n_prompts, n_neurons), 0.1, np.float32)
    values[np.arange(n_prompts), 30 + np.arange(n_prompts)] = 1.0  # each prompt's largest is its own
    for neuron, count in counts.items():
        values[:count, neuron] = 0.5
    return values


def test_neurons_of_seven_prompts_in_ten_are_the_facts() -> None:
    found = knowledge_neurons(plant({3: 20, 8: 14, 11: 13, 20: 2}))
    assert found.neurons.tolist() == [3, 8]
    assert found.n_prompts.tolist() == [20, 14]
    assert found.share == 0.7


def test_the_scale_of_a_prompt_does_not_matter_and_a_fifth_is_kept() -> None:
    values = plant({3: 20, 8: 20})
    values[:, 8] = 0.2
    scaled = values * np.linspace(1, 50, len(values), dtype=np.float32)[:, None]
    assert knowledge_neurons(values).neurons.tolist() == [3, 8]
    assert knowledge_neurons(scaled * 2.0).neurons.tolist() == [3, 8]
    values[:, 8] = 0.19
    assert knowledge_neurons(values, Refinement(at_least=1)).neurons.tolist() == [3]


def test_too_few_lower_the_share_step_by_step() -> None:
    found = knowledge_neurons(plant({3: 20, 8: 10, 9: 9}))
    assert found.neurons.tolist() == [3, 8]
    assert found.share == 0.5


def test_too_many_raise_it() -> None:
    found = knowledge_neurons(plant({n: 20 - n for n in range(7)}))  # kept by 20, 19, …, 14
    assert found.neurons.tolist() == [0, 1, 2, 3, 4]
    assert found.share == 0.8


def test_a_jump_over_the_range_leaves_the_larger_set() -> None:
    down = knowledge_neurons(plant({0: 20, **dict.fromkeys(range(1, 8), 10)}))
    assert down.neurons.tolist() == list(range(8))
    assert down.share == 0.5
    up = knowledge_neurons(plant({0: 20, **dict.fromkeys(range(1, 8), 16)}))
    assert up.neurons.tolist() == list(range(8))
    assert up.share == 0.8
    assert knowledge_neurons(plant(dict.fromkeys(range(9), 20))).share == 1.0


def test_one_prompt_is_the_least_a_neuron_needs() -> None:
    values = np.zeros((4, 5), np.float32)
    values[0, 2] = 1
    found = knowledge_neurons(values)
    assert found.neurons.tolist() == [2]
    assert found.n_prompts.tolist() == [1]


def test_prompts_without_positive_attributions_and_nan_keep_nothing() -> None:
    values = np.full((3, 4), -1.0, np.float32)
    values[1] = np.nan
    assert knowledge_neurons(values).neurons.tolist() == []
    values[2] = [np.nan, 1, 0.5, 0.1]
    assert knowledge_neurons(values).neurons.tolist() == [1, 2]
    assert knowledge_neurons(np.empty((3, 0), np.float32)).neurons.tolist() == []


@pytest.mark.parametrize(("shape", "found"), [((4,), r"\[4\]"), ((0, 3), r"\[0, 3\]")])
def test_shapes_that_are_not_prompts_by_neurons(shape: tuple[int, ...], found: str) -> None:
    with pytest.raises(InvalidInputError, match=f"with at least one prompt, found shape {found}"):
        knowledge_neurons(np.zeros(shape, np.float32))


@pytest.mark.parametrize("settings", [{"keep": 0}, {"share": 1.5}, {"step": 0}, {"at_least": 6}])
def test_thresholds_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match=f"`{next(iter(settings))}` must be"):
        Refinement(**settings)


def sizes_and_warning(n_prompts: int) -> tuple[list[int], str]:
    """Ten queries, each prompt of which keeps one neuron of its own beside two that all but one prompt keep."""
    scores = np.zeros((10, n_prompts, 40), np.float32)
    scores[:, np.arange(n_prompts), 2 + np.arange(n_prompts)] = 1.0
    scores[:, 1:, 0] = scores[:, :-1, 1] = 0.5
    planted = PlantedAttributions(ig=scores)
    sizes = [len(result.neurons) for _, result in each_knowledge_neurons(planted)]  # type: ignore[arg-type]
    return sizes, size_warning(sizes, planted)  # type: ignore[arg-type]


def test_too_few_prompts_for_a_few_neurons_are_a_warning_that_says_how_many_it_takes() -> None:
    # Of two prompts one keeps each of the four neurons, and both keep none: the share falls to one prompt.
    sizes, warning = sizes_and_warning(2)
    assert sizes == [4] * 10
    assert warning == ""
    scores = np.zeros((10, 3, 40), np.float32)
    scores[:, 0, :7] = scores[:, 1, 7:14] = scores[:, 2, 14:21] = 1
    planted = PlantedAttributions(ig=scores)
    sizes = [len(result.neurons) for _, result in each_knowledge_neurons(planted)]  # type: ignore[arg-type]
    assert sizes == [21] * 10
    assert size_warning(sizes, planted) == (  # type: ignore[arg-type]
        "10 of 10 queries have not 2 to 5 knowledge neurons, but 21.0 in the mean, at 3 prompts per query. A share of 0.7 is "
        "all of them, and can be raised from 4 prompts on; one step of 0.05 is one prompt from 20 on."
    )
    assert size_warning([21] + [3] * 9, planted) == ""  # type: ignore[arg-type]
    sizes, warning = sizes_and_warning(8)
    assert (sizes, warning) == ([2] * 10, "")


@pytest.mark.parametrize(("share", "fewest"), [(0.7, 4), (0.5, 2), (0.9, 10), (0.95, 20), (1.0, 0)])
def test_from_how_many_prompts_on_a_share_is_not_all(share: float, fewest: int) -> None:
    assert Refinement(share=share).fewest_prompts == fewest
