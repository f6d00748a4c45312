"""`actstore graphs show | search | similar | repeats`: JSON, tables, pictures, and each mistake of a user's in one sentence."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from planted_graphs import plant_graphs, plant_store

from actstore.engine.capture.api import capture
from actstore.store.graphs.nodes import IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

CAT, THE, BLACK, NOT = range(4)
GRAPHS = {
    (0, 0): [((CAT,), 0.12, 900, 210), ((CAT, THE), 0.05, 300, 100), ((CAT, THE, BLACK), 0.97, 100, 97, 0.9),
             ((CAT, IGNORE, IGNORE, NOT), 0.01, 50, 0)],
    (0, 1): [],
    (0, 2): [((CAT, THE, BLACK), 0.9, 100, 90)],
    (1, 0): [((t,), 0.9, 10, 9) for t in range(60)],
}  # fmt: skip


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore graphs …` in this process."""
    return functools.partial(cli, "graphs")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of graphs: ours, and published ones of one neuron; and others of another tokenizer."""
    path = tmp_path_factory.mktemp("graph") / "store"
    planted = plant_store(path)
    plant_graphs(planted, GRAPHS)
    plant_graphs(planted, {(0, 0): GRAPHS[0, 0]}, name="published", method="published", settings={})
    plant_graphs(planted, {(0, 0): GRAPHS[0, 0]}, name="foreign", tokenizer_fingerprint="u" * 64)
    return path


@pytest.fixture(scope="module")
def captured(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of the tiny model, without graphs."""
    path = tmp_path_factory.mktemp("graph") / "captured"
    capture(str(tiny_model), corpus, path, max_tokens=1500)
    return path


def test_show_as_json_names_the_lines_that_matter_first(cli: Callable[..., Result], store: Path) -> None:
    done = cli("show", store, "L0.N0", "--json")
    assert (done.status, done.err) == (0, "")
    found = done.json
    assert {k: found[k] for k in ("neuron", "graphs", "method", "capture", "status", "nodes", "hidden", "files")} == {
        "neuron": "L0.N0", "graphs": "graphs", "method": "corpus", "capture": "corpus", "status": "", "nodes": 6, "hidden": 0,
        "files": [],
    }  # fmt: skip
    assert found["lines"][0] == {
        "tokens": [CAT, THE, BLACK], "texts": ["·cat", "·the", "·black"], "probability": pytest.approx(0.97),
        "value": pytest.approx(0.873), "count": 100, "fires": 97, "own_count": 100, "own_fires": 97,
        "importance": pytest.approx(0.9),
    }  # fmt: skip
    root = next(line for line in found["lines"] if line["tokens"] == [CAT])
    assert {name: root[name] for name in ("count", "fires", "own_count", "own_fires")} == {
        "count": 900, "fires": 210, "own_count": 550, "own_fires": 110,
    }  # fmt: skip
    assert found["lines"][-1]["importance"] is None
    assert len(found["lines"]) == 4
    assert cli("show", store, "L1.N0", "--paths", 5, "--json").json["hidden"] == 55


def test_show_draws_a_tree(cli: Callable[..., Result], store: Path) -> None:
    done = cli("show", store, "L0.N0")
    assert done.status == 0
    assert "fires from 0.5 of its maximum 2.5 · fired at 9 tokens · 6 nodes, 4 paths · capture corpus" in done.out
    assert re.search(
        r"└──  ·cat   P 0\.12  fired 110 of 550 \(210 of 900 in all\)\n.*← {2}·the   P 0\.05  fired 3 of 200", done.out
    )
    assert "← … ×2 ←  not " in done.out
    assert "… ×2 ←" not in cli("show", store, "L0.N0", "--without-ignore").out
    assert "more paths that matter less (--paths 0 draws all)" in cli("show", store, "L1.N0", "--paths", 5).out
    assert "an empty graph: never fires" in cli("show", store, "L0.N1").out


def test_published_graphs_are_drawn_without_ignored_tokens(cli: Callable[..., Result], store: Path) -> None:
    assert "… ×2 ←" not in cli("show", store, "L0.N0", "--name", "published").out
    assert "… ×2 ←" in cli("show", store, "L0.N0", "--name", "published", "--with-ignore").out


def test_show_writes_pictures(cli: Callable[..., Result], store: Path, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"g.{kind}" for kind in ("svg", "html", "dot")}
    done = cli("show", store, "L0.N0", *(part for path in files.values() for part in ("--output", path)))
    assert done.status == 0
    assert done.out.splitlines() == [f"{path}: L0.N0, 4 paths." for path in files.values()]
    ElementTree.parse(files["svg"])
    assert files["html"].read_text().startswith("<!doctype html>")
    assert files["dot"].read_text().startswith("digraph {")
    assert (
        cli("show", store, "L0.N1", "--output", files["svg"]).out
        == f"{files['svg']}: L0.N1 never fires: an empty graph.\n"
    )
    assert "never fires" in files["svg"].read_text()
    assert cli("show", store, "L0.N0", "--output", files["svg"], "--json").json["files"] == [str(files["svg"])]


def test_search(cli: Callable[..., Result], store: Path) -> None:
    done = cli("search", store, "--activating", "CAT", "--context", "the", "--json")
    found = done.json
    assert (found["activating"], found["context"], found["matching"]) == ([0, 17, 18, 19], [1], 2)
    assert [n["neuron"] for n in found["neurons"]] == ["L0.N0", "L0.N2"]
    line = found["neurons"][0]["lines"][0]
    assert (line["tokens"], line["fires"], line["score"]) == ([CAT, THE, BLACK], 97, pytest.approx(0.97 * 97))
    assert cli("search", store, "--activating-id", CAT, "--context-id", BLACK, "--json").json["matching"] == 2
    shown = cli("search", store, "--activating", "cat", "--paths", 1)
    assert shown.out.startswith("3 neurons in 6 paths;  firing on ·cat, ·Cat, cat·, CAT.\n")
    assert re.search(r"L0\.N0 +94\.1 +·black ·the +·cat +0\.97 +97 +100", shown.out)
    assert "… 3 more" in shown.out
    # A probability stands beside the counts that it is of: those for which no longer path answers.
    silent = cli("search", store, "--activating", "cat", "--silent", "--paths", 9)
    assert re.search(r" ·cat +0\.12 +110 +550\n", silent.out)
    lines = cli("search", store, "--activating-id", CAT, "--silent", "--json").json["neurons"][0]["lines"]
    root = next(line for line in lines if line["tokens"] == [CAT])
    assert (root["fires"], root["count"], root["own_fires"], root["own_count"]) == (210, 900, 110, 550)
    nothing = cli("search", store, "--activating", " black", "--context", "cat", "--match", "contains")
    assert (nothing.status, nothing.out.count("\n")) == (0, 1)


def test_similar(cli: Callable[..., Result], store: Path) -> None:
    found = cli("similar", store, "L0.N0", "--json").json
    assert (found["neuron"], found["sharing"]) == ("L0.N0", 2)
    assert found["neurons"][0]["neuron"] == "L0.N2"
    assert (found["neurons"][0]["overlap"], found["neurons"][0]["subset"]) == (1.0, 1.0)
    assert 0.8 < found["neurons"][0]["prediction"] < 1
    assert "L0.N2" in cli("similar", store, "L0.N0").out
    assert cli("similar", store, "L0.N1").out == "No neuron shares a path with L0.N1: it never fires.\n"
    found = cli("similar", store, "--json").json
    assert found["pairs"] == {"overlap": 1, "subset": 3, "prediction": 1}
    assert next((row["neuron"], row["other"]) for row in found["similar"]) == ("L0.N0", "L0.N2")
    assert "1 by overlap, 3 by subset, 1 by prediction" in cli("similar", store).out


def test_repeats(cli: Callable[..., Result], captured: Path) -> None:
    done = cli("repeats", captured, "-k", 3, "--least-fires", 5, "--json")
    assert (done.status, done.err) == (0, "")
    found = done.json
    assert len(found["neurons"]) == 3
    assert found["neurons"][0]["score"] >= found["neurons"][1]["score"]
    assert found["neurons"][0]["lines"] is None
    assert "occurred before in their window" in cli("repeats", captured).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("show", "STORE", "L0.N0", "--name", "other"),
            r"no graphs 'other', only: foreign, graphs, published\. Make them: .*build",
        ),
        (("show", "STORE", "L0.N9"), r"Layer 0 has neurons 0 to 3, found neuron 9"),
        (("show", "STORE", "L1.N7"), r"hold none of L1\.N7"),
        (("show", "STORE", "17"), r"named by layer and index, such as L3\.N17, found '17'"),
        (("show", "STORE", "L0.N0", "--output", "x.jpg"), r"end in \.svg, .* or .*, found 'x\.jpg'"),
        (
            ("show", "STORE", "L0.N0", "--output", "none/x.html"),
            r"The folder of none/x\.html does not exist",
        ),
        (("show", "STORE", "L0.N0", "--name", "foreign"), r"built with another tokenizer than the store's"),
        (("show", "none", "L0.N0"), r"There is no store at none"),
        (("search", "STORE"), r"pass --activating, --context or both"),
        (("search", "STORE", "--activating", "dog"), r"No token of planted matches 'dog'"),
        (("similar", "STORE", "L1.N7"), r"hold none of L1\.N7"),
        (("similar", "STORE", "--least", "0"), r"--least is a share above 0, at most 1, found 0"),
        (("repeats", "STORE"), r"has no capture 'corpus'"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(
    refused: Callable[..., str], store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(said, refused(*(store if part == "STORE" else part for part in arguments)))
    assert list(tmp_path.iterdir()) == []


def test_png_needs_graphviz(
    refused: Callable[..., str], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Install Graphviz, or write .svg" in refused("show", store, "L0.N0", "--output", tmp_path / "x.png")


def test_a_store_without_graphs_says_what_makes_them(refused: Callable[..., str], captured: Path) -> None:
    assert "Make them: `actstore graphs build STORE`" in refused("show", captured, "L0.N0")
    assert "Make them: `actstore graphs build STORE`" in refused("search", captured, "--activating", "the")
    assert "Make them: `actstore graphs build STORE --name other`" in refused("repeats", captured, "--name", "other")


def test_no_model_library_is_needed(
    run_without: Callable[..., Any], store: Path, captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = (
        ("show", store, "L0.N0"), ("show", store, "L0.N0", "--output", "x.svg"), ("search", store, "--activating", "cat"),
        ("similar", store, "L0.N0"), ("similar", store), ("repeats", captured),
    )  # fmt: skip
    done = run_without(("transformers", "tokenizers", "torch"), *(("graphs", *line) for line in lines))
    assert done.returncode == 0, done.stderr
    assert "·cat" in done.stdout
    assert (tmp_path / "x.svg").is_file()
