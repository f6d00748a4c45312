"""Values that a precision cannot hold: counted, said, and read as something defined by everything that computes with them."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pyarrow.parquet as pq
import pytest

from actstore.engine.coverage.criteria import CoverageSettings
from actstore.engine.coverage.measure import measure_coverage
from actstore.store.capture.positions import warnings_of
from actstore.store.capture.saturation import overflow_sentences, saturated_maxima
from actstore.store.errors import NotFoundError
from actstore.store.exports.export import export_activations
from actstore.store.reader import Capture, Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from pathlib import Path

LARGE = {0: [(2, 1), (2, 5)], 1: [(0, 0), (7, 9), (39, 100)]}
"""Layer → (neuron, token) of planted values beyond float16; token 0 is a special one, which no mean counts."""
AS_PLANTED = np.float32([1e5, -2e5, 65520, 3e38, 70000])


def enlarge(values: Any, layer: int) -> Any:
    """65,519 is the largest magnitude that does not round to infinity; one value more is infinite in the model itself."""
    for number, (neuron, token) in enumerate(LARGE[layer]):
        values[neuron, token] = AS_PLANTED[number + 2 * layer]
    values[4, 21] = 65519
    values[3, 30] = -np.inf
    return values


def plant(**what: Any) -> Capture:
    return planted_stores.planted(values=enlarge, **({"precision": "half"} | what))[0]


def plant_as_earlier_versions_did(monkeypatch: pytest.MonkeyPatch, **what: Any) -> Capture:
    """A store whose record lists no statistics, and whose blocks, finished statistics and table have no overflow."""
    fill, record = planted_stores.fill, planted_stores.capture_record

    def fill_without(*arguments: Any) -> Any:
        arrays, statistics = fill(*arguments)
        for of_layer in statistics.sites.values():
            of_layer.drop(["overflow"])
        return arrays, statistics

    with monkeypatch.context() as patch:
        patch.setattr(planted_stores, "fill", fill_without)
        patch.setattr(planted_stores, "capture_record", lambda *arguments: replace(record(*arguments), statistics=()))
        where = plant(**what).folder.location
    folder = Folder(where, read_only=False)
    assert not folder.exists("captures/corpus/statistics/mlp.post/overflow/zarr.json")
    return Store(where).capture()


@pytest.mark.parametrize("blocks", [None, (0, 2)])
def test_overflow_is_counted_by_neuron_special_tokens_included(blocks: tuple[int, ...] | None) -> None:
    capture = plant(blocks=blocks, finish=blocks is None)
    stored = {layer: np.isposinf(np.abs(rows)) for layer, rows in all_values(capture).items()}
    rows = {row["name"]: row["overflow"] for row in capture.neurons().to_pylist()}
    for layer, infinite in stored.items():
        infinite[3] = False  # the model's own
        assert [rows[f"L{layer}.N{i}"] for i in range(len(infinite))] == infinite.sum(axis=1).tolist()
    found = capture.overflow["mlp.post"]
    assert found.names == ["L0.N2", "L1.N0", "L1.N7", "L1.N39"][: None if blocks is None else 3]
    assert found.n_values == sum(int(infinite.sum()) for infinite in stored.values())
    assert capture.statistics().n_non_finite == 2
    assert verify_capture(capture) == []


def all_values(capture: Capture, **how: Any) -> dict[int, Any]:
    return {
        layer: np.stack([capture.activations(layer, i, **how) for i in range(width)])
        for layer, width in enumerate(planted_stores.WIDTHS)
    }


@pytest.mark.parametrize("precision", ["exact", "int8", "sparse", "none"])
def test_no_other_precision_overflows(precision: str) -> None:
    capture = plant(precision=precision)
    assert capture.overflow == {}
    assert set(capture.neurons()["overflow"].to_pylist()) == {0}
    assert overflow_sentences(capture) == []


def test_stored_values_stay_infinite_and_saturated_ones_do_not() -> None:
    capture, exact = plant(), plant(precision="exact")
    stored, saturated, planted = (
        all_values(c, **how) for c, how in ((capture, {}), (capture, {"saturated": True}), (exact, {}))
    )
    for layer in (0, 1):
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(stored[layer], planted[layer].astype(np.float16).astype(np.float32))
        expected = np.clip(stored[layer], -65504, 65504)
        expected[3] = stored[layer][3]  # infinite in the model
        np.testing.assert_array_equal(saturated[layer], expected)
        for block in capture.blocks:
            slots = slice(capture.used_slots[block])
            rows = capture.block_values(layer, block, saturated=True)
            raw = capture.raw_block(layer, block, saturated=True)
            np.testing.assert_array_equal(rows, raw.astype(np.float32))
            np.testing.assert_array_equal(capture.block_row(layer, 2, block, saturated=True), rows[2])
            first = int(capture.used_slots[list(capture.blocks[: capture.blocks.index(block)])].sum())
            np.testing.assert_array_equal(rows[:, slots], saturated[layer][:, first:][:, slots])


def test_what_is_said_names_neurons_counts_and_the_way_out() -> None:
    capture = plant()
    (sentence,) = overflow_sentences(capture)
    assert sentence == (
        "5 activations of 4 neurons (L0.N2, L1.N0, L1.N7, …) at mlp.post of capture 'corpus' lie beyond 65,504, the largest "
        "float16, and are stored as infinite: such a value counts as 65,504 here. Capture with "
        '`precision="exact"` to keep every value.'
    )
    (sentence,) = overflow_sentences(capture, ["mlp.post"], "they are infinite", [(1, 7), (1, 8)])
    assert sentence.startswith("1 activation of 1 neuron (L1.N7) at mlp.post of capture 'corpus' lies beyond 65,504, ")
    assert "is stored as infinite: they are infinite." in sentence
    assert overflow_sentences(capture, neurons=[(0, 0), (1, 8)]) == []
    assert overflow_sentences(capture, ["mlp.gate"]) == []


@pytest.mark.parametrize("finish", [True, False])
def test_a_store_of_earlier_versions_opens_and_its_overflow_is_not_known(
    monkeypatch: pytest.MonkeyPatch, finish: bool
) -> None:
    capture = plant_as_earlier_versions_did(monkeypatch, finish=finish)
    assert verify_capture(capture) == []
    assert "overflow" not in capture.neurons().column_names
    with pytest.raises(
        NotFoundError, match="This capture has no statistic 'overflow': it was made by a version of actstore"
    ):
        capture.layer_statistics(1, "mlp.post").overflow  # noqa: B018
    # The extremes, which are exact, tell of all but special tokens.
    assert capture.overflow["mlp.post"].names == ["L0.N2", "L1.N7", "L1.N39"]
    assert capture.overflow["mlp.post"].n_values is None
    (sentence,) = overflow_sentences(capture)
    assert sentence.startswith(
        "Activations of 3 neurons (L0.N2, L1.N7, L1.N39) at mlp.post of capture 'corpus' lie beyond"
    )
    with np.errstate(over="ignore"):
        expected = np.clip(capture.activations(1, 7), -65504, 65504)
    np.testing.assert_array_equal(capture.activations(1, 7, saturated=True), expected)


def test_a_lost_statistic_is_damage_where_the_blocks_have_it() -> None:
    where = plant().folder.location
    folder = Folder(where, read_only=False)
    folder.delete("captures/corpus/statistics/mlp.post/overflow/zarr.json")
    assert [damage.key for damage in verify_capture(Store(where).capture())] == ["statistics"]


def test_shares_of_the_maximum_are_reached_by_stored_values() -> None:
    capture = plant()
    maxima = {layer: saturated_maxima(capture, layer, "mlp.post") for layer in (0, 1)}
    exact = capture.layer_statistics(1, "mlp.post").maximum
    assert (maxima[1][7], maxima[1][39], maxima[1][4]) == (65504, 65504, 65519)
    assert (exact[7], exact[39]) == (np.float32(3e38), 70000)
    others = np.delete(np.arange(40), [7, 39])
    np.testing.assert_array_equal(maxima[1][others], exact[others])


def test_coverage_takes_them_for_large_values_and_says_so() -> None:
    capture, exact = plant(), plant(precision="exact")
    reference = planted_stores.planted(precision="exact")[0]  # nothing large there
    settings = CoverageSettings(("snac",))
    found, expected = (
        measure_coverage(one, settings, reference=reference)[""].results()[0].covered for one in (capture, exact)
    )
    assert found == expected
    assert len(warnings_of(capture, "mlp.post")) == 1


def test_exemplars_beyond_the_recorded_are_found_among_them(tmp_path: Path) -> None:
    capture = plant(n_exemplars=0)
    (best,) = capture.store.neuron("L1.N7").exemplars(1).to_pylist()
    assert (best["slot"], best["value"]) == (9, 65504)


def test_an_export_has_what_is_stored(tmp_path: Path) -> None:
    capture = plant()
    export_activations(capture, tmp_path / "n.parquet", neurons=[(1, 7)])
    column = pq.read_table(tmp_path / "n.parquet")["L1.N7"].to_numpy()
    np.testing.assert_array_equal(column, capture.activations(1, 7))
    assert np.isinf(column[9])


# int8


def infinite(values: Any, layer: int) -> Any:
    values[3, :4] = [np.inf, -np.inf, 70000, 1]
    values[4] = np.inf
    values[1, ::3] = np.nan
    values[2, 5] = -np.inf
    return values


def test_int8_keeps_infinities_and_nan() -> None:
    capture, values = planted_stores.planted(precision="int8", values=infinite)
    for layer, planted in values.items():
        found = np.stack([capture.activations(layer, i) for i in range(len(planted))])
        finite = np.isfinite(planted)
        np.testing.assert_array_equal(np.where(finite, 0, found), np.where(finite, 0, planted))
        assert np.isfinite(found[finite]).all()
        ends = np.cumsum(capture.used_slots)
        for block in capture.blocks:
            tokens = slice(int(ends[block] - capture.used_slots[block]), int(ends[block]))
            scale = capture.block_parameter("scale", layer, block)[:, None]
            error = np.abs(np.where(finite, found, 0) - np.where(finite, planted, 0))[:, tokens]
            assert (error <= scale / 2 * np.float32(1 + 2**-22)).all()


def test_int8_of_earlier_versions_reads_as_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wrote an infinity as ±127 of an unmarked scale, which nothing can tell from the largest value any more."""
    capture, _ = planted_stores.planted(precision="int8", values=infinite)
    steps = capture.raw_block(0, 0)
    scale = capture.block_parameter("scale", 0, 0) + 0
    unmarked = (scale.view(np.uint32) & ~np.uint32(127)).view(np.float32)
    monkeypatch.setattr(Capture, "block_parameter", lambda *arguments: unmarked)
    expected = np.where(steps == -128, np.float32(np.nan), steps.astype(np.float32) * unmarked[:, None])
    np.testing.assert_array_equal(capture.block_values(0, 0), expected)
    assert np.isfinite(capture.block_values(0, 0)[[3, 4], :4]).all()


def test_sparse_keeps_nan_and_infinities() -> None:
    capture, values = planted_stores.planted(precision="sparse", values=infinite)
    found = np.stack([capture.activations(1, i) for i in range(40)])
    finite = np.isfinite(values[1])
    np.testing.assert_array_equal(np.where(finite, 0, found), np.where(finite, 0, values[1]))


def test_exact_keeps_every_bit_of_what_is_not_finite() -> None:
    bits = np.uint32([0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000])

    def odd(values: Any, layer: int) -> Any:
        values[0, :5] = bits.view(np.float32)
        return values

    capture, _ = planted_stores.planted(values=odd, where=f"memory://{uuid.uuid4()}/store")
    np.testing.assert_array_equal(capture.activations(0, 0)[:5].view(np.uint32), bits)
