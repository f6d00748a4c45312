"""Everything that a store says to those who read it, as one JSON document: what a kept store is compared by.

Large things are hashed, so that a difference names what differs; small ones stand as they are. Names of modules below the
package's own are all in the imports here, for they may change while what is read may not. Not a test module.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actstore.engine.contributions.next_tokens import NextTokens
from actstore.store.capture.questions.attributions import open_attributions
from actstore.store.capture.requests import has_requests, read_requests
from actstore.store.edits import edit_names, read_edit
from actstore.store.model.weights import read_final_norm, read_weights
from actstore.store.verify import verify_capture, verify_graphs, verify_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    import actstore

Json = Any
COMPUTED = 1e-4
"""How far numbers may be off, relatively, that are computed while they are read, by a library that may do it otherwise."""


def read_everything(store: actstore.Store) -> dict[str, Json]:
    """What a store says, of itself, its captures, their neurons, graphs and edits."""
    names, damage = verify_graphs(store.folder)
    return {
        "model": _model(store),
        "captures": {name: _capture(store.capture(name)) for name in store.captures},
        "graphs": _graphs(store, names),
        "edits": {name: _edit(store, name) for name in edit_names(store.folder)},
        "contributions": _contributions(store),
        "sql": _sql(store, has_graphs=bool(names)),
        "verified": {"root": [*map(str, verify_root(store.folder))], "graphs": [names, [*map(str, damage)]]},
    }


def differences(expected: Json, found: Json, where: str = "") -> Iterator[str]:
    """What of `found` is not as expected, a line each; plain floats may differ by `COMPUTED`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            path = f"{where}/{key}"
            if key not in found or key not in expected:
                yield f"{path}: {'is new' if key in found else 'is not there'}"
            else:
                yield from differences(expected[key], found[key], path)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{where}[{i}]")
    elif isinstance(expected, float) and isinstance(found, float):
        same = math.isclose(expected, found, rel_tol=COMPUTED, abs_tol=1e-8) or (
            expected != expected and found != found
        )
        if not same:
            yield f"{where}: {found!r}, expected {expected!r}"
    elif type(expected) is not type(found) or expected != found:
        yield f"{where}: {found!r}, expected {expected!r}"


def digest(data: bytes | str) -> str:
    """A short SHA-256."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def of_array(array: Any) -> str:
    """dtype, shape and hash of the little-endian bytes of an array; any NaN counts as NaN."""
    values = np.ascontiguousarray(array)
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values)
    values = values.astype(values.dtype.newbyteorder("<"))
    return f"{values.dtype.name}{list(values.shape)} {digest(values.tobytes())}"


def of_table(table: pa.Table) -> dict[str, Json]:
    """Rows, and of every column its type and hash: of numbers without nulls the bytes, else the values as JSON."""
    return {"rows": table.num_rows} | {name: _column(table[name]) for name in table.column_names}


def _column(column: pa.ChunkedArray) -> str:
    kind = column.type
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not column.null_count:
        return of_array(column.to_numpy())
    return f"values {digest(json.dumps(column.to_pylist(), default=lambda value: value.hex(), sort_keys=True))}"


def dumped(value: Json) -> str:
    """A document as JSON, lists of numbers and texts on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return re.sub(r"\[\n[^\[\]{}]*?\n *\]", lambda found: re.sub(r"\n *", "\x20", found[0]), text) + "\n"


def plain(value: Any) -> Json:
    """A value as it is once JSON has written and read it."""
    return json.loads(json.dumps(value))


def _model(store: actstore.Store) -> dict[str, Json]:
    model = store.model
    fields = (
        "name",
        "model_type",
        "kind",
        "d_model",
        "n_vocabulary",
        "dtype",
        "fingerprint",
        "sites",
        "weights",
        "folder",
    )
    found = {name: plain(getattr(model, name)) for name in fields}
    layer_fields = ("layer", "neurons", "module", "gated", "block", "stack", "expert")
    found["layers"] = [[getattr(layer, name) for name in layer_fields] for layer in model.layers]
    found["config"] = digest(json.dumps(model.config, sort_keys=True))
    found["captures"] = list(store.captures)
    if store.vocabulary is not None:
        found["vocabulary"] = of_table(store.vocabulary)
        found["texts"] = digest(json.dumps([store.token_text(token) for token in range(len(store.vocabulary))]))
    found["neurons"] = of_table(store.sql("select * from model"))
    for part in model.weights:
        if part != "final_norm":
            tensors = read_weights(store.folder, part)
            found[f"weights of {part}"] = {name: of_array(t.float().numpy()) for name, t in sorted(tensors.items())}
    norm = read_final_norm(store.folder)
    gain = None if norm.gain is None else of_array(norm.gain.float().numpy())
    found["final norm"] = [gain, norm.epsilon, norm.centres]
    return found


def _capture(capture: actstore.Capture) -> dict[str, Json]:
    record, plan = capture.record, capture.record.plan
    fields = ("name", "created", "written_by", "model_fingerprint", "dtype", "precision", "sites", "gate_sign", "keep",
              "n_exemplars", "settings", "held_dtype", "value_dtype", "part", "of_images", "patches_sha256")  # fmt: skip
    plan_fields = ("fingerprint", "corpus", "corpus_fingerprint", "tokenizer_fingerprint", "settings", "label_columns",
                   "labels", "n_documents", "n_windows", "n_tokens", "block_slots", "n_blocks")  # fmt: skip
    tokens = capture.tokens()
    found: dict[str, Json] = {
        "record": {name: plain(getattr(record, name)) for name in fields},
        "plan": {name: plain(getattr(plan, name)) for name in plan_fields},
        "blocks": list(capture.blocks),
        "complete": [capture.is_complete, capture.is_finished],
        "used slots": capture.used_slots.tolist(),
        "slots": of_array(capture.slots()),
        "inputs": of_array(capture.plan.array("inputs/ids")),
        "tokens": of_table(tokens),
        "text": capture.store.text(tokens["id"].to_pylist()[:40]),
        "documents": of_table(capture.documents()),
        "windows": of_table(capture.windows()),
        "neurons": of_table(capture.neurons()),
        "next tokens": [of_array(NextTokens(capture).of_block(block)) for block in capture.blocks],
        "label tokens": capture.statistics().label_tokens.tolist(),
        "sites": {
            site: {str(layer): _layer(capture, site, layer) for layer in record.layers(site)} for site in record.sites
        },
        "gate signs": {
            str(n): [of_array(capture.gate_signs(n, block)) for block in capture.blocks] for n in record.gate_sign
        },
        "verified": [*map(str, verify_capture(capture))],
    }
    if record.of_images:
        found["patches"] = of_table(capture.patches())
    if has_requests(record):
        found["requests"] = of_table(
            read_requests(capture.folder, record.name, record.plan_files.get("requests.arrow", ""))
        )
    if "attribution.ig" in record.sites:
        found["attributions"] = _attributions(capture)
    return found


def _layer(capture: actstore.Capture, site: str, layer: int) -> dict[str, Json]:
    """The neurons of a layer at a site: what they did, what is known of it."""
    record, store = capture.record, capture.store
    width = record.layers(site)[layer]
    statistics = capture.layer_statistics(layer, site)
    found: dict[str, Json] = {
        "statistics": {name: of_array(array) for name, array in statistics.arrays().items()},
        "overflow": np.flatnonzero(capture.has_overflow(layer, site)).tolist(),
    }
    if record.precision != "none":
        rows = [capture.activations(layer, neuron, site) for neuron in range(width)]
        found["activations"] = " ".join(of_array(row).split()[-1][:8] for row in rows)
        if record.precision == "half":
            found["saturated"] = of_array([capture.activations(layer, i, site, saturated=True) for i in range(width)])
        found["blocks"] = [of_array(capture.block_values(layer, block, site)) for block in capture.blocks]
        found["rows"] = [of_array(capture.block_row(layer, width - 1, block, site)) for block in capture.blocks]
        found["raw"] = [of_array(capture.raw_block(layer, block, site)) for block in capture.blocks]
    for name in {"int8": ("scale",), "sparse": ("threshold", "dropped")}.get(record.precision, ()):
        found[name] = [of_array(capture.block_parameter(name, layer, block, site)) for block in capture.blocks]
    # Of the last layer, where these are neurons, not places in the residual stream: each call opens every capture's record.
    is_last = layer == max(record.layers(site))
    if is_last and width == store.model.layers[layer].neurons and not has_requests(record):
        some, name = store.neuron(layer, width - 1), record.name
        # One more than was recorded: it is searched among the values.
        found["exemplars of the last"] = of_table(some.exemplars(record.n_exemplars + 1, name, site, 4))
        found["statistics of the last"] = plain(some.statistics(name, site))
    return found


def _attributions(capture: actstore.Capture) -> dict[str, Json]:
    made = open_attributions(capture.store, capture.record.name)
    found: dict[str, Json] = {
        "kinds": list(made.kinds),
        "prompts": of_table(made.prompts),
        "queries": of_table(made.queries),
        "ids": [digest(json.dumps(made.prompt_ids(row).tolist())) for row in range(made.prompts.num_rows)],
        "names": digest(" ".join(made.neuron_names(np.arange(made.n_neurons)))),
    }
    for kind in made.kinds:
        parts = [*made.prompt_scores(kind)]
        rows, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        sums = np.concatenate([part for _, part in made.query_scores(kind)])
        show = np.ndarray.tolist if kind == "contribution" else of_array  # which is a matrix product
        found[kind] = {"rows": rows.tolist(), "prompts": show(scores), "queries": show(sums)}
        found[kind]["first query"] = show(made.scores_of(0, kind))
    return found


def _graphs(store: actstore.Store, names: list[str]) -> dict[str, Json]:
    if not names:
        return {}
    rows = store.sql("select * from graph_nodes")
    known = sorted(set(zip(*(rows[column].to_pylist() for column in ("graphs", "layer", "neuron")), strict=True)))
    found = {name: _graph_set([store.graph(*at, name) for of, *at in known if of == name]) for name in names}
    return {"as SQL": of_table(rows)} | found


def _graph_set(graphs: list[actstore.NeuronGraph]) -> dict[str, Json]:
    first = graphs[0]
    made = first.graphs
    assert made is not None
    fields = ("name", "method", "written_by", "model_fingerprint", "tokenizer_fingerprint", "capture",
              "plan_fingerprint", "site", "settings", "n_neurons", "n_nodes")  # fmt: skip
    found: dict[str, Json] = {
        "record": {field: plain(getattr(made.record, field)) for field in fields},
        "neurons": of_table(made.neurons),
        "nodes": of_table(made.nodes),
        "drawn": str(first.draw(paths=6)).splitlines(),
        # Under the names that these columns had when what is expected was written down.
        "similar": first.similar(3).rename_columns({"name": "neuron", "neuron": "index"}).to_pylist(),
        "predicted of a text": of_table(first.predict("the quick brown fox")),
    }
    ids = first.store.capture(made.record.capture).plan.array("inputs/ids")
    for graph in graphs:
        found[graph.name] = {
            "numbers": [graph.maximum, graph.threshold, graph.n_events, graph.status, len(graph)],
            "lines": digest(json.dumps(list(graph.paths()))),
            "importance": of_array(graph.importance),
            "predicted": of_array(graph.predict(ids)),
            "fires": of_array(graph.fires(ids)),
        }
    return found


def _edit(store: actstore.Store, name: str) -> dict[str, Json]:
    edit = read_edit(store.folder, name)
    fields = ("name", "kind", "form", "written_by", "created", "model", "model_fingerprint", "dtype", "settings",
              "specification", "predicted", "n_neurons")  # fmt: skip
    found = {field: plain(getattr(edit.record, field)) for field in fields}
    found["neurons"] = edit.record.neuron_names()
    found["rows"] = {
        f"{layer} {side}": of_array(getattr(pair, side).float().numpy())
        for layer, pair in edit.rows.items()
        for side in ("before", "after")
    }
    return found


def _contributions(store: actstore.Store) -> dict[str, Json]:
    """The neurons that write a token, asked in every way; scores are computed here."""
    asked: dict[str, tuple[Any, dict[str, Any]]] = {
        "next tokens": (None, {}),
        "a token": (3, {"everywhere": True, "gain": False}),
        "at a place": (None, {"at": "0:3"}),
    }
    capture = store.capture("corpus").record
    if "resid.post" in capture.sites:
        asked["logits"] = (None, {"logits": True})
    if capture.plan.label_columns:
        asked["by label"] = (None, {"by": capture.plan.label_columns[0]})
    return {
        name: [[*row.values()] for row in store.contributions(target, 3, capture="corpus", **how).to_pylist()]
        for name, (target, how) in asked.items()
    }


def _sql(store: actstore.Store, *, has_graphs: bool) -> dict[str, Json]:
    tables = [(name, table) for name in store.captures for table in _sql_tables(store.capture(name))]
    counts = (f"""select '{name}.{table}' as name, count(*) as n from "{name}".{table}""" for name, table in tables)
    found: dict[str, Json] = {
        "rows": {row["name"]: row["n"] for row in store.sql(" union all ".join(counts)).to_pylist()}
    }
    shown = ["graph_lines"] * has_graphs + ["questions.prompts"] * ("questions" in store.captures)
    for table in shown:
        found[table] = of_table(store.sql(f"select * from {table}"))
    found["joined"] = store.sql(
        "select v.text, d.source, count(*) as n, min(t.token) as first from corpus.tokens t "
        "join corpus.documents d using (document) join vocabulary v on v.token = t.id "
        "group by all order by n desc, first limit 5"
    ).to_pylist()
    return found


def _sql_tables(capture: actstore.Capture) -> list[str]:
    questions = ["prompts", "queries"] if "attribution.ig" in capture.record.sites else []
    return ["neurons", "documents", "windows", "tokens", *questions, *(["patches"] if capture.record.of_images else [])]
