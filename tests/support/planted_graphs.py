"""Neuron graphs planted line by line into a store without a capture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actstore.kernels.suffix_trie.api import Nodes
from actstore.store.capture.record import read_capture
from actstore.store.files.records import LayerRecord, ModelRecord
from actstore.store.graphs.reader import GraphRecord, Graphs
from actstore.store.graphs.writer import GraphWriter
from actstore.store.model import root
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TEXTS = [" cat", " the", " black", "not", b"\xe2", '"\\<&>', "\n\n", "\x00\x1b[31m", "東京", " " + "supercali" * 9, "\u202eabc",
         "  ", "", "\u0301", "שלום", "\\n \\N", "]]>", " Cat", "cat ", "CAT"]  # fmt: skip
"""Texts of the first tokens; the rest are ` w20`, ` w21`, …"""
N_TOKENS = 120

Line = tuple[Any, ...]
"""(tokens, the activating one first), probability, count, fires[, importance]; probability None where no line ends."""


def plant_nodes(lines: Sequence[Line]) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """The columns of one neuron's nodes and their importance: every prefix of a line is a node, canonical order."""
    given: dict[tuple[int, ...], Line] = {tuple(line[0]): line for line in lines}
    order = sorted({path[: i + 1] for path in given for i in range(len(path))})
    place = {path: i for i, path in enumerate(order)}
    columns: dict[str, list[Any]] = {name: [] for name in Nodes._fields[1:]}
    importance = []
    for path in order:
        below = [line for p, line in given.items() if p[: len(path)] == path]
        line = given.get(path, (path, None, sum(x[2] for x in below), sum(x[3] for x in below)))
        p = np.nan if line[1] is None else line[1]
        row = (place.get(path[:-1], -1), path[-1], len(path) - 1, line[1] is not None, p, 0.9 * p, *line[2:4])
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
        importance.append(line[4] if len(line) > 4 else np.nan)
    dtypes = [np.int32, np.int32, np.uint8, np.bool_, np.float32, np.float32, np.int32, np.int32]
    arrays = {name: np.array(values, t) for (name, values), t in zip(columns.items(), dtypes, strict=True)}
    return arrays, np.array(importance, np.float32)


def plant_store(path: Path | str, widths: Sequence[int] = (4, 30)) -> Store:
    """A store of a model, its neurons and a vocabulary, nothing else."""
    folder = Folder(path, read_only=False)
    data = [t if isinstance(t, bytes) else t.encode() for t in TEXTS]
    data += [f" w{i}".encode() for i in range(len(data), N_TOKENS)]
    texts = [d.decode(errors="replace") for d in data]
    vocabulary = pa.table(
        {
            "token": pa.array(range(N_TOKENS), pa.int32()),
            "piece": texts,
            "text": texts,
            "bytes": pa.array(data, pa.binary()),
            "special": [False] * N_TOKENS,
        }
    )
    layers = tuple(LayerRecord(i, n, f"layers.{i}.mlp", True, i, "decoder", None) for i, n in enumerate(widths))
    model = ModelRecord("planted", "llama", "causal", 8, N_TOKENS, "float32", "f" * 64, ("mlp.post",), layers, {"a": 1})
    root.write_tokenizer(folder, None, vocabulary, "t" * 64)
    root.write_neurons(folder, model, None)
    root.write_root(folder, model)
    return Store(path)


def plant_graphs(store: Store, neurons: dict[tuple[int, int], Sequence[Line]], **record: Any) -> Graphs:
    """Graphs of neurons by (layer, index), written as `graphs build` writes them."""
    described: dict[str, Any] = {
        "name": "graphs", "method": "corpus", "written_by": "actstore 0", "model_fingerprint": "f" * 64,
        "tokenizer_fingerprint": "t" * 64, "capture": "corpus", "plan_fingerprint": "p" * 64, "site": "mlp.post",
        "settings": {"share": 0.5, "threshold": 0.4}, "n_neurons": len(neurons),
    }  # fmt: skip
    folder = Folder(store.folder.location, read_only=False)
    if (capture := read_capture(folder, "corpus")) is not None:
        described["plan_fingerprint"] = capture.plan.fingerprint
    writer = GraphWriter(folder, GraphRecord(**described | record))
    for layer in sorted({layer for layer, _ in neurons}):
        indices = sorted(n for of, n in neurons if of == layer)
        planted = [plant_nodes(neurons[layer, n]) for n in indices]
        offsets = np.cumsum([0, *(len(importance) for _, importance in planted)])
        columns = {name: np.concatenate([c[name] for c, _ in planted]) for name in Nodes._fields[1:]}
        writer.add(
            layer, indices, Nodes(offsets, **columns), maximum=2.5, n_events=9, threshold=0.4,
            status=["" if len(i) else "never fires" for _, i in planted],
            importance=np.concatenate([i for _, i in planted]),
        )  # fmt: skip
    writer.close()
    return Graphs(Store(store.folder.location), described["name"] if "name" not in record else record["name"])
