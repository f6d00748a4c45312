"""Arrays into captures: what comes out is what a run would have left, and what cannot be told is refused."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import actstore
from actstore.engine.building import filling
from actstore.engine.building.builder import CaptureBuilder
from actstore.store.errors import ActstoreError, InvalidInputError, NotFoundError
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

RNG = np.random.default_rng(5)
TEXTS = [[f" w{(i * n) % 7}" for n in range(20 + i)] for i in range(4)]
ROWS = [RNG.standard_normal((len(texts), 6)).astype(np.float32) for texts in TEXTS]


@pytest.fixture
def where() -> str:
    return f"memory://{uuid.uuid4()}/store"


def build(where: str | Path, name: str = "corpus", **settings: Any) -> Capture:
    """Four sequences of texts, six neurons of layer 1; of two languages."""
    with CaptureBuilder(where, name, label_columns=("language",), **settings) as builder:
        for number, (texts, rows) in enumerate(zip(TEXTS, ROWS, strict=True)):
            builder.add({("mlp.post", 1): rows}, texts=texts, labels={"language": "en" if number % 2 else "fr"})
    return builder.capture


def windows_of(capture: Capture) -> list[tuple[dict[str, Any], NDArray[np.int32], slice]]:
    """Of each window, its row, what the model read, and its tokens among all."""
    rows, inputs = capture.windows().to_pylist(), capture.plan.array("inputs/ids")
    ends = np.cumsum([row["n_slots"] for row in rows])
    return [
        (row, inputs[row["input_start"] : row["input_start"] + row["n_inputs"]], slice(end - row["n_slots"], end))
        for row, end in zip(rows, ends.tolist(), strict=True)
    ]


def test_the_arrays_of_a_run_give_what_the_run_gave(
    captured: Callable[..., Capture], tiny_model: Path, tmp_path: Path
) -> None:
    run = captured(sites=("mlp.post", "resid.post"))
    values = {
        (site, layer): np.stack([run.activations(layer, n, site) for n in range(width)], axis=1)
        for site in run.record.sites
        for layer, width in run.record.layers(site).items()
    }
    documents = run.documents().to_pylist()
    made = CaptureBuilder(tmp_path / "store", model=str(tiny_model), label_columns=("language",), block_tokens=256)
    with made as builder:
        for row, ids, tokens in windows_of(run):
            label = {"language": documents[row["document"]]["language"]}
            builder.add({place: array[tokens] for place, array in values.items()}, ids=ids, labels=label)
    store = actstore.open(tmp_path / "store")
    built = store.capture()
    assert verify_capture(built) == []
    assert built.record.model_fingerprint == run.record.model_fingerprint
    assert built.record.plan.n_blocks > 2
    for (site, layer), array in values.items():
        for neuron in (0, array.shape[1] - 1):
            np.testing.assert_array_equal(built.activations(layer, neuron, site), array[:, neuron])
    both = [capture.neurons().to_pylist() for capture in (built, run)]
    for ours, theirs in zip(*both, strict=True):
        for name in ("site", "layer", "neuron", "count", "min", "max", "positive", "top_value", "positive_by_label"):
            assert ours[name] == theirs[name], name
        assert ours["mean"] == pytest.approx(theirs["mean"], rel=1e-5, abs=1e-7)
    neuron = actstore.open(run.store.folder.location).neuron("L1.N3")
    columns = ["value", "token", "text", "position"]
    assert store.neuron("L1.N3").exemplars(5).select(columns).equals(neuron.exemplars(5).select(columns))
    first = run.tokens()["id"][5].as_py()
    assert store.contributions(first, k=3).num_rows == 3  # the model gave the store its weights
    with pytest.raises(InvalidInputError, match="runs the model again, and capture 'corpus' was made of arrays"):
        store.verify("corpus", refill=1)
    assert store.verify(refill=1) == []


def test_features_stand_beside_the_activations_that_they_are_of(where: str) -> None:
    source = build(where)
    width = 9  # more than the layer has neurons
    features = np.maximum(RNG.standard_normal((source.record.plan.n_tokens, width)), 0)
    with CaptureBuilder(where, "features", tokens_of="corpus", precision="half") as builder:
        for first in range(0, len(features), 31):
            builder.add({"sae.features": {1: features[first : first + 31]}})
    store = actstore.open(where)
    made = store.capture("features")
    assert made.record.dtype == "float32"
    assert made.tokens().equals(source.tokens())
    assert made.documents().equals(source.documents())
    np.testing.assert_array_equal(
        made.activations(1, 8, "sae.features"), features[:, 8].astype(np.float16).astype(np.float32)
    )
    best = store.neuron("L1.N8").exemplars(1, "features", "sae.features").to_pylist()[0]
    at = int(features[:, 8].argmax())
    assert best["value"] == pytest.approx(features[at, 8])
    assert best["token"] == source.store.token_text(source.tokens()["id"][at].as_py())
    found = store.sql(
        "select count(*) as n, max(positive) as most from neurons where site = 'sae.features'", "features"
    )
    assert found["n"][0].as_py() == width
    store.graphs.build(capture="features", site="sae.features", neurons=["L1.N8"])
    assert len(store.graph("L1.N8").predict([1, 2, 3])) == 3
    with pytest.raises(NotFoundError, match="Layer 1 has neurons 0 to 5"):
        store.neuron("L1.N9")


def test_batches_masks_and_formats(where: str) -> None:
    batch = torch.from_numpy(RNG.standard_normal((3, 8, 4))).to(torch.bfloat16)
    mask = np.ones((3, 8), bool)
    mask[0, :3] = mask[2, 6:] = False
    ids = np.arange(24).reshape(3, 8)
    with CaptureBuilder(where, special_ids=(8,)) as builder:
        builder.add({"blocks.0.mlp.hook_post": batch}, ids=ids, mask=mask, source=["a", "b", "c"])
    capture = builder.capture
    assert capture.record.dtype == "bfloat16"
    assert capture.tokens()["id"].to_pylist() == ids[mask].tolist()
    assert capture.documents()["source"].to_pylist() == ["a", "b", "c"]
    assert capture.tokens()["modality"].to_pylist().count("special") == 1
    np.testing.assert_array_equal(capture.activations(0, 2), batch[mask][:, 2].float().numpy())
    assert capture.neurons()["count"].to_pylist() == [18] * 4  # of 19, without the special token


ROW_ORDERS: list[dict[str, Any]] = [
    {"precision": "exact"}, {"precision": "int8", "block_tokens": 32}, {"precision": "half", "bundle": True},
    {"precision": "sparse", "keep": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("settings", ROW_ORDERS, ids=lambda settings: settings["precision"])
def test_either_order_on_disk_reads_the_same(where: str, settings: dict[str, Any]) -> None:
    """Two sites, of which one lies in another order than the other by default."""
    made = {}
    for name, order in (("default", None), ("by_neuron", "neuron"), ("by_token", "token"), ("one", "mlp.post=token")):
        with CaptureBuilder(where, name, order=order, **settings) as builder:
            for texts, rows in zip(TEXTS, ROWS, strict=True):
                builder.add({("mlp.post", 1): rows, ("resid.post", 1): rows[:, :4] * 2}, texts=texts)
        made[name] = builder.capture
    assert {name: capture.record.order for name, capture in made.items()} == {
        "default": {"resid.post": "token"},
        "by_neuron": {},
        "by_token": {"mlp.post": "token", "resid.post": "token"},
        "one": {"mlp.post": "token", "resid.post": "token"},
    }
    by_neuron, by_token = made["by_neuron"], made["by_token"]
    for site, width in (("mlp.post", 6), ("resid.post", 4)):
        for neuron in range(width):
            values = by_neuron.activations(1, neuron, site)
            np.testing.assert_array_equal(by_token.activations(1, neuron, site), values)
            if settings["precision"] == "exact":
                factor = 2 if site == "resid.post" else 1
                np.testing.assert_array_equal(values, np.concatenate(ROWS)[:, neuron] * factor)
        for token in (0, 50, 85):
            np.testing.assert_array_equal(
                by_token.token_activations(1, token, site), by_neuron.token_activations(1, token, site)
            )
        for block in by_neuron.blocks:
            np.testing.assert_array_equal(by_token.raw_block(1, block, site), by_neuron.raw_block(1, block, site))
    assert [verify_capture(capture) for capture in made.values()] == [[], [], [], []]


def test_a_long_sequence_is_cut(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore.engine.building.sequences.MAX_WINDOW", 100)
    rows = RNG.standard_normal((250, 3)).astype(np.float16)
    with CaptureBuilder(where, block_tokens=64) as builder:
        builder.add({("mlp.post", 0): rows}, ids=np.arange(250))
    assert [w["n_slots"] for w in builder.capture.windows().to_pylist()] == [100, 100, 50]
    assert builder.capture.record.plan.n_blocks == 3
    np.testing.assert_array_equal(builder.capture.activations(0, 1), rows[:, 1].astype(np.float32))


def test_without_tokens_what_needs_them_is_refused(where: str) -> None:
    with CaptureBuilder(where) as builder:
        builder.add({("mlp.post", 0): ROWS[0]})
    store = actstore.open(where)
    exemplar = store.neuron("L0.N2").exemplars(1).to_pylist()[0]
    assert (exemplar["token"], exemplar["position"]) == ("<?>", int(ROWS[0][:, 2].argmax()))
    with pytest.raises(InvalidInputError, match="Graphs need the tokens, and capture 'corpus' was made of arrays"):
        store.graphs.build()
    calls = [
        lambda: store.contributions(3), lambda: store.graphs.probe(), lambda: store.verify("corpus", refill=1),
        lambda: actstore.fill(where),
    ]  # fmt: skip
    for call in calls[:3]:
        with pytest.raises(ActstoreError, match="made of arrays"):
            call()
    assert calls[3]() == ()  # nothing is missing


def leave_half_way(where: Path) -> None:
    with CaptureBuilder(where) as builder:
        builder.add({("mlp.post", 0): ROWS[0]})
        assert [path.name for path in where.parent.iterdir()] == [builder._spool.path.name]
        raise ZeroDivisionError


def test_a_capture_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "store"
    with pytest.raises(ZeroDivisionError):
        leave_half_way(where)
    assert list(tmp_path.iterdir()) == []
    build(where)
    finish = filling.finish_capture

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(filling, "finish_capture", fail)
    with pytest.raises(KeyboardInterrupt):
        build(where, "other")
    monkeypatch.setattr(filling, "finish_capture", finish)
    assert actstore.open(where).captures == ("corpus",)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert build(where, "other").is_finished
    with pytest.raises(InvalidInputError, match=r"already has a capture 'other'\. Replace it with `replace=True`"):
        build(where, "other")
    assert build(where, "other", replace=True, precision="int8").record.precision == "int8"


A = {("mlp.post", 1): ROWS[0]}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "integers": (
        {("mlp.post", 1): ROWS[0].astype(np.int8)},
        {},
        r"float16, bfloat16 or float64, found int8 for mlp\.post",
    ),
    "one axis": ({("mlp.post", 1): ROWS[0][0]}, {}, r"found the shape \(6,\)"),
    "no layer": ({"mlp.post": ROWS[0]}, {}, "Activations have a site and a layer"),
    "a name": ({("a/b", 1): ROWS[0]}, {}, "A site's name is words of letters"),
    "other tokens": (A | {("sae.f", 1): ROWS[1]}, {}, r"has the shape \(20,\), and sae\.f of layer 1 \(21,\)"),
    "other width": ({("mlp.post", 1): ROWS[0][:, :3]}, {}, r"has 6 values per token in .*, found an array of 3"),
    "other layer": ({("mlp.post", 4): ROWS[0]}, {}, "has layers 0 to 1: found an array of layer 4"),
    "nan": ({("mlp.post", 1): np.full((2, 6), np.nan, np.float32)}, {}, r"NaN or infinite, first at \[0, 0\]"),
    "ids": (A, {"ids": [1, 2]}, r"one entry per token, so the shape \(20,\).*found \(2,\)"),
    "negative": (A, {"ids": np.full(20, -1)}, "`ids` lie between 0 and"),
    "texts": (A, {"texts": ["a"] * 19}, "one text per token, for 1 × 20 tokens"),
    "unknown text": (A, {"texts": ["a"] * 20}, "vocabulary, to which one store keeps, has no token 'a'"),
    "labels": (A, {"labels": {"domain": "x"}}, "`labels` names 'domain', and the builder's labels are none"),
    "hole": (A, {"mask": np.arange(20) != 4}, "this one has a hole"),
}


def add(where: str, *calls: Any, **settings: Any) -> None:
    with CaptureBuilder(where, "new", **settings) as builder:
        for activations, more in calls:
            builder.add(activations, **more)


def test_what_does_not_fit_is_refused_in_a_sentence(where: str) -> None:
    build(where)
    for activations, more, message in REFUSED.values():
        with pytest.raises(InvalidInputError, match=message):
            add(where, (activations, more))
    with pytest.raises(InvalidInputError, match="Nothing was added"):
        add(where)
    with pytest.raises(InvalidInputError, match="has 86 tokens, and 20 rows were added"):
        add(where, (A, {}), tokens_of="corpus")
    with pytest.raises(InvalidInputError, match="Every call adds the same sites"):
        add(where, (A, {}), ({("sae.f", 1): ROWS[0]}, {}))
    with pytest.raises(InvalidInputError, match="The arrays before were float16, found float32"):
        add(where, ({("mlp.post", 1): ROWS[0].astype(np.float16)}, {}), (A, {}))
    with pytest.raises(InvalidInputError, match=r"`order` is neuron or token, or of one site SITE=token.*found 'rows'"):
        CaptureBuilder(where, "new", order="rows")
    with pytest.raises(InvalidInputError, match=r"found 'resid\.post=token'\. The sites are mlp\.post"):
        add(where, (A, {}), order="resid.post=token")
    assert actstore.open(where).captures == ("corpus",)


def test_nan_is_kept_where_it_is_asked_for(where: str) -> None:
    rows = ROWS[0].copy()
    rows[3, 2] = np.nan
    with CaptureBuilder(where, non_finite="keep", dtype="float32") as builder:
        builder.add({("mlp.post", 0): rows.astype(np.float16)}, ids=range(20))
    capture = builder.capture
    assert np.flatnonzero(np.isnan(capture.activations(0, 2))).tolist() == [3]
    assert capture.neurons()["non_finite"].to_pylist() == [0, 0, 1, 0, 0, 0]
