"""Predictions after last-position interventions: both paths against whole passes under hooks of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep import build

from actstore.engine.attribution.scaled_last_position import LastPosition, Predictions, Variants
from actstore.engine.models.load import LoadedModel, load_model
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

IDS = [17, 93, 5, 66, 101, 44, 8, 72, 23, 110, 39, 58]
OPTIONS = [7, 3, 99, 7]
CACHED = ("llama", "gpt2", "gemma2", "gpt_neox", "opt", "bloom")
FACTS = Path(__file__).parents[3] / "demo" / "models" / "fact-llama"

_models: dict[str, LoadedModel] = {}


def make(name: str) -> LoadedModel:
    if name not in _models:
        _models[name] = load_model(FACTS, device="cpu") if name == "facts" else LoadedModel(build(name), name=name)
    return _models[name]


def by_hand(model: LoadedModel, ids: list[int], sets: list[NDArray[np.int64]], factors: list[float]) -> NDArray[Any]:
    """The probabilities [1 + variant, vocabulary] of whole passes, a variant at a time."""
    starts = np.cumsum([0, *(layer.neurons for layer in model.spec.layers)])
    found = []
    for neurons, factor in [(np.empty(0, np.int64), 1.0), *zip(sets, factors, strict=True)]:
        handles = []
        for layer, start, stop in zip(model.spec.layers, starts, starts[1:], strict=False):
            inside = neurons[(neurons >= start) & (neurons < stop)] - start

            def hook(_module: Any, args: Any, inside: Any = inside, factor: float = factor) -> Any:
                values = args[0].clone()
                values.reshape(-1, values.shape[-1])[-1, inside] *= factor  # contiguous: a view
                return (values, *args[1:])

            handles.append(model.model.get_submodule(layer.module).register_forward_pre_hook(hook))
        with torch.no_grad():
            logits = model.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        found.append(logits.float().softmax(-1).numpy())
        for handle in handles:
            handle.remove()
    return np.stack(found)


def expect_same(model: LoadedModel, found: Predictions, expected: NDArray[Any], options: list[int]) -> None:
    np.testing.assert_allclose(found.probabilities, expected[:, options], rtol=1e-5, atol=1e-7)
    best = np.take_along_axis(expected, found.tokens[:, None], 1)[:, 0]
    assert (best >= expected.max(1) * (1 - 1e-5)).all()


def some_variants(model: LoadedModel, n: int, seed: int = 0) -> tuple[list[NDArray[np.int64]], list[float]]:
    rng = np.random.default_rng(seed)
    total = sum(layer.neurons for layer in model.spec.layers)
    sets = [rng.choice(total, size, replace=False) for size in rng.integers(0, 30, n)]
    sets[0], sets[-1] = np.empty(0, np.int64), np.array([total - 1])
    return sets, [*rng.choice([0.0, 2.0, -1.5], n)]


@pytest.mark.parametrize("path", ["cached", "full"])
@pytest.mark.parametrize("name", [*CACHED, "facts"])
def test_predictions_are_those_of_whole_passes(name: str, path: str) -> None:
    model = make(name)
    sets, factors = some_variants(model, 17)
    passes = LastPosition(model, max_rows=5, path=path)  # four passes of the cached path, the last of one row
    found = passes.predict(IDS, Variants.of(sets, factors), OPTIONS)
    expected = by_hand(model, IDS, sets, factors)
    assert np.abs(expected[1:] - expected[0]).max() > 1e-4
    expect_same(model, found, expected, OPTIONS)
    assert (passes.fallback is None) == (path == "cached")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(2, 9), max_rows=st.integers(1, 12), length=st.integers(1, 12))
def test_however_variants_are_cut_into_passes(seed: int, n: int, max_rows: int, length: int) -> None:
    model = make("llama")
    sets, factors = some_variants(model, n, seed)
    found = LastPosition(model, max_rows=max_rows).predict(IDS[:length], Variants.of(sets, factors), OPTIONS)
    expect_same(model, found, by_hand(model, IDS[:length], sets, factors), OPTIONS)


def test_the_factor_that_changes_nothing_and_no_variants() -> None:
    model = make("gpt2")
    passes = LastPosition(model)
    none = passes.predict(IDS, Variants.of([], []), OPTIONS)
    assert none.probabilities.shape == (1, 4)
    same = passes.predict(IDS, Variants.of([np.arange(passes.n_neurons)], [1.0]), OPTIONS)
    np.testing.assert_allclose(same.probabilities[1], none.probabilities[0], rtol=1e-5)
    assert none.probabilities[0, 0] == none.probabilities[0, 3]


@pytest.mark.parametrize("name", ["jamba", "gpt_neo"])
def test_models_without_such_a_cache_take_the_full_sequence(name: str) -> None:
    model = make(name)
    layers = [i for i, layer in enumerate(model.spec.layers) if layer.expert is None]
    passes = LastPosition(model, layers)
    everything = Variants.of([np.arange(passes.n_neurons), np.empty(0, np.int64)], [0.0, 0.0])
    found = passes.predict(IDS, everything, OPTIONS)
    assert passes.fallback
    assert np.abs(found.probabilities[1] - found.probabilities[0]).max() > 1e-5
    np.testing.assert_allclose(found.probabilities[2], found.probabilities[0], rtol=1e-5)
    with pytest.raises(InvalidInputError, match="cached path"):
        LastPosition(model, layers, path="cached").predict(IDS, everything, OPTIONS)


@pytest.mark.parametrize(
    ("ids", "neurons", "options", "message"),
    [
        ([], [0], [1], "at least one of the token ids"),
        ([4, 128], [0], [1], "token ids from 0 to 127"),
        ([4, 5], [96], [1], "neurons from 0 to 95"),
        ([4, 5], [0], [-1], "options from 0 to 127"),
        ([4, 5], [0], [], "at least one of the options"),
    ],
)
def test_what_the_model_does_not_have_is_said(ids: Any, neurons: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        LastPosition(make("llama")).predict(ids, Variants.of([np.array(neurons)], [2.0]), options)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="max_rows"):
        LastPosition(make("llama"), max_rows=0)
    with pytest.raises(InvalidInputError, match="path"):
        LastPosition(make("llama"), path="fast")
