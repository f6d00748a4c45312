"""Probes of exemplars: which windows run, once each; that the results are the model's; and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import torch
from elsewhere import Elsewhere

from actstore.engine.capture.run import RunOptions
from actstore.engine.graphs.build import build_graphs
from actstore.engine.graphs.probes import run as probe_run
from actstore.engine.graphs.probes.corpus_substitutes import CorpusSubstitutes
from actstore.engine.graphs.probes.evidence import ProbedExemplar, Probes, annotate, annotate_graphs
from actstore.engine.graphs.probes.plan import (
    NO_TOKEN,
    ArrangedWindows,
    ProbeSettings,
    Requests,
    Subject,
    mask_token,
    shorten,
)
from actstore.engine.graphs.probes.published import PublishedSettings, paths_of
from actstore.engine.graphs.probes.rounds import probe
from actstore.engine.graphs.probes.sampled import sample_probes
from actstore.engine.graphs.probes.sampling import SampleSettings
from actstore.engine.models.load import load_model
from actstore.kernels.suffix_trie.api import IGNORE, Nodes
from actstore.store.capture.requests import REQUESTS, read_requests
from actstore.store.errors import CaptureError, FormatError, InvalidInputError, NotFoundError
from actstore.store.graphs.reader import NeuronGraph
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.conftest import Captured  # type: ignore[import-not-found]

NEURONS = [(0, 3), (1, 0), (1, 7)]
SETTINGS = ProbeSettings(n_exemplars=6, longest=15, n_substitutes=2)


@pytest.fixture
def store(captured: Captured, tmp_path: Path) -> Path:
    """A copy of a store that may be written to."""
    shutil.copytree(captured().folder.location, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(scope="module")
def probed_store(captured: Captured, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with probes of three neurons; not to be written to."""
    folder = tmp_path_factory.mktemp("probed") / "store"
    shutil.copytree(captured().folder.location, folder)
    probe(str(tiny_model), folder, neurons=NEURONS, settings=SETTINGS, precision="exact")
    return folder


@pytest.fixture(scope="module")
def activation(tiny_model: Path) -> Callable[..., np.ndarray]:
    """activation(ids, layer, neuron): the activations over a window that runs alone."""
    model = load_model(tiny_model, device="cpu")

    def run(ids: np.ndarray, layer: int, neuron: int) -> np.ndarray:
        seen = {}
        given = torch.from_numpy(np.asarray(ids, np.int64))[None]
        model.forward(given, sink=lambda at, _site, values, _rows: seen.setdefault(at, values.clone()))
        return seen[layer].reshape(len(ids), -1)[:, neuron].numpy()

    return run


def changed(ids: np.ndarray, position: int, token: int) -> np.ndarray:
    """The window with another token at a position; without that position where `token` is `NO_TOKEN`."""
    if token == NO_TOKEN:
        return np.delete(ids, position)
    return np.where(np.arange(len(ids)) == position, token, ids)


def subject(ids: list[int], pivot: int, n_special: int = 1) -> Subject:
    return Subject(0, 0, 0, np.array(ids, np.int32), pivot, n_special, 1.0)


def test_answers_are_what_the_model_does(probed_store: Path, activation: Callable[..., np.ndarray]) -> None:
    probes = Probes(Store(probed_store))
    n_masked = n_variants = 0
    mask = probes.settings["mask_token"]
    for layer, neuron in NEURONS:
        maximum = probes.maximum(layer, neuron)
        for one in probes.of(layer, neuron):
            own = activation(one.ids, layer, neuron) / maximum
            np.testing.assert_allclose(one.values, own, atol=1e-5)
            for position in np.flatnonzero(np.isfinite(one.importance).any(1) if one.importance.size else []):
                masked = activation(changed(one.ids, int(position), mask), layer, neuron) / maximum
                requested = np.isfinite(one.importance[position])
                lost = (1 - masked / own)[requested]
                np.testing.assert_allclose(one.importance[position][requested], lost, atol=1e-3, rtol=1e-3)
                n_masked += 1
            for variant in one.variants:
                np.testing.assert_allclose(variant.values, activation(variant.ids, layer, neuron) / maximum, atol=1e-5)
                assert np.count_nonzero(variant.ids != one.ids[: len(variant.ids)]) == 1
                n_variants += 1
    assert n_masked > 10
    assert n_variants > 10


def lines(
    ids: np.ndarray, values: np.ndarray, importance: np.ndarray, n_special: int, sets: list[set[int]] | None
) -> tuple[list[tuple[tuple[int, ...], float]], list[set[int]]]:
    """The published `make_line`: the paths of one window, and the important places of each of its tokens.

    sets: None for an original, whose sets are made; those of the original for a variant.
    """
    made, own_sets = [], []
    for i in range(len(ids)):
        places: set[int] = set()
        own_sets.append(places)
        if i < n_special or not values[i] > 0.5:
            continue
        line = [int(ids[i])]
        last = 0
        for j in range(1, i + 1 - n_special):
            place = i - j
            important = importance[place, i] > 0.75 or (sets is not None and place in sets[min(i, len(sets) - 1)])
            if important:
                places.add(place)
                last = j
            line.append(int(ids[place]) if important else IGNORE)
        made.append((tuple(line[: last + 1]), float(values[i])))
    return made, own_sets


def test_published_paths_are_those_of_the_published_code(
    probed_store: Path, activation: Callable[..., np.ndarray]
) -> None:
    """Importance is measured in the original, and again in each variant, whose paths keep what is important in the original."""
    probes = Probes(Store(probed_store))
    mask, n_of_variants = probes.settings["mask_token"], 0
    for layer, neuron in NEURONS:
        maximum = probes.maximum(layer, neuron)

        def measure(ids: np.ndarray, scale: float, where: tuple[int, int] = (layer, neuron)) -> tuple[np.ndarray, ...]:
            own = activation(ids, *where)
            importance = np.full((len(ids), len(ids)), np.nan)
            for position in range(1, len(ids)):
                masked = activation(changed(ids, position, mask), *where)
                with np.errstate(divide="ignore", invalid="ignore"):
                    importance[position] = np.where(own > 0, 1 - masked / own, np.nan)
            return own * scale, importance

        probed, expected = probes.of(layer, neuron), []
        for one in probed:
            if not one.importance.size:
                continue
            scale = one.whole / float(activation(one.ids, layer, neuron)[one.pivot])
            made, sets = lines(one.ids, *measure(one.ids, scale), one.n_special, None)
            expected += made
            for variant in one.variants:
                of_variant, _ = lines(variant.ids, *measure(variant.ids, scale), one.n_special, sets)
                expected += of_variant
                n_of_variants += len(of_variant)
        found = sorted((path.tokens, path.value) for path in paths_of(probed, 0.5, PublishedSettings()))
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in sorted(expected)]
        np.testing.assert_allclose([v for _, v in found], [v for _, v in sorted(expected)], rtol=1e-4)
        assert maximum > 0
    assert n_of_variants > 3


def test_without_maskings_of_variants_they_take_the_importance_of_their_original(
    tiny_model: Path, store: Path, probed_store: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, measure_variants=False)
    probes = probe(str(tiny_model), store, neurons=NEURONS[:1], settings=settings, precision="exact")
    assert "probes-variant" not in probes.captures
    measured = Probes(Store(probed_store))
    for one, other in zip(probes.of(*NEURONS[0]), measured.of(*NEURONS[0]), strict=True):
        # Measured in other batches, whose sums round differently.
        np.testing.assert_allclose(one.importance, other.importance, atol=1e-6)
        assert not any(variant.importance.size for variant in one.variants)
    exemplars = [exemplar for neuron in NEURONS for exemplar in measured.of(*neuron)]
    assert any(variant.importance.size for exemplar in exemplars for variant in exemplar.variants)


def test_workers_ask_what_one_process_does(
    tiny_model: Path, store: Path, probed_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Elsewhere.instead_of_processes(monkeypatch)
    options = RunOptions(workers=2)
    probes = probe(str(tiny_model), store, neurons=NEURONS, settings=SETTINGS, precision="exact", options=options)
    assert "probes-substitute" in probes.captures
    alone = Store(probed_store)  # elsewhere, so that records and checksums of rows are others
    for name in probes.captures:
        first, second = alone.capture(name), probes.store.capture(name)
        assert second.record.plan.fingerprint == first.record.plan.fingerprint
        for layer, block in itertools.product((0, 1), first.blocks):
            assert second.raw_block(layer, block).tobytes() == first.raw_block(layer, block).tobytes()


def test_the_pivot_is_a_text_token_and_the_largest_where_the_window_held(probed_store: Path) -> None:
    probes = Probes(Store(probed_store))
    for layer, neuron in NEURONS:
        for one in probes.of(layer, neuron):
            assert one.pivot >= one.n_special == 1
            assert one.ids[0] == 0
            if one.is_shortened:
                assert one.values[one.pivot] == one.values[1:].max() > 0.5 * one.whole
            else:
                assert not one.importance.size, "an exemplar that could not be shortened is not probed further"


def test_no_window_runs_twice_and_none_is_padded(probed_store: Path) -> None:
    store = Store(probed_store)
    probes = Probes(store)
    for name in probes.captures:
        capture = store.capture(name)
        windows = capture.windows().to_pylist()
        inputs = capture.plan.array("inputs/ids")
        ids = [inputs[w["input_start"] :][: w["n_inputs"]].tobytes() for w in windows]
        assert len(set(ids)) == len(ids)
        lengths: dict[tuple[int, int], set[int]] = {}
        for w in windows:
            lengths.setdefault((w["block"], w["batch"]), set()).add(w["n_inputs"])
        assert all(len(result) == 1 for result in lengths.values())


def windows_of(arranged: ArrangedWindows) -> list[list[int]]:
    return [w.tolist() for w in np.split(arranged.ids, np.cumsum(arranged.lengths)[:-1])]


def test_requests_of_many_neurons_for_one_window_are_one_window() -> None:
    requests = Requests()
    for neuron in (5, 2, 5):
        requests.add(subject([0, 7, 8], 2)._replace(neuron=neuron, exemplar=neuron))
    requests.add(subject([0, 3], 1)._replace(neuron=2, exemplar=1), [1], [9])
    arranged, table = requests.finish(64)
    assert windows_of(arranged) == [[0, 9], [0, 7, 8]]
    assert table["window"].to_pylist() == [0, 1, 1, 1]
    assert table["neuron"].to_pylist() == [2, 2, 5, 5]
    assert table["position"].to_pylist() == [1, NO_TOKEN, NO_TOKEN, NO_TOKEN]
    assert table["token"].to_pylist() == [9, NO_TOKEN, NO_TOKEN, NO_TOKEN]


def test_the_order_of_requests_does_not_show() -> None:
    requested = [subject([0, i % 3, i], 2)._replace(neuron=i) for i in range(9)]
    result = []
    for order in (requested, requested[::-1]):
        requests = Requests()
        for one in order:
            requests.add(one)
        result.append(requests.finish(64))
    assert windows_of(result[0][0]) == windows_of(result[1][0])
    assert result[0][1].equals(result[1][1])


def test_windows_that_begin_alike_share_a_block_and_none_is_too_long_for_it() -> None:
    requests, rng = Requests(), np.random.default_rng(0)
    for neuron in range(100):
        ids = [0, *rng.integers(1, 300, rng.integers(1, 6)).tolist()]
        requests.add(subject(ids, 1)._replace(neuron=neuron))
    arranged, table = requests.finish(32)
    windows = windows_of(arranged)
    assert len({tuple(w) for w in windows}) == len(windows)
    blocks = [
        [w for w, b in zip(windows, arranged.blocks, strict=True) if b == n] for n in range(arranged.blocks[-1] + 1)
    ]
    for block, later in itertools.pairwise(blocks):
        assert sum(map(len, block)) <= 32 < sum(map(len, block)) + len(min(later)), "a block is as full as it can be"
        assert max(block) < min(later)
        assert [len(w) for w in block] == sorted(len(w) for w in block)
    requested = {n: w for n, w in zip(table["neuron"].to_pylist(), table["window"].to_pylist(), strict=True)}
    rng = np.random.default_rng(0)
    for neuron in range(100):
        assert windows[requested[neuron]] == [0, *rng.integers(1, 300, rng.integers(1, 6)).tolist()]


def test_a_suffix_ends_with_its_sentence_and_keeps_the_special_tokens() -> None:
    whole = subject([0, 11, 12, 13, 14, 15, 16, 17], 4)
    short = shorten(whole, 2, 2, None, lambda token: token == 15)
    assert short is not None
    assert (short.ids.tolist(), short.pivot) == ([0, 13, 14, 15], 2)
    at_end = shorten(whole, 2, 2, None, lambda token: token == 14)
    assert at_end is not None
    assert at_end.ids.tolist() == [0, 13, 14], "nothing follows a pivot that ends its sentence"
    all_of_it = shorten(whole, 30, 5, None, lambda _: False)
    assert all_of_it is not None
    assert all_of_it.ids.tolist() == whole.ids.tolist()
    tight = shorten(whole, 2, 2, 4, lambda _: False)
    assert tight is not None
    assert tight.ids.tolist() == [0, 13, 14, 15]
    assert shorten(whole, 4, 2, 4, lambda _: False) is None


def test_a_token_is_deleted_or_another_takes_its_place() -> None:
    whole = subject([5, 6, 7, 8], 3)
    deleted, replaced = Requests(), Requests()
    deleted.add(whole, range(4), NO_TOKEN)
    assert windows_of(deleted.finish(64)[0]) == [[5, 6, 7], [5, 6, 8], [5, 7, 8], [6, 7, 8]]
    replaced.add(whole, [1, 3, 1], [9, 0, 4])
    assert windows_of(replaced.finish(64)[0]) == [[5, 4, 7, 8], [5, 6, 7, 0], [5, 9, 7, 8]]
    replaced.add(whole, [], [])
    assert len(replaced) == 3, "there is no request without a change"
    assert whole.ids.tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("known", "kind", "expected"),
    [
        ({"mask": 4, "unk": 1}, "auto", ("mask", 4)),
        ({"unk": 1, "pad": 2}, "auto", ("unk", 1)),
        ({"pad": 2}, "auto", ("pad", 2)),
        ({}, "auto", ("typical", 77)),
        ({"mask": 4}, "typical", ("typical", 77)),
        ({"mask": 4}, "delete", ("delete", NO_TOKEN)),
    ],
)
def test_the_mask_is_a_token_that_the_tokenizer_names(
    known: dict[str, int], kind: str, expected: tuple[str, int]
) -> None:
    assert mask_token(known, kind, 77) == expected


def test_a_mask_that_the_tokenizer_has_not_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="has no mask token"):
        mask_token({"pad": 3}, "mask", 77)
    with pytest.raises(InvalidInputError, match="`mask` must be one of"):
        ProbeSettings(mask="the")


def test_the_tiny_tokenizer_masks_with_its_padding(probed_store: Path) -> None:
    requested = Probes(Store(probed_store)).settings
    assert (requested["mask_kind"], requested["mask_token"]) == ("pad", 1)


def test_deletion_keeps_each_value_at_its_token(
    tiny_model: Path, store: Path, activation: Callable[..., np.ndarray]
) -> None:
    settings = ProbeSettings(n_exemplars=4, longest=5, n_substitutes=0, mask="delete")
    probes = probe(str(tiny_model), store, neurons=[(1, 7)], settings=settings, precision="exact")
    one = next(one for one in probes.of(1, 7) if one.importance.size)
    maximum = probes.maximum(1, 7)
    deleted = activation(np.delete(one.ids, 1), 1, 7) / maximum
    assert one.importance[1, one.pivot] == pytest.approx(1 - deleted[one.pivot - 1] / one.values[one.pivot], abs=1e-3)
    assert np.isnan(np.diagonal(one.importance)).all(), "a token that is not there has no activation"


def test_substitutes_occur_in_the_same_place_then_come_from_the_embedding() -> None:
    texts = [[1, 10, 2], [1, 11, 2], [1, 11, 2], [1, 12, 3], [1, 13, 2], [4, 14, 2]]
    windows = [np.array(t, np.int32) for t in texts]
    embedding = np.eye(20, 8, dtype=np.float32)
    embedding[15] = embedding[10 % 8] = [1, 0, 0, 0, 0, 0, 0, 0]
    embedding[10] = [1, 0.1, 0, 0, 0, 0, 0, 0]
    given = CorpusSubstitutes(iter(windows), frozenset({13}), embedding)
    ids = np.array([1, 10, 2], np.int32)
    assert given.of(ids, 1, 1) == [11]
    assert given.of(ids, 1, 2)[0] == 11
    assert 15 in given.of(ids, 1, 4)
    assert not {10, 13} & set(given.of(ids, 1, 10))
    alone = CorpusSubstitutes(iter(windows), frozenset(), None)
    assert alone.of(np.array([9, 10], np.int32), 1, 5) == []
    assert alone.of(np.array([10, 2], np.int32), 0, 5) == []


@pytest.mark.parametrize("kind", ["suffix-05", "mask", "variant"])
def test_probes_that_were_killed_go_on_and_end_the_same(
    tiny_model: Path, store: Path, probed_store: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fill = probe_run.fill_by_prefix

    def dies(*arguments: object) -> None:
        if arguments[1].name == f"probes-{kind}":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        fill(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(probe_run, "fill_by_prefix", dies)
        with pytest.raises(CaptureError, match="`resume=True`"):
            probe(str(tiny_model), store, neurons=NEURONS, settings=SETTINGS, precision="exact")
    with pytest.raises(InvalidInputError, match="interrupted"):
        Probes(Store(store))
    with pytest.raises(InvalidInputError, match="`resume=True`"):
        probe(str(tiny_model), store, neurons=NEURONS, settings=SETTINGS, precision="exact")
    done = probe(
        str(tiny_model), store, neurons=NEURONS, settings=SETTINGS, precision="exact", options=RunOptions(resume=True)
    )
    expected = Probes(Store(probed_store))
    assert done.captures == expected.captures
    for name in done.captures:
        plans = [Store(where).capture(name).record.plan.fingerprint for where in (store, probed_store)]
        assert plans[0] == plans[1]
    np.testing.assert_array_equal(done.of(1, 7)[0].importance, expected.of(1, 7)[0].importance)


def test_probes_end_with_the_round_that_has_nothing_to_ask(tiny_model: Path, store: Path) -> None:
    probes = probe(str(tiny_model), store, neurons=[(0, 3)], settings=ProbeSettings(n_exemplars=2, n_substitutes=0))
    assert "probes-mask" in probes.captures
    assert "probes-substitute" not in probes.captures


def test_what_cannot_be_asked_is_refused(
    tiny_model: Path, store: Path, captured: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match=r"graphs\.probe"):
        Probes(Store(store))
    with pytest.raises(NotFoundError, match="no layer 9"):
        probe(str(tiny_model), store, neurons=[(9, 0)])
    last = tmp_path / "last"
    shutil.copytree(captured(positions="last", max_tokens=30).folder.location, last)
    with pytest.raises(InvalidInputError, match='positions="all"'):
        probe(str(tiny_model), last)
    nothing = tmp_path / "statistics"
    shutil.copytree(captured(precision="none").folder.location, nothing)
    with pytest.raises(NotFoundError, match="statistics only"):
        probe(str(tiny_model), nothing, neurons=[(0, 0)])
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    model = load_model(tiny_model, device="cpu").model
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(1)
    model.save_pretrained(other)
    with pytest.raises(InvalidInputError, match="another model"):
        probe(str(other), store, neurons=NEURONS, settings=SETTINGS)
    assert not [name for name in Store(store).captures if name.startswith("probes")]


def test_a_damaged_table_of_requests_is_named(probed_store: Path, tmp_path: Path) -> None:
    shutil.copytree(probed_store, tmp_path / "store")
    path = tmp_path / "store" / "captures" / "probes-mask" / "requests.arrow"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FormatError, match=r"probes-mask/requests\.arrow is damaged"):
        Probes(Store(tmp_path / "store"))
    path.unlink()
    result = [(d.key, d.what) for d in verify_capture(Store(tmp_path / "store").capture("probes-mask"))]
    assert [key for key, _ in result] == ["requests.arrow"], result
    assert "missing" in result[0][1]


def test_a_changed_number_among_the_requests_is_found_by_its_checksum(probed_store: Path, tmp_path: Path) -> None:
    store = Store(shutil.copytree(probed_store, tmp_path / "store"))
    capture, path = store.capture("probes-mask"), tmp_path / "store/captures/probes-mask/requests.arrow"
    assert verify_capture(capture) == []
    table = read_requests(store.folder, "probes-mask")
    tokens = table["whole"].to_numpy().tobytes()
    content = bytearray(path.read_bytes())
    at = content.index(tokens)
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"probes-mask/requests\.arrow is damaged.*checksum does not match"):
        Probes(store)
    assert [(d.key, d.block) for d in verify_capture(capture)] == [("requests.arrow", None)]
    content[at] ^= 1
    path.write_bytes(content)
    assert verify_capture(capture) == []


def test_requests_of_an_earlier_version_have_no_checksum_and_are_read(probed_store: Path, tmp_path: Path) -> None:
    store = Store(shutil.copytree(probed_store, tmp_path / "store"))
    table = read_requests(store.folder, "probes-mask")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, REQUESTS) as writer:
        writer.write_table(table.replace_schema_metadata(REQUESTS.metadata))
    (tmp_path / "store/captures/probes-mask/requests.arrow").write_bytes(sink.getvalue().to_pybytes())
    assert verify_capture(store.capture("probes-mask")) == []
    assert read_requests(store.folder, "probes-mask").select(REQUESTS.names).equals(table)
    assert Probes(store).neurons == Probes(Store(probed_store)).neurons


def test_sampled_windows_beside_are_no_probes_of_neurons(tiny_model: Path, store: Path) -> None:
    settings = SampleSettings(n_tokens=40, window=12)
    sample_probes(str(tiny_model), store, settings=settings)
    with pytest.raises(NotFoundError, match="no probes"):
        Probes(Store(store))


def graph_of(paths: list[tuple[int, ...]]) -> NeuronGraph:
    """A graph with a node for every path, whose prefixes are there too; each ends."""
    paths = sorted(paths)
    n = len(paths)
    parents = [paths.index(p[:-1]) if len(p) > 1 else -1 for p in paths]
    nodes = Nodes(
        np.array([0, n]), np.array(parents, np.int32), np.array([p[-1] for p in paths], np.int32),
        np.array([len(p) - 1 for p in paths], np.uint8), np.ones(n, bool), np.ones(n, np.float32), np.ones(n, np.float32),
        np.ones(n, np.int32), np.ones(n, np.int32),
    )  # fmt: skip
    return NeuronGraph(None, 0, 0, 1.0, 0.4, 1, "", nodes, np.full(n, np.nan, np.float32))  # type: ignore[arg-type]


def test_a_node_has_the_mean_importance_of_the_tokens_it_matches() -> None:
    def probed(ids: list[int], lost: list[float]) -> ProbedExemplar:
        importance = np.full((3, 3), np.nan, np.float32)
        importance[:, 2] = lost
        values = np.array([0, 0.1, 0.9], np.float32)
        return ProbedExemplar(0, np.array(ids, np.int32), 0, 2, 1.0, values, True, importance)

    graph = graph_of([(9,), (9, 5), (9, 6), (9, IGNORE), (9, IGNORE, 4)])
    result = annotate(graph, [probed([4, 5, 9], [0.8, 0.6, 1.0]), probed([4, 7, 9], [0.4, 0.0, 1.0])])
    expected = {(9,): 1.0, (9, 5): 0.6, (9, 6): np.nan, (9, IGNORE): 0.3, (9, IGNORE, 4): 0.6}
    for node, value in enumerate(result.tolist()):
        assert value == pytest.approx(expected[graph.path(node)], nan_ok=True)


def test_annotated_graphs_are_the_same_with_importance(probed_store: Path, tmp_path: Path) -> None:
    shutil.copytree(probed_store, tmp_path / "store")
    folder = Folder(tmp_path / "store", read_only=False)
    store = Store(folder)
    graphs = build_graphs(store.capture("corpus"), folder)
    done = annotate_graphs(graphs, Probes(store), folder, "annotated")
    for column in graphs.nodes.column_names:
        same = done.nodes[column].equals(graphs.nodes[column])
        floats = pa.types.is_floating(graphs.nodes[column].type)
        if column != "importance" and not floats:
            assert same
    assert done.neurons.equals(graphs.neurons)
    measured = np.isfinite(done.nodes["importance"].to_numpy())
    assert measured.any()
    first = done.neurons["first_node"].to_numpy()
    requested = {(layer, neuron) for layer, neuron in NEURONS}
    for row in range(len(done)):
        graph = done.row(row)
        if (graph.layer, graph.neuron) not in requested:
            assert not measured[first[row] : first[row] + len(graph)].any()


def test_graphs_of_another_tokenizer_are_not_annotated(probed_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = Probes(Store(probed_store))

    class Record:
        tokenizer_fingerprint = "f" * 64

    class Graphs:
        record, name = Record(), "others"

    with pytest.raises(InvalidInputError, match="their tokens are not the same"):
        annotate_graphs(Graphs(), probes, Folder(probed_store), "annotated")  # type: ignore[arg-type]


def test_a_capture_that_was_made_anew_is_not_what_was_asked_about(
    probed_store: Path, tmp_path: Path, tiny_model: Path, corpus: Path
) -> None:
    from actstore.engine.capture.api import capture

    shutil.copytree(probed_store, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "captures" / "corpus")
    capture(str(tiny_model), corpus, tmp_path / "store", context=16, max_tokens=300)
    with pytest.raises(InvalidInputError, match="another capture"):
        Probes(Store(tmp_path / "store"))
