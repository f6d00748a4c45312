import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM, AutoTokenizer

from actstore.store.capture.commits import committed_blocks
from actstore.store.errors import FormatError, NotFoundError
from actstore.store.layout import commit_key
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture


def forward_hook_values(model_folder, ids):
    """Inputs of both output projections over one window, as anybody would collect them; [layer][token, neuron]."""
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    caught = {}
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs, at=at: caught.__setitem__(at, inputs[0][0]))
        for at, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return [caught[at].numpy() for at in sorted(caught)]


def test_tokens_and_activations_are_the_models(captured, tiny_model, corpus):
    """The third document: its ids as its tokenizer gives them, its values as a plain forward hook sees them."""
    capture = captured.capture("corpus")
    text = json.loads(corpus.read_text(encoding="utf-8").splitlines()[2])["text"]
    ids = AutoTokenizer.from_pretrained(tiny_model)(text)["input_ids"]
    assert len(ids) <= 64, "the document should be one window"
    tokens = capture.tokens()
    mine = np.flatnonzero(tokens["document"].to_numpy() == 2)
    assert tokens["id"].to_numpy()[mine].tolist() == ids
    assert tokens["position"].to_numpy()[mine].tolist() == list(range(len(ids)))
    assert tokens["modality"].to_pylist()[mine[0]] == "special"
    expected = forward_hook_values(tiny_model, ids)
    for layer in (0, 1):
        for neuron in (0, 7, 23):
            found = capture.activations(layer, neuron)[mine]
            np.testing.assert_allclose(found, expected[layer][:, neuron], rtol=1e-4, atol=1e-7)
    assert captured.text(ids[1:]) == text


def test_a_document_longer_than_the_context_is_windowed(captured, tiny_model, corpus):
    capture = captured.capture("corpus")
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()[:30]]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    long = next(i for i, text in enumerate(texts) if len(tokenizer(text)["input_ids"]) > 64)
    tokens = capture.tokens()
    mine = tokens["document"].to_numpy() == long
    text_ids = tokens["id"].to_numpy()[mine & (tokens["position"].to_numpy() > 0)]
    assert sorted(text_ids.tolist()) == sorted(tokenizer(texts[long], add_special_tokens=False)["input_ids"])
    assert len(set(tokens["window"].to_numpy()[mine])) > 1


def test_positions_last_keeps_one_token_a_window(captured):
    capture = captured.capture("in-int8")
    tokens = capture.tokens()
    windows = capture.windows()
    assert tokens.num_rows == windows.num_rows == len(capture.activations(0, 0))
    last = windows["n_inputs"].to_numpy()[tokens["window"].to_numpy()] - 1
    np.testing.assert_array_equal(tokens["position"].to_numpy(), last)


def by_token(capture, layer, neuron):
    """(document, what its window reads, position) → (value, block): the same token's key in every capture of a corpus."""
    inputs, windows = capture.plan.array("inputs/ids").tolist(), capture.windows().to_pylist()
    reads = [tuple(inputs[w["input_start"] : w["input_start"] + w["n_inputs"]]) for w in windows]
    tokens = capture.tokens().to_pylist()
    values = capture.activations(layer, neuron).tolist()
    return {
        (t["document"], reads[t["window"]], t["position"]): (value, windows[t["window"]]["block"])
        for t, value in zip(tokens, values, strict=True)
    }


def test_int8_is_off_by_at_most_half_a_step(captured):
    exact, quantised = captured.capture("corpus"), captured.capture("in-int8")
    for layer, neuron in ((0, 0), (0, 11), (1, 23)):
        scale = [quantised.block_parameter("scale", layer, block)[neuron] for block in quantised.blocks]
        expected, found = by_token(exact, layer, neuron), by_token(quantised, layer, neuron)
        assert len(found) == quantised.record.plan.n_tokens
        assert found.keys() < expected.keys()
        for token, (value, block) in found.items():
            # Other batches, other roundings: by up to a millionth.
            assert abs(value - expected[token][0]) <= scale[block] / 2 + 1e-6 * abs(value)


def test_stored_rows_are_what_was_planted(planted):
    store, values = planted
    capture = store.capture()
    for layer, rows in values.items():
        for neuron, row in enumerate(rows):
            np.testing.assert_array_equal(capture.activations(layer, neuron), row)
    table = capture.tokens()
    for block in capture.blocks:
        slots = table["token"].to_numpy() // capture.record.plan.block_slots == block
        used = capture.used_slots[block]
        assert slots.sum() == used
        for layer, rows in values.items():
            np.testing.assert_array_equal(capture.block_values(layer, block)[:, :used], rows[:, slots])
            np.testing.assert_array_equal(capture.gate_signs(layer, block)[:, :used], rows[:, slots] < 0)
            assert np.isnan(capture.block_values(layer, block)[:, used:]).all(), "padding reads as no value, never as 0"
            assert not capture.gate_signs(layer, block)[:, used:].any()


@pytest.mark.parametrize(
    ("precision", "check"),
    [
        ("exact", lambda a, b, store: np.testing.assert_array_equal(a, b)),
        ("half", lambda a, b, store: np.testing.assert_array_equal(a, b.astype(np.float16).astype(np.float32))),
        ("int8", lambda a, b, store: np.testing.assert_allclose(a, b, atol=np.abs(b).max() / 253)),
        ("sparse", lambda a, b, store: np.testing.assert_array_equal(a, np.where(a == 0, 0, b))),
    ],
)
def test_precisions_lose_what_they_say(somewhere, planting, precision, check):
    values = planting(somewhere, precision=precision)
    capture = Store(somewhere).capture()
    for layer, rows in values.items():
        for neuron in (0, len(rows) - 1):
            check(capture.activations(layer, neuron), rows[neuron], capture)


def test_sparse_says_what_it_dropped(somewhere, planting):
    values = planting(somewhere, precision="sparse")
    capture = Store(somewhere).capture()
    used = capture.used_slots
    ends = np.cumsum(used)
    for block in capture.blocks:
        here = slice(int(ends[block] - used[block]), int(ends[block]))
        threshold, dropped = (capture.block_parameter(name, 1, block) for name in ("threshold", "dropped"))
        stored = capture.block_values(1, block)[:, : used[block]]
        np.testing.assert_array_equal((stored == 0).sum(axis=1), dropped)
        assert ((stored != 0).sum(axis=1) == np.ceil(0.25 * used[block])).all()
        lost = np.where(stored == 0, np.abs(values[1][:, here]), 0)
        assert (lost.max(axis=1) <= threshold).all()


def test_values_of_planted_holes_are_nan(somewhere, planting):
    def holes(values, layer):
        values = values.copy()
        values[:, 10:14] = np.nan
        return values

    for precision in ("exact", "half", "int8", "sparse"):
        planting(f"{somewhere}/{precision}", precision=precision, values=holes)
        row = Store(f"{somewhere}/{precision}").capture().activations(0, 0)
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(row)), [10, 11, 12, 13])


# What is committed, and what is not.


def test_a_block_without_its_commit_record_is_absent_not_zero(planted):
    store, values = planted
    before = store.capture()
    n_second = int(before.used_slots[1])
    Folder(store.folder.location, read_only=False).delete(commit_key("corpus", 1))
    capture = Store(store.folder.location).capture()
    assert capture.blocks == (0, 2)
    assert not capture.is_complete
    kept = np.delete(values[1][7], slice(int(before.used_slots[0]), int(before.used_slots[0]) + n_second))
    np.testing.assert_array_equal(capture.activations(1, 7), kept)
    assert capture.tokens().num_rows == len(kept) == len(capture.slots())
    assert 1 not in set(capture.tokens()["token"].to_numpy() // 64)
    for read in (capture.block_row, capture.block_values):
        with pytest.raises(NotFoundError, match=r"^Block 1 of capture 'corpus' is not committed; 2 of 3 blocks are\.$"):
            read(1, 1) if read == capture.block_values else read(1, 7, 1)
    with pytest.raises(NotFoundError, match="Block 1"):
        capture.gate_signs(1, 1)


def test_statistics_are_those_of_the_committed_blocks(planted):
    store, _ = planted
    Folder(store.folder.location, read_only=False).delete(commit_key("corpus", 1))
    capture = store.capture()
    special = np.array(capture.tokens()["modality"].to_pylist()) == "special"
    values = capture.activations(1, 7)[~special].astype(np.float64)
    row = store.neuron(1, 7).statistics()
    assert row["count"] == len(values)
    np.testing.assert_allclose(row["mean"], values.mean(), rtol=1e-12)
    slots = store.neuron(1, 7).exemplars(20)["slot"].to_numpy()
    assert set(slots // 64) <= {0, 2}


def test_refresh_sees_what_was_committed_since(somewhere, planting):
    values = planting(somewhere, blocks=(0,), finish=False)
    capture = Store(somewhere).capture()
    n = int(capture.used_slots[0])
    np.testing.assert_array_equal(capture.activations(0, 0), values[0][0][:n])
    count = capture.layer_statistics(0, "mlp.post").count[0]
    planting(somewhere, blocks=(0, 1), finish=False)
    np.testing.assert_array_equal(capture.activations(0, 0), values[0][0][:n])
    capture.refresh()
    assert capture.blocks == (0, 1)
    assert len(capture.activations(0, 0)) == n + capture.used_slots[1]
    assert capture.layer_statistics(0, "mlp.post").count[0] > count


def test_a_capture_without_a_block_is_empty(somewhere, planting):
    planting(somewhere, blocks=(), finish=False)
    capture = Store(somewhere).capture()
    assert committed_blocks(capture.folder, "corpus") == []
    assert capture.activations(0, 0).shape == (0,)
    assert capture.tokens().num_rows == 0
    assert capture.neurons()["count"].to_pylist() == [0] * 45
    assert capture.store.neuron(0, 0).exemplars(5).num_rows == 0
    assert capture.store.sql("select count(*) n from tokens")["n"].to_pylist() == [0]


def test_no_values_but_statistics(somewhere, planting):
    values = planting(somewhere, precision="none", gate_sign=False)
    store = Store(somewhere)
    capture = store.capture()
    assert verify_capture(capture) == []
    with pytest.raises(NotFoundError, match=r"^Capture 'corpus' keeps statistics only \(precision none\), no values\."):
        capture.activations(0, 0)
    table = capture.tokens()
    special = np.array(table["modality"].to_pylist()) == "special"
    assert store.neuron(0, 3).statistics()["max"] == values[0][3][~special].max()
    exemplars = store.neuron(0, 3).exemplars(20).to_pylist()
    assert len(exemplars) == capture.record.n_exemplars
    assert exemplars[0]["activations"] is None
    assert exemplars[0]["value"] == values[0][3][~special].max()


# What does not exist.


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.capture("captions"), "has no capture 'captions'. Its captures are: corpus."),
        (lambda s: s.capture("../corpus"), "has no capture '../corpus'. Its captures are: corpus."),
        (lambda s: s.neuron(2, 0), "planted has layers 0 to 1, found layer 2."),
        (lambda s: s.neuron(-1, 0), "planted has layers 0 to 1, found layer -1."),
        (lambda s: s.neuron("L1.N40"), "Layer 1 has neurons 0 to 39, found neuron 40."),
        (lambda s: s.capture().activations(1, 40), "Layer 1 has neurons 0 to 39 at mlp.post, found neuron 40."),
        (lambda s: s.capture().activations(1, -1), "Layer 1 has neurons 0 to 39 at mlp.post, found neuron -1."),
        (lambda s: s.capture().block_row(0, 5, 0), "Layer 0 has neurons 0 to 4 at mlp.post, found neuron 5."),
        (lambda s: s.capture().activations(5, 0), "Capture 'corpus' has no layer 5 at mlp.post."),
        (
            lambda s: s.capture().activations(0, 0, "mlp.up"),
            "Capture 'corpus' has no site 'mlp.up'. Its sites are: mlp.post.",
        ),
        (lambda s: s.capture().block_values(0, 9), "Block 9 of capture 'corpus' is not committed; 3 of 3 blocks are."),
        (
            lambda s: s.capture().gate_signs(7, 0),
            "Capture 'corpus' has no gate signs of layer 7. Capture with `gate_sign=True`.",
        ),
        (lambda s: s.neuron(0, 0).exemplars(5, site="resid"), "has no site 'resid'. Its sites are: mlp.post."),
        (lambda s: s.neuron(0, 0).statistics(site="mlp.in"), "has no site 'mlp.in'. Its sites are: mlp.post."),
    ],
)
def test_what_does_not_exist_is_named(planted_path, ask, message):
    with pytest.raises(NotFoundError) as caught:
        ask(Store(planted_path[0]))
    assert str(caught.value).endswith(message)


def test_a_store_tells_its_captures(captured):
    assert captured.captures == ("corpus", "in-int8")
    assert captured.capture().record.name == "corpus"
    assert "captures corpus, in-int8" in repr(captured)


def test_a_damaged_shard_is_an_error_when_it_is_read(planted):
    store, _ = planted
    path = store.folder.local_path() / "captures/corpus/values/mlp.post/1/c/0/0"
    data = bytearray(path.read_bytes())
    data[-2] ^= 255
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"values/mlp\.post/1/c/0/0 is damaged: its index does not match"):
        store.capture().activations(1, 0)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"zarr_format": 3, "node_type": "group"}', b"\xff"])
def test_a_damaged_array_is_an_error_when_it_is_read(planted, content):
    store, _ = planted
    (store.folder.local_path() / "captures/corpus/values/mlp.post/1/zarr.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"The metadata of .*/captures/corpus/values/mlp\.post/1 cannot be read"):
        store.capture().activations(1, 0)


# Without actstore.

PLAIN = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("actstore", "torch", "transformers"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import numpy as np, pyarrow.parquet as pq, zarr

root, capture = sys.argv[1], sys.argv[2]
group = zarr.open_group(root, mode="r")
record = group[f"captures/{capture}"].attrs["actstore_capture"]
windows = pq.read_table(f"{root}/captures/{capture}/windows.parquet").to_pylist()
documents = pq.read_table(f"{root}/captures/{capture}/documents.parquet").to_pylist()
neurons = pq.read_table(f"{root}/captures/{capture}/neurons.parquet").to_pylist()
model = pq.read_table(f"{root}/neurons.parquet").to_pylist()
values = group[f"captures/{capture}/values/mlp.post/1"]
ids = group[f"captures/{capture}/tokens/ids"][...]
rows = []
for window in sorted(windows, key=lambda w: w["slot_start"]):
    slots = slice(window["slot_start"], window["slot_start"] + window["n_slots"])
    here = values[5, slots]
    if values.dtype == np.int8:
        here = here.astype(np.float32) * group[f"captures/{capture}/scale/mlp.post/1"][5, window["block"]]
    rows += zip(ids[slots].tolist(), here.tolist(), [documents[window["document"]]["source"]] * window["n_slots"])
print(json.dumps({
    "format": group.attrs["actstore"]["format"],
    "dimensions": values.metadata.dimension_names,
    "rows": rows,
    "neurons": [[n["name"], n["count"], n["max"]] for n in neurons],
    "model": [n["name"] for n in model],
    "statistics": group[f"captures/{capture}/statistics/mlp.post/mean"][...].tolist(),
    "precision": record["precision"],
}))
"""


@pytest.mark.parametrize("name", ["corpus", "in-int8"])
def test_plain_zarr_and_pyarrow_read_the_same(captured, name):
    """A store outlives this program: nothing of actstore, torch or transformers is imported."""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAIN, str(captured.folder), name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    capture = captured.capture(name)
    tokens = capture.tokens()
    sources = [capture.document_source(d) for d in tokens["document"].to_pylist()]
    expected = zip(tokens["id"].to_pylist(), capture.activations(1, 5).tolist(), sources, strict=True)
    assert [tuple(row) for row in found["rows"]] == list(expected)
    assert found["format"] == 1
    assert found["dimensions"] == ["neuron", "token"]
    assert found["precision"] == capture.record.precision
    assert found["model"] == [f"L{layer}.N{i}" for layer in (0, 1) for i in range(24)]
    statistics = [capture.layer_statistics(layer, "mlp.post") for layer in (0, 1)]
    assert found["statistics"] == np.concatenate([s.mean for s in statistics]).tolist()
    assert [row[0] for row in found["neurons"]] == found["model"]
    assert [row[2] for row in found["neurons"]] == np.concatenate([s.maximum for s in statistics]).tolist()


def test_a_block_that_is_missing_reads_as_no_value_in_plain_zarr(planted):
    store, _ = planted
    Folder(store.folder.location, read_only=False).delete("captures/corpus/values/mlp.post/0/c/0/1")
    array = zarr.open_array(str(store.folder.local_path()), path="captures/corpus/values/mlp.post/0", mode="r")
    assert np.isnan(array[:, 64:128]).all()


def test_reading_needs_neither_torch_nor_transformers(planted_path):
    """Who only reads stores should not wait for them, nor need them."""
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None); import actstore; s = actstore.open(sys.argv[1]); "
        "print(len(s.neuron(1, 3).activations()), s.neuron(1, 3).exemplars(2).num_rows, s.neurons().num_rows)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(planted_path[0])], capture_output=True, text=True, check=False
    )
    assert out.stdout.split() == ["135", "2", "45"], out.stderr
