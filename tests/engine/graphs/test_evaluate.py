"""Evaluations of planted neurons: what is found, what is never evidence, what is refused."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pytest

from actstore.engine.graphs.build import GraphSettings, build_graphs
from actstore.engine.graphs.evaluate import Evaluation, EvaluationSettings, describe_leak, evaluate
from actstore.engine.graphs.samples import SampleReader
from actstore.engine.graphs.split import Split, SplitSettings, Windows
from actstore.store import layout
from actstore.store.capture.plan import Plan, PlannedWindow, PlanWriter
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.files.records import PlanRecord
from actstore.store.graphs.reader import Graphs
from actstore.store.model import root
from actstore.store.reader import Capture, Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

LENGTH, VOCABULARY, BLOCK = 32, 12, 512
Neuron = "Callable[[NDArray[np.int32]], NDArray[np.float32]]"


def after(ids: NDArray[np.int32], first: int, second: int) -> NDArray[np.bool_]:
    """Where `second` comes after `first`."""
    return (ids == second) & (np.concatenate([[-1], ids[:-1]]) == first)


def on_token(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    return np.where(ids == 3, 2.0, 0.1).astype(np.float32)


def on_pair(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    return np.where(after(ids, 7, 5), 1.5, -0.1).astype(np.float32)


def on_token_unless(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    return np.where((ids == 4) & ~after(ids, 2, 4), 1.0, 0.2).astype(np.float32)


def never(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    return np.where(ids == 1, 0.0, -1.0).astype(np.float32)


def unknown_at_times(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Fires on token 3; not a number on token 6."""
    return np.where(ids == 6, np.nan, on_token(ids)).astype(np.float32)


def by_heart(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Fires where only the whole window says: nothing that its parts tell."""
    rng = np.random.default_rng(ids.astype(np.int64))
    return np.where(rng.random(len(ids)) < 0.2, 1.0, 0.0).astype(np.float32)


RULES = (on_token, on_pair, on_token_unless, never, unknown_at_times, by_heart)


def make_windows(n: int, seed: int = 0) -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, LENGTH).astype(np.int32) for _ in range(n)]


def plant(
    where: str, windows: Sequence[NDArray[np.int32]], name: str = "corpus", rules: Sequence[Any] = RULES,
    positions: str = "all", precision: str = "exact",
) -> Capture:  # fmt: skip
    """A capture of neurons that are functions of the windows' tokens: `rules` in layer 0, the first two again in layer 1."""
    folder = Folder(where, read_only=False)
    by_layer = {0: list(rules), 1: list(rules[:2])}
    settings = {"block_slots": BLOCK, "positions": positions}
    writer = PlanWriter(folder, name, BLOCK, settings)
    writer.add_document({"source": "planted", "sha256": "", "n_tokens": 0})
    everywhere, text = np.arange(LENGTH, dtype=np.int32), np.full(LENGTH, layout.TEXT, np.uint8)
    text = np.where(everywhere == 0, layout.SPECIAL, text).astype(np.uint8)
    planned = [PlannedWindow(0, ids, everywhere, text, ()) for ids in windows]
    per_block = BLOCK // LENGTH
    blocks = [planned[i : i + per_block] for i in range(0, len(planned), per_block)]
    for block in blocks:
        writer.add_block([block])
    fingerprint = writer.close(())
    plan_record = PlanRecord(
        fingerprint, "planted", "", "t", settings, (), (), 1, len(windows), len(windows) * LENGTH, BLOCK, len(blocks)
    )
    what = planted_stores.Planted(gate_sign=False, precision=precision)
    record = replace(
        planted_stores.capture_record(name, plan_record, what),
        sites={"mlp.post": {str(layer): len(neurons) for layer, neurons in by_layer.items()}},
    )
    model = planted_stores.model_record()
    layers = tuple(replace(one, neurons=len(by_layer[one.layer])) for one in model.layers)
    if not root.is_store(folder):
        root.write_root(folder, replace(model, layers=layers))
    record = create_capture(folder, record)
    plan = Plan(folder, name, plan_record)
    with CaptureWriter(folder, record, n_threads=1, overlap=False) as out:
        for number, block in enumerate(blocks):
            values = {
                layer: np.stack([np.concatenate([rule(window.ids) for window in block]) for rule in neurons])
                for layer, neurons in by_layer.items()
            }
            arrays, statistics = planted_stores.fill(record, plan, number, values)
            out.submit(number, arrays, statistics, began=0.0)
    return Store(where).capture(name)


def somewhere() -> str:
    return f"memory://{uuid.uuid4()}/store"


@pytest.fixture(scope="module")
def capture() -> Capture:
    return plant(somewhere(), make_windows(160))


@pytest.fixture(scope="module")
def result(capture: Capture) -> Evaluation:
    return evaluate(capture, settings=EvaluationSettings(gains=(-1.0, 50.0), threads=1))


def f1(evaluation: Evaluation, method: str | None, kind: str, neuron: int) -> float:
    selection = evaluation.method if method is None else evaluation.baselines[method]
    return float(getattr(selection, kind).measures()[2, neuron])


@pytest.mark.parametrize("kind", ["exemplars", "ordinary"])
def test_what_context_decides_graphs_find_and_tables_find_up_to_their_length(result: Evaluation, kind: str) -> None:
    token, pair = "token lookup, corpus, most", "bigram lookup, corpus, most"
    for neuron in (0, 1, 2, 4):
        assert f1(result, None, kind, neuron) == 1
        assert f1(result, pair, kind, neuron) == 1
    assert f1(result, token, kind, 0) == 1
    assert f1(result, token, kind, 1) == 0
    assert 0 < f1(result, "token lookup, corpus, any", kind, 1) < 0.5
    assert f1(result, "token lookup, exemplars, any", kind, 0) == 1
    assert f1(result, "bigram lookup, exemplars, any", kind, 1) == 1


def test_a_neuron_that_never_fires_is_in_no_mean(result: Evaluation) -> None:
    assert result.never_fire == 1
    assert np.isnan(f1(result, None, "ordinary", 3))
    assert result.method.exemplars.summary()["undefined"] == 1
    assert result.method.n_failed == 0


def test_fewer_nodes_at_a_larger_gain_and_the_curve_has_the_method_itself(result: Evaluation) -> None:
    nodes = {gain: sum(method.n_nodes) for gain, method in result.curve.items()}
    assert nodes[-1.0] > nodes[0.25] > nodes[50.0]
    assert result.curve[0.25] is result.method


def test_windows_of_the_same_tokens_are_never_evidence() -> None:
    windows = make_windows(80)
    once = plant(somewhere(), windows)
    twice = plant(somewhere(), windows + windows)
    where = somewhere()
    main, other = plant(where, windows), plant(where, windows, "again")
    only = [(0, 5)]
    settings = EvaluationSettings(GraphSettings(gain=-1.0), threads=1)
    alone = evaluate(once, neurons=only, settings=settings)
    assert f1(alone, None, "ordinary", 0) < 0.4
    for evaluation in (
        evaluate(twice, neurons=only, settings=settings),
        evaluate(main, neurons=only, also=[other], settings=settings),
    ):
        assert evaluation.n_duplicates == 80
        assert f1(evaluation, None, "ordinary", 0) < 0.4
        assert f1(evaluation, None, "exemplars", 0) < 0.4
        assert evaluation.method.ordinary.scores[0].fires == alone.method.ordinary.scores[0].fires


def test_another_capture_is_evidence_and_no_test() -> None:
    where = somewhere()
    few, more = plant(where, make_windows(12)), plant(where, make_windows(100, seed=1), "more")
    settings = EvaluationSettings(split=SplitSettings(4, 4), threads=1)
    alone = evaluate(few, neurons=[(0, 1)], settings=settings)
    helped = evaluate(few, neurons=[(0, 1)], also=[more], settings=settings)
    assert helped.method.ordinary.scores[0].fires == alone.method.ordinary.scores[0].fires
    reader = SampleReader((few, more), settings.split, site="mlp.post", share=0.5, max_depth=12)
    fires = sum(int(after(w[0:], 7, 5)[1:].sum()) for w in make_windows(12) + make_windows(100, seed=1))
    sample = reader.read(0, 1)
    assert len(sample.ranks) == fires - int((sample.on_test >= 0.5).sum() + (sample.on_ordinary >= 0.5).sum())


def test_tests_are_disjoint_and_drawn_by_the_seed_and_exemplars_are_the_highest(capture: Capture) -> None:
    windows = Windows((capture,))
    splits = [Split(windows, SplitSettings(seed=seed)) for seed in (0, 0, 1)]
    assert splits[0].ordinary.tolist() == splits[1].ordinary.tolist() != splits[2].ordinary.tolist()
    values = np.zeros(len(windows.text), np.float32)
    best = np.setdiff1d(np.arange(160), splits[0].ordinary)[5:40]
    for index, window in enumerate(best):
        values[windows.start[window] + 3] = 1 + (index < 10)
    build, test = splits[0].exemplars(values, 0, 0)
    assert sorted([*build, *test]) == best[:20].tolist()
    assert len(build) == len(test) == 10
    again, other = splits[1].exemplars(values, 0, 0), splits[1].exemplars(values, 0, 1)
    assert again.test.tolist() == test.tolist() != other.test.tolist()
    assert not set(splits[0].ordinary) & {*build, *test}


def test_special_tokens_and_numbers_that_are_none_make_no_exemplar(capture: Capture) -> None:
    windows = Windows((capture,))
    split = Split(windows, SplitSettings(4, 40))
    values = np.full(len(windows.text), -np.inf, np.float32)
    pool = np.setdiff1d(np.arange(160), split.ordinary)
    values[windows.start[pool[0]]] = 9.0  # a special token
    values[windows.start[pool[1]] + 1] = np.nan
    values[windows.start[pool[2]] + 1] = np.inf
    values[windows.start[pool[7]] + 1] = 1.0
    build, test = split.exemplars(values, 0, 0)
    assert build.tolist() == [pool[7]]
    assert test.tolist() == []


def test_no_thread_and_no_order_changes_a_score(capture: Capture) -> None:
    neurons = [(0, 5), (1, 1), (0, 1)]
    one = evaluate(capture, neurons=neurons, settings=EvaluationSettings(threads=1))
    two = evaluate(capture, neurons=neurons[::-1], settings=EvaluationSettings(threads=3))
    assert one.neurons == two.neurons == [(0, 1), (0, 5), (1, 1)]
    for kind in ("exemplars", "ordinary"):
        assert getattr(one.method, kind).summary() == getattr(two.method, kind).summary()
        for name in one.baselines:
            assert getattr(one.baselines[name], kind).scores == getattr(two.baselines[name], kind).scores


def test_graphs_of_a_set_are_evaluated_as_they_stand_and_those_that_lack_fail(tmp_path: Path) -> None:
    capture = plant(str(tmp_path / "store"), make_windows(60))
    folder = Folder(str(tmp_path / "store"), read_only=False)
    build_graphs(capture, folder, name="two", neurons=[(0, 0), (0, 3)])
    graphs = Graphs(capture.store, "two")
    settings = EvaluationSettings(threads=1)
    result = evaluate(capture, neurons=[(0, 0), (0, 1), (0, 3)], graphs=[graphs], settings=settings)
    assert f1(result, "two", "ordinary", 0) == 1
    assert f1(result, "two", "ordinary", 1) == 0
    assert np.isnan(f1(result, "two", "ordinary", 2))
    assert result.baselines["two"].n_failed == 1
    assert "left out none" in str(describe_leak(graphs, capture, settings))
    for recorded, warns in (
        ({"protocol": {"n_exemplars": 20, "n_ordinary": 40, "seed": 0}}, False),
        ({"protocol": {"n_exemplars": 20, "n_ordinary": 40, "seed": 1}}, True),
        ({"asked": {"n_exemplars": 20, "seed": 0}}, False),
        ({"asked": {"n_exemplars": 10, "seed": 0}}, True),
    ):
        graphs.record = replace(graphs.record, settings=recorded)
        assert (describe_leak(graphs, capture, settings) is not None) is warns
    graphs.record = replace(graphs.record, capture="other")
    assert "from another capture" in str(describe_leak(graphs, capture, settings))


def overflows(ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Fires on token 3, infinite after token 1."""
    return np.where(after(ids, 1, 3), np.inf, on_token(ids)).astype(np.float32)


def test_what_overflowed_is_neither_evidence_nor_a_test() -> None:
    windows = make_windows(60)
    capture = plant(somewhere(), windows, rules=(on_token, overflows))
    result = evaluate(capture, neurons=[(0, 0), (0, 1)], settings=EvaluationSettings(threads=1))
    plain, cut = result.method.ordinary.scores
    selection = Split(Windows((capture,))).ordinary
    unknown = sum(int(after(windows[window], 1, 3)[1:].sum()) for window in selection)
    assert unknown > 0
    assert (plain.fires, plain.predicted) == (cut.fires + unknown, cut.predicted + unknown)
    assert (plain.hits, cut.hits) == (plain.fires, cut.fires)


def test_what_overflowed_a_precision_is_evidence_and_a_test_like_the_largest_value() -> None:
    def large(ids: NDArray[np.int32]) -> NDArray[np.float32]:
        return np.where(ids == 3, 1e6, -1).astype(np.float32)

    windows = make_windows(60)
    capture = plant(somewhere(), windows, rules=(on_token, large), precision="half")
    assert np.isinf(capture.activations(0, 1)).any()
    result = evaluate(capture, neurons=[(0, 0), (0, 1)], settings=EvaluationSettings(threads=1))
    assert result.never_fire == 0
    plain, saturated = result.method.ordinary.scores
    assert (plain.fires, plain.predicted, plain.hits) == (saturated.fires, saturated.predicted, saturated.hits)


def test_pairs_are_looked_up_where_graphs_have_no_context(capture: Capture) -> None:
    settings = EvaluationSettings(GraphSettings(max_depth=0), threads=1)
    result = evaluate(capture, neurons=[(0, 0), (0, 1)], settings=settings)
    assert f1(result, None, "ordinary", 0) == 1
    assert f1(result, None, "ordinary", 1) < 1
    assert f1(result, "bigram lookup, corpus, most", "ordinary", 1) == 1


def test_what_cannot_be_evaluated_is_refused(capture: Capture) -> None:
    with pytest.raises(InvalidInputError, match="found 3"):
        evaluate(plant(somewhere(), make_windows(3)))
    with pytest.raises(InvalidInputError, match="keeps only positions 'last'"):
        evaluate(plant(somewhere(), make_windows(8), positions="last"))
    with pytest.raises(InvalidInputError, match="evidence already"):
        evaluate(capture, also=[capture])
    with pytest.raises(NotFoundError, match="neuron 99"):
        evaluate(capture, neurons=[(0, 99)])
    with pytest.raises(NotFoundError, match="no site"):
        evaluate(capture, settings=EvaluationSettings(site="mlp.gate"))
    with pytest.raises(InvalidInputError, match="`exemplars` must be 2 or more"):
        SplitSettings(1)
