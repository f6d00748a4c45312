"""`actstore naica` on a few questions to the demo fact model, read after the model is gone."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest

from actstore.commands.naica import group as naica
from actstore.display import terminal
from actstore.engine.attribution.attribute import attribute
from actstore.engine.naica.naica import NaicaSettings, find_naica
from actstore.engine.naica.selection import LayerCounts
from actstore.store.capture.questions.attributions import Attributions, open_attributions
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tests.conftest import Result  # type: ignore[import-not-found]

DEMO = Path(__file__).resolve().parents[3] / "demo" / "models" / "fact-llama"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve queries of several domains; the model that answered them is there no more."""
    folder = tmp_path_factory.mktemp("naica")
    model = shutil.copytree(DEMO, folder / "model")
    questions = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    some = dict(list(questions.items())[:: len(questions) // 11])
    (folder / "questions.json").write_text(json.dumps(some), encoding="utf-8")
    attribute(str(model), folder / "questions.json", folder / "store", max_rows=512)
    shutil.rmtree(model)
    return folder / "store"


@pytest.fixture(scope="module")
def attributions(store: Path) -> Attributions:
    return open_attributions(Store(store))


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore naica …` in this process."""
    return functools.partial(cli, "naica")


@pytest.fixture
def asked(cli: Callable[..., Result]) -> Callable[..., Any]:
    """The JSON document that `naica …` writes."""

    def call(*arguments: object) -> Any:
        done = cli(*arguments, "--json")
        assert done.status == 0, done.err
        return json.loads(done.out)

    return call


# What the published code gets wrong: the target


def test_the_target_is_the_token_that_continues_the_prompt_not_the_bare_letter(attributions: Attributions) -> None:
    store = attributions.store
    assert store.vocabulary is not None
    bare = {store.token_text(i): i for i in range(store.vocabulary.num_rows) if len(store.token_bytes(i)) == 1}
    seen = set()
    for row in attributions.prompts.to_pylist():
        assert store.token_text(row["target"]) == f" {row['answer']}"
        assert row["target"] != bare[row["answer"]]
        seen.add(row["answer"])
    assert len(seen) > 1


# What it prints


def dense(attributions: Attributions) -> NDArray[np.float32]:
    return np.concatenate([scores for _, scores in attributions.query_scores("ig")])


def test_json_is_the_formula_on_what_is_stored(
    asked: Callable[..., Any], attributions: Attributions, store: Path
) -> None:
    value = asked(store)
    scores = dense(attributions)
    n = len(scores)
    inside = scores > np.float32(0.2) * scores.max(axis=1, keepdims=True)
    df = inside.sum(axis=0)
    kept = df / n <= 0.3
    assert value["common"] == attributions.neuron_names(np.flatnonzero((df > 0) & ~kept))
    assert value["common"]
    assert [row["query"] for row in value["queries"]] == attributions.queries["query"].to_pylist()
    weights = np.log(n / (df + 1.0))
    for row, own, mine in zip(value["queries"], scores, inside, strict=True):
        total = float(own.sum(dtype=np.float64))
        na = own / (total if total > 0 else float(np.abs(own).sum(dtype=np.float64)))
        naica_ = np.where(mine, na * weights, -np.inf)
        best = [i for i in np.argsort(-naica_, kind="stable")[:20] if np.isfinite(naica_[i]) and kept[i]]
        assert [entry["neuron"] for entry in row["neurons"]] == attributions.neuron_names(np.array(best, np.int64))
        assert [entry["score"] for entry in row["neurons"]] == pytest.approx(naica_[best], rel=1e-4)
        assert row["labels"]["relation_name"] == row["query"].split("/")[0]
        assert row["correct"] in (True, False)
    assert value["settings"] == {"attribution": "ig", "t": 0.2, "u": 0.3, "v": 20, "ica": True, "removal": "after"}
    assert value["capture"] == "questions"


def test_options_reach_the_settings(asked: Callable[..., Any], store: Path, attributions: Attributions) -> None:
    value = asked(store, "--t", 0.5, "--u", 1, "--v", 2, "--no-ica", "--attribution", "gradient")
    found = find_naica(attributions, NaicaSettings("gradient", t=0.5, u=1.0, v=2, ica=False))
    for i, row in enumerate(value["queries"]):
        neurons, scores = found.of(i)
        assert [entry["neuron"] for entry in row["neurons"]] == attributions.neuron_names(neurons)
        assert [entry["score"] for entry in row["neurons"]] == pytest.approx(scores.tolist())
    assert value["common"] == []


@pytest.mark.parametrize("attribution", ["ig", "contribution", "activation", "gradient"])
def test_every_attribution(asked: Callable[..., Any], store: Path, attribution: str) -> None:
    value = asked("show", store, "--attribution", attribution)
    assert sum(bool(row["neurons"]) for row in value["queries"]) > len(value["queries"]) / 2


@pytest.mark.parametrize("method", ["naica", "without-ica", "with-common", "kn", "activation", "random"])
def test_every_method(asked: Callable[..., Any], store: Path, method: str) -> None:
    value = asked(store, "--method", method, "--by", "relation_name", "-k", 3)
    assert any(row["neurons"] for row in value["queries"])
    assert value["method"] == method
    assert all(len(neurons) <= 3 for neurons in value["labels"].values())
    assert bool(value["common"]) == (method in ("naica", "without-ica"))


def test_labels_pool_their_queries(asked: Callable[..., Any], store: Path, attributions: Attributions) -> None:
    value = asked(store, "--by", "relation_name", "-k", 1000)
    assert value["by"] == "relation_name"
    assert list(value["labels"]) == list(dict.fromkeys(attributions.queries["relation_name"].to_pylist()))
    for label, neurons in value["labels"].items():
        members = [row for row in value["queries"] if row["labels"]["relation_name"] == label]
        assert {row["neuron"] for row in neurons} == {n["neuron"] for row in members for n in row["neurons"]}
        assert [row["score"] for row in neurons] == sorted((row["score"] for row in neurons), reverse=True)


def test_people_get_a_summary_and_as_many_rows_as_they_want(cli: Callable[..., Result], store: Path) -> None:
    done = cli(store, "--rows", 5, "-k", 2)
    lines = done.out.splitlines()
    assert lines[0].endswith("model, capture questions: naica, attribution ig, t 0.2, u 0.3, v 20")
    assert re.fullmatch(
        r"12 queries, \d+ answered right \(\d+ %\); \d+\.\d neurons per query, \d+ common neurons removed\.", lines[1]
    )
    assert lines[2].split()[:3] == ["query", "answer", "neurons"]
    assert len(lines) == 9
    assert lines[-1] == "… 7 more queries: --rows 0 shows them, --json has them all."
    every = cli(store, "--rows", 0).out.splitlines()
    assert sum(not line.startswith(" ") for line in every) == 15  # a list of neurons may go on below
    by = cli(store, "--by", "relation_name").out.splitlines()
    assert by[2].split()[:4] == ["relation_name", "queries", "right", "neurons"]
    assert by[3].startswith("biology")


def test_the_heat_map_and_its_copy_on_a_terminal(
    cli: Callable[..., Result], store: Path, tmp_path: Path, attributions: Attributions
) -> None:
    done = cli(store, "--by", "relation_name", "--output", tmp_path / "map.svg")
    assert "map.svg: heat map of" in done.out
    assert "5 layers" in done.out
    root = ElementTree.parse(tmp_path / "map.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(attributions.queries["relation_name"].to_pylist()) <= set(texts)


@pytest.mark.parametrize(("n_layers", "width", "n_cells"), [(5, 80, 5), (32, 400, 32), (32, 100, 11), (3, 5, 3)])
def test_a_narrow_terminal_gets_layers_in_groups(n_layers: int, width: int, n_cells: int) -> None:
    counts = np.ones((2, n_layers), np.int64)
    drawn = naica.layer_table(
        LayerCounts("x", ("biology", "日本語"), tuple(range(n_layers)), counts, counts[:, 0]), 0, width
    )
    assert len(drawn.columns) == 1 + n_cells
    shown = [str(cell).strip() for column in drawn.columns[1:] for cell in [*column.cells][1:2]]
    expected = [100 * n / n_layers for n in np.diff([*range(0, n_layers, math.ceil(n_layers / n_cells)), n_layers])]
    assert [int(share) for share in shown] == pytest.approx(expected, abs=0.51)
    assert naica.layer_table(LayerCounts("", (), (0,), counts[:0, :1], counts[:0, 0]), 0, 80).row_count == 0


# What it says of what it cannot do


def test_too_few_queries_and_an_unfinished_run_are_warnings(
    cli: Callable[..., Result], asked: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    done = cli(store, "--u", 0.01)
    assert done.status == 0
    assert "Warning: With 12 queries, a neuron of a single cluster is already in 8 % of them" in done.err
    assert "Ask at least 100 queries" in done.err
    begun = shutil.copytree(store, tmp_path / "begun")
    for commit in (begun / "captures" / "questions" / "blocks").glob("*.json"):
        commit.unlink()
    done = cli(begun, "--by", "relation_name", "--output", tmp_path / "map.svg")
    assert done.status == 0
    assert "Warning: Capture 'questions' is unfinished: 0 of 1 blocks are stored" in done.err
    assert "0 queries." in done.out
    value = asked(begun)
    assert value["queries"] == []
    assert len(value["warnings"]) == 2


def test_bad_input_is_one_sentence(refused: Callable[..., str], store: Path, tmp_path: Path) -> None:
    assert "no label 'colour'. Their labels are: relation_name." in refused(store, "--by", "colour")
    assert "a share of a query's largest attribution" in refused(store, "--t", 1)
    assert "a share of the queries, from 0 to 1" in refused(store, "--u", 2)
    assert "the number of neurons per query, to be 1 or more, found 0" in refused(store, "--v", 0)
    assert "ending in .svg or .html" in refused(store, "--output", tmp_path / "map.png")
    assert "no/map.svg does not exist. Make it first" in refused(store, "--output", tmp_path / "no" / "map.svg")
    assert "has no capture 'other'" in refused(store, "--capture", "other")
    assert "store" in refused(tmp_path / "nothing")
    assert not [*tmp_path.iterdir()]


def test_a_store_without_attributions_says_what_makes_them(
    refused: Callable[..., str], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    import actstore

    actstore.capture(str(tiny_model), corpus, tmp_path / "plain", context=16, max_tokens=200)
    assert "actstore attribute" in refused(tmp_path / "plain")
    assert "actstore attribute" in refused(tmp_path / "plain", "--capture", "corpus")


def test_attributions_without_gradients_name_the_flag_that_records_them(
    refused: Callable[..., str], asked: Callable[..., Any], tmp_path: Path
) -> None:
    row = {"question": "Which is a colour?", "options": {"A": "red", "B": "seven"}, "answer": "A"}
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i in range(5)))
    attribute(str(DEMO), tmp_path / "q.jsonl", tmp_path / "store", gradients=False)
    assert "--gradients" in refused(tmp_path / "store")
    assert asked(tmp_path / "store", "--attribution", "contribution", "--u", 1)["queries"][0]["neurons"]


def test_the_group_explains_itself(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = cli("--help").out
    for word in ("show", "evaluate", "NA-ICA", "QRNCA", "Example"):
        assert word in text, word
    assert "Example:" in cli("show", "--help").out
    assert "--model" in cli("evaluate", "--help").out


@pytest.mark.slow
def test_neither_transformers_nor_the_model_is_needed(
    run_without: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    options = [
        "--by",
        "relation_name",
        "--attribution",
        "contribution",
        "--method",
        "activation",
        "--output",
        "map.svg",
    ]
    done = run_without(("transformers", "tokenizers"), ("naica", store, "--json", *options))
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["queries"]) == 12
    assert (tmp_path / "map.svg").is_file()


def test_nothing_is_coloured_in_a_pipe(cli: Callable[..., Result], store: Path) -> None:
    assert not terminal.out.is_terminal
    assert "\x1b" not in cli(store).out
