"""`actstore graph probe`: its JSON, its tables, the graphs it makes, and each mistake of a user's in one sentence."""

from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING

import pytest

from actstore.engine.capture_run import capture
from actstore.engine.graph.build import build_graphs
from actstore.store.folder import Folder
from actstore.store.graphs import Graphs
from actstore.store.reader import Store

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
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore graph probe …` in this process."""
    return functools.partial(cli, "graph", "probe")


def test_sampled_text_is_a_capture(cli: Callable[..., Result], tiny_model: Path, store: Path) -> None:
    done = cli(tiny_model, store, "--sample", 100, "--window", 16, "--seed", 5, "--json")
    assert done.status == 0, done.err
    (found,) = done.json["captures"]
    assert (found["capture"], found["tokens"]) == ("probes-sampled", 100)
    assert Store(store).capture("probes-sampled").record.settings["probes"]["seed"] == 5


def test_neurons_are_probed_and_graphs_made(cli: Callable[..., Result], tiny_model: Path, store: Path) -> None:
    arguments = ("--neurons", "L0.N3,L1.N7", "--exemplars", 4, "--substitutes", 1)
    done = cli(
        tiny_model, store, "--capture", "corpus", *arguments, "--annotate", "graphs", "--published", "paper", "--json"
    )
    assert done.status == 0, done.err
    said = done.json
    assert (said["neurons"], said["mask"], said["graphs"]) == (2, "pad", ["graphs-probed", "paper"])
    assert {c["capture"] for c in said["captures"]} >= {"probes-suffix-05", "probes-mask"}
    assert 0 < said["shortened"] <= said["exemplars"] <= 4
    opened = Store(store)
    assert Graphs(opened, "paper").record.method == "published"
    assert len(Graphs(opened, "graphs-probed")) == 2
    people = cli(tiny_model, store, "--capture", "corpus", *arguments, "--resume")
    assert people.status == 0, people.err
    assert "probes-mask" in people.out
    assert "masked with: pad" in people.out


def test_mistakes_are_said_in_a_sentence(
    refused: Callable[..., str], tiny_model: Path, store: Path, tmp_path: Path
) -> None:
    assert "--window needs --sample" in refused(tiny_model, store, "--window", 9)
    assert "--mask cannot go with --sample" in refused(tiny_model, store, "--sample", 9, "--mask", "unk")
    assert "--mask is one of" in refused(tiny_model, store, "--mask", "the")
    assert "has no mask token" in refused(tiny_model, store, "--mask", "mask", "--layers", "0")
    assert "--temperature" in refused(tiny_model, store, "--sample", 9, "--temperature", "-1")
    assert "reads at most 64 tokens" in refused(tiny_model, store, "--sample", 9, "--window", "65")
    assert "no graphs 'none'" in refused(tiny_model, store, "--annotate", "none", "--layers", "0")
    refused(tiny_model, tmp_path / "nowhere", "--sample", 9)
    assert Store(store).captures == ("corpus",)
