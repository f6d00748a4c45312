"""Whatever happens to one file of a store, its reader refuses in one sentence, or gives what was written: no third thing."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from actstore.engine.graphs.predict import encode_as
from actstore.store.capture.commits import read_commit
from actstore.store.capture.questions.answers import Answers, answer_tables
from actstore.store.capture.statistics.capture_statistics import read_block_statistics
from actstore.store.edits import read_edit
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.graphs.reader import Graphs
from actstore.store.graphs.tables import graph_tables
from actstore.store.model import root
from actstore.store.model.tokenizer import StoredTokenizer
from actstore.store.model.weights import count_rows, read_final_norm, read_rows, read_weights
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_capture, verify_graphs, verify_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REFUSALS = (FormatError, NotFoundError, InvalidInputError)


def plain(value: Any) -> Any:
    """`value` in builtin types, every bit of its numbers kept: what two readings are compared by."""
    if isinstance(value, pa.Table):
        return {name: plain(value[name].to_pylist()) for name in value.column_names}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return repr(value) if isinstance(value, float) else value


def _whole_graphs(path: Path) -> Any:
    store = Store(path)
    graphs = Graphs(store)
    nodes = [
        (list(g.nodes), g.maximum, g.threshold, g.n_events, g.status, g.importance) for g in map(graphs.row, range(2))
    ]
    return nodes, list(graph_tables(store, "graph_nodes"))


def _edit(path: Path) -> Any:
    edit = read_edit(Folder(path), "double")
    return edit.record.to_json(), {layer: list(pair) for layer, pair in edit.rows.items()}


def _table(sql: str) -> Callable[[Path], Any]:
    return lambda path: Store(path).sql(f"select * from {sql}")


def _inputs(path: Path) -> Any:
    plan = Store(path).capture("corpus").plan
    return plan.array("inputs/ids"), plan.array("inputs/ids", slice(3, 9)), plan.block(1).inputs


def _statistics(path: Path) -> Any:
    statistics = Store(path).capture("corpus").statistics()
    return [vars(s) for s in statistics.sites.values()], statistics.gate_positives, statistics.label_tokens


def _corpus(path: Path) -> Any:
    capture = Store(path).capture("corpus")
    return [capture.activations(layer, 2) for layer in (0, 1)], capture.gate_signs(1, 0), capture.tokens()


def _bundled(path: Path) -> Any:
    capture = Store(path).capture("bundled")
    statistics = read_block_statistics(capture.folder, capture.record, 1).encode()
    return [capture.activations(layer, 2) for layer in (0, 1)], capture.gate_signs(1, 1), statistics


def _commit(path: Path) -> Any:
    return read_commit(Folder(path), Store(path).capture("corpus").record, 1).to_json()


READERS: dict[str, list[Callable[[Path], Any]]] = {
    "zarr.json": [lambda path: Store(path).model.to_json()],
    "neurons.parquet": [lambda path: root.read_neurons(Folder(path)), _table("model")],
    "tokenizer/vocabulary.parquet": [
        lambda path: Store(path).vocabulary,
        lambda path: Store(path).neuron(1, 3).exemplars(2, "corpus"),
        _table("vocabulary"),
    ],
    "tokenizer/tokenizer.json": [
        lambda path: StoredTokenizer(Folder(path), Store(path).vocabulary).encode_word(" w1"),
        lambda path: encode_as(Store(path).capture("corpus"), "the quick"),
    ],
    "captures/corpus/zarr.json": [lambda path: Store(path).capture("corpus").record.to_json(), _corpus],
    "captures/corpus/blocks/1.json": [
        lambda path: read_commit(Folder(path), Store(path).capture("corpus").record, 1).to_json()
    ],
    "captures/unfinished/blocks/0.statistics.safetensors.zst": [
        lambda path: read_block_statistics(Folder(path), Store(path).capture("unfinished").record, 0).encode(),
        lambda path: Store(path).neurons("unfinished"),
        lambda path: Store(path).neuron(1, 3).exemplars(2, "unfinished"),
    ],
    "captures/bundled/bundles/1": [_bundled],
    "captures/corpus/windows.parquet": [
        lambda path: Store(path).capture("corpus").windows(),
        lambda path: vars(Store(path).capture("corpus").block_plan(1)),
        _corpus,
        lambda path: Store(path).sql("select * from windows", "corpus"),
    ],
    "captures/corpus/documents.parquet": [
        lambda path: Store(path).capture("corpus").documents(),
        lambda path: Store(path).sql("select * from documents", "corpus"),
    ],
    "captures/corpus/neurons.parquet": [
        lambda path: Store(path).neurons("corpus"),
        lambda path: Store(path).neuron(1, 3).statistics("corpus"),
        lambda path: Store(path).sql("select * from neurons where layer = 1 and mean > 0", "corpus"),
    ],
    "captures/corpus/values/mlp.post/1/zarr.json": [_corpus],
    "captures/corpus/tokens/position/zarr.json": [_corpus],
    "captures/corpus/inputs/ids/zarr.json": [_inputs],
    "captures/corpus/statistics/mlp.post/mean/zarr.json": [_statistics],
    "captures/corpus/statistics/tokens/by_label/zarr.json": [_statistics],
    "captures/corpus/values/mlp.post/1/c/0/1": [_corpus],
    "captures/corpus/gate_sign/1/c/0/0": [_corpus],
    "captures/corpus/tokens/position/c/0": [_corpus],
    "captures/corpus/tokens/modality/c/0": [_corpus],
    "captures/corpus/inputs/ids/c/0": [_inputs, lambda path: Store(path).neuron(1, 3).exemplars(2, "corpus")],
    "captures/corpus/statistics/mlp.post/mean/c/0": [_statistics],
    "captures/corpus/statistics/mlp.post/histogram/c/0/0": [_statistics],
    "captures/corpus/statistics/mlp.post/exemplar_tokens/c/0/0": [_statistics],
    "captures/corpus/statistics/gate_sign/1/positives/c/0/0": [_statistics],
    "captures/corpus/statistics/tokens/by_label/c/0": [_statistics],
    "captures/questions/blocks/0.answers.parquet": [
        lambda path: (lambda a: (a.prompts, a.queries))(Answers(Store(path).capture("questions")))
    ],
    "captures/questions/prompts.parquet": [lambda path: answer_tables(Store(path).capture("questions"))],
    "captures/questions/queries.parquet": [
        lambda path: answer_tables(Store(path).capture("questions")),
        lambda path: Store(path).sql("select * from queries", "questions"),
    ],
    "captures/images/patches.parquet": [
        lambda path: Store(path).capture("images").patches(),
        lambda path: Store(path).capture("images").block_patches(0),
        lambda path: Store(path).sql("select * from patches", "images"),
    ],
    "weights/layer-1.safetensors": [
        lambda path: read_weights(Folder(path), "layer-1"),
        lambda path: read_rows(Folder(path), "layer-1", "write_vectors", [2, 0, 39]),
        lambda path: Store(path).contributions(5, k=9, capture="corpus"),
    ],
    "weights/unembedding.safetensors": [
        lambda path: read_rows(Folder(path), "unembedding", "weight", [7]),
        lambda path: count_rows(Folder(path), "unembedding", "weight"),
        lambda path: Store(path).contributions(5, k=9, capture="corpus"),
    ],
    "weights/final_norm.safetensors": [
        lambda path: vars(read_final_norm(Folder(path))),
        lambda path: Store(path).contributions(5, k=9, capture="corpus"),
    ],
    "graphs/graphs/graph.json": [_whole_graphs],
    "graphs/graphs/neurons.arrow": [_whole_graphs],
    "graphs/graphs/nodes.arrow": [_whole_graphs],
    "edits/double/edit.json": [_edit],
    "edits/double/delta.safetensors": [_edit],
}
"""File → what reads it."""


OPTIONAL = {"tokenizer/vocabulary.parquet", "tokenizer/tokenizer.json"}
"""Files that not every store has: without them there is another answer."""


@dataclass(frozen=True)
class Damage:
    """What happens to a file."""

    kind: str
    where: float = 0
    """Share of the file."""
    bit: int = 0

    def __call__(self, key: str, files: dict[str, bytes]) -> bytes | None:
        data = files[key]
        at = int(self.where * len(data))
        if self.kind == "flip":
            return data[:at] + bytes([data[at] ^ (1 << self.bit)]) + data[at + 1 :]
        if self.kind == "replace":
            others = [other for other in files if is_like(key, other) and files[other] != data]
            return files[others[int(self.where * len(others))]] if others else b""
        return {"cut": data[:at], "empty": b"", "gone": None}[self.kind]


def is_like(key: str, other: str) -> bool:
    """Whether a test may put another file of the store in the place of a file.

    Of a capture's records each is whole by itself: those of another capture are not for this test.
    """
    if re.search(r"^captures/[^/]+/(zarr.json|blocks/\d+.json)$", key) and other.endswith(".json"):
        return key.count("/") != other.count("/")
    extension = re.compile(r"\.\w+$|/c/0$|/c/0/\d$")  # chunks and shards have none
    kind, of_other = (extension.search(name) for name in (key, other))
    return kind is not None and of_other is not None and kind[0][:4] == of_other[0][:4]


damages = st.builds(
    Damage,
    st.sampled_from(["flip", "flip", "flip", "flip", "cut", "empty", "replace", "gone"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 7),
)


@pytest.fixture(scope="module")
def right(whole_store: Path) -> dict[str, list[Any]]:
    """What every reader says of the whole store."""
    assert whatever_verify_finds(whole_store) == []
    return {key: [plain(reader(whole_store)) for reader in readers] for key, readers in READERS.items()}


def whatever_verify_finds(path: Path) -> list[Any]:
    """Every damage to the store, and a refusal of the store as a whole."""
    try:
        store = Store(path)
        found = [*verify_root(store.folder), *verify_graphs(store.folder)[1]]
        for name in store.captures:
            found += verify_capture(store.capture(name))
    except REFUSALS as error:
        return [error]
    return found


@contextmanager
def damaged(path: Path, key: str, data: bytes | None) -> Iterator[None]:
    """The file as `data`, gone where None; restored afterwards."""
    file = path / key
    before = file.read_bytes()
    try:
        file.unlink() if data is None else file.write_bytes(data)
        yield
    finally:
        file.write_bytes(before)


def check(path: Path, key: str, data: bytes | None, expected: list[Any]) -> None:
    """Every reader of a damaged file refuses in one sentence or is right."""
    with damaged(path, key, data):
        for reader, known in zip(READERS[key], expected, strict=True):
            try:
                found, refusal = plain(reader(path)), None
            except REFUSALS as error:
                found, refusal = None, str(error)
            if refusal is not None:
                assert refusal.strip()
                assert "\n" not in refusal
            else:
                assert found == known


def fuzz(path: Path, files: dict[str, bytes], key: str, expected: list[Any], n: int) -> None:
    @settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damages)
    @example(Damage("empty"))
    @example(Damage("cut", 0.5))
    @example(Damage("gone"))
    @example(Damage("replace", 0))
    def one(damage: Damage) -> None:
        if damage.kind != "gone" or key not in OPTIONAL:
            check(path, key, damage(key, files), expected)

    one()


@pytest.mark.parametrize("key", READERS)
def test_a_damaged_file_is_refused_or_read_right(
    key: str, whole_store: Path, every_kind: dict[str, bytes], right: dict[str, list[Any]]
) -> None:
    fuzz(whole_store, every_kind, key, right[key], 4)


@pytest.mark.parametrize("key", [key for key in READERS if key.startswith("captures/")])
def test_the_file_of_another_capture_is_refused_in_its_place(
    key: str, whole_store: Path, every_kind: dict[str, bytes], right: dict[str, list[Any]]
) -> None:
    """The same file of every other capture: whole, of the right form, and with checksums of its own."""
    for name in ("corpus", "unfinished", "another", "questions", "images"):
        other = "/".join(["captures", name, *key.split("/")[2:]])
        if is_like(key, other) and every_kind.get(other, every_kind[key]) != every_kind[key]:
            check(whole_store, key, every_kind[other], right[key])


@pytest.mark.slow
@pytest.mark.parametrize("key", READERS)
def test_a_damaged_file_is_refused_or_read_right_whatever_the_damage(
    key: str, whole_store: Path, every_kind: dict[str, bytes], right: dict[str, list[Any]]
) -> None:
    fuzz(whole_store, every_kind, key, right[key], 400)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    [
        "zarr.json", "captures/corpus/zarr.json", "captures/corpus/blocks/1.json", "edits/double/edit.json",
        "weights/layer-0.safetensors", "captures/images/documents.parquet", "captures/questions/queries.parquet",
    ],
)  # fmt: skip
def test_every_bit_of_a_small_file(key: str, whole_store: Path, every_kind: dict[str, bytes]) -> None:
    readers = {
        "weights/layer-0.safetensors": [lambda path: read_weights(Folder(path), "layer-0")],
        "captures/images/documents.parquet": [lambda path: Store(path).capture("images").documents()],
        "captures/questions/queries.parquet": READERS["captures/questions/queries.parquet"][:1],
    }.get(key, READERS.get(key, []))
    expected = [plain(reader(whole_store)) for reader in readers]
    data = every_kind[key]
    for at in range(len(data)):
        for bit in range(8):
            with damaged(whole_store, key, data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]):
                for reader, known in zip(readers, expected, strict=True):
                    with suppress(*REFUSALS):
                        assert plain(reader(whole_store)) == known, (at, bit)


@pytest.mark.parametrize(
    "key",
    [
        "captures/corpus/values/mlp.post/1/c/0/1",
        "captures/corpus/gate_sign/1/c/0/0",
        "captures/corpus/tokens/position/c/0",
        "captures/corpus/tokens/position/zarr.json",
        "captures/corpus/statistics/mlp.post/mean/c/0",
        "captures/corpus/statistics/mlp.post/mean/zarr.json",
        "graphs/graphs/nodes.arrow",
        "weights/layer-1.safetensors",
        "weights/unembedding.safetensors",
        "edits/double/edit.json",
        "tokenizer/tokenizer.json",
        "neurons.parquet",
    ],
)
def test_verify_finds_what_readers_refuse(key: str, whole_store: Path, every_kind: dict[str, bytes]) -> None:
    data = every_kind[key]
    places = [len(data) // 2, len(data) - 1]
    if key.endswith("zarr.json"):
        places = [data.index(b'"shape"') + 2]
    elif key == "captures/corpus/tokens/position/c/0":
        places = [42]  # some bits of this compressed chunk say nothing
    elif key.endswith((".arrow", ".json")):
        places = places[:1]
    for at in places:
        with damaged(whole_store, key, data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :]):
            found = whatever_verify_finds(whole_store)
            assert any(key.endswith(damage.key) or damage.key in ("plan", "statistics") for damage in found), found


@pytest.mark.parametrize(
    ("key", "command"),
    [
        ("zarr.json", ("info", "S")),
        ("captures/corpus/zarr.json", ("stats", "S", "--capture", "corpus")),
        ("captures/corpus/windows.parquet", ("top", "S", "L1.N3", "--capture", "corpus")),
        ("captures/corpus/documents.parquet", ("top", "S", "L1.N3", "--capture", "corpus")),
        ("captures/corpus/neurons.parquet", ("stats", "S", "--capture", "corpus")),
        ("captures/corpus/neurons.parquet", ("sql", "S", "select * from neurons", "--capture", "corpus")),
        ("captures/unfinished/blocks/0.statistics.safetensors.zst", ("top", "S", "L1.N3", "--capture", "unfinished")),
        ("tokenizer/vocabulary.parquet", ("top", "S", "L1.N3", "--capture", "corpus")),
        ("neurons.parquet", ("sql", "S", "select * from model", "--capture", "corpus")),
        ("weights/unembedding.safetensors", ("contributions", "S", "--target-id", "5", "--capture", "corpus")),
        ("graphs/graphs/nodes.arrow", ("graphs", "show", "S", "L0.N1")),
        ("graphs/graphs/graph.json", ("graphs", "show", "S", "L0.N1")),
    ],
)
@pytest.mark.parametrize("kind", ["empty", "cut"])
def test_the_command_line_says_one_sentence(
    cli: Callable[..., Any],
    kind: str,
    key: str,
    command: tuple[str, ...],
    whole_store: Path,
    every_kind: dict[str, bytes],
) -> None:
    with damaged(whole_store, key, Damage(kind, 0.6)(key, every_kind)):
        done = cli(*(str(whole_store) if part == "S" else part for part in command))
    assert done.status == 2, done
    assert done.out == ""
    *warnings, error = done.err.splitlines()
    assert error.startswith("Error: ")
    assert key.rpartition("/")[2] in error
    assert all(line.startswith("Warning: Capture 'unfinished' is unfinished") for line in warnings)
