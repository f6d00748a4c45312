"""In-context neurons: planted ones are found, frequent tokens do not pass for repetition."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actstore.engine.capture import api as capture_run
from actstore.engine.capture import corpus_run
from actstore.engine.graphs.repeats import Repeats, measure_repeats, path_shares
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.nodes import IGNORE
from actstore.store.layout import SPECIAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Capture


@pytest.fixture(scope="module")
def capture(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """A capture of a tiny model over random text, in several blocks."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("repeats") / "corpus.jsonl"
    words = ["the", "quick", "brown", "fox", "jumps", "one", "two", "return", "chien", "lazy"]
    texts = [" ".join(words[int(w) % 10] for w in rng.geometric(0.15, 30)) for _ in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_run, "BLOCK_SLOTS", 256)
        return capture_run.capture(str(tiny_model), path, path.parent / "store", context=32)


def read(capture: Capture) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of every token: its id, whether it occurred before in its window, whether it counts."""
    tokens = capture.tokens()
    ids, window = tokens["id"].to_numpy(), tokens["window"].to_numpy()
    special = np.array(tokens["modality"].to_pylist()) == "special"
    assert SPECIAL == 2
    seen: set[tuple[int, int]] = set()
    repeated = np.zeros(len(ids), bool)
    for i, key in enumerate(zip(window.tolist(), ids.tolist(), strict=True)):
        repeated[i] = key in seen
        seen.add(key)
    return ids, repeated, ~special


def test_it_counts_what_a_loop_counts(capture: Capture) -> None:
    result = measure_repeats(capture, share=0.3)
    ids, repeated, counts = read(capture)
    assert len(capture.blocks) > 2
    assert (result.n_repeated, result.n_first) == (int((repeated & counts).sum()), int((~repeated & counts).sum()))
    for row in (0, 7, 30, 47):
        layer, neuron = int(result.layer[row]), int(result.neuron[row])
        values = capture.activations(layer, neuron)
        fires = (values >= np.float32(0.3) * values[counts].max()) & counts
        assert int(result.fires_repeated[row]) == int((fires & repeated).sum())
        assert int(result.fires_first[row]) == int((fires & ~repeated).sum())
        assert result.repeated[row] == pytest.approx((fires & repeated).sum() / result.n_repeated)
        weights, parts = [], []
        for token in np.unique(ids[fires]):
            in_block = (ids == token) & counts
            n1, n0 = (in_block & repeated).sum(), (in_block & ~repeated).sum()
            if n1 and n0:
                weights.append(n1 * n0 / (n1 + n0))
                parts.append(((fires & in_block & repeated).sum() / n1, (fires & in_block & ~repeated).sum() / n0))
        expected = np.average(np.array(parts), axis=0, weights=weights)
        assert (result.same_repeated[row], result.same_first[row]) == pytest.approx(tuple(expected))


def test_neurons_that_look_back_come_first(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, repeated, _ = read(capture)
    common = np.bincount(ids).argmax()
    rng = np.random.default_rng(1)
    planted = np.stack(
        [
            repeated,  # a repeat neuron
            ids == common,  # fires on a frequent token, which is mostly repeated
            ~repeated,
            rng.random(len(ids)) < 0.2,
            repeated & (ids != common) & (rng.random(len(ids)) < 0.5),
            np.zeros(len(ids), bool),
        ]
    ).astype(np.float32)
    size = capture.record.plan.block_slots
    slots = capture.slots()

    def block_values(layer: int, block: int, site: str, *, saturated: bool) -> NDArray[np.float32]:
        values = np.full((24, size), np.nan, np.float32)
        in_block = slots // size == block
        values[:6, slots[in_block] % size] = planted[:, in_block]
        return values

    class Statistics:
        maximum = np.where(np.arange(24) < 5, 1.0, -np.inf).astype(np.float32)

    monkeypatch.setattr(capture, "block_values", block_values)
    monkeypatch.setattr(capture, "layer_statistics", lambda layer, site: Statistics)
    result = measure_repeats(capture)
    ranked = [int(row) for row in result.ranked() if result.layer[row] == 0]
    assert ranked[:2] == [0, 4]
    assert ranked[-1] == 2
    assert 5 not in ranked
    assert result.score[0] > 10
    assert result.score[1] < 1 < result.repeated[1] / result.first[1]
    assert result.score[3] < 1
    assert (result.same_repeated[0], result.same_first[0]) == pytest.approx((1.0, 0.0))


def test_bad_input_is_refused(capture: Capture) -> None:
    with pytest.raises(InvalidInputError, match="`share` must be above 0"):
        measure_repeats(capture, share=0)
    with pytest.raises(InvalidInputError, match=r"no site 'resid\.post'. Its sites are: mlp\.post"):
        measure_repeats(capture, site="resid.post")


def test_ties_go_to_the_smaller_neuron_and_unknown_scores_are_left_out() -> None:
    n = 4
    ones = np.ones(n)
    result = Repeats(
        np.zeros(n, np.int32), np.arange(n, dtype=np.int32), ones, ones, np.array([9, 9, 9, 1]), np.array([9, 9, 9, 1]),
        ones, ones, np.array([2.0, 2.0, np.nan, 9.0]), n_repeated=5, n_first=5,
    )  # fmt: skip
    assert result.ranked().tolist() == [0, 1]
    assert result.ranked(least_fires=1).tolist() == [3, 0, 1]


def test_lines_in_which_the_token_recurs_are_counted(planting: Callable[..., Graphs]) -> None:
    graphs = planting(
        {
            (0, 0): [((1,), 0.0, 50, 8), ((1, IGNORE, 1), 0.8, 10, 8), ((2,), 0.8, 10, 8)],
            (0, 1): [((1,), 0.9, 10, 9)],
            (0, 2): [],
        }
    )
    assert path_shares(graphs) == pytest.approx({(0, 0): 0.5, (0, 1): 0.0})
