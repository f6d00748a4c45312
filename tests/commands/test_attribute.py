"""`attribute` and `knowledge` from the command line: their documents, their tables, their warnings, their mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny_masked import save_bert, save_esm

from actstore.engine.naica.knowledge import Refinement, knowledge_neurons
from actstore.engine.naica.stored_knowledge import knowledge_neurons_of
from actstore.store.capture.questions.attributions import Attributions
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Result  # type: ignore[import-not-found]

FACTS = Path(__file__).parents[2] / "demo" / "models" / "fact-llama"
QUESTIONS = FACTS / "questions.json"
N_QUERIES = 22


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the demo model's first queries."""
    from actstore.engine.attribution.attribute import attribute as make

    path = tmp_path_factory.mktemp("attribute") / "store"
    make(str(FACTS), QUESTIONS, path, max_queries=N_QUERIES, steps=4)
    return path


def whole(store: Path) -> list[np.ndarray[Any, Any]]:
    """The attributions [prompt, neuron] of every query, from the arrays on disk."""
    made = Attributions(Store(store).capture())
    scores = np.concatenate([part for _, part in made.prompt_scores("ig")])
    return np.split(scores, np.cumsum(made.queries["n_prompts"].to_numpy())[:-1])


def test_the_document_names_the_neurons_with_the_largest_sums(
    cli: Callable[..., Result], path: Path, tmp_path: Path
) -> None:
    done = cli(
        "attribute", FACTS, QUESTIONS, tmp_path / "store", "--max-queries", 5, "--steps", 4, "--k", 3, "--json",
        "--label", "relation", "--label", "subject",
    )  # fmt: skip
    assert done.status == 0
    assert [line for line in done.err.splitlines() if "Warning" in line and "label column 'relation'" not in line] == []
    document = json.loads(done.out)
    prepared = list(json.loads(QUESTIONS.read_text(encoding="utf-8")).items())[:5]
    assert document["attribution"] == "ig"
    assert (document["n_queries"], document["n_correct"]) == (5, 5)
    for row, (name, asked), scores in zip(document["queries"], prepared, whole(path)[:5], strict=True):
        assert row["query"] == name
        assert row["prompts"] == asked["sentences"]
        assert row["answers"] == row["predicted"] == asked["obj_label"]
        assert row["labels"] == {"relation": asked["relation"], "subject": asked["subject"]}
        assert row["correct"] is True
        assert min(row["probabilities"]) > 0.5
        texts = [Store(path).token_text(token) for token in row["targets"]]
        assert texts == [f" {letter}" for letter in asked["obj_label"]]
        total = scores.sum(axis=0)
        best = np.argsort(-total)[:3]
        assert [n["neuron"] for n in row["neurons"]] == [f"L{n // 512}.N{n % 512}" for n in best]
        np.testing.assert_allclose([n["score"] for n in row["neurons"]], total[best], rtol=1e-5)


def test_people_see_the_first_queries_and_how_well_the_model_answers(cli: Callable[..., Result], path: Path) -> None:
    done = cli("attribute", FACTS, QUESTIONS, path, "--resume")
    assert (done.status, "Warning" in done.err) == (0, False)
    assert "22 queries in 66 prompts, 2,560 neurons" in done.out
    assert f"Answered right: 66 of 66 prompts, {N_QUERIES} of {N_QUERIES} queries" in done.out
    assert len([line for line in done.out.splitlines() if line.startswith("biology/")]) == 20
    assert "2 more queries" in done.out


def test_cut_prompts_skipped_queries_and_merged_letters_are_told(cli: Callable[..., Result], tmp_path: Path) -> None:
    path, fact = tmp_path / "questions.jsonl", "Question: What?\n A. puppy\n B. lamb\nResponse:"
    rows = [{"prompts": [fact], "answers": ["A"]}, {"prompts": ["baby dog " * 300 + fact], "answers": ["A"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("attribute", FACTS, path, tmp_path / "store", "--no-gradients", "--json")
    assert done.status == 0
    assert "1 of 2 prompts are longer than the model's context" in done.err
    assert json.loads(done.out)["attribution"] == "activation"
    done = cli(
        "attribute", FACTS, path, tmp_path / "store", "--no-gradients", "--name", "b", "--too-long", "skip", "--json"
    )
    assert "1 queries were left out" in done.err
    assert json.loads(done.out)["n_queries"] == 1
    rows[1]["prompts"] = [fact + " "]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("attribute", FACTS, path, tmp_path / "store", "--no-gradients", "--name", "c", "--json")
    assert "In 1 prompts the tokenizer merges the letter with what precedes it" in done.err
    first, second = json.loads(done.out)["queries"]
    assert first["targets"] == second["targets"]
    assert first["probabilities"] == second["probabilities"], "the same is read of both"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "9"], "has layers 0 to 4, found layer 9"),
        (["--layers", "x"], "Layers are numbers and ranges"),
        (["--steps", "0"], "must be at least 1, found 0"),
        (["--max-queries", "0"], "Expected --max-queries of 1 or more, found 0"),
        (["--name", "a/b"], "A capture's name is letters"),
        (["--label", "colour"], "has a column 'colour'"),
    ],
)
def test_mistakes_end_in_one_sentence(
    cli: Callable[..., Result], tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = cli("attribute", FACTS, QUESTIONS, tmp_path / "store", *arguments)
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "store").exists()


def test_knowledge_neurons_are_those_of_the_stored_prompts(cli: Callable[..., Result], path: Path) -> None:
    done = cli("knowledge", path, "--json", "--at-most", 4)
    assert done.status == 0
    document = json.loads(done.out)
    (warning,) = document["warnings"]
    assert "prompts per query. A share of 0.7 is all of them" in warning
    assert done.err.count("knowledge neurons") == 1
    made = Attributions(Store(path).capture())
    for number, (row, scores) in enumerate(zip(document["queries"], whole(path), strict=True)):
        expected = knowledge_neurons(scores, Refinement(at_most=4))
        assert row["neurons"] == [f"L{n // 512}.N{n % 512}" for n in expected.neurons]
        assert (row["n_prompts"], row["share"]) == (expected.n_prompts.tolist(), expected.share)
        one = knowledge_neurons_of(made, number, Refinement(at_most=4))
        np.testing.assert_array_equal(one.neurons, expected.neurons)
    assert sum(map(len, (row["neurons"] for row in document["queries"]))) > N_QUERIES
    shown = cli("knowledge", path)
    assert "2 more queries" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0"], "must be a share above 0 and at most 1, found 0.0"),
        (["--at-least", "6"], "which is 5, found 6"),
        (["--capture", "x"], "has no capture 'x'"),
    ],
)
def test_mistakes_of_knowledge(cli: Callable[..., Result], path: Path, arguments: list[str], message: str) -> None:
    done = cli("knowledge", path, *arguments)
    assert done.status == 2
    assert message in done.err


@pytest.mark.parametrize(("family", "scope"), [("bert", "position"), ("esm", "position"), ("esm", "sequence")])
def test_masked_models_from_the_questions_to_the_neurons(
    cli: Callable[..., Result], tmp_path: Path, family: str, scope: str
) -> None:
    """`attribute`, `knowledge`, `naica` and `naica evaluate`, each from the command line, on words and on residues."""
    model = save_bert(tmp_path / "m") if family == "bert" else save_esm(tmp_path / "m")
    rows: list[dict[str, Any]] = [
        {"id": "france", "cloze": ["the capital of france is [MASK] .", "[MASK] is the capital of france"],
         "options": ["paris", "rome"], "answer": "paris", "of": "capital"},
        {"id": "italy", "cloze": ["the capital of italy is [MASK] ."], "options": ["paris", "rome"], "answer": "rome",
         "of": "capital"},
        {"id": "lies", "cloze": "rome [MASK] in italy .", "options": ["lies", "france"], "answer": "lies", "of": "kind"},
        {"id": "city", "cloze": "rome is a big [MASK] .", "options": ["city", "in"], "answer": "city", "of": "kind"},
    ]  # fmt: skip
    if family == "esm":
        sequence = "MKTAYIAKQRQISFVKSHFSRQ"
        rows = [
            {"id": f"p{i}", "sequence": sequence[i:], "position": [1 + i, 5 + i], "of": "ab"[i % 2]} for i in range(4)
        ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = tmp_path / "store"
    done = cli(
        "attribute", model, tmp_path / "q.jsonl", store, "--label", "of", "--steps", 4, "--scope", scope, "--json"
    )
    assert done.status == 0, done.err
    made = Attributions(Store(store).capture())
    scores = [made.scores_of(query, "ig") for query in range(4)]
    for row, asked, of_query in zip(json.loads(done.out)["queries"], rows, scores, strict=True):
        assert (row["query"], row["labels"]) == (asked["id"], {"of": asked["of"]})
        best = int(of_query.sum(0).argmax())
        assert row["neurons"][0]["neuron"] == made.neuron_names(np.array([best]))[0]
        assert row["neurons"][0]["score"] == pytest.approx(float(of_query.sum(0)[best]), rel=1e-5)
    found = json.loads(cli("knowledge", store, "--json").out)["queries"]
    for row, of_query in zip(found, scores, strict=True):
        expected = made.neuron_names(knowledge_neurons(of_query, Refinement()).neurons)
        assert row["neurons"] == expected
    naica = json.loads(cli("naica", store, "--by", "of", "--u", 1, "--json").out)
    assert set(naica["labels"]) == {row["of"] for row in rows}
    for row, of_query in zip(naica["queries"], scores, strict=True):
        total = of_query.sum(0)
        cluster = np.flatnonzero(total > 0.2 * total.max())
        assert {neuron["neuron"] for neuron in row["neurons"]} <= set(made.neuron_names(cluster))
    arguments = ("naica", "evaluate", store, "--by", "of", "--seeds", 1, "--protocol", "query", "--method", "naica")
    evaluated = cli(*arguments, "--json")
    if scope == "sequence":
        assert evaluated.status == 2
        assert "attributes to the activations of whole sequences" in evaluated.err
    else:
        assert evaluated.status == 0, evaluated.err
