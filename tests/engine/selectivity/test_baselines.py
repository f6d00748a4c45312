"""The baselines of LAPE, one number at a time, and what they need that is not there."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pytest
import torch
from elsewhere import Elsewhere

from actstore.engine.selectivity.baselines import mean_values, select_at_random, select_by_probability
from actstore.engine.selectivity.entropy import select_neurons
from actstore.engine.selectivity.methods import METHODS
from actstore.engine.selectivity.selectivity import SelectivitySettings, find_selectivity
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.reader import Capture

LABELS = ("en", "fr")


@pytest.fixture(scope="module")
def planted() -> tuple[Capture, dict[int, NDArray[np.float32]]]:
    """A capture of two languages, gated, with some values that are not finite."""

    def holes(values: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
        changed = values.copy()
        changed[2, ::4] = np.nan
        changed[1] = np.abs(changed[1])
        return changed

    capture, values = planted_stores.planted("corpus", f"memory://{uuid.uuid4()}/store", values=holes)
    return capture, values


def means(capture: Capture, values: dict[int, NDArray[np.float32]]) -> NDArray[np.float64]:
    tokens = capture.tokens()
    language = tokens["document"].to_numpy() % 2
    counted = tokens["modality"].to_numpy(zero_copy_only=False) != "special"
    rows = []
    for a in values.values():
        for row in a.astype(np.float64):
            of_labels = [row[counted & (language == k)] for k in (0, 1)]
            rows.append([np.mean([x for x in values_of if np.isfinite(x)]) for values_of in of_labels])
    return np.array(rows)


def test_the_most_often_firing_above_95_percent_are_those_of_lap() -> None:
    probabilities = np.array([[0.96, 0.2], [0.99, 0.98], [0.95, 0.95], [0.0, 0.97], [0.1, 0.1]])
    found = select_by_probability(probabilities, 1.0)
    assert found.neurons.tolist() == [1, 3, 0]
    assert found.members.tolist() == [[True, True], [False, True], [True, False]]
    assert (found.threshold, found.n_candidates) == (0.95, 3)
    assert select_by_probability(probabilities, 0.4).neurons.tolist() == [1, 3]


def test_lave_takes_means_of_finite_values_where_lape_takes_probabilities(
    planted: tuple[Capture, dict[int, NDArray[np.float32]]],
) -> None:
    capture, values = planted
    expected = means(capture, values)
    np.testing.assert_allclose(mean_values(capture, "language", LABELS, "mlp.post"), expected, rtol=1e-6)
    shared = mean_values(capture, "language", LABELS, "mlp.post", Elsewhere())
    assert shared.tobytes() == mean_values(capture, "language", LABELS, "mlp.post").tobytes()
    settings = SelectivitySettings("language", "mlp.post", share=0.2, activation_quantile=0.5, method="lave")
    found = find_selectivity(capture, settings)
    by_entropy = select_neurons(np.maximum(expected, 0), 0.2, 0.5)
    assert found.selection.neurons.tolist() == by_entropy.neurons.tolist()
    assert np.array_equal(found.selection.members, by_entropy.members)
    with pytest.raises(InvalidInputError, match=r"are those of mlp\.gate, which capture 'corpus' does not hold"):
        find_selectivity(capture, SelectivitySettings("language", method="lave"))


def test_pv_takes_how_far_write_vectors_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    weights: dict[str, dict[str, torch.Tensor]] = {}
    monkeypatch.setattr(
        "actstore.store.model.weights.read_weights", lambda folder, part: weights[folder.location][part]
    )

    def plant(moved: dict[int, float]) -> Capture:
        """A capture of a model of which some neurons of layer 0 have write vectors longer by a share."""
        capture, _ = planted_stores.planted("corpus", f"memory://{uuid.uuid4()}/store")
        generator = torch.Generator().manual_seed(3)
        own = weights[capture.folder.location] = {}
        for layer, width in enumerate(planted_stores.WIDTHS):
            vectors = torch.randn(width, 6, generator=generator)
            for neuron, share in moved.items() if layer == 0 else ():
                vectors[neuron] *= 1 + share
            own[f"layer-{layer}"] = {"write_vectors": vectors}  # type: ignore[assignment]
        return capture

    base = plant({})
    tuned = {"en": plant({1: 0.5, 2: 0.5}).store, "fr": plant({2: 0.5, 4: 0.1}).store}
    settings = SelectivitySettings("language", share=0.05, activation_quantile=0.9, method="pv")
    found = find_selectivity(base, settings, tuned=tuned)
    # Neurons 1 and 4 moved for one language only.
    rates = np.zeros((45, 2))
    rates[1, 0] = rates[2, 0] = rates[2, 1] = 0.5
    rates[4, 1] = 0.1
    expected = select_neurons(rates, 0.05, 0.9)
    assert found.selection.neurons.tolist() == expected.neurons.tolist() == [1, 4]
    assert found.firing.names(found.neurons["en"]) == ["L0.N1"]
    assert found.firing.names(found.neurons["fr"]) == ["L0.N4"]
    with pytest.raises(InvalidInputError, match="there is none of 'fr'"):
        find_selectivity(base, settings, tuned={"en": tuned["en"]})


def test_random_neurons_are_as_many_of_each_label_as_lape_has() -> None:
    probabilities = np.random.default_rng(0).random((500, 3))
    selection = select_neurons(probabilities, 0.05, 0.9)
    found = select_at_random(selection, 7)
    assert found.members.sum(axis=0).tolist() == selection.members.sum(axis=0).tolist()
    assert found.neurons.tolist() != selection.neurons.tolist()
    assert select_at_random(selection, 7).neurons.tolist() == found.neurons.tolist()
    assert select_at_random(selection, 8).neurons.tolist() != found.neurons.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "best"}, "Expected `method` to be one of lape, lap, lave, pv, random, found 'best'"),
        ({"method": "lave", "modality": "text"}, "Leave `modality` out"),
    ],
)
def test_settings_without_meaning(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        SelectivitySettings("language", **settings)


def test_every_method_has_a_label_of_its_own() -> None:
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
