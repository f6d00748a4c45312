"""Everything that a store says, reader by reader, in a process of its own: a value, a refusal in one sentence, or an error.

What differs between two runs of the same command, such as dates, is left out.
"""

from __future__ import annotations

import functools
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from reading_everything import digest, of_array, of_table

from actstore.engine.contributions.next_tokens import NextTokens
from actstore.store.capture.questions.attributions import open_attributions
from actstore.store.capture.requests import has_requests, read_requests
from actstore.store.edits import edit_names, read_edit
from actstore.store.errors import ActstoreError, NotFoundError
from actstore.store.graphs.reader import Graphs
from actstore.store.graphs.record import graph_names
from actstore.store.model.root import read_neurons
from actstore.store.model.tokenizer import StoredTokenizer
from actstore.store.model.weights import read_final_norm, read_rows, read_weights
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.store.reader import Capture

Reader = "Callable[[], Any]"
Wanted = dict[str, list[str]]
"""Names of what is read, by kind: captures, graphs, edits."""

REFUSALS = (ActstoreError, OSError)
"""What the command line turns into one sentence by itself."""
SITES_READ = 2
"""Sites of a capture of which every layer is read."""


def command_line(argv: list[str]) -> None:
    """Run `actstore` with these arguments, as its own process would; ends in SystemExit."""
    from actstore import cli

    sys.argv = ["actstore", *argv]
    cli.main()


def observe(path: str, wanted: Wanted | None = None, only: list[str] | None = None) -> dict[str, Any]:
    """What every reader says: {"value": digest} or {"refused": sentence} or {"error": traceback}, by the reader's name.

    `wanted` None: what the store lists. `only`: the beginnings of the names of the readers that are asked.
    """
    warnings.simplefilter("ignore")
    readers = _readers(path, wanted or list_contents(path))
    asked = {
        name: reader for name, reader in readers.items() if only is None or any(name.startswith(one) for one in only)
    }
    return {name: _ask(reader) for name, reader in asked.items()}


def list_contents(path: str) -> Wanted:
    """Names of captures, graphs and edits; nothing of a kind whose listing is refused."""
    found: Wanted = {}
    for kind, names in (
        ("captures", lambda: list(Store(path).captures)),
        ("graphs", lambda: list(graph_names(Store(path).folder))),
        ("edits", lambda: list(edit_names(Store(path).folder))),
    ):
        try:
            found[kind] = names()
        except REFUSALS:
            found[kind] = []
    return found


def blocks_of(path: str, captures: list[str]) -> dict[str, list[int] | None]:
    """The committed blocks of captures; None of one that is refused."""
    found: dict[str, list[int] | None] = {}
    for name in captures:
        try:
            found[name] = [int(block) for block in Store(path).capture(name).blocks]
        except REFUSALS:
            found[name] = None
    return found


def _ask(reader: Callable[[], Any]) -> dict[str, str]:
    try:
        return {"value": digest(repr(reader()))}
    except REFUSALS as error:
        sentence = str(error)
        whole = bool(sentence.strip()) and "\n" not in sentence.strip()
        return {"refused": f"{type(error).__name__}: {sentence}"} if whole else {"error": f"no sentence: {error!r}"}
    except MemoryError:
        return {"memory": "MemoryError"}
    except BaseException:
        return {"error": traceback.format_exc()[-1500:]}


def _readers(path: str, wanted: Wanted) -> dict[str, Callable[[], Any]]:
    """Reader by name; `kind/name/what`, so that beginnings of names choose kinds."""
    readers = _root_readers(path)
    for name in wanted.get("captures", []):
        readers |= {f"captures/{name}/{key}": reader for key, reader in _capture_readers(path, name).items()}
    for name in wanted.get("graphs", []):
        readers[f"graphs/{name}/rows"] = functools.partial(_graphs, path, name)
        readers[f"graphs/{name}/sql"] = functools.partial(_graph_rows, path, name)
    for name in wanted.get("edits", []):
        readers[f"edits/{name}"] = functools.partial(_edit, path, name)
    return readers


def _root_readers(path: str) -> dict[str, Callable[[], Any]]:
    def model() -> Any:
        known = Store(path).model
        return known.name.rpartition("/")[2], known.fingerprint, known.n_vocabulary, known.layers, known.weights

    def weights() -> Any:
        store = Store(path)
        parts = {part: read_weights(store.folder, part) for part in store.model.weights if part != "final_norm"}
        return [
            (part, name, of_array(t.float().numpy())) for part, of in parts.items() for name, t in sorted(of.items())
        ]

    def rows() -> Any:
        store = Store(path)
        layers = [part for part in store.model.weights if part.startswith("layer")]
        found = [of_array(read_rows(store.folder, part, "write_vectors", [2, 0]).float().numpy()) for part in layers]
        return found, of_array(read_rows(store.folder, "unembedding", "weight", [7, 3]).float().numpy())

    def norm() -> Any:
        found = read_final_norm(Store(path).folder)
        return found.epsilon, found.centres, None if found.gain is None else of_array(found.gain.float().numpy())

    def vocabulary() -> Any:
        table = Store(path).vocabulary
        if table is None:  # which not every store has
            raise NotFoundError("The store has no vocabulary.")
        return table

    return {
        "root/model": model,
        "root/neurons": lambda: of_table(read_neurons(Store(path).folder)),
        "root/vocabulary": lambda: of_table(vocabulary()),
        "root/tokenizer": lambda: StoredTokenizer(Store(path).folder, vocabulary()).encode_word(" one"),
        "root/weights": weights,
        "root/rows": rows,
        "root/norm": norm,
    }


def _contributions(path: str, name: str) -> Any:
    answer = Store(path).contributions(5, k=4, capture=name, everywhere=True).to_pylist()
    return [[round(value, 4) if isinstance(value, float) else value for value in row.values()] for row in answer]


def _capture_readers(path: str, name: str) -> dict[str, Callable[[], Any]]:
    def capture() -> Capture:
        return Store(path).capture(name)

    def record() -> Any:
        known = capture().record
        return (
            known.identity,
            known.plan.fingerprint,
            known.sites,
            known.precision,
            known.gate_sign,
            known.model_fingerprint,
        )

    def statistics() -> Any:
        known = capture()
        return known.statistics().label_tokens.tolist(), [
            (
                site,
                layer,
                sorted((key, of_array(array)) for key, array in known.layer_statistics(layer, site).arrays().items()),
            )
            for site, layer in _places(known)
        ]

    def sql() -> Any:
        query = "select count(*) as n, sum(position) as p, count(distinct document) as d from tokens"
        return Store(path).sql(query, name).to_pylist(), of_table(Store(path).sql("select * from neurons", name))

    def exemplars() -> Any:
        store, known = Store(path), capture()
        site, layer = _places(known)[-1]
        return [of_table(store.neuron(layer, neuron).exemplars(k, name, site)) for neuron, k in ((2, 2), (3, 50))]

    return {
        "record": record,
        "slots": lambda: (of_array(capture().slots()), [int(block) for block in capture().blocks]),
        "tokens": lambda: of_table(capture().tokens()),
        "inputs": lambda: of_array(capture().plan.array("inputs/ids")),
        "windows": lambda: of_table(capture().windows()),
        "documents": lambda: of_table(capture().documents().drop_columns(["source"])),
        "block plans": lambda: [_digest_fields(capture().block_plan(block)) for block in capture().blocks],
        "values": lambda: _values(capture()),
        "one neuron": lambda: _one_neuron(capture()),
        "signs": lambda: _signs(capture()),
        "statistics": statistics,
        "neurons": lambda: of_table(capture().neurons()),
        "one neuron's statistics": lambda: Store(path).neuron(1, 3).statistics(name, _places(capture())[0][0]),
        "exemplars": exemplars,
        "next tokens": lambda: [of_array(NextTokens(known).of_block(block)) for known in [capture()] for block in known.blocks],
        "sql": sql,
        "contributions": lambda: _contributions(path, name),
        "answers": lambda: _answers(path, capture()),
        "patches": lambda: of_table(capture().patches()) if capture().record.of_images else None,
        "requests": lambda: of_table(read_requests(capture().folder, name)) if has_requests(capture().record) else None,
    }  # fmt: skip


def _digest_fields(plan: Any) -> Any:
    return [
        (key, of_array(value) if isinstance(value, np.ndarray) else repr(value)) for key, value in vars(plan).items()
    ]


def _places(capture: Capture) -> list[tuple[str, int]]:
    sites = list(capture.record.sites)[:SITES_READ]
    return [(site, layer) for site in sites for layer in capture.record.layers(site)]


def _values(capture: Capture) -> Any:
    """Every layer as a scan reads it, raw and decoded, with the parameters of the encoding."""
    if capture.record.precision == "none":
        return None
    named = {"int8": ("scale",), "sparse": ("threshold", "dropped")}.get(capture.record.precision, ())
    return [
        (
            of_array(capture.block_values(layer, block, site)),
            of_array(capture.raw_block(layer, block, site)),
            *(of_array(capture.block_parameter(name, layer, block, site)) for name in named),
        )
        for site, layer in _places(capture)
        for block in capture.blocks
    ]


def _one_neuron(capture: Capture) -> Any:
    """A few neurons as a reader of one neuron reads them."""
    if capture.record.precision == "none":
        return None
    return [
        (of_array(capture.activations(layer, i, site)), of_array(capture.block_row(layer, i, capture.blocks[-1], site)))
        for site, layer in _places(capture)
        for i in (0, capture.record.layers(site)[layer] - 1)
        if capture.blocks
    ]


def _signs(capture: Capture) -> Any:
    return [
        of_array(capture.gate_signs(layer, block)) for layer in capture.record.gate_sign for block in capture.blocks
    ]


def _answers(path: str, capture: Capture) -> Any:
    if "attribution.ig" not in capture.record.sites:
        return None
    made = open_attributions(Store(path), capture.record.name)
    parts = [(rows.tolist(), of_array(scores)) for rows, scores in made.prompt_scores("ig")]
    return of_table(made.prompts), of_table(made.queries), parts


def _graphs(path: str, name: str) -> Any:
    store = Store(path)
    graphs = Graphs(store, name)
    rows = [graphs.row(row) for row in range(graphs.record.n_neurons)]
    numbers = [
        (g.name, [of_array(part) for part in g.nodes], g.maximum, g.threshold, g.n_events, g.status) for g in rows
    ]
    return numbers, [of_array(g.importance) for g in rows], of_table(graphs.neurons), of_table(graphs.nodes)


def _graph_rows(path: str, name: str) -> Any:
    return of_table(Store(path).sql(f"select * from graph_nodes where graphs = '{name}'"))


def _edit(path: str, name: str) -> Any:
    edit = read_edit(Store(path).folder, name)
    rows = {layer: [of_array(side.float().numpy()) for side in pair] for layer, pair in edit.rows.items()}
    return edit.record.kind, edit.record.form, edit.record.specification, edit.record.neuron_names(), rows
