"""`actstore questions` on files in the layout of the paper's authors: read, refused, answered, and pooled by label."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import actstore
from actstore.engine.naica.presets import PRESETS, find_questions
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Result  # type: ignore[import-not-found]

DEMO = Path(__file__).resolve().parents[3] / "demo" / "models" / "fact-llama"
DOMAINS = ("biology", "chemistry", "mathematics")


def write(file: Path, **changes: Any) -> Path:
    """Two questions of three domains, as the authors' file has them: by an id, with prompts, letters and the domain."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    for domain in DOMAINS:
        for number in range(2):
            orders = (
                ("two", "three", "four", "five"),
                ("five", "two", "three", "four"),
                ("three", "five", "four", "two"),
            )
            prompts = [
                "Respond with the letter.\nThe question is:\nWhat is "
                f"{number} of {domain}\n"
                + "\n".join(f" {a}. {t}" for a, t in zip("ABCD", order, strict=True))
                + "\n\nResponse:"
                for order in orders
            ]
            letters = ["ABCD"[order.index("three")] for order in orders]
            rows[f"{domain}-{number}"] = {"sentences": prompts, "obj_label": letters, "relation_name": domain} | changes
    file.write_text(json.dumps(rows, indent=4), encoding="utf-8")
    return file


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore questions …` in this process."""
    return functools.partial(cli, "questions")


def test_a_folder_as_the_authors_have_it_is_answered_and_pooled(cli: Callable[..., Result], tmp_path: Path) -> None:
    write(tmp_path / "repository" / "data" / "subject_qa.json")
    arguments = (
        DEMO, tmp_path / "repository", tmp_path / "store", "--preset", "qrnca-domain", "--steps", 2, "-k", 3,
        "--output", tmp_path / "layers.svg", "--overlap-map", tmp_path / "overlap.svg", "--device", "cpu",
    )  # fmt: skip
    value = cli(*arguments, "--json").json
    assert (value["preset"], value["by"], [*value["labels"]]) == ("qrnca-domain", "relation_name", [*DOMAINS])
    assert len(value["queries"]) == 6
    assert all(len(neurons) <= 3 for neurons in value["labels"].values())
    assert any(value["labels"].values())
    again = actstore.open(tmp_path / "store").naica(by="relation_name", k=3)
    assert [row["name"] for row in again.table.to_pylist()] == [
        row["neuron"] for neurons in value["labels"].values() for row in neurons
    ]
    assert "% of those that one of the two has" in (tmp_path / "overlap.svg").read_text()
    assert (tmp_path / "layers.svg").is_file()


def test_the_same_in_python(tmp_path: Path) -> None:
    file = write(tmp_path / "subject_qa.json")
    answer = actstore.questions(str(DEMO), file, tmp_path / "store", preset="qrnca-domain", max_queries=4, steps=1, k=2)
    assert answer.table.column_names == ["relation_name", "name", "layer", "neuron", "score"]
    assert answer.details.queries.num_rows == 4


def test_files_are_found_and_others_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "data" / "subject_qa.json")
    assert find_questions("qrnca-domain", tmp_path) == find_questions("qrnca-domain", file.parent) == file
    with pytest.raises(NotFoundError, match=r"There is no language_qa\.json in"):
        find_questions("qrnca-language", tmp_path)
    with pytest.raises(InvalidInputError, match="has relation_name 'biology', and expected is one of ar, en, fr"):
        find_questions("qrnca-language", file)
    with pytest.raises(
        InvalidInputError, match="Expected `preset` to be one of qrnca-domain, qrnca-language, found 'mmlu'"
    ):
        find_questions("mmlu", file)
    language = write(tmp_path / "language_qa.json", relation_name="fr", ori_label="x", relation="P127")
    assert find_questions("qrnca-language", language) == language
    rows = json.loads(language.read_text())
    next(iter(rows.values())).update(sentences=next(iter(rows.values()))["sentences"][:2], obj_label=["A", "A"])
    language.write_text(json.dumps(rows))
    with pytest.raises(InvalidInputError, match="has 2 prompts, and expected are 3"):
        find_questions("qrnca-language", language)


def test_a_mistake_is_one_sentence_and_leaves_nothing(cli: Callable[..., Result], tmp_path: Path) -> None:
    done = cli(DEMO, tmp_path, tmp_path / "store", "--preset", "qrnca-domain")
    assert done.status == 2
    assert "There is no subject_qa.json in" in done.err
    assert not (tmp_path / "store").exists()


def test_presets_name_labels_once() -> None:
    assert all(len(set(preset.values)) == len(preset.values) == 6 for preset in PRESETS.values())
