"""Graphs of planted neurons from a store: found to the letter, whatever the precision, the chunks and the interruptions."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer
from elsewhere import Elsewhere
from planted_capture import SPECIAL_TOKEN, make_windows, plant_capture

from actstore.api.graphs import GraphsMethod
from actstore.commands.graphs import build as graph_build
from actstore.commands.graphs import evaluate as evaluate_command
from actstore.engine.graphs import build as module
from actstore.engine.graphs.build import BuildOptions, GraphSettings, build_graphs
from actstore.engine.graphs.contexts import read_contexts
from actstore.engine.graphs.events import find_events
from actstore.kernels.suffix_trie.api import IGNORE
from actstore.store.errors import CaptureError, InvalidInputError, NotFoundError
from actstore.store.graphs.reader import Graphs
from actstore.store.graphs.writer import GraphWriter
from actstore.store.reader import Capture, Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Ids = Any
A, B, C = 3, 7, 5


def before(ids: Ids, distance: int) -> Ids:
    return np.concatenate([np.full(distance, -2), ids])[: len(ids)]


def active(fires: Ids) -> Ids:
    return np.where(fires, np.float32(2.5), np.float32(-0.125))


def on_token(ids: Ids) -> Ids:
    return active(ids == B)


def after(ids: Ids) -> Ids:
    return active((ids == B) & (before(ids, 1) == A))


def either(ids: Ids) -> Ids:
    return active((ids == B) | (ids == C))


def unless(ids: Ids) -> Ids:
    return active((ids == B) & (before(ids, 1) != A))


def skipping(ids: Ids) -> Ids:
    return active((ids == B) & (before(ids, 2) == A))


def first_word(ids: Ids) -> Ids:
    return active((ids == B) & (before(ids, 1) == SPECIAL_TOKEN))


def on_special(ids: Ids) -> Ids:
    """Above all at the special token, which never counts; else on a token."""
    return np.where(ids == SPECIAL_TOKEN, np.float32(100), on_token(ids))


def never(ids: Ids) -> Ids:
    return np.where(ids == B, np.float32(0), np.float32(-1))


def not_finite(ids: Ids) -> Ids:
    """On a token; infinite and not a number elsewhere."""
    values = on_token(ids)
    values[ids == A], values[ids == C] = np.inf, np.nan
    return values


PATHS: dict[Any, dict[tuple[int, ...], bool]] = {
    on_token: {(B,): True},
    after: {(B,): False, (B, A): True},
    either: {(C,): True, (B,): True},
    unless: {(B,): True, (B, A): False},
    skipping: {(B,): False, (B, IGNORE, A): True},
    first_word: {(B,): False, (B, SPECIAL_TOKEN): True},
    on_special: {(B,): True},
    never: {},
    not_finite: {(B,): True},
}
LAYERS = [[*PATHS], [after, never, skipping]]


def somewhere() -> str:
    return f"memory://{uuid.uuid4()}/store"


@pytest.fixture(scope="module")
def windows() -> list[Any]:
    return make_windows(700)


@pytest.fixture(scope="module")
def capture(windows: list[Any]) -> Capture:
    return plant_capture(somewhere(), windows, LAYERS, block_slots=4096)


def build(capture: Capture, **asked: Any) -> Graphs:
    return build_graphs(capture, Folder(capture.folder.location, read_only=False), **asked)


def paths(graphs: Graphs, layer: int, neuron: int) -> dict[tuple[int, ...], bool]:
    return {path.tokens: path.probability >= 0.5 for path in graphs.graph(layer, neuron).paths()}


def contents(graphs: Graphs) -> dict[str, bytes]:
    folder = graphs.store.folder
    return {file: folder.read(f"graphs/{graphs.name}/{file}") for file in ("nodes.arrow", "neurons.arrow")}


@pytest.mark.parametrize("precision", ["exact", "half", "int8", "sparse"])
def test_planted_neurons_are_found_to_the_letter(windows: list[Any], capture: Capture, precision: str) -> None:
    layers = LAYERS
    if precision != "exact":
        layers = [[*PATHS]]
        capture = plant_capture(somewhere(), windows, layers, precision=precision, block_slots=4096)
    graphs = build(capture, name=f"found-{precision}")
    for layer, planted in enumerate(layers):
        for neuron, rule in enumerate(planted):
            assert paths(graphs, layer, neuron) == PATHS[rule], rule.__name__
            graph = graphs.graph(layer, neuron)
            assert graph.status == ("never fires" if rule is never else "")
            if rule is not never:
                assert graph.maximum == pytest.approx(2.5, rel=0.01)
                firing = [path for path in graph.paths() if path.probability >= 0.5]
                assert all(path.value == pytest.approx(1, abs=0.1) for path in firing)


def too_large(ids: Ids) -> Ids:
    """Beyond float16 on a token after another, where it fires; large, but less than half of that, on the token elsewhere."""
    return np.where(after(ids) > 0, np.float32(65530), np.where(ids == B, np.float32(1e4), np.float32(-100)))


def far_too_large(ids: Ids) -> Ids:
    """So large that no float16 reaches half of it; at special tokens, which never count, still larger."""
    return np.where(ids == SPECIAL_TOKEN, np.float32(1e9), np.where(after(ids) > 0, np.float32(1e7), np.float32(-1e6)))


def below_as_well(ids: Ids) -> Ids:
    return np.where(ids == A, np.float32(-1e5), on_token(ids))


def test_neurons_that_overflow_precision_half_fire_where_they_do_at_exact(windows: list[Any]) -> None:
    rules = [too_large, far_too_large, below_as_well, on_token]
    graphs = {
        precision: build(plant_capture(somewhere(), windows, [rules], precision=precision, block_slots=4096))
        for precision in ("exact", "half")
    }
    capture = graphs["half"].store.capture()
    assert capture.overflow["mlp.post"].names == ["L0.N0", "L0.N1", "L0.N2"]
    for neuron in range(len(rules)):
        exact, half = (graphs[precision].graph(0, neuron) for precision in ("exact", "half"))
        assert half.status == exact.status == ""
        assert half.maximum == min(exact.maximum, 65504)
        assert paths(graphs["half"], 0, neuron) == paths(graphs["exact"], 0, neuron)
        for path in half.paths():
            assert np.isfinite(path.value)
            assert -2e5 / half.maximum <= path.value <= 1
    contexts = read_contexts(capture)
    events = find_events(capture, contexts, 0, [0])
    values = np.clip(capture.activations(0, 0), -65504, 65504)
    silent = (contexts.rank >= 0) & (values < 65504 / 2)
    assert events.rest[0] == pytest.approx(values[silent].mean(dtype=np.float64) / 65504)
    assert (events.values == 1).all()


def test_graphs_predict_new_text(capture: Capture) -> None:
    graphs = build(capture, name="predicting")
    for ids in make_windows(40, seed=9):
        for neuron, rule in enumerate(PATHS):
            expected = np.where(ids == SPECIAL_TOKEN, -1, rule(ids))
            expected = (expected > 1) & np.isfinite(expected)
            np.testing.assert_array_equal(graphs.graph(0, neuron).fires(ids), expected, rule.__name__)


def test_events_are_where_activations_reach_the_share(capture: Capture) -> None:
    contexts = read_contexts(capture)
    neurons = [1, 7, 6]
    result = find_events(capture, contexts, 0, neurons, share=0.75, threads=2)
    table = capture.tokens()
    is_text = np.array([m == "text" for m in table["modality"].to_pylist()])
    for number, neuron in enumerate(neurons):
        values = capture.activations(0, neuron)
        fires = is_text & (values >= 0.75 * 2.5) if neuron != 7 else np.zeros(len(values), bool)
        a, b = result.offsets[number : number + 2]
        assert result.ranks[a:b].tolist() == sorted(contexts.rank[fires].tolist())
        assert (result.values[a:b] == 1).all()
        if neuron != 7:
            assert result.rest[number] == pytest.approx(-0.125 / 2.5, rel=1e-3)


def test_chunks_and_threads_do_not_change_a_byte(capture: Capture) -> None:
    expected = build(capture, name="whole", options=BuildOptions(threads=1))
    for number, memory in enumerate((1, 10**6)):
        result = build(capture, name=f"chunked-{number}", options=BuildOptions(memory, threads=3))
        assert contents(result) == contents(expected)


def test_a_killed_build_ends_with_the_same_bytes(tmp_path: Path, windows: list[Any]) -> None:
    path = tmp_path / "store"
    capture = plant_capture(path, windows[:100], LAYERS)
    expected = contents(build(capture, name="undisturbed"))
    program = textwrap.dedent(
        f"""
        import os, signal
        from actstore.engine.graphs.build import BuildOptions, build_graphs
        from actstore.store.storage.folder import Folder
        from actstore.store.reader import Store
        def kill(done, n):
            if done == 7:
                os.kill(os.getpid(), signal.SIGKILL)
        options = BuildOptions(memory=1, progress=kill)
        build_graphs(Store({str(path)!r}).capture(), Folder({str(path)!r}, read_only=False), name="killed", options=options)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    parts = path / "graphs" / "killed" / "parts"
    assert len([*parts.glob("*.neurons.arrow")]) == 7
    (parts / "6.nodes.arrow").write_bytes(b"half a file")
    with pytest.raises(NotFoundError, match="no graphs 'killed'"):
        Graphs(Store(path), "killed")
    begun: list[int] = []
    options = BuildOptions(memory=1, resume=True, progress=lambda done, n: begun.append(done))
    assert contents(build(capture, name="killed", options=options)) == expected
    assert begun[0] == 6  # the damaged part is built again, the others are not
    assert not parts.exists()
    begun.clear()
    assert contents(build(capture, name="killed", options=options)) == expected
    assert begun == [12]


def test_windows_left_out_are_no_evidence(capture: Capture, windows: list[Any]) -> None:
    with_b = [number for number, ids in enumerate(windows) if (ids == B).any()]
    graphs = build(capture, name="left-out", neurons=[(0, 0)], leave_out=with_b[1:])
    (path,) = graphs.graph(0, 0).paths()
    assert path.count == path.fires == (windows[with_b[0]] == B).sum()
    assert graphs.graph(0, 0).n_events == sum((ids == B).sum() for ids in windows)
    assert graphs.record.settings["leave_out"] == with_b[1:]
    with pytest.raises(InvalidInputError, match="windows 0 to 699, found 700 to leave out"):
        build(capture, name="beyond", leave_out=[700])


def test_only_some_neurons(capture: Capture) -> None:
    graphs = build(capture, name="some", neurons=[(1, 2), (0, 3), (1, 2)])
    assert [graph.name for graph in graphs] == ["L0.N3", "L1.N2"]
    whole = build(capture, name="all")
    for graph in graphs:
        for result, expected in zip(graph.nodes, whole.graph(graph.layer, graph.neuron).nodes, strict=True):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"share": 0.0}, "`share` must be above 0"),
        ({"threshold": 2.0}, "`threshold` must be a probability"),
        ({"kappa": -1.0}, "`kappa` must be above 0"),
        ({"nodes": 0}, "`nodes` must be 1 or more, found 0"),
        ({"max_depth": 300}, "`max_depth` must be from 0 to 255"),
        ({"margin": float("nan")}, "`max_skip` and `margin` must be 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(asked: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        GraphSettings(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [graph_build.build, evaluate_command.evaluate, GraphsMethod.build, GraphsMethod.evaluate, GraphWriter.add],
    ids=["graphs build", "graphs evaluate", "store.graphs.build", "store.graphs.evaluate", "GraphWriter"],
)
def test_every_entrance_has_the_defaults_of_the_settings(call: Callable[..., Any]) -> None:
    given = {
        name: one.default for name, one in inspect.signature(call).parameters.items() if one.default is not one.empty
    }
    defaults = {item.name: item.default for item in dataclasses.fields(GraphSettings) if item.name in given}
    assert "threshold" in defaults
    assert {name: given[name] for name in defaults} == defaults


def test_a_number_of_nodes_and_a_threshold_hold_for_every_neuron(capture: Capture) -> None:
    few = build(capture, name="few", settings=GraphSettings(nodes=1, threshold=0.3))
    assert few.neurons["n_nodes"].to_pylist() == [min(1, len(PATHS[rule])) for rules in LAYERS for rule in rules]
    assert set(few.neurons["threshold"].to_pylist()) == {np.float32(0.3)}
    assert (few.record.settings["nodes"], few.record.settings["threshold"]) == (1, 0.3)
    # At (B,) nothing but the mean is known of a neuron that fires after one token of many.
    assert few.graph(0, 1).paths() is not None
    assert [path.probability < 0.3 for path in few.graph(0, 1).paths()] == [True]


def test_neurons_that_are_not_there_are_refused(capture: Capture) -> None:
    with pytest.raises(NotFoundError, match="Layer 1 has neurons 0 to 2"):
        build(capture, name="none", neurons=[(1, 3)])
    with pytest.raises(NotFoundError, match=r"no site 'mlp\.gate'"):
        build(capture, name="none", site="mlp.gate")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 1.0])
def test_no_neuron_fires_more_often_than_its_histogram_says(capture: Capture, share: float) -> None:
    contexts = read_contexts(capture)
    for layer, width in enumerate(map(len, LAYERS)):
        most = module.most_events((capture,), layer, "mlp.post", share)
        events = np.diff(find_events(capture, contexts, layer, range(width), share=share).offsets)
        assert (events <= most).all()
        # The bins are half an octave wide: what the bound has too much are values of the bin of the threshold.
        values = np.stack([capture.activations(layer, neuron) for neuron in range(width)])
        maximum = capture.layer_statistics(layer, "mlp.post").maximum[:, None]
        assert (most <= (values >= share * maximum / 1.5).sum(axis=1))[maximum[:, 0] > 0].all()
    assert (
        module.most_events((capture, capture), 0, "mlp.post", share)[0]
        == 2 * module.most_events((capture,), 0, "mlp.post", share)[0]
    )


def test_memory_bounds_the_firing_positions_of_a_chunk(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks: list[tuple[int, list[int]]] = []

    def find(*args: Any, **asked: Any) -> Any:
        chunks.append((args[2], args[3]))
        return find_events(*args, **asked)

    monkeypatch.setattr(module, "find_events", find)
    most = [module.most_events((capture,), layer, "mlp.post", 0.5) for layer in range(len(LAYERS))]
    bound = int(most[0].sum()) // 2
    build(capture, name="bounded", options=BuildOptions(memory=bound * module.BYTES_PER_EVENT))
    assert [(layer, n) for layer, neurons in chunks for n in neurons] == [
        (layer, n) for layer, width in enumerate(map(len, LAYERS)) for n in range(width)
    ]
    assert all(most[layer][neurons].sum() <= bound or len(neurons) == 1 for layer, neurons in chunks)
    assert 2 <= sum(layer == 0 for layer, _ in chunks) < len(LAYERS[0])
    chunks.clear()
    monkeypatch.setattr(module, "MAX_CHUNK_VALUES", 3 * read_contexts(capture).n_positions)
    build(capture, name="short")
    assert max(len(neurons) for _, neurons in chunks) == 3


def files(graphs: Graphs) -> list[bytes]:
    folder, name = graphs.store.folder, graphs.name
    return [folder.read(f"graphs/{name}/{file}") for file in ("nodes.arrow", "neurons.arrow")]


def test_workers_build_the_same_bytes_and_a_killed_one_leaves_a_build_that_resumes(capture: Capture) -> None:
    leave_out = [0, 5]
    alone = build(capture, name="alone", leave_out=leave_out)
    memory = 8 * module.BYTES_PER_EVENT * read_contexts(capture).n_positions
    asked: dict[str, Any] = {"name": "shared", "leave_out": leave_out}
    workers = Elsewhere(lambda item: item[1].layer == 0)
    with pytest.raises(CaptureError, match=r"signal 9 with the graphs of L0\.N8 unfinished.*`resume=True`"):
        build(capture, options=BuildOptions(memory), executor=workers, **asked)
    shared = build(capture, options=BuildOptions(memory, resume=True), executor=Elsewhere(), **asked)
    assert files(shared) == files(alone)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    app = typer.Typer()

    @app.callback()
    def main() -> None: ...

    graph_build.register(app)
    app([*arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_the_command_says_what_it_built(tmp_path: Path, windows: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "store")
    plant_capture(path, windows[:60], LAYERS)
    described = json.loads(run(capsys, "build", path, "--json", "--quiet"))
    graphs = Graphs(Store(path))
    assert (described["neurons"], described["nodes"], described["never_fire"]) == (12, graphs.record.n_nodes, 2)
    assert described["seconds"] > 0
    assert "12 neurons, 2 of which never fire" in run(capsys, "build", path, "--name", "again", "--quiet")
    with pytest.raises(InvalidInputError, match="already has graphs 'graphs'"):
        run(capsys, "build", path)
    (tmp_path / "out.txt").write_text("1\n2\n")
    some = ["--name", "some", "--layers", "1", "--leave-out", str(tmp_path / "out.txt")]
    assert json.loads(run(capsys, "build", path, *some, "--gain", "-1", "--json"))["neurons"] == 3
    record = Graphs(Store(path), "some").record
    assert (record.settings["gain"], record.settings["leave_out"]) == (-1, [1, 2])
    (tmp_path / "out.txt").write_text("one")
    with pytest.raises(InvalidInputError, match="--leave-out names a file of window numbers"):
        run(capsys, "build", path, "--name", "x", "--leave-out", str(tmp_path / "out.txt"))


def test_no_model_library_is_loaded(tmp_path: Path, windows: list[Any]) -> None:
    plant_capture(tmp_path / "store", windows[:20], [[on_token]])
    program = textwrap.dedent(
        f"""
        import sys
        from actstore.engine.graphs.build import build_graphs
        from actstore.store.storage.folder import Folder
        from actstore.store.reader import Store
        path = {str(tmp_path / "store")!r}
        build_graphs(Store(path).capture(), Folder(path, read_only=False))
        assert Store(path).graph("L0.N0").fires([{B}]).all()
        print(sorted({{"torch", "transformers", "tokenizers"}} & set(sys.modules)))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_a_further_capture_is_evidence_like_the_first(tmp_path: Path) -> None:
    windows = make_windows(60, n_tokens=9)
    rules = [[on_token, after, unless, skipping]]
    whole = plant_capture(tmp_path / "whole", windows, rules)
    part = plant_capture(tmp_path / "part", windows[:25], rules)
    more = plant_capture(tmp_path / "part", windows[25:], rules, name="more")
    assert whole.folder.local_path() is not None
    assert part.folder.local_path() is not None
    expected = build_graphs(whole, Folder(whole.folder.local_path(), read_only=False))
    result = build_graphs(part, Folder(part.folder.local_path(), read_only=False), also=[more])
    for column in ("parent", "token", "depth", "ends", "count", "fires", "probability"):
        np.testing.assert_array_equal(result.nodes[column], expected.nodes[column], err_msg=column)
    np.testing.assert_allclose(result.nodes["value"], expected.nodes["value"], rtol=1e-5, atol=1e-7)
    assert result.record.settings["also"] == {"more": [more.record.plan.fingerprint, len(more.blocks)]}


def test_a_capture_is_not_evidence_twice(tmp_path: Path) -> None:
    capture = plant_capture(tmp_path / "store", make_windows(5), [[on_token]])
    assert capture.folder.local_path() is not None
    with pytest.raises(InvalidInputError, match="Capture 'corpus' is evidence already"):
        build_graphs(capture, Folder(capture.folder.local_path(), read_only=False), also=[capture])
