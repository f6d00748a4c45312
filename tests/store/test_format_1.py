"""Format 1's first store, kept as it was written. Every number below was read out of it with plain zarr and pyarrow.

A change that fails here breaks the stores that people have: it needs a new format, and a reader for this one.
"""

from pathlib import Path

import numpy as np
import pytest

from actstore.store.errors import NotFoundError
from actstore.store.reader import Store
from actstore.store.verify import verify_capture

PATH = Path(__file__).parent / "data" / "format-1"


@pytest.fixture(scope="module")
def store():
    return Store(PATH)


def test_what_it_holds(store):
    assert store.captures == ("corpus", "in-int8")
    assert (store.model.name, store.model.model_type, store.model.d_model) == ("tiny-llama", "llama", 8)
    layers = [(layer.layer, layer.neurons, layer.module, layer.gated) for layer in store.model.layers]
    assert layers == [(i, 12, f"model.layers.{i}.mlp.down_proj", True) for i in (0, 1)]
    plan = store.capture("corpus").record.plan
    assert (plan.n_documents, plan.n_windows, plan.n_tokens, plan.block_slots, plan.n_blocks) == (9, 10, 168, 64, 3)
    assert plan.labels == (("language", "en"), ("language", "fr"), ("language", "py"))


@pytest.mark.parametrize("name", ["corpus", "in-int8"])
def test_it_is_whole(store, name):
    assert store.capture(name).is_complete
    assert verify_capture(store.capture(name)) == []


def test_tokens(store):
    tokens = store.capture("corpus").tokens()
    assert tokens["id"][:8].to_pylist() == [0, 80, 268, 258, 88, 80, 266, 270]
    # Slot 63 is padding: the second block begins with slot 64.
    assert tokens["token"][61:65].to_pylist() == [61, 62, 64, 65]
    assert tokens["id"][61:65].to_pylist() == [290, 72, 0, 79]
    assert tokens["document"][61:65].to_pylist() == [2, 2, 4, 4]
    assert tokens["modality"][61:65].to_pylist() == ["text", "text", "special", "text"]
    assert store.text([280, 281, 282]) == " o le the"


def test_exact_values(store):
    capture = store.capture("corpus")
    first = np.float32([-0.0024013721849769354, -0.0004138809454161674, -0.000822890957351774])
    np.testing.assert_array_equal(capture.activations(0, 5)[:3], first)
    border = np.float32([-0.0017356564057990909, -4.391156107885763e-05, -0.00016074255108833313])
    np.testing.assert_array_equal(capture.activations(1, 5)[62:65], border)
    last_neuron = np.float32([0.0008721939520910382, 0.0017113910289481282, -0.001664407434873283])
    np.testing.assert_array_equal(capture.activations(1, 11)[:3], last_neuron)
    assert np.isnan(capture.block_row(1, 5, 0)[63])


def test_gate_signs(store):
    signs = store.capture("corpus").gate_signs(1, 0)
    assert np.packbits(signs[5], bitorder="little")[:4].tolist() == [80, 31, 24, 136]


def test_int8_values(store):
    capture = store.capture("in-int8")
    scale = np.float32(3.6496203392744064e-05)
    assert capture.raw_block(1, 0)[5, :6].tolist() == [-1, -15, 0, -56, 9, -15]
    assert capture.block_parameter("scale", 1, 0)[5] == scale
    expected = np.float32([-1, -15, 0, -56, 9, -15]) * scale
    np.testing.assert_array_equal(capture.activations(1, 5)[:6], expected)
    np.testing.assert_array_equal(capture.raw_block(1, 0)[:, 168:], np.full((12, 24), -128))


def test_exemplars(store):
    found = store.neuron("L1.N5").exemplars(3, "corpus", context=3).to_pylist()
    assert [row["value"] for row in found] == [0.0023977283854037523, 0.001455304678529501, 0.001222974737174809]
    assert [row["slot"] for row in found] == [93, 118, 59]
    assert [(row["document"], row["window"], row["position"]) for row in found] == [(3, 5, 4), (5, 6, 6), (2, 3, 1)]
    assert found[0]["source"] == "corpus.jsonl:4"
    np.testing.assert_array_equal(found[0]["activations"][found[0]["pivot"]], found[0]["value"])
    in_int8 = store.neuron("L1.N5").exemplars(4, "in-int8").to_pylist()
    assert [row["slot"] for row in in_int8[:3]] == [90, 141, 164]


def test_statistics(store):
    found = store.neuron(1, 5).statistics("corpus")
    assert (found["count"], found["non_finite"]) == (158, 0)
    assert (found["mean"], found["max"]) == (-0.0005858981191387343, 0.0023977283854037523)
    assert found["std"] == pytest.approx((0.00028436431812640093 / 158) ** 0.5, rel=1e-12)
    assert found["positive"] == 63 / 158
    assert store.capture("corpus").layer_statistics(1, "mlp.post").positives[:, 5].tolist() == [24, 19, 20, 63]


def test_a_statistic_that_came_later_is_not_there(store):
    """Absent is not known: neither 0 nor damage."""
    capture = store.capture("corpus")
    assert "overflow" not in capture.neurons().column_names
    with pytest.raises(NotFoundError, match="This capture has no statistic 'overflow'"):
        capture.layer_statistics(1, "mlp.post").overflow  # noqa: B018
    assert capture.overflow == {}  # at precision exact nothing can


def test_sql(store):
    found = store.sql(
        "select d.sha256, d.language, v.text from corpus.tokens t join corpus.documents d using (document) "
        "join vocabulary v on v.token = t.id where t.token = 65"
    ).to_pylist()
    sha256 = "0563bde4826fa9b96a1d9950bedaa667317ec022134f0077fd887216ded995fa"
    assert found == [{"sha256": sha256, "language": "fr", "text": "n"}]
    norm = store.sql("select write_norm from model where name = 'L1.N5'")["write_norm"].to_pylist()
    assert norm == [0.03764250501990318]
