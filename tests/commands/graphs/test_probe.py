"""`actstore graphs probe`: its JSON, its tables, the graphs it makes, and each mistake of a user's in one sentence."""

from __future__ import annotations

import functools
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from actstore.engine.capture.api import capture
from actstore.engine.graphs.build import build_graphs
from actstore.store.graphs.reader import Graphs, graph_names
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]


@pytest.fixture(scope="module")
def made(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("probed") / "store"
    capture(str(tiny_model), corpus, store, context=32, max_tokens=900)
    build_graphs(Store(store).capture(), Folder(store, read_only=False), neurons=[(0, 3), (1, 7)])
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def run_build(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore graphs build …` in this process."""
    return functools.partial(cli.func, "graphs", "build")  # type: ignore[attr-defined]


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore graphs probe …` in this process."""
    return functools.partial(cli, "graphs", "probe")


def test_sampled_text_is_a_capture(cli: Callable[..., Result], tiny_model: Path, store: Path) -> None:
    done = cli(store, "--sample", 100, "--window", 16, "--seed", 5, "--json")
    assert done.status == 0, done.err
    (found,) = done.json["captures"]
    assert (found["capture"], found["tokens"]) == ("probes-sampled", 100)
    assert Store(store).capture("probes-sampled").record.settings["probes"]["seed"] == 5


def test_neurons_are_probed_and_graphs_made(cli: Callable[..., Result], tiny_model: Path, store: Path) -> None:
    arguments = ("--neurons", "L0.N3,L1.N7", "--exemplars", 4, "--substitutes", 1)
    done = cli(store, "--capture", "corpus", *arguments, "--annotate", "graphs", "--published", "paper", "--json")
    assert done.status == 0, done.err
    said = done.json
    assert (said["neurons"], said["mask"], said["graphs"]) == (2, "pad", ["graphs-probed", "paper"])
    assert {c["capture"] for c in said["captures"]} >= {"probes-suffix-05", "probes-mask"}
    assert 0 < said["shortened"] <= said["exemplars"] <= 4
    opened = Store(store)
    assert Graphs(opened, "paper").record.method == "published"
    assert len(Graphs(opened, "graphs-probed")) == 2
    people = cli(store, "--capture", "corpus", *arguments, "--resume")
    assert people.status == 0, people.err
    assert "probes-mask" in people.out
    assert "masked with: pad" in people.out


@pytest.mark.slow
def test_published_graphs_are_built_from_probes_that_stand_there(
    cli: Callable[..., Result], run_build: Callable[..., Result], run_without: Callable[..., Any], tiny_model: Path,
    store: Path,
) -> None:  # fmt: skip
    arguments = (
        "--capture",
        "corpus",
        "--neurons",
        "L0.N3,L1.N7",
        "--exemplars",
        4,
        "--substitutes",
        1,
        "--probes",
        "asked",
    )
    assert cli(store, *arguments, "--published", "paper").status == 0
    done = run_build(store, "--method", "published", "--probes", "asked", "--json")
    assert done.status == 0, done.err
    assert (done.json["name"], done.json["method"], done.json["neurons"]) == ("published", "published", 2)
    opened = Store(store)
    assert Graphs(opened, "published").record.n_nodes > 0
    files = [opened.folder.read(f"graphs/{name}/nodes.arrow") for name in ("published", "paper")]
    assert files[0] == files[1]
    line = ("graphs", "build", store, "--method", "published", "--probes", "asked", "--name", "another")
    done = run_without(("transformers", "tokenizers"), line)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("another: 2 neurons")


def test_published_graphs_need_probes(run_build: Callable[..., Result], store: Path) -> None:
    for arguments, said in (
        (("--method", "published"), f"none called 'probes'. Probe the model first: actstore graphs probe {store}"),
        (("--method", "published", "--probes", "x"), "none called 'x'.*--probes x"),
        (("--method", "published", "--gain", "1"), "--gain is no option of --method published"),
        (("--method", "published", "--capture", "corpus"), "--capture is no option of"),
        (("--probes", "x", "--capture", "corpus"), "--probes is an option of --method published"),
    ):
        done = run_build(store, *arguments)
        assert (done.status, done.out) == (2, "")
        assert re.search(said, " ".join(done.err.split())), done.err
    assert graph_names(Store(store).folder) == ("graphs",)


def test_mistakes_are_said_in_a_sentence(
    refused: Callable[..., str], tiny_model: Path, store: Path, tmp_path: Path
) -> None:
    assert "--window needs --sample" in refused(store, "--window", 9)
    assert "--mask cannot go with --sample" in refused(store, "--sample", 9, "--mask", "unk")
    assert "has no mask token" in refused(store, "--mask", "mask", "--layers", "0")
    assert "fills no masks" in refused(store, "--substitutes-model", tiny_model, "--layers", "0")
    assert "--substitutes-model cannot go with --sample" in refused(store, "--sample", 9, "--substitutes-model", "bert")
    assert "--temperature" in refused(store, "--sample", 9, "--temperature", "-1")
    assert "reads at most 64 tokens" in refused(store, "--sample", 9, "--window", "65")
    assert "no graphs 'none'" in refused(store, "--annotate", "none", "--layers", "0")
    refused(tmp_path / "nowhere", "--sample", 9)
    assert Store(store).captures == ("corpus",)
