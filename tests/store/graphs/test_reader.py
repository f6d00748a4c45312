"""Graphs on disk: what is written comes back, the same graphs are the same bytes, damage is named, nothing is overwritten."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from actstore.kernels.suffix_trie.api import BOUNDARY, IGNORE, Nodes
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError, ReadOnlyError
from actstore.store.files.records import with_checksum
from actstore.store.files.shards import checksum
from actstore.store.graphs import writer as graph_writer
from actstore.store.graphs.reader import GraphRecord, Graphs, graph_names
from actstore.store.graphs.writer import GraphWriter
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own_graphs
from actstore.store.verify import verify_graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Row = tuple[int, int, int, float]
"""parent, token, depth, probability."""

SMALL: list[Row] = [
    (-1, 3, 0, 0.25), (0, IGNORE, 1, np.nan), (1, BOUNDARY, 2, 0.75), (1, 8, 2, 0.5), (-1, 7, 0, 1.0), (4, 3, 1, 0.0)
]  # fmt: skip


def make_nodes(*graphs: Sequence[Row]) -> Nodes:
    rows = np.array([row for graph in graphs for row in graph], float).reshape(-1, 4)
    probability = rows[:, 3].astype(np.float32)
    return Nodes(
        np.cumsum([0, *map(len, graphs)]),
        rows[:, 0].astype(np.int32),
        rows[:, 1].astype(np.int32),
        rows[:, 2].astype(np.uint8),
        ~np.isnan(probability),
        probability,
        probability / 2,
        rows[:, 1].astype(np.int32) + 10,
        rows[:, 2].astype(np.int32),
    )


def make_record(name: str = "graphs", n_neurons: int = 3, **changes: Any) -> GraphRecord:
    record = GraphRecord(
        name, "corpus", "actstore 0", "f" * 64, "t" * 64, "gone", "p" * 64, "mlp.post", {"gain": 0.5}, n_neurons
    )
    return dataclasses.replace(record, **changes)


@pytest.fixture
def folder(planting: Callable[..., Any], tmp_path: Path) -> Folder:
    planting(tmp_path / "store")
    return Folder(tmp_path / "store", read_only=False)


def write(
    folder: Folder, name: str = "graphs", parts: Sequence[int] = (2, 1), importance: Any = None, *, resume: bool = False
) -> Graphs:
    """Three neurons, the second without a graph, written in parts."""
    writer = GraphWriter(folder, make_record(name), resume=resume)
    neurons = [(0, 1, SMALL), (0, 4, []), (1, 0, SMALL[4:5])]
    for size in parts:
        layer, neuron, rows = zip(*neurons[:size], strict=True)
        del neurons[:size]
        writer.add(
            layer, neuron, make_nodes(*rows), maximum=2.5, n_events=[len(r) for r in rows],
            status=["" if len(r) else "never fires" for r in rows], importance=importance,
        )  # fmt: skip
    writer.close()
    return Graphs(Store(folder.location), name)


def test_what_is_written_comes_back(folder: Folder) -> None:
    graphs = write(folder)
    assert (len(graphs), graphs.record.n_nodes, graph_names(graphs.store.folder)) == (3, 7, ("graphs",))
    assert ((0, 4) in graphs, (0, 5) in graphs) == (True, False)
    graph = graphs.graph(0, 1)
    assert (graph.name, graph.maximum, graph.threshold, graph.n_events) == ("L0.N1", 2.5, np.float32(0.3), 6)
    for found, expected in zip(graph.nodes, make_nodes(SMALL), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert np.isnan(graph.importance).all()
    empty = graphs.graph("L0.N4")
    assert (len(empty), empty.status, [*empty.paths()]) == (0, "never fires", [])
    assert graphs.graph("L1.N0").path(0) == (7,)
    assert [graph.name for graph in graphs] == ["L0.N1", "L0.N4", "L1.N0"]
    np.testing.assert_array_equal(graphs.tries(1, 3).offsets, [0, 0, 1])
    np.testing.assert_array_equal(graphs.tries().token, [3, IGNORE, BOUNDARY, 8, 7, 3, 7])
    assert graphs.nodes.schema.field("importance").type == pa.float32()


def test_a_store_gives_the_graph_of_a_neuron(folder: Folder) -> None:
    write(folder, "mine")
    store = Store(folder.location)
    assert store.graph(0, 1, name="mine").name == store.graph("L0.N1", name="mine").name == "L0.N1"
    with pytest.raises(NotFoundError, match=r"no graphs 'graphs', only: mine\. Make them: `store\.graphs\.build"):
        store.graph(0, 1)
    with pytest.raises(NotFoundError, match=r"hold none of L0\.N2"):
        store.graph(0, 2, name="mine")
    with pytest.raises(NotFoundError, match="has neurons 0 to 4, found neuron 5"):
        store.graph(0, 5, name="mine")


def test_lines_and_texts(folder: Folder) -> None:
    graph = write(folder).graph(0, 1)
    lines = [*graph.paths()]
    assert [line.tokens for line in lines] == [(3,), (3, IGNORE, BOUNDARY), (3, IGNORE, 8), (7,), (7, 3)]
    assert [(line.probability, line.value, line.count, line.fires) for line in lines][2] == (0.5, 0.25, 18, 2)
    assert [graph.text(t) for t in (3, IGNORE, BOUNDARY)] == [" w3", "…", "^"]
    assert graph.children == {-1: [0, 4], 0: [1], 1: [2, 3], 4: [5]}


def test_predictions_of_tokens(folder: Folder) -> None:
    graph = write(folder).graph(0, 1)
    ids = [8, 9, 3, 7, 7]
    assert graph.predict(ids).tolist() == [0, 0, 0.25, 0, 0.5]
    assert graph.predict([9, 9, 3]).tolist() == [0, 0, 0.125]
    assert graph.predict([9, 3]).tolist() == [0, 0.375]
    assert graph.predict([3]).tolist() == [0.375]  # before a window's beginning there is still nothing
    assert graph.predict([]).tolist() == []
    assert graph.fires(ids).tolist() == [False, False, True, False, True]
    for wrong in ([-1], [[3]], [0.5]):
        with pytest.raises(InvalidInputError, match="predicts a text, or a list of token ids, 0 or more"):
            graph.predict(wrong)  # type: ignore[arg-type]


def contents(graphs: Graphs) -> list[bytes]:
    return [graphs.store.folder.read(f"graphs/{graphs.name}/{file}") for file in ("nodes.arrow", "neurons.arrow")]


def test_parts_and_batches_do_not_show(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contents(write(folder, "a"))
    assert contents(write(folder, "b", (1, 1, 1))) == expected
    monkeypatch.setattr(graph_writer, "ROWS_PER_BATCH", 2)
    first = write(folder, "c")
    assert contents(first) == contents(write(folder, "d", (3,)))
    assert first.nodes["token"].num_chunks == 4
    for graph, other in zip(first, Graphs(first.store, "a"), strict=True):
        for found, wanted in zip(graph.nodes, other.nodes, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert not any("parts" in key for key, _ in folder.sizes("graphs"))


def test_importance_is_kept(folder: Folder) -> None:
    graphs = write(folder, parts=(3,), importance=np.arange(7, dtype=np.float32))
    assert [graph.importance.tolist() for graph in graphs] == [[0, 1, 2, 3, 4, 5], [], [6]]


def test_finished_graphs_are_not_overwritten(folder: Folder) -> None:
    before = contents(write(folder))
    with pytest.raises(InvalidInputError, match="already has graphs 'graphs'"):
        GraphWriter(folder, make_record())
    with pytest.raises(InvalidInputError, match=r"begun with gain 0\.5, now 2\.0: resume them as they were begun"):
        GraphWriter(folder, make_record(settings={"gain": 2.0}), resume=True)
    with pytest.raises(InvalidInputError, match="begun with capture 'gone', now 'other'"):
        GraphWriter(folder, make_record(capture="other"), resume=True)
    writer = GraphWriter(folder, make_record(), resume=True)
    assert writer.is_finished
    assert writer.close().n_nodes == 7
    assert contents(Graphs(Store(folder.location))) == before


def test_an_unfinished_build_is_resumed_or_begun_again(folder: Folder) -> None:
    with GraphWriter(folder, make_record()) as stopped:  # let go of here, not when it is collected
        stopped.add(0, [1], make_nodes(SMALL), maximum=1, n_events=1)
    assert graph_names(Store(folder.location).folder) == ()
    with pytest.raises(InvalidInputError, match="begun with"):
        GraphWriter(folder, make_record(n_neurons=9), resume=True)
    writer = GraphWriter(folder, make_record(), resume=True)
    assert writer.n_done == 1
    with pytest.raises(ValueError, match="3 neurons were announced, but 1 were added"):
        writer.close()
    assert GraphWriter(folder, make_record()).n_done == 0


def test_two_writers_do_not_write_the_same_graphs(folder: Folder) -> None:
    with GraphWriter(folder, make_record()) as writer:
        writer.add(0, [1], make_nodes(SMALL), maximum=1, n_events=1)
        for resume in (False, True):
            with pytest.raises(ReadOnlyError, match=r"Graphs 'graphs' of .* are being written by process"):
                GraphWriter(folder, make_record(), resume=resume)
        assert len(contents(write(folder, "others"))) == 2
        assert GraphWriter(folder, make_record("third")).n_done == 0
    # The context is left without `close`: nobody owns the name any more, and what is whole stays for a resumed writer.
    with GraphWriter(folder, make_record(), resume=True) as writer:
        assert writer.n_done == 1
    assert contents(write(folder)) == contents(Graphs(Store(folder.location), "others"))


def test_a_refused_writer_owns_nothing(folder: Folder) -> None:
    write(folder)
    with pytest.raises(InvalidInputError, match="already has graphs"):
        GraphWriter(folder, make_record())
    with own_graphs(folder, "graphs"):
        pass


@pytest.mark.parametrize("after", ["part", "nodes", "all"])
def test_a_killed_writer_blocks_nobody(folder: Folder, after: str) -> None:
    """Killed after a part, between the two files of nodes and neurons, and before what is not needed any more is gone."""
    stop = {"part": "GraphWriter._join", "nodes": "GraphWriter._counted_on", "all": "Folder.delete"}[after]
    script = (
        f"import os, signal, sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
        "from test_reader import Folder, GraphWriter, write\n"
        f"folder = Folder({folder.location!r}, read_only=False)\n"
        f"die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"if {after!r} == 'all':\n"
        "    begin = Folder.delete\n"
        "    Folder.delete = lambda self, key: die() if self.exists('graphs/graphs/graph.json') else begin(self, key)\n"
        f"else:\n    {stop} = die\n"
        "write(folder)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    expected = contents(write(folder, "undisturbed"))
    if after == "all":
        assert GraphWriter(folder, make_record(), resume=True).close().n_nodes == 7
    else:
        assert graph_names(Store(folder.location).folder) == ("undisturbed",)
        assert verify_graphs(folder) == (["undisturbed"], [])
        with GraphWriter(folder, make_record(), resume=True) as writer:
            assert writer.n_done == 3
        write(folder)
    assert contents(Graphs(Store(folder.location))) == expected
    assert verify_graphs(folder) == (["graphs", "undisturbed"], [])
    assert not any("parts" in key or "partial" in key for key, _ in folder.sizes("graphs"))


@pytest.mark.parametrize("file", ["nodes.arrow", "neurons.arrow"])
def test_verify_names_a_damaged_file(folder: Folder, file: str) -> None:
    write(folder)
    write(folder, "others")
    assert verify_graphs(folder) == (["graphs", "others"], [])
    key = f"graphs/others/{file}"
    whole = folder.read(key)
    for at in (0, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[at] ^= 0x10
        folder.write(key, bytes(data))
        names, (damage,) = verify_graphs(folder)
        assert (names, damage.graphs, damage.capture, damage.key) == (["graphs", "others"], "others", None, key)
        assert re.fullmatch(rf"graphs 'others': {key}: checksum \w{{8}}, expected \w{{8}}", str(damage))
    folder.write(key, whole[:-1])
    assert verify_graphs(folder)[1][0].what == f"{len(whole) - 1} bytes, expected {len(whole)}"
    folder.delete(key)
    assert verify_graphs(folder)[1][0].what == "missing"
    assert verify_graphs(folder, "another capture") == ([], [])


def test_verify_names_a_damaged_record(folder: Folder) -> None:
    write(folder)
    folder.write("graphs/graphs/graph.json", b"{")
    names, (damage,) = verify_graphs(folder, "corpus")
    assert (names, damage.key) == (["graphs"], "graphs/graphs/graph.json")
    folder.delete("graphs/graphs/graph.json")
    assert [d.what for d in verify_graphs(folder)[1]] == ["missing"]


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", ".."])
def test_names_that_are_no_folder_are_refused(folder: Folder, name: str) -> None:
    with pytest.raises(InvalidInputError, match="a name that can be a folder's"):
        GraphWriter(folder, make_record(name))


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([(-1, 5, 0, 1.0), (-1, 3, 0, 1.0)], "children do not ascend"),
        ([(-1, 3, 0, 1.0), (0, 5, 1, 1.0), (0, 5, 1, 1.0)], "children do not ascend"),
        ([(-1, 3, 0, 1.0), (-1, 4, 0, 1.0), (0, 5, 1, 1.0)], "parent is not where depth first has it"),
        ([(-1, 3, 0, 1.0), (0, 5, 2, 1.0)], "parent is not where"),
        ([(0, 3, 0, 1.0)], "parent is not where"),
        ([(-1, 3, 1, 1.0)], "parent is not where"),
        ([(-1, -3, 0, 1.0)], "a token is below -2"),
    ],
)
def test_nodes_out_of_order_are_refused(folder: Folder, rows: list[Row], fault: str) -> None:
    writer = GraphWriter(folder, make_record())
    with pytest.raises(ValueError, match=fault):
        writer.add(0, [0, 1], make_nodes(SMALL, rows), maximum=1, n_events=1)
    with pytest.raises(ValueError, match="ascending order of layer and neuron"):
        writer.add(0, [1, 1], make_nodes(SMALL, SMALL), maximum=1, n_events=1)
    nodes = make_nodes(SMALL)
    with pytest.raises(ValueError, match="ends without a probability"):
        writer.add(0, [1], nodes._replace(ends=~nodes.ends), maximum=1, n_events=1)


def test_a_neuron_starts_with_a_node_at_depth_0(folder: Folder) -> None:
    nodes = make_nodes(SMALL, SMALL)
    with pytest.raises(ValueError, match="parent is not where"):
        GraphWriter(folder, make_record()).add(
            0, [0, 1], nodes._replace(offsets=np.array([0, 5, 12])), maximum=1, n_events=1
        )


@pytest.mark.parametrize("file", ["nodes.arrow", "neurons.arrow"])
def test_damaged_files_are_named(folder: Folder, file: str) -> None:
    write(folder)
    key = f"graphs/graphs/{file}"
    whole = folder.read(key)
    store = Store(folder.location)
    for damaged, fault in ((whole[:-8], "expected"), (b"\0" * len(whole), ""), (whole[: len(whole) // 2], "expected")):
        folder.write(key, damaged)
        with pytest.raises(FormatError, match=rf"{file} is damaged: .*{fault}.*Build the graphs again"):
            Graphs(store)
    folder.delete(key)
    with pytest.raises(FormatError, match=f"{file} is damaged: it is missing"):
        Graphs(store)


def test_files_of_other_graphs_are_refused(folder: Folder) -> None:
    write(folder)
    key, other = "graphs/graphs/graph.json", folder.read_json("graphs/graphs/graph.json")
    del other["checksum"]
    for change, fault in (
        ({"n_nodes": 6}, "does not count the nodes"),
        ({"n_neurons": 4}, "does not count"),
        ({"format": 2}, "reads graphs up to 1. Update"),
        ({"format": None}, "format None"),
        ({"site": 3}, "site should be str"),
    ):
        folder.write_json(key, other | change)
        with pytest.raises(FormatError, match=fault):
            Graphs(Store(folder.location))
    folder.write_json(key, {k: v for k, v in other.items() if k != "capture"})
    with pytest.raises(FormatError, match="lacks the field 'capture'"):
        Graphs(Store(folder.location))


def test_damage_inside_a_graph_is_found_where_it_is_read(folder: Folder) -> None:
    graphs = write(folder)
    key, data = "graphs/graphs/nodes.arrow", bytearray(folder.read("graphs/graphs/nodes.arrow"))
    parents = np.array([-1, 0, 1, 1, -1, 4, -1], np.int32).tobytes()
    assert data.count(parents) == 1
    at = data.index(parents)
    data[at : at + len(parents)] = np.array([-1, 0, 1, 3, -1, 4, -1], np.int32).tobytes()
    folder.write(key, bytes(data))
    with pytest.raises(FormatError, match=r"nodes\.arrow is damaged: its checksum does not match"):
        Graphs(Store(folder.location))
    # As if it had been written so.
    record = folder.read_json("graphs/graphs/graph.json")
    record["files"]["nodes.arrow"][1] = checksum(bytes(data))
    folder.write_json("graphs/graphs/graph.json", with_checksum(record))
    graphs = Graphs(Store(folder.location))
    assert len(graphs.graph(1, 0)) == 1
    with pytest.raises(FormatError, match=r"in L0\.N1, a parent is not where"):
        graphs.graph(0, 1)


def test_a_hundred_thousand_graphs_open_without_being_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 100_000
    writer = GraphWriter(folder, make_record(n_neurons=n))
    writer.add(np.arange(n) // 50_000, np.arange(n) % 50_000, make_nodes(*[SMALL] * n), maximum=1, n_events=1)
    writer.close()
    before = pa.total_allocated_bytes()
    began = time.process_time()
    graphs = Graphs(Store(folder.location))
    assert time.process_time() - began < 5  # 0.02 s; a machine may be slow, but not so
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert graphs.graph(1, 49_999).children == {-1: [0, 4], 0: [1], 1: [2, 3], 4: [5]}


def test_graphs_on_an_object_store(planting: Callable[..., Any], somewhere: str) -> None:
    planting(somewhere)
    graphs = write(Folder(somewhere, read_only=False))
    assert [len(graph) for graph in graphs] == [6, 0, 1]


@pytest.mark.parametrize("table", ["nodes", "neurons"])
def test_a_damaged_part_is_built_again(folder: Folder, table: str) -> None:
    """A part is joined into what gets a checksum of its own: damage in it would have one too."""
    expected = contents(write(folder, "undisturbed"))
    with GraphWriter(folder, make_record()) as writer:
        writer.add(0, [1], make_nodes(SMALL), maximum=1, n_events=1)
        key = f"graphs/graphs/parts/0.{table}.arrow"
        data = bytearray(folder.read(key))
        data[data.index(np.float32(1).tobytes() if table == "neurons" else np.int32(-1).tobytes())] ^= 1
        folder.write(key, bytes(data))
    with GraphWriter(folder, make_record(), resume=True) as writer:
        assert writer.n_done == 0
    assert contents(write(folder)) == expected


def test_parts_after_one_that_is_not_whole_are_built_again(folder: Folder) -> None:
    """Parts may be cut otherwise the next time: what followed the lost one must not be taken for what follows the new one."""
    expected = contents(write(folder, "undisturbed"))
    with GraphWriter(folder, make_record()) as writer:
        for layer, neuron, rows in ((0, 1, SMALL), (0, 4, []), (1, 0, SMALL[4:5])):
            writer.add(
                [layer],
                [neuron],
                make_nodes(rows),
                maximum=2.5,
                n_events=[len(rows)],
                status=["" if rows else "never fires"],
            )
    folder.delete("graphs/graphs/parts/0.neurons.arrow")
    with GraphWriter(folder, make_record(), resume=True) as again:
        assert again.n_done == 0
    assert folder.names("graphs/graphs/parts") == ["graph.json"]
    write(folder, resume=True)
    assert contents(Graphs(Store(folder.location), "graphs")) == expected
