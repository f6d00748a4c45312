"""Coactivations of a capture against numpy over all tokens at once: one neuron's, and every neuron's nearest."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from elsewhere import Elsewhere
from planted_stores import WIDTHS, planted

from actstore.engine.coactivation import nearest as nearest_module
from actstore.engine.coactivation.coactivation import Coactivations, find_coactivation
from actstore.engine.coactivation.nearest import NearestNeurons, find_nearest
from actstore.engine.coactivation.pairs import Pairs, compare
from actstore.engine.coactivation.settings import CoactivationSettings
from actstore.engine.coactivation.warnings import coactivation_warnings
from actstore.kernels.floats import decode, encode
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.layout import SPECIAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

LENGTHS = (20, 30, 14, 40, 24, 7, 50, 33, 61)
N_NEURONS = sum(WIDTHS)
Row = dict[str, Any]


def correlated(values: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
    """Neurons that share a part of their activations, more or less, some against others; one never changes, one never fires."""
    shared = np.random.default_rng(99).standard_normal(values.shape[1]).astype(np.float32)
    weights = np.linspace(-2, 2, len(values), dtype=np.float32)
    values = (values + weights[:, None] * shared + 0.1 * layer).astype(np.float32)
    values[1] = 0.1
    values[3] = -np.abs(values[3])
    return values


def with_gaps(values: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
    """The same of an expert, layer 1, which has no values at most tokens; and some values are NaN or infinite."""
    values = correlated(values, layer)
    values[4, 7] = np.nan
    values[2, 5], values[0, 100] = np.inf, -np.inf
    if layer == 1:
        values[:, np.random.default_rng(5).random(values.shape[1]) < 0.6] = np.nan
    return values


@cache
def capture_of(values: Callable[..., NDArray[np.float32]], precision: str = "exact") -> Capture:
    """A finished capture; not to be written to."""
    return planted(lengths=LENGTHS, precision=precision, values=values)[0]


@cache
def activations(capture: Capture, layer: int, neuron: int) -> NDArray[np.float64]:
    return capture.activations(layer, neuron, saturated=True).astype(np.float64)


def reference(capture: Capture, of: tuple[int, int], threshold: float = 0.0, positions: str = "counted") -> list[Row]:
    """Of every neuron, layer by layer, the measures as numpy and sets have them."""
    modality = np.concatenate([capture.block_plan(block).modality for block in capture.blocks])
    seen = np.ones(len(modality), bool) if positions == "all" else modality != SPECIAL
    x = activations(capture, *of)[seen]
    fired = set(np.flatnonzero(x > np.float32(threshold)).tolist())
    rows = []
    for layer, width in capture.record.layers("mlp.post").items():
        for neuron in range(width):
            y = activations(capture, layer, neuron)[seen]
            both = np.isfinite(x) & np.isfinite(y)
            changes = both.any() and np.ptp(x[both]) > 0 and np.ptp(y[both]) > 0
            fires = set(np.flatnonzero(y > np.float32(threshold)).tolist())
            rows.append(
                {
                    "name": f"L{layer}.N{neuron}",
                    "correlation": float(np.corrcoef(x[both], y[both])[0, 1]) if changes else None,
                    "jaccard": len(fired & fires) / len(fired | fires) if fired | fires else None,
                    "both_fire": len(fired & fires),
                    "fires": len(fires),
                    "tokens": int(both.sum()),
                }
            )
    return rows


def assert_same(found: list[Row], expected: list[Row]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in ("name", "both_fire", "fires", "tokens"):
            assert one[name] == other[name], (one, other)
        for name in ("correlation", "jaccard"):
            assert one[name] == (None if other[name] is None else pytest.approx(other[name], abs=2e-6)), (one, other)


def ranked(rows: list[Row], sort: str, k: int, without: str) -> list[Row]:
    """The k best of the rows; a stable sort leaves ties to the earlier neuron."""
    valued = [row for row in rows if row[sort] is not None and row["name"] != without]
    return sorted(valued, key=lambda row: -row[sort])[:k]


def everything(found: Coactivations) -> list[Row]:
    """All neurons in their order, as rows of the table."""
    columns = ("correlation", "jaccard", "both_fire", "fires", "tokens")
    values = {name: getattr(found, name).tolist() for name in columns}
    names = found.index.names(np.arange(len(found.index)))
    rows = [{"name": name} | {c: values[c][i] for c in columns} for i, name in enumerate(names)]
    return [{k: None if v != v else v for k, v in row.items()} for row in rows]


def rows_of(found: NearestNeurons) -> dict[str, list[Row]]:
    """Name → its rows of the table."""
    rows: dict[str, list[Row]] = {}
    for row in found.table().to_pylist():
        rows.setdefault(row["name"], []).append(row)
    return rows


@pytest.mark.parametrize("precision", ["exact", "half", "int8", "sparse"])
@pytest.mark.parametrize("values", [correlated, with_gaps])
def test_a_neuron_goes_with_others_as_numpy_has_it(precision: str, values: Any) -> None:
    capture = capture_of(values, precision)
    assert len(capture.blocks) > 4
    for of in ((0, 0), (0, 4), (1, 30), (1, 1)):
        found = find_coactivation(capture, *of)
        expected = reference(capture, of)
        assert_same(everything(found), expected)
        assert found.own_fires == next(row["fires"] for row in expected if row["name"] == found.name)
        assert found.n_tokens == 270


@pytest.mark.parametrize("sort", ["correlation", "jaccard"])
def test_the_nearest_are_those_of_the_largest_values(sort: str) -> None:
    capture = capture_of(correlated)
    expected = ranked(reference(capture, (1, 30)), sort, 6, "L1.N30")
    found = find_coactivation(capture, 1, 30, CoactivationSettings(sort, 6)).table().to_pylist()
    assert_same(found, expected)
    assert found[0][sort] > 0.5
    every = find_coactivation(capture, 1, 30, CoactivationSettings(sort, 1000)).table()
    assert every.num_rows == N_NEURONS - 1 - (2 if sort == "correlation" else 0)  # two neurons never change
    assert "L1.N30" not in every["name"].to_pylist()


def test_a_neuron_that_never_changes_has_no_correlation_and_one_that_never_fires_shares_no_token() -> None:
    capture = capture_of(correlated)
    constant = find_coactivation(capture, 0, 1)
    assert np.isnan(constant.correlation).all()
    assert constant.table().num_rows == 0
    assert constant.own_fires == constant.n_tokens
    silent = find_coactivation(capture, 0, 3, CoactivationSettings("jaccard", 100))
    assert silent.own_fires == 0
    assert silent.both_fire.sum() == 0
    # Of two that never fire there is no union, and no index.
    assert np.isnan(silent.jaccard[[3, WIDTHS[0] + 3]]).all()
    assert silent.table().num_rows == N_NEURONS - 2
    assert (silent.correlation[[0, 4]] != 0).all()


@pytest.mark.parametrize("values", [correlated, with_gaps])
@pytest.mark.parametrize("threshold", [0.75, -1.0, float(np.float32(0.1))])
def test_a_threshold_says_what_fires(threshold: float, values: Any) -> None:
    capture = capture_of(values)
    found = find_coactivation(capture, 1, 20, CoactivationSettings(threshold=threshold))
    expected = reference(capture, (1, 20), threshold)
    assert_same(everything(found), expected)
    # An activation that equals the threshold is not larger.
    assert (found.fires[1] == 0) == (threshold >= np.float32(0.1))


def test_only_the_positions_that_are_chosen_count() -> None:
    capture = capture_of(correlated)
    found = find_coactivation(capture, 1, 20, CoactivationSettings(positions="all"))
    assert found.n_tokens == sum(LENGTHS)
    assert_same(everything(found), reference(capture, (1, 20), positions="all"))


def test_only_the_layers_that_are_chosen_are_looked_through() -> None:
    capture = capture_of(correlated)
    expected = reference(capture, (1, 20))
    found = find_coactivation(capture, 1, 20, CoactivationSettings(layers=(0,), k=100))
    assert_same(everything(found), expected[: WIDTHS[0]])
    own = find_coactivation(capture, 1, 20, CoactivationSettings(within_layers=True, k=100))
    assert_same(everything(own), expected[WIDTHS[0] :])
    assert own.table()["layer"].unique().to_pylist() == [1]


@pytest.mark.parametrize(("sort", "values"), [("correlation", with_gaps), ("jaccard", correlated)])
def test_every_neuron_has_the_nearest_that_it_has_alone(
    sort: str, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = capture_of(values)
    monkeypatch.setattr(nearest_module, "PAIRS", 800)  # the layer of forty neurons is two tiles
    settings = CoactivationSettings(sort, 4)
    found = rows_of(find_nearest(capture, settings))
    for layer, width in enumerate(WIDTHS):
        for neuron in range(width):
            expected = reference(capture, (layer, neuron))
            name = f"L{layer}.N{neuron}"
            own = next(row for row in expected if row["name"] == name)
            rows = found.get(name, [])
            nearest = [{**row, "name": row["other_name"], "fires": row["other_fires"]} for row in rows]
            assert_same(nearest, ranked(expected, sort, 4, name))
            assert {row["fires"] for row in rows} <= {own["fires"]}
    assert len(found) == N_NEURONS - (2 if sort == "correlation" else 0)


def test_tiles_change_no_bit_and_both_orders_of_a_pair_have_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = capture_of(correlated)
    settings = CoactivationSettings(k=N_NEURONS)
    whole = find_nearest(capture, settings).table()
    for pairs in (130, 1000):
        monkeypatch.setattr(nearest_module, "PAIRS", pairs)
        assert find_nearest(capture, settings).table().equals(whole)
    values = {(row["name"], row["other_name"]): row["correlation"] for row in whole.to_pylist()}
    assert len(values) == (N_NEURONS - 2) * (N_NEURONS - 3)
    assert all(values[other, name] == value for (name, other), value in values.items())


def test_where_sums_are_rounded_otherwise_the_first_order_of_a_pair_counts() -> None:
    """Which the kernel's are by some 1e-16: seldom enough to be seen in float32, and never the same by construction."""
    values = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    values[0, 2] = np.nan
    pairs = Pairs(values, values.copy(), *(np.arange(12).reshape(3, 4) for _ in range(2)), np.arange(3), np.arange(4))
    pairs.mirror(3)
    expected = [[0, 1, np.nan, 3], [1, 5, 6, 7], [np.nan, 6, 10, 11]]
    np.testing.assert_array_equal(pairs.correlation, expected)
    np.testing.assert_array_equal(pairs.jaccard, expected)
    assert pairs.tokens.tolist() == pairs.both_fire.tolist() == [[0, 1, 2, 3], [1, 5, 6, 7], [2, 6, 10, 11]]
    after = pairs.transposed(3)
    assert (after.correlation.tolist(), after.chosen_fires.tolist()) == ([[3, 7, 11]], [3])


def test_layers_can_be_compared_each_with_itself() -> None:
    capture = capture_of(correlated)
    within = find_nearest(capture, CoactivationSettings(k=3, within_layers=True)).table()
    assert within["layer"].equals(within["other_layer"])
    one = find_nearest(capture, CoactivationSettings(k=3, layers=(1,))).table()
    assert one.equals(within.filter(np.array(within["layer"]) == 1))


@pytest.mark.parametrize("values", [correlated, with_gaps])
def test_workers_give_the_bits_of_one_process(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = capture_of(values)
    monkeypatch.setattr(nearest_module, "PAIRS", 800)
    one, several = (find_coactivation(capture, 1, 20, executor=e).table() for e in (nearest_module.HERE, Elsewhere()))
    assert one.equals(several)
    every, of_several = (find_nearest(capture, executor=e).table() for e in (nearest_module.HERE, Elsewhere()))
    assert every.equals(of_several)


def test_an_unfinished_capture_is_compared_as_far_as_it_goes() -> None:
    capture, _ = planted(lengths=LENGTHS, values=correlated, blocks=(0, 2), finish=False)
    found = find_coactivation(capture, 0, 0)
    assert_same(everything(found), reference(capture, (0, 0)))
    assert found.n_tokens < 270
    assert find_nearest(capture).n_tokens == found.n_tokens
    assert any("is unfinished: 2 of" in sentence for sentence in coactivation_warnings(capture, found.settings))


def test_what_a_precision_rounds_away_is_said() -> None:
    for precision, words in (("int8", "rounded to a step"), ("sparse", "dropped are read as 0"), ("exact", None)):
        capture = capture_of(correlated, precision)
        warnings = coactivation_warnings(capture, CoactivationSettings())
        assert [words in sentence for sentence in warnings] == [True] * (words is not None)


@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
def test_the_formats_of_models_are_read_as_they_are(dtype: Any) -> None:
    """Of what the kernel is handed, no format is copied to float32 first; uint16 holds bfloat16."""
    values = with_gaps(np.random.default_rng(3).standard_normal((12, 150)).astype(np.float32), 1)
    narrow = encode(values, dtype)
    counted = np.arange(150) % 7 > 0
    assert np.isnan(values).all(axis=0).any()
    found, expected = (compare(v[:3], v, counted, 0.25) for v in (narrow, decode(narrow)))
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(array, getattr(expected, name))
    assert found.active.sum() > 0


def test_progress_counts_blocks_and_tiles() -> None:
    capture = capture_of(correlated)
    steps: list[tuple[int, int]] = []
    find_coactivation(capture, 0, 0, on_block=lambda *step: steps.append(step))
    assert steps == [(i + 1, len(capture.blocks)) for i in range(len(capture.blocks))]
    steps.clear()
    find_nearest(capture, on_tile=lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sort": "cosine"}, "Expected `sort` to be one of correlation, jaccard, found 'cosine'."),
        ({"k": 0}, "At least one neuron must be asked for, found 0."),
        ({"threshold": float("nan")}, "Expected `threshold`, an activation, to be a number"),
        ({"threshold": 1e39}, "Expected `threshold`, an activation, to be a number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Row, sentence: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        CoactivationSettings(**settings)
    assert str(raised.value).startswith(sentence)


def test_captures_that_cannot_answer_are_refused() -> None:
    capture = capture_of(correlated)
    for error, of, settings in (
        (NotFoundError, (0, 5), {}),
        (NotFoundError, (2, 0), {}),
        (NotFoundError, (0, 0), {"layers": (7,)}),
        (InvalidInputError, (0, 0), {"layers": ()}),
        (InvalidInputError, (0, 0), {"layers": (1,), "within_layers": True}),
        (InvalidInputError, (0, 0), {"site": "mlp.gate"}),
        (InvalidInputError, (0, 0), {"positions": "generated"}),
        (InvalidInputError, (0, 0), {"positions": "everywhere"}),
    ):
        with pytest.raises(error):
            find_coactivation(capture, *of, replace(CoactivationSettings(), **settings))
    for what, words in (
        ({"precision": "none"}, "keeps statistics only"),
        ({"blocks": (), "finish": False}, "no committed"),
    ):
        empty, _ = planted(**what)  # type: ignore[arg-type]
        for find in (lambda c: find_coactivation(c, 0, 0), find_nearest):
            with pytest.raises(InvalidInputError, match=words):
                find(empty)
