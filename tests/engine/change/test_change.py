"""Change scores against their formula over all positions at once, and captures that cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from elsewhere import Elsewhere
from hypothesis import given
from hypothesis import strategies as st
from planted_stores import planted

from actstore.engine.change.change import ChangeSums, change_scores
from actstore.store import layout
from actstore.store.capture.plan import BlockPlan
from actstore.store.capture.positions import POSITIONS, check_positions, slots_of
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Capture


def moved(values: np.ndarray, layer: int) -> np.ndarray:
    """Neuron n moved by n / 8 at every token, in alternating directions; one NaN."""
    shift = np.arange(len(values), dtype=np.float32)[:, None] / 8
    changed = values + shift * np.where(np.arange(values.shape[1]) % 2, 1, -1)
    changed[2, 3] = np.nan
    return changed.astype(np.float32)


def counted(capture: Capture) -> np.ndarray:
    return capture.tokens()["modality"].to_numpy(zero_copy_only=False) != "special"


@given(seed=st.integers(0, 5), nan=st.floats(0, 1), cut=st.integers(0, 33))
def test_running_sums_are_the_formula_however_they_are_cut(seed: int, nan: float, cut: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((70, 33)).astype(np.float32) * 1e3 for _ in range(2))
    a[rng.random(a.shape) < nan / 2] = np.nan
    b[rng.random(b.shape) < nan / 2] = np.inf
    parts = [ChangeSums.empty({3: 70}) for _ in range(2)]
    parts[0].add(3, a[:, :cut], b[:, :cut])
    parts[1].add(3, a[:, cut:], b[:, cut:])
    parts[0].merge(parts[1])
    known = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore"):
        squares = np.where(known, (a.astype(np.float64) - b) ** 2, 0).sum(axis=1)
        expected = np.sqrt(squares / known.sum(axis=1))
    np.testing.assert_allclose(parts[0].scores()[3], expected, rtol=1e-12)
    assert parts[0].counts[3].tolist() == known.sum(axis=1).tolist()


def test_scores_of_every_layer_are_the_formula_over_counted_positions() -> None:
    (first, a), (second, b) = planted(), planted(values=moved)
    found = change_scores(first, second)
    chosen = counted(first)
    for layer in a:
        difference = a[layer][:, chosen].astype(np.float64) - b[layer][:, chosen]
        expected = np.sqrt(np.nanmean(difference**2, axis=1))
        np.testing.assert_allclose(found.scores[found.layer == layer], expected, rtol=1e-6)
    assert found.n_positions == chosen.sum() < first.record.plan.n_tokens
    assert found.names(found.top(3 / 45)) == ["L1.N39", "L1.N38", "L1.N37"]
    assert found.by_layer(found.ranking()[-2:])[0].tolist() == [0]
    assert {layer: len(n) for layer, n in found.by_layer(found.top(1.0)).items()} == {0: 4, 1: 39}, (
        "no layer is skipped"
    )


def test_workers_add_up_to_the_same_bits() -> None:
    (first, _), (second, _) = planted(), planted(values=moved)
    told: list[tuple[int, int]] = []
    alone = change_scores(first, second)
    shared = change_scores(first, second, on_block=lambda *done: told.append(done), executor=Elsewhere())
    assert shared.scores.tobytes() == alone.scores.tobytes()
    assert shared.n_positions == alone.n_positions
    assert told == [(n + 1, len(first.blocks)) for n in range(len(first.blocks))]


def test_special_tokens_count_when_asked_for_and_change_the_scores() -> None:
    def at_special(values: np.ndarray, layer: int) -> np.ndarray:
        changed = values.copy()
        changed[1, 0] += 100  # the first token is a special one
        return changed

    (first, _), (second, _) = planted(), planted(values=at_special)
    assert change_scores(first, second).scores.max() == 0
    found = change_scores(first, second, positions="all")
    assert sorted(found.names(found.top(0.5))) == ["L0.N1", "L1.N1"], "what did not change is not selected"
    assert found.n_positions == first.record.plan.n_tokens


def test_only_blocks_that_both_have_are_compared_and_it_is_said() -> None:
    (first, a), (second, b) = planted(blocks=[0, 1], finish=False), planted(values=moved, blocks=[1, 2], finish=False)
    found = change_scores(first, second)
    block = np.arange(64, 64 + first.used_slots[1])
    start = int(first.used_slots[0])
    here = slice(start, start + len(block))
    chosen = first.block_plan(1).modality != layout.SPECIAL
    difference = (a[1][:, here] - b[1][:, here])[:, chosen]
    np.testing.assert_allclose(
        found.scores[found.layer == 1], np.sqrt(np.nanmean(difference.astype(np.float64) ** 2, axis=1)), rtol=1e-6
    )
    assert len(found.warnings) == 3
    assert "2 of 3 blocks" in found.warnings[0]
    assert found.warnings[2].startswith(f"Scores are over {chosen.sum()} positions; fewer than 100")
    third, _ = planted(blocks=[2], finish=False)
    with pytest.raises(InvalidInputError, match="no committed block in common"):
        change_scores(first, third)


@pytest.mark.parametrize("precision", ["half", "int8", "sparse"])
def test_any_precision_that_keeps_values_will_do(precision: str) -> None:
    (first, _), (second, _) = planted(precision=precision), planted(values=moved, precision=precision)
    found = change_scores(first, second)
    assert found.names(found.top(1 / 45))[0] == "L1.N39" or precision == "sparse"
    assert bool(found.warnings) == (precision == "sparse")


def test_a_neuron_without_a_value_has_no_score_and_no_rank() -> None:
    def silent(values: np.ndarray, layer: int) -> np.ndarray:
        changed = values.copy()
        changed[4] = np.nan
        return changed

    (first, _), (second, _) = planted(), planted(values=silent)
    found = change_scores(first, second)
    assert np.isnan(found.scores[[4, 9]]).all()
    assert len(found.ranking()) == 43
    assert len(found.top(1.0)) == 0
    assert not {4, 9} & set(found.top(1.0).tolist())


def test_plans_that_differ_are_refused_naming_what_differs() -> None:
    first, _ = planted()
    for what, message in (
        ({"lengths": (20, 30, 14)}, "the number of tokens, 135 and 64"),
        ({"seed": 1}, r"the tokens' ids, at slot 0 first: \d+ and \d+"),
        ({"special_first": False}, "the tokens' modality, at slot 0 first: 2 and 1"),
        ({"lengths": (30, 20, 14, 40, 24, 7)}, "the tokens' (ids|position|window), at slot"),
    ):
        other, _ = planted(**what)
        with pytest.raises(InvalidInputError, match=message):
            change_scores(first, other)


def test_plans_of_the_same_tokens_are_the_same_whatever_their_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, _), (second, _) = planted(), planted(values=moved)
    plan = replace(second.record.plan, fingerprint="other", settings={"batch_tokens": 8, "block_slots": 64})
    second.record = replace(second.record, plan=plan)
    assert change_scores(first, second).n_positions
    second.plan.record = replace(plan)
    array = second.plan.array
    monkeypatch.setattr(second.plan, "array", lambda name, s=slice(None): array(name, s) + (name == "inputs/ids"))
    with pytest.raises(
        InvalidInputError, match=r"the ids that the model reads, in block 0 first; setting batch_tokens None"
    ):
        change_scores(first, second)


def test_other_layers_widths_sites_and_values_are_refused() -> None:
    (first, _), (second, _) = planted(), planted()
    for sites, message in (
        ({"mlp.post": {"0": 5}}, "layers 0, 1 at mlp.post, and .* layers 0: every layer"),
        ({"mlp.post": {"0": 5, "1": 41}}, "Layer 1 has 40 neurons at mlp.post in .* and 41"),
        ({"mlp.gate": {"0": 5, "1": 40}}, "has no site 'mlp.post'. Its sites are: mlp.gate. Capture again with `sites"),
    ):
        other = Capture(second.store, replace(second.record, sites=sites))
        with pytest.raises(InvalidInputError, match=message):
            change_scores(first, other)
    empty, _ = planted(precision="none")
    with pytest.raises(InvalidInputError, match="statistics only"):
        change_scores(empty, second)
    with pytest.raises(InvalidInputError, match="Positions are one of counted"):
        change_scores(first, second, positions="first")
    with pytest.raises(InvalidInputError, match="holds no generated token"):
        change_scores(first, second, positions="generated")
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InvalidInputError, match="`share`"):
            change_scores(first, second).top(share)


def block_of(windows: list[list[int]], positions: list[list[int]] | None = None) -> BlockPlan:
    """A block whose windows hold these modalities."""
    positions = positions or [list(range(len(w))) for w in windows]
    sizes = np.array([len(w) for w in windows])
    return BlockPlan(
        0,
        {"n_slots": sizes, "n_inputs": sizes},
        np.zeros((len(windows), 0), np.int32),
        np.zeros(sizes.sum(), np.int32),
        np.concatenate(positions).astype(np.int32),
        np.concatenate(windows).astype(np.uint8),
    )


def test_positions_of_a_block() -> None:
    text, special, image, generated = layout.TEXT, layout.SPECIAL, layout.IMAGE, layout.GENERATED
    plan = block_of([[special, text, image, text, special, generated, generated], [special, special], [text]])
    expected = {
        "all": range(10),
        "counted": [1, 2, 3, 5, 6, 9],
        "text": [1, 3, 9],
        "image": [2],
        "generated": [5, 6],
        "predicting": [4, 5],
        "last": [3, 9],
    }
    assert {name: slots_of(plan, name).tolist() for name in POSITIONS} == {k: list(v) for k, v in expected.items()}
    gap = block_of([[text, generated, generated]], [[0, 4, 5]])
    assert slots_of(gap, "predicting").tolist() == [1], "what lies before a gap predicts nothing that is there"
    assert slots_of(block_of([[special]]), "last").tolist() == []


def test_positions_that_a_capture_does_not_store_are_named_with_the_flag_that_stores_them() -> None:
    capture, _ = planted()
    for stored, positions, message in (
        ("0,3", "last", '`positions="all"`, or with `positions="last"`'),
        ("-1", "predicting", 'Capture again with `positions="all"`'),
        ("last", "predicting", "stores the last position of each window only"),
    ):
        plan = replace(capture.record.plan, settings={"positions": stored})
        other = Capture(capture.store, replace(capture.record, plan=plan))
        with pytest.raises(InvalidInputError, match=message):
            check_positions(other, positions)
    check_positions(capture, "last")
