"""Stores with everything that one could hold before the code was rearranged, kept as they were written.

What they read to is in `format-1-step-2.expected.json`, which the code that wrote them made. A change that fails here breaks
the stores that people have: it needs a new format, and a reader for this one.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from reading_everything import differences, plain, read_everything

import actstore

DATA = Path(__file__).parent / "data"
PATH = DATA / "format-1-step-2"
EXPECTED = json.loads((DATA / "format-1-step-2.expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def text():
    return actstore.open(PATH / "text")


@pytest.mark.parametrize("name", EXPECTED)
def test_everything_reads_as_it_did(name):
    found = plain(read_everything(actstore.open(PATH / name)))
    assert [*differences(EXPECTED[name], found)] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_nothing_was_damaged(name):
    """What is expected is a whole store."""
    expected = EXPECTED[name]
    assert expected["verified"]["root"] == expected["verified"]["graphs"][1] == []
    assert all(capture["verified"] == [] for capture in expected["captures"].values())


def test_a_difference_is_found_wherever_it_is():
    expected = {"a": [1, 2.0, {"b": "c"}], "n": float("nan")}
    assert [*differences(expected, {"a": [1, 2.0 + 1e-7, {"b": "c"}], "n": float("nan")})] == []
    assert [*differences(expected, {"a": [1, 2.1, {"b": "d"}], "m": 1})] == [
        "/a[1]: 2.1, expected 2.0",
        "/a[2]/b: 'd', expected 'c'",
        "/n: is not there",
        "/m: is new",
    ]
    assert [*differences([1], [True])]
    assert [*differences([1], [1, 2])]


# A few numbers as they are, for those who want to see what is wrong.


def test_what_the_text_store_holds(text):
    assert text.captures == (
        "begun", "corpus", "half", "int8", "probes-mask", "probes-sampled", "probes-substitute", "probes-suffix-05",
        "questions", "sparse", "statistics",
    )  # fmt: skip
    plan = text.capture("corpus").record.plan
    assert (plan.n_documents, plan.n_windows, plan.n_tokens, plan.block_slots, plan.n_blocks) == (9, 9, 93, 64, 2)
    assert plan.labels == (("language", "en"), ("language", "fr"), ("language", "py"))
    tokens = text.capture("corpus").tokens()["id"].to_pylist()
    assert (tokens[:5], text.text(tokens[:6])) == ([0, 383, 331, 371, 349], "<s>one two three four five")
    begun = text.capture("begun")
    assert (begun.blocks, begun.record.plan.n_blocks, begun.is_complete) == ((0,), 2, False)


def test_values_at_every_precision(text):
    exact, half, int8, sparse = (text.capture(name) for name in ("corpus", "half", "int8", "sparse"))
    first = np.float32([0.007976836524903774, -0.02288656495511532, 0.0007561801467090845])
    np.testing.assert_array_equal(exact.activations(0, 5)[:3], first)
    stream = np.float32([-0.24711239337921143, -0.0723351389169693])
    np.testing.assert_array_equal(exact.activations(1, 7, "resid.post")[:2], stream)
    assert half.activations(1, 4)[:3].tolist() == [-0.03741455078125, 0.0209808349609375, 0.03173828125]
    assert half.activations(1, 3)[:4].tolist() == [np.inf, -np.inf, np.inf, 0]
    assert half.activations(1, 3, saturated=True)[:4].tolist() == [65504, -65504, 65504, 0]
    assert (half.overflow["mlp.post"].names, half.overflow["mlp.post"].n_values) == (["L1.N3"], 43)
    scale = np.float32(0.00023519247770309448)
    assert int8.block_parameter("scale", 1, 0)[5] == scale
    assert int8.raw_block(1, 0)[5, :5].tolist() == [-19, -51, 21, -19, 2]
    np.testing.assert_array_equal(int8.activations(1, 5)[:5], np.float32([-19, -51, 21, -19, 2]) * scale)
    assert sparse.activations(1, 5)[:5].tolist() == [0, 0, 0, 0.021500390022993088, 0]
    assert sparse.block_parameter("threshold", 1, 0)[5] == np.float32(0.0168982595205307)
    assert sparse.block_parameter("dropped", 1, 0)[5] == 43
    known = text.neuron("L1.N5").statistics("statistics")
    assert (known["count"], known["mean"], known["max"]) == (53, 0.010612170470885071, 0.08866533637046814)
    counts, _ = text.neuron("L1.N5").histogram("statistics")
    assert (counts.sum(), np.flatnonzero(counts)[[0, -1]].tolist()) == (53, [33, 70])


def test_graphs_questions_and_words(text):
    graph = text.graph(0, 2)
    assert [path.tokens for path in graph.paths()][:2] == [(270,), (281,)]
    np.testing.assert_allclose(graph.predict([0, 383, 331, 371]), [0, 0.35275924, 0, 0], rtol=1e-6)
    asked = text.sql("select query, n_correct, probability from questions.queries").to_pylist()
    assert asked[0] == {"query": "1", "n_correct": 1, "probability": 0.0024604661157354712}
    best = text.contributions(" fox", 2, capture="corpus", at="0:3")
    assert best["name"].to_pylist() == ["L1.N8", "L1.N6"]
    np.testing.assert_allclose(best["score"], [0.03520369157195091, 0.021786905825138092], rtol=1e-4)


def test_experts_and_infinite_values():
    store = actstore.open(PATH / "experts")
    exact, int8 = store.capture("corpus"), store.capture("int8")
    assert exact.record.value_dtype == "bfloat16"
    values = exact.activations(4, 2)[:5]
    np.testing.assert_array_equal(values, np.float32([np.nan, np.nan, np.nan, -0.03759765625, 0.00075531005859375]))
    assert int8.activations(5, 2)[:6].tolist() == [-np.inf, np.inf, 0, 0, -np.inf, np.inf]
    assert np.unique(int8.raw_block(5, 0)[2]).tolist() == [-128, -127, 0, 127]


def test_images_and_their_patches():
    store = actstore.open(PATH / "images")
    assert store.captures == ("corpus", "own", "tower")
    given, own, tower = map(store.capture, store.captures)
    assert given.documents()["caption"].to_pylist()[1] == "a small blue square"
    assert own.documents().select(["generated", "n_prompt"]).to_pylist()[0] == {"generated": True, "n_prompt": 50}
    assert [capture.patches().num_rows for capture in (given, own, tower)] == [32, 32, 34]
    patch = given.patches().slice(0, 1).to_pylist()[0]
    assert (patch["token"], patch["row"], patch["left"], patch["bottom"]) == (7, 0, 0.18867924809455872, 0.25)
    assert tower.record.part == "vision"
