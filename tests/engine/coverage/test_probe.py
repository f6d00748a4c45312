"""The probe's fit against torch on the same objective, its span against the features themselves, and planted captures."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import planted_stores
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actstore.engine.coverage.probe import ProbeSettings, auroc, fit_logistic, probe_capture, span
from actstore.store import layout
from actstore.store.capture.plan import PlannedWindow, PlanWriter
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Capture, Store
from actstore.store.storage.folder import Folder


def fit_in_torch(features: np.ndarray, positive: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    x, y = torch.from_numpy(features), torch.from_numpy(positive).double()
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = x @ weights[:-1] + weights[-1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        loss = loss + ridge / 2 * (weights[:-1] ** 2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    found = weights.detach().numpy()
    return found[:-1], float(found[-1])


@pytest.mark.parametrize(
    ("n", "d", "ridge", "separable"), [(63, 5, 1.0, False), (40, 100, 0.3, True), (9, 3, 10, True)]
)
def test_the_fit_is_what_torch_finds_for_the_same_objective(n: int, d: int, ridge: float, separable: bool) -> None:
    rng = np.random.default_rng(n)
    features = rng.standard_normal((n, d)) * 3
    positive = features[:, 0] + (0 if separable else 4) * rng.standard_normal(n) > 0.5
    weights, intercept = fit_logistic(features, positive, ridge)
    expected, expected_intercept = fit_in_torch(features, positive, ridge)
    np.testing.assert_allclose(weights, expected, atol=2e-6)
    assert intercept == pytest.approx(expected_intercept, abs=2e-6)


def test_one_label_cannot_be_fitted() -> None:
    with pytest.raises(InvalidInputError, match="both labels"):
        fit_logistic(np.ones((3, 2)), np.ones(3, bool), 1.0)


@pytest.mark.parametrize("shape", [(30, 200), (30, 4), (30, 1)])
def test_a_fit_in_the_span_of_the_samples_predicts_what_a_fit_on_the_features_does(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal(shape)
    positive = rng.random(30) < 0.4
    train = np.arange(20)
    weights, intercept = fit_logistic(features[train], positive[train], 0.7)
    coordinates = span(features @ features.T, train)
    assert coordinates.shape[1] == min(20, shape[1])
    found, found_intercept = fit_logistic(coordinates[train], positive[train], 0.7)
    np.testing.assert_allclose(coordinates @ found + found_intercept, features @ weights + intercept, atol=1e-6)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_auroc_counts_pairs_and_halves_ties(rows: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    expected = np.mean(pairs) if pairs else np.nan
    np.testing.assert_allclose(auroc(scores, positive), expected)


def prompts(n: int, tell: Any, seed: int = 0, same_text: bool = False) -> Capture:
    """A capture of `n` labelled prompts of two to six tokens; `tell(values, is_french, last)` plants what tells them apart."""
    where = f"memory://{uuid.uuid4()}/store"
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 7, n)
    french = np.arange(n) % 3 == 0
    pairs = (("language", "fr"), ("language", "en"))

    def plan(folder: Folder, name: str, what: Any) -> tuple[Any, list[PlannedWindow]]:
        writer = PlanWriter(folder, name, 64, {})
        windows = []
        for i, length in enumerate(lengths.tolist()):
            text = i // 6 if same_text else i
            writer.add_document({"source": f"x:{i}", "sha256": f"{text:064d}", "n_tokens": length})
            modality = np.full(length, layout.TEXT, np.uint8)
            modality[0] = layout.SPECIAL
            windows.append(PlannedWindow(i, rng.integers(0, 99, length).astype(np.int32), np.arange(length, dtype=np.int32),
                                         modality, (0 if french[i] else 1,)))  # fmt: skip
        blocks: list[list[PlannedWindow]] = [[]]
        for window in windows:
            if sum(len(w.kept) for w in blocks[-1]) + len(window.kept) > 64:
                blocks.append([])
            blocks[-1].append(window)
        for block in blocks:
            writer.add_block([block])
        record = replace(template, fingerprint=writer.close(pairs), labels=pairs, label_columns=("language",), settings={},
                         n_documents=n, n_windows=n, n_tokens=int(lengths.sum()), n_blocks=len(blocks))  # fmt: skip
        return record, windows

    template, _ = planted_stores.plan_windows(
        Folder(f"{where}-template", read_only=False), "x", planted_stores.Planted()
    )
    last = np.cumsum(lengths) - 1

    def values(found: np.ndarray, layer: int) -> np.ndarray:
        return tell(found, french, last, layer)

    before = planted_stores.plan_windows
    planted_stores.plan_windows = plan
    try:
        planted_stores.plant(where, "corpus", planted_stores.Planted(values=values))
    finally:
        planted_stores.plan_windows = before
    return Store(where).capture()


def in_layer_1(values: np.ndarray, french: np.ndarray, last: np.ndarray, layer: int) -> np.ndarray:
    if layer == 1:
        values[7, last] = np.where(french, 6, -6)
    return values


def test_a_planted_difference_is_found_in_its_layer_and_in_all_together() -> None:
    found = probe_capture(prompts(150, in_layer_1), "language", "fr")
    by_layer = {row.layer: row for row in found.results}
    assert set(by_layer) == {0, 1, None}
    assert by_layer[1].auroc > 0.99
    assert by_layer[1].accuracy > 0.95
    assert by_layer[None].auroc > 0.99
    assert 0.2 < by_layer[0].auroc < 0.8
    assert found.n_train == (70, 35)
    assert found.n_test == (30, 15)
    assert found.majority == pytest.approx(30 / 45)
    assert found.warnings == ("Only 15 samples of language=fr are in the test part: accuracy and AUROC are uncertain by "
                              "several hundredths.",)  # fmt: skip


def test_only_the_last_token_is_looked_at() -> None:
    def before(values: np.ndarray, french: np.ndarray, last: np.ndarray, layer: int) -> np.ndarray:
        values[3, last - 1] = np.where(french, 6, -6)
        return values

    found = probe_capture(prompts(150, before), "language", "fr")
    assert all(row.auroc < 0.8 for row in found.results)


def test_documents_of_one_text_stay_on_one_side() -> None:
    def of_text(values: np.ndarray, french: np.ndarray, last: np.ndarray, layer: int) -> np.ndarray:
        # Each text has neurons of its own: only who saw it in training could tell.
        values[:, last] = (
            np.random.default_rng(1).standard_normal((len(values), len(last) // 6 + 1)).repeat(6, 1)[:, : len(last)]
        )
        values[0, last] += french * 1e-3
        return values

    found = probe_capture(prompts(120, of_text, same_text=True), "language", "fr")
    assert sum(found.n_train) == 84
    assert sum(found.n_test) == 36, "of 20 texts, 6 are tested, with all their 6 documents each"


def test_the_split_is_the_seeds_and_the_result_repeats() -> None:
    capture = prompts(60, in_layer_1)
    first, again = (probe_capture(capture, "language", "fr", "en", ProbeSettings(layers=(0,))) for _ in range(2))
    assert first == again
    assert len(first.results) == 1
    other = probe_capture(capture, "language", "fr", "en", ProbeSettings(layers=(0,), seed=1))
    assert other.results != first.results


def test_dead_neurons_and_experts_at_rest_say_nothing() -> None:
    def dead(values: np.ndarray, french: np.ndarray, last: np.ndarray, layer: int) -> np.ndarray:
        values[:] = np.nan if layer else 3.0
        return values

    found = probe_capture(prompts(60, dead), "language", "fr")
    assert [row.auroc for row in found.results] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("topic", "x"), "has no label 'topic'. Its labels are: language. Capture again with `label_columns"),
        (("language", "de"), "No document has language=de. The values of language are: fr, en"),
        (("language", "fr", "fr"), "found 'fr' only"),
        (("language", "fr", None, ProbeSettings(layers=(0, 9))), "has the layers 0, 1 at mlp.post, found 9"),
        (("language", "fr", None, ProbeSettings(site="attn.out")), "no site 'attn.out'"),
    ],
)
def test_what_cannot_be_probed(asked: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        probe_capture(prompts(9, in_layer_1), *asked)


def test_one_document_of_a_label_is_too_few() -> None:
    with pytest.raises(InvalidInputError, match="language=fr has 1 documents of different texts, too few"):
        probe_capture(prompts(3, in_layer_1), "language", "fr")


@pytest.mark.parametrize(
    "settings", [{"ridge": 0.0}, {"ridge": float("nan")}, {"test_share": 1.0}, {"test_share": 0.0}]
)
def test_settings_without_meaning(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match=r"`(ridge|test_share)`"):
        ProbeSettings(**settings)
