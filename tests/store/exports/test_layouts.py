"""Layouts of other tools: read by those tools where they are installed, and by what they do where they are not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from actstore.api.store import Store
from actstore.store.errors import InvalidInputError
from actstore.store.exports.export import WRITERS, export_activations
from actstore.store.exports.formats import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Capture

NEURONS = [(1, 3), (0, 4), (1, 39), (0, 0), (1, 5)]


@pytest.fixture
def capture(planted_path: Any) -> Capture:
    return Store(planted_path[0]).capture()


def plain(table: pa.Table) -> list[dict[str, Any]]:
    return list(table.to_pylist())


def test_every_format_has_a_writer() -> None:
    assert set(WRITERS) == set(FORMATS)


def test_csv_and_a_data_set_have_the_columns_of_parquet(capture: Capture, tmp_path: Path) -> None:
    for name in ("a.parquet", "a.csv"):
        assert export_activations(capture, tmp_path / name, neurons=NEURONS) == 135
    assert export_activations(capture, tmp_path / "set", neurons=NEURONS, format="datasets") == 135
    expected = pq.read_table(tmp_path / "a.parquet")
    found = pa.csv.read_csv(tmp_path / "a.csv")
    assert found.column_names == expected.column_names
    for name in expected.column_names:
        column = expected[name].to_pylist()
        assert found[name].to_pylist() == pytest.approx(column, rel=1e-6) if name[0] == "L" else column
    with pa.memory_map(str(tmp_path / "set" / "data-00000-of-00001.arrow")) as file:
        assert plain(pa.ipc.open_stream(file).read_all()) == plain(expected)


def test_the_library_datasets_loads_it(capture: Capture, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
    export_activations(capture, tmp_path / "set", neurons=NEURONS, format="datasets")
    export_activations(capture, tmp_path / "a.parquet", neurons=NEURONS)
    found = datasets.load_from_disk(str(tmp_path / "set"))
    assert list(found) == plain(pq.read_table(tmp_path / "a.parquet"))


def exemplars_of(capture: Capture, layer: int, index: int) -> list[tuple[float, int, int]]:
    rows = Store(capture.folder.location).neuron(layer, index).exemplars(3).to_pylist()
    return [(row["value"], row["window"], row["position"]) for row in rows]


def test_delphi_has_the_exemplars(capture: Capture, tmp_path: Path) -> None:
    """The largest activation of each window, windows in the order of these: what delphi makes of its files."""
    export_activations(capture, tmp_path / "latents", neurons=NEURONS, format="delphi")
    files = sorted(path.relative_to(tmp_path / "latents").as_posix() for path in (tmp_path / "latents").rglob("*.*s*"))
    assert [name for name in files if name.endswith("safetensors")] == [
        "layers.0.mlp.post/0_4.safetensors", "layers.1.mlp.post/3_39.safetensors",
    ]  # fmt: skip
    for layer, index in NEURONS:
        first = {0: 0, 1: 3}[layer]
        (path,) = (tmp_path / "latents" / f"layers.{layer}.mlp.post").glob("*.safetensors")
        cache = load_file(path)
        of_latent = cache["locations"][:, 2] == index - first
        places, values = cache["locations"][of_latent].astype(int), cache["activations"][of_latent]
        best = sorted(
            {
                w: max((v, w, -p) for v, (x, p, _) in zip(values, places, strict=True) if x == w) for w in places[:, 0]
            }.values()
        )
        assert [(v, w, -p) for v, w, p in best[::-1][:3]] == exemplars_of(capture, layer, index)
    windows = capture.windows().to_pylist()
    inputs = capture.plan.array("inputs/ids")
    assert cache["tokens"].shape == (6, 64)
    for row, window in zip(cache["tokens"], windows, strict=True):
        ids = inputs[window["input_start"] : window["input_start"] + window["n_inputs"]]
        assert row[: len(ids)].tolist() == ids.tolist()
        assert not row[len(ids) :].any()


def test_delphis_own_loader_gives_the_exemplars(capture: Capture, tmp_path: Path) -> None:
    loader = pytest.importorskip("delphi.latents.loader", reason="delphi is not installed")
    from delphi.config import ConstructorConfig, SamplerConfig

    export_activations(capture, tmp_path / "latents", neurons=NEURONS, format="delphi")
    data = loader.LatentDataset(
        tmp_path / "latents",
        SamplerConfig(n_examples_train=3, train_type="top", n_examples_test=0, n_quantiles=1),
        ConstructorConfig(example_ctx_len=64, min_examples=1, n_non_activating=0),
        tokenizer=type("Tokenizer", (), {"batch_decode": lambda self, ids: [str(i) for i in ids]})(),
    )
    records = {(int(r.latent.module_name.split(".")[1]), r.latent.latent_index): r for r in data}
    assert set(records) == set(NEURONS)
    tokens = {tuple(row.tolist()): window for window, row in enumerate(data.tokens)}
    for (layer, index), record in records.items():
        found = [
            (float(one.activations.max()), tokens[tuple(one.tokens.tolist())], int(one.activations.argmax()))
            for one in record.examples[:3]
        ]
        assert found == exemplars_of(capture, layer, index)


def test_neuronpedia_and_dashboard(capture: Capture, tmp_path: Path) -> None:
    neurons, correlated = [(1, 3), (1, 5), (0, 4)], {(1, 3): [(7, 0.5), (2, 0.25)]}
    export_activations(capture, tmp_path / "np", neurons=neurons, format="neuronpedia", correlated=correlated)
    batches = [json.loads((tmp_path / "np" / f"batch-{n}.json").read_text()) for n in range(2)]
    assert [(batch["layer"], [f["feature_index"] for f in batch["features"]]) for batch in batches] == [
        (0, [4]), (1, [3, 5]),
    ]  # fmt: skip
    feature, neuron = batches[1]["features"][0], Store(capture.folder.location).neuron("L1.N3")
    assert len(feature) == 24  # those of NeuronpediaDashboardFeature
    exemplar, statistics = neuron.exemplars(1).to_pylist()[0], neuron.statistics()
    best = feature["activations"][0]
    assert best["tokens"] == exemplar["tokens"]
    assert best["tokens"][best["qualifying_token_index"]] == exemplar["token"]
    assert best["values"][best["qualifying_token_index"]] == pytest.approx(exemplar["value"], abs=1e-6)
    assert feature["frac_nonzero"] == pytest.approx(statistics["positive"], abs=1e-6)
    assert feature["correlated_neurons_indices"] == [7, 2]
    assert feature["correlated_neurons_pearson"] == [0.5, 0.25]
    assert 0 < sum(feature["freq_hist_data_bar_heights"]) <= statistics["count"]
    export_activations(capture, tmp_path / "a.jsonl", neurons=[(1, 3), (0, 4)], correlated=correlated)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["L1.N3", "L0.N4"]
    assert {k: lines[0][k] for k in feature} == feature


@pytest.mark.slow
def test_correlated_neurons_are_those_of_coactivation(planted_path: Any, tmp_path: Path) -> None:
    store = Store(planted_path[0])
    store.export(tmp_path / "np", ["L1.N3"], format="neuronpedia")
    (feature,) = json.loads((tmp_path / "np" / "batch-0.json").read_text())["features"]
    nearest = store.coactivation("L1.N3", within_layers=True, k=10, layers=[1]).table.to_pylist()
    assert feature["correlated_neurons_indices"] == [row["neuron"] for row in nearest]
    assert feature["correlated_neurons_pearson"] == pytest.approx([row["correlation"] for row in nearest], abs=1e-5)


def test_a_folder_is_not_replaced_and_is_whole(capture: Capture, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InvalidInputError, match=r"there exists already\. Delete it, or name another folder"):
        export_activations(capture, tmp_path / "there", neurons=NEURONS, format="delphi")

    def stop(block: int) -> None:
        raise KeyboardInterrupt

    for name in ("delphi", "datasets", "neuronpedia"):
        with pytest.raises(KeyboardInterrupt):
            export_activations(capture, tmp_path / name, neurons=NEURONS, format=name, on_block=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with pytest.raises(InvalidInputError, match="`format` is one of parquet, csv"):
        export_activations(capture, tmp_path / "x", neurons=NEURONS, format="xml")
