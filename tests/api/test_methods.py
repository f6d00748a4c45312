"""Every method of a store answers what its command answers: the same numbers, from the same stored bytes."""

from __future__ import annotations

import inspect
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer

import actstore
from actstore.api.change import ChangeMethod
from actstore.api.coverage import CoverageMethod
from actstore.api.edit import EditsMethod
from actstore.api.explain import ExplainMethod
from actstore.api.graphs import GraphsMethod
from actstore.api.multimodal import MultimodalMethod
from actstore.api.naica import NaicaMethod
from actstore.api.selectivity import SelectivityMethod
from actstore.cli import application
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Result  # type: ignore[import-not-found]

    Cli = Callable[..., Result]

KEPT = Path(__file__).parents[1] / "store" / "data" / "format-1-step-2"
GROUPS = {
    "naica": NaicaMethod,
    "selectivity": SelectivityMethod,
    "change": ChangeMethod,
    "coverage": CoverageMethod,
    "graphs": GraphsMethod,
    "multimodal": MultimodalMethod,
    "edit": EditsMethod,
    "explain": ExplainMethod,
}
ELSEWHERE: dict[str, Any] = {
    "import": actstore.import_activations,  # which is a word of Python
    "capture": actstore.capture,
    "demo": actstore.write_demo,
    "top": actstore.Neuron.show,
    "stats": actstore.Store.neurons,
    "graphs show": actstore.Store.graph,
    "edit list": EditsMethod.table,
    "edit show": EditsMethod.__getitem__,
}
"""Commands whose Python form has another name, because it belongs to another object."""
HOW_IT_RUNS = {
    "as_json",
    "quiet",
    "rows",
    "help",
    "store",
    "dtype",
    "device",
    "trust_remote_code",
    "tokenizer",
    "resume",
    "allow_mixed",
    "images",
    "lease_s",
    "sync",
    "threads",
    "workers",
}
"""Options of the terminal, and those that Python takes together as `options`."""


@pytest.fixture(scope="module")
def text() -> actstore.Store:
    """A store of text with questions, graphs, probes and edits."""
    return actstore.open(KEPT / "text")


@pytest.fixture
def copy(tmp_path: Path) -> actstore.Store:
    """The same, to be written to."""
    return actstore.open(shutil.copytree(KEPT / "text", tmp_path / "text"))


def commands() -> dict[str, Any]:
    """Every command by its words."""
    found = {}
    for name, command in typer.main.get_command(application()).commands.items():  # type: ignore[attr-defined]
        subcommands = getattr(command, "commands", None)
        if subcommands is None:
            found[name] = command
        else:
            found |= {f"{name} {word}": subcommand for word, subcommand in subcommands.items()}
    return found


def python_of(words: str) -> Any:
    """The function or method of the public API that a command stands for."""
    if words in ELSEWHERE:
        return ELSEWHERE[words]
    group, _, word = words.partition(" ")
    if not word and group in GROUPS:  # a command without subcommands, whose method has others
        return GROUPS[group].__call__
    if not word:
        return getattr(actstore.Store, group, None) or getattr(actstore, group, None)
    return getattr(GROUPS[group], "__call__" if word == "show" else word.replace("-", "_"), None)


@pytest.mark.parametrize("words", sorted(commands()))
def test_every_command_has_a_method_of_its_name(words: str) -> None:
    assert callable(python_of(words)), f"`actstore {words}` has no counterpart in Python"


@pytest.mark.parametrize("words", [words for words in sorted(commands()) if words not in ELSEWHERE])
def test_options_are_parameters_of_the_same_name(words: str) -> None:
    """Most of them: what a user guesses from the one is right in the other."""
    options = {parameter.name for parameter in commands()[words].params} - HOW_IT_RUNS
    parameters = set(inspect.signature(python_of(words)).parameters)
    assert len(options & parameters) >= 0.5 * len(options), sorted(options - parameters)


def test_the_package_shows_public_names_only() -> None:
    assert dir(actstore) == sorted([*actstore.__all__, "__version__"])
    assert actstore.__version__.count(".") >= 1
    with pytest.raises(AttributeError, match="has no attribute 'captures'"):
        actstore.captures  # noqa: B018 - asking is the test


def test_stores_are_pickled_by_where_they_are(text: actstore.Store) -> None:
    again = pickle.loads(pickle.dumps(text))
    assert type(again) is actstore.Store
    assert again.captures == text.captures


def test_naica(text: actstore.Store, cli: Cli) -> None:
    # With so few queries every neuron is common: u = 1 keeps them.
    answer = text.naica(u=1.0, ica=False, method="without-ica")
    expected = cli("naica", text.folder, "--u", 1, "--no-ica", "--method", "without-ica", "--json").json
    of_query: dict[Any, list[tuple[str, float]]] = {}
    for row in answer.table.to_pylist():
        of_query.setdefault(row["query"], []).append((row["name"], row["score"]))
    assert of_query
    for query in expected["queries"]:
        assert of_query.get(query["query"], []) == [(one["neuron"], one["score"]) for one in query["neurons"]]
    assert list(answer.warnings) == expected["warnings"]


def test_knowledge(text: actstore.Store, cli: Cli) -> None:
    rows = text.knowledge().to_pylist()
    expected = cli("knowledge", text.folder, "--json").json["queries"]
    found = [(row["query"], row["name"], row["n_prompts"], row["share"]) for row in rows]
    assert found == [
        (query["query"], neuron, n, query["share"])
        for query in expected
        for neuron, n in zip(query["neurons"], query["n_prompts"], strict=True)
    ]
    assert found


def test_selectivity(text: actstore.Store, cli: Cli) -> None:
    answer = text.selectivity(by="language", share=0.2, activation_quantile=0.5, capture="corpus")
    asked = ("--by", "language", "--share", 0.2, "--activation-quantile", 0.5, "--capture", "corpus")
    expected = cli("selectivity", text.folder, *asked, "--json").json
    of_label: dict[str, list[Any]] = {}
    for row in answer.table.to_pylist():
        of_label.setdefault(row["language"], []).append((row["name"], row["entropy"], row["probability"]))
    assert of_label
    for label, neurons in expected["neurons_by_label"].items():
        assert of_label.get(label, []) == [(n["neuron"], n["entropy"], n["probability"]) for n in neurons]


def test_coverage(text: actstore.Store, cli: Cli, tmp_path: Path) -> None:
    answer = text.coverage(capture="corpus", by="language", output=tmp_path / "state.safetensors")
    expected = cli("coverage", text.folder, "--capture", "corpus", "--by", "language", "--json").json
    for label, coverage in expected["labels"].items():
        rows = [row for row in answer.table.to_pylist() if row["language"] == label]
        assert [(row["criterion"], row["covered"], row["share"]) for row in rows] == [
            (row["criterion"], row["covered"], row["share"]) for row in coverage["criteria"]
        ]
    assert (tmp_path / "state.safetensors").stat().st_size > 0


def test_coactivation(text: actstore.Store, cli: Cli, tmp_path: Path) -> None:
    answer = text.coactivation("L1.N3", k=4, sort="jaccard", threshold=0.1, capture="corpus")
    asked = ("-k", 4, "--sort", "jaccard", "--threshold", 0.1, "--capture", "corpus")
    expected = cli("coactivation", text.folder, "L1.N3", *asked, "--json").json
    rows = [{"neuron": row.pop("name")} | row for row in answer.table.to_pylist()]
    assert [{key: row[key] for key in neuron} for row, neuron in zip(rows, expected["neurons"], strict=True)] == [
        neuron | {"neuron": row["neuron"]} for row, neuron in zip(rows, expected["neurons"], strict=True)
    ]
    assert [neuron["neuron"] for neuron in expected["neurons"]] == [f"L{r['layer']}.N{r['neuron']}" for r in rows]
    mine, theirs = tmp_path / "mine.parquet", tmp_path / "theirs.parquet"
    every = text.coactivation(k=2, layers=[1], capture="corpus", output=mine)
    assert (
        cli("coactivation", text.folder, "-k", 2, "--layers", 1, "--capture", "corpus", "--output", theirs).status == 0
    )
    assert pq.read_table(mine).equals(pq.read_table(theirs))
    assert pq.read_table(mine).equals(every.table.to_arrow())
    with pytest.raises(InvalidInputError, match="Expected one `neuron`"):
        text.coactivation("L1.N3,L0.N2", capture="corpus")
    with pytest.raises(InvalidInputError, match="neuron is a text or a tuple"):
        text.coactivation(3, capture="corpus")  # type: ignore[arg-type]


def test_change(text: actstore.Store, tmp_path: Path) -> None:
    """Of a store from its copy nothing changed: no neuron is selected. From itself it is not compared."""
    with pytest.raises(
        InvalidInputError, match=r"Both are capture 'corpus' of .*, and a comparison needs two captures"
    ):
        text.change(text, share=0.5, capture="corpus")
    answer = text.change(shutil.copytree(text.folder.location, tmp_path / "copy"), share=0.5, capture="corpus")
    assert answer.table.num_rows == 0
    assert answer.details.n_positions > 0


def test_graphs_are_searched_and_compared(text: actstore.Store, cli: Cli) -> None:
    assert {"graphs", "published"} <= set(text.graphs.names)
    fox = text.graphs.search(context="the", k=5)
    expected = cli("graphs", "search", text.folder, "--context", "the", "-k", 5, "--json").json
    names = list(dict.fromkeys(row["name"] for row in fox.table.to_pylist()))
    assert names == [neuron["neuron"] for neuron in expected["neurons"]]
    similar = text.graphs.similar("L1.N3", k=3)
    expected = cli("graphs", "similar", text.folder, "L1.N3", "-k", 3, "--json").json
    rows = [(row["other_name"], row["overlap"], row["prediction"]) for row in similar.table.to_pylist()]
    assert rows == [(row["neuron"], row["overlap"], row["prediction"]) for row in expected["neurons"]]


def test_graphs_are_built(copy: actstore.Store, cli: Cli) -> None:
    built = copy.graphs.build(name="mine", neurons=["L0.N1", (1, 3)], capture="corpus", gain=0)
    options = ("--name", "theirs", "--neurons", "L0.N1,L1.N3", "--capture", "corpus", "--gain", 0, "--quiet")
    assert cli("graphs", "build", copy.folder, *options).status == 0
    theirs = copy.graphs.open("theirs").nodes
    for name in theirs.column_names:  # NaN, where nothing was measured, equals NaN here
        np.testing.assert_array_equal(built.nodes[name].to_numpy(), theirs[name].to_numpy())
    with pytest.raises(actstore.errors.InvalidInputError, match="corpus"):
        copy.graphs.build(method="guessed")


def test_edits(copy: actstore.Store, cli: Cli) -> None:
    assert set(copy.edits) >= {"suppress", "boost", "least-norm"}
    edit = copy.edits.boost(["L0.N1"], 3.0, name="mine")
    assert "mine" in copy.edits
    assert repr(edit) == "Edit('mine': boost of 1 neuron, weights)"
    quiet = copy.edits.suppress(["L0.N1", "L1.N3"], name="quiet", kind="intervention")
    assert repr(quiet) == "Edit('quiet': suppress of 2 neurons, intervention)"
    assert copy.edits["mine"].record.rows == edit.record.rows
    made = ("--name", "theirs", "--factor", 3, "--neurons", "L0.N1")
    assert cli("edit", "boost", copy.folder, *made).status == 0
    assert copy.edits["theirs"].record.rows == edit.record.rows
    assert "mine" in copy.edits.table()["name"].to_pylist()
    with pytest.raises(actstore.errors.InvalidInputError, match="mine"):
        copy.edits.boost(["L0.N1"], 3.0, name="mine")
    copy.edits.delete("mine")
    assert "mine" not in copy.edits
    with pytest.raises(actstore.errors.InvalidInputError, match="`output`"):
        copy.edits.apply("theirs")


def test_export_and_verify(copy: actstore.Store, cli: Cli, tmp_path: Path) -> None:
    assert copy.verify() == []
    n_tokens = copy.export(tmp_path / "mine.parquet", ["L1.N3"], capture="corpus")
    options = ("--output", tmp_path / "theirs.parquet", "--neurons", "L1.N3", "--capture", "corpus")
    assert cli("export", copy.folder, *options).status == 0
    assert (tmp_path / "mine.parquet").read_bytes() == (tmp_path / "theirs.parquet").read_bytes()
    assert n_tokens == copy.capture("corpus").tokens().num_rows
    damaged = next((Path(str(copy.folder)) / "captures" / "corpus" / "values").rglob("c/0/0"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert copy.verify()
    assert copy.info()["captures"]


def test_answers_print_as_tables(text: actstore.Store) -> None:
    answer = text.selectivity(by="language", share=0.2, activation_quantile=0.5, capture="corpus")
    shown = repr(answer)
    assert "entropy" in shown
    assert all(f"Warning: {warning}" in shown for warning in answer.warnings)
    assert "<table" in answer._repr_html_()


def test_neurons_are_named_in_either_way() -> None:
    from actstore.api.neurons import neuron_pairs

    assert neuron_pairs("L3.N17,L0.N2") == [(3, 17), (0, 2)]
    assert neuron_pairs((3, 17)) == [(3, 17)]
    assert neuron_pairs(["L3.N17", (3, 17), (0, 2)]) == [(3, 17), (0, 2)]
    for neurons in ([3], 3, (3.0, 17.5), [[3, 17]], None):
        with pytest.raises(actstore.errors.InvalidInputError, match=r"such as L3\.N17, or \(layer, index\), found"):
            neuron_pairs(neurons)  # type: ignore[arg-type]


def test_neurons_come_out_of_a_table(text: actstore.Store) -> None:
    from actstore.api.neurons import neuron_pairs

    table = text.neurons().slice(0, 3)
    expected = [(row["layer"], row["neuron"]) for row in table.to_pylist()]
    assert neuron_pairs(table["name"]) == expected
    assert neuron_pairs(table.to_pandas()["name"]) == expected
    assert neuron_pairs(table.to_pandas().itertuples()) == expected
    assert neuron_pairs(text.neuron("L1.N3")) == neuron_pairs([text.neuron("L1.N3")]) == [(1, 3)]
    assert neuron_pairs(zip(table["layer"].to_numpy(), table["neuron"].to_numpy(), strict=True)) == expected


def takes_both(kind: Any) -> dict[str, Callable[..., Any]]:
    """Public methods of a class that take neurons and layers."""
    return {
        name: member
        for name, member in vars(kind).items()
        if inspect.isfunction(member)
        and {"neurons", "layers"} <= set(inspect.signature(member).parameters)
        and (not name.startswith("_") or name == "__call__")
    }


def test_neurons_and_layers_are_not_taken_together(text: actstore.Store, cli: Cli, tmp_path: Path) -> None:
    """Nowhere, as some would expect either of the two, and others both."""
    both: dict[str, Any] = {"neurons": ["L0.N3"], "layers": [1]}
    calls = {
        "Store.export": lambda: text.export(tmp_path / "out.parquet", capture="corpus", **both),
        "GraphsMethod.build": lambda: text.graphs.build(name="both", capture="corpus", **both),
        "GraphsMethod.evaluate": lambda: text.graphs.evaluate(capture="corpus", **both),
        "GraphsMethod.probe": lambda: text.graphs.probe("gpt2", capture="corpus", **both),
        "ExplainMethod.__call__": lambda: text.explain(dry_run=True, capture="corpus", **both),
        "EditsMethod.rewrite": lambda: text.edits.rewrite("a", "b", capture="corpus", **both),
    }
    assert {f"{kind.__name__}.{name}" for kind in (actstore.Store, *GROUPS.values()) for name in takes_both(kind)} == {
        *calls
    }
    calls["site"] = lambda: actstore.site(text, tmp_path / "site", capture="corpus", **both)
    for call in calls.values():
        with pytest.raises(InvalidInputError, match="`neurons` names single neurons, and `layers` all of some layers"):
            call()
    options = ("--capture", "corpus", "--neurons", "L0.N3", "--layers", 1)
    lines: dict[str, tuple[object, ...]] = {
        "export": ("export", text.folder, "--output", tmp_path / "out.parquet", *options),
        "graphs build": ("graphs", "build", text.folder, *options),
        "graphs evaluate": ("graphs", "evaluate", text.folder, *options),
        "graphs probe": ("graphs", "probe", text.folder, "--model", "gpt2", *options),
        "explain": ("explain", text.folder, "L0.N3", "--layers", 1, "--dry-run"),
        "edit rewrite": ("edit", "rewrite", text.folder, "--from", "a", "--to", "b", *options),
        "site": ("site", text.folder, tmp_path / "site", *options),
    }
    assert {words for words, one in commands().items() if {"neurons", "layers"} <= {p.name for p in one.params}} == {
        *lines
    }
    for name, line in lines.items():
        done = cli(*line)
        neurons = "NEURONS" if name == "explain" else "--neurons"
        assert (done.status, done.out) == (2, ""), name
        assert (
            done.err
            == f"Error: {neurons} names single neurons, and --layers all of some layers: pass one of them, not both.\n"
        )
    assert list(tmp_path.iterdir()) == []


def test_images(cli: Cli) -> None:
    store = actstore.open(KEPT / "images")
    capture = next(
        name
        for name in store.captures
        if store.capture(name).record.of_images and "mlp.post" in store.capture(name).record.sites
    )
    answer = store.multimodal(k=2, nouns="content", capture=capture)
    expected = cli("multimodal", store.folder, "--capture", capture, "-k", 2, "--nouns", "content", "--json").json
    told = [
        (noun["noun"], neuron["neuron"], neuron["score"])
        for caption in expected["captions"]
        for noun in caption["nouns"]
        for neuron in noun["neurons"]
    ]
    assert [(row["noun"], row["name"], row["score"]) for row in answer.table.to_pylist()] == told
