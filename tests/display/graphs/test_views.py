"""The methods of `store.graph(…)`: drawings, similar neurons, predictions of a text; also without model libraries."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

import actstore
from actstore.engine.graphs.build import build_graphs
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.nodes import IGNORE
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actstore.store.graphs.reader import Graphs

NEURONS: dict[tuple[int, int], Any] = {
    (0, 0): [((0,), 0.1, 100, 10), ((0, 1), 0.9, 10, 9), ((0, IGNORE, 2), 0.8, 8, 7)],
    (0, 1): [],
    (0, 2): [((17,), 0.9, 9, 9), ((17, 1), 0.8, 8, 8)],
    (1, 3): [((0,), 0.5, 100, 50)],
}


@pytest.fixture
def graphs(planting: Callable[..., Graphs]) -> Graphs:
    return planting(NEURONS)


def test_a_drawing_is_text_and_pictures(graphs: Graphs, tmp_path: Path) -> None:
    drawn = graphs.graph(0, 0).draw()
    lines = str(drawn).splitlines()
    assert lines[0].startswith("L0.N0  fires from 0.5 of its maximum 2.5 · fired at 9 tokens · 4 nodes, 3 paths")
    assert [re.sub(r"\s+", " ", line.strip("│├└─ ")) for line in lines[4:]] == [
        "·cat P 0.10 fired 0 of 82 (10 of 100 in all)", "← ·the P 0.90 fired 9 of 10", "← … ×1 ← ·black P 0.80 fired 7 of 8",
    ]  # fmt: skip
    assert repr(drawn) == str(drawn)
    assert "\x1b[" not in str(drawn)
    coloured = Console(file=io.StringIO(), force_terminal=True, width=200, color_system="truecolor")
    coloured.print(drawn)
    assert "\x1b[" in coloured.file.getvalue()  # type: ignore[attr-defined]
    for suffix, text in ((".svg", drawn.svg()), (".html", drawn.html()), (".dot", drawn.dot())):
        drawn.save(tmp_path / f"x{suffix}")
        assert (tmp_path / f"x{suffix}").read_text(encoding="utf-8") == text
    with pytest.raises(InvalidInputError, match="Expected a picture's name to end in"):
        drawn.save("x.pdf")


def test_a_drawing_has_the_lines_that_are_asked_for(graphs: Graphs) -> None:
    graph = graphs.graph(0, 0)
    assert str(graph.draw(paths=1)).endswith("… 1 more path that matters less (paths = 0 draws all)")
    assert "…" not in str(graph.draw(with_ignore=False)).splitlines()[-1]
    assert "an empty graph: never fires" in str(graphs.graph(0, 1).draw())
    with pytest.raises(InvalidInputError, match="found -1"):
        graph.draw(paths=-1)


def test_published_graphs_are_drawn_without_ignored_tokens(planting: Callable[..., Graphs]) -> None:
    graph = planting(NEURONS, method="published", name="published").graph(0, 0)
    assert "… ×1" not in str(graph.draw())
    assert "… ×1" in str(graph.draw(with_ignore=True))


def test_like_neurons_are_a_table(graphs: Graphs) -> None:
    result = graphs.graph(0, 0).similar()
    assert result.column_names == ["name", "layer", "neuron", "overlap", "subset", "prediction"]
    # " Cat" is " cat" but for case.
    assert sorted(result["name"].to_pylist()) == ["L0.N2", "L1.N3"]
    prediction = result["prediction"].to_numpy()
    assert (np.diff(prediction) <= 0).all()
    assert result.num_rows > graphs.graph(0, 0).similar(k=1).num_rows == 1
    assert graphs.graph(0, 0).similar(normalise=False)["name"].to_pylist() == ["L1.N3"]
    assert graphs.graph(0, 1).similar().num_rows == 0
    with pytest.raises(InvalidInputError, match="`k` must be 1 or more"):
        graphs.graph(0, 0).similar(k=0)


def test_graphs_of_another_tokenizer_are_not_drawn(planting: Callable[..., Graphs]) -> None:
    graph = planting(NEURONS, tokenizer_fingerprint="o" * 64).graph(0, 0)
    for ask in (graph.draw, graph.similar, lambda: graph.predict("the cat")):
        with pytest.raises(InvalidInputError, match="built with another tokenizer than the store's"):
            ask()
    assert graph.predict([1, 0]).shape == (2,)


@pytest.fixture(scope="module")
def captured(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("views") / "store"
    actstore.capture(str(tiny_model), corpus, store, context=32, max_tokens=900)
    build_graphs(Store(store).capture(), Folder(store, read_only=False), neurons=[(0, 3), (1, 7)])
    return store


def test_a_text_is_predicted_as_the_window_that_it_is(captured: Path, tiny_model: Path, corpus: Path) -> None:
    store = actstore.open(captured)
    capture = store.capture()
    ids = capture.block_plan(0).inputs[: capture.windows()["n_inputs"][0].as_py()]
    text = store.text(ids[1:])
    graph = store.graph(1, 7)
    result = graph.predict(text)
    assert result.column_names == ["token", "text", "value", "probability", "fires"]
    assert result["token"].to_pylist() == ids.tolist()
    assert result["token"].to_pylist() == AutoTokenizer.from_pretrained(tiny_model)(text)["input_ids"]
    assert "".join(result["text"].to_pylist()[1:]) == text
    assert result["value"].to_pylist() == graph.predict(ids).tolist()
    assert result["fires"].to_pylist() == graph.fires(ids).tolist()
    assert 0 < sum(result["fires"].to_pylist()) < len(ids)


ASK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "tokenizers", "torch"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import actstore
graph = actstore.open(sys.argv[1]).graph("L1.N7")
found = graph.predict("The fox jumps over the dog, doesn't it?")
print(found["token"].to_pylist(), found["value"].to_pylist())
print(graph.similar(k=3).num_rows, len(str(graph.draw())) > 50, graph.draw().svg()[:4])
"""


def test_no_model_library_is_needed(captured: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(captured)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    result = actstore.open(captured).graph("L1.N7").predict("The fox jumps over the dog, doesn't it?")
    said, others = done.stdout.splitlines()
    assert said == f"{result['token'].to_pylist()} {result['value'].to_pylist()}"
    assert others.split()[1:] == ["True", "<svg"]
