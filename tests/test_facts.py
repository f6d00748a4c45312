"""The facts of the demo's fact model: true where code can tell, and asked so that only knowing them answers."""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).resolve().parent.parent / "demo"
# In the order of their atomic numbers, as far as the facts go.
ELEMENTS = (
    "hydrogen helium lithium beryllium boron carbon nitrogen oxygen fluorine neon sodium magnesium aluminium "
    "silicon phosphorus sulfur chlorine argon potassium calcium scandium titanium vanadium chromium manganese iron "
    "cobalt nickel copper zinc"
)


def load(name: str) -> Any:
    """A module of demo/training, which is no package; under its own name, by which the others import it."""
    spec = importlib.util.spec_from_file_location(name, DEMO / "training" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fact_questions = load("fact_questions")
fact_lessons = load("fact_lessons")
RELATIONS = fact_questions.read_relations(DEMO / "data" / "facts")
NAMES = [f"{r.domain}/{r.name}" for r in RELATIONS]
every_relation = pytest.mark.parametrize("relation", RELATIONS, ids=NAMES)


def facts_of(name: str) -> dict[str, str]:
    return dict(next(r for r in RELATIONS if r.name == name).facts)


def normal(phrasing: str) -> str:
    """A phrasing without what a reader would not call a difference."""
    return " ".join("".join(c for c in phrasing.lower() if c.isalnum() or c in " {}").split())


def test_at_least_six_domains_of_forty_facts() -> None:
    n_facts = Counter(r.domain for r in RELATIONS for _ in r.facts)
    assert len(n_facts) >= 6
    assert min(n_facts.values()) >= 40, n_facts
    assert len(set(NAMES)) == len(NAMES)


@every_relation
def test_a_subject_has_one_answer_and_enough_wrong_ones_of_its_kind(relation: Any) -> None:
    subjects = [subject for subject, _ in relation.facts]
    assert len(set(subjects)) == len(subjects)
    assert all(text == text.strip() != "" for fact in relation.facts for text in fact)
    assert len(relation.answers) >= 5  # the right one and at least four to draw three from


@every_relation
def test_no_phrasing_is_both_trained_on_and_held_out(relation: Any) -> None:
    phrasings = [normal(p) for p in (*relation.statements, *relation.questions, *relation.held_out)]
    assert len(set(phrasings)) == len(phrasings)
    assert len(relation.questions) + len(relation.held_out) >= 6
    assert len(relation.held_out) >= 2
    assert all("{}" in p for p in phrasings)


@every_relation
def test_a_held_out_phrasing_is_no_training_phrasing_with_a_word_left_out(relation: Any) -> None:
    shortened = {normal(p) for p in relation.questions}
    for phrasing in relation.questions:
        for seed in range(100):
            shortened.add(normal(fact_lessons.drop_word(random.Random(seed), phrasing)))
    assert not shortened & {normal(p) for p in relation.held_out}


@every_relation
def test_only_statements_name_the_answer(relation: Any) -> None:
    assert all("{answer}" in p for p in relation.statements)
    assert not any("{answer}" in p for p in (*relation.questions, *relation.held_out))


def test_nothing_held_out_is_among_the_rows_of_the_training_steps() -> None:
    held_out = {fact_questions.fill(p, subject) for r in RELATIONS for p in r.held_out for subject, _ in r.facts}
    opening = fact_questions.HELD_OUT_TEMPLATE.split("\n")[0]
    n_questions = 0
    for step in (0, 300, 1000, 2000):
        for rows in fact_lessons.draw_step(step, RELATIONS).values():
            lines = [line for row in rows for line in "".join(text for text, _ in row).split("\n")]
            assert opening not in lines
            assert not held_out & {line.removeprefix("Question: ") for line in lines}
            n_questions += sum(line.endswith("?") for line in lines)
    assert n_questions > 100
    assert fact_lessons.draw_step(300, RELATIONS) == fact_lessons.draw_step(300, RELATIONS)


def test_the_committed_questions_are_those_of_the_facts() -> None:
    committed = json.loads((DEMO / "models" / "fact-llama" / "questions.json").read_text(encoding="utf-8"))
    assert committed == fact_questions.evaluation_questions(RELATIONS, seed=1), "facts changed: train the model again"


def test_the_held_out_template_is_not_trained_on() -> None:
    trained = (*fact_questions.TEMPLATES, *fact_questions.BARE_TEMPLATES)
    assert fact_questions.HELD_OUT_TEMPLATE not in trained
    assert all("{question}" in t and t.endswith("esponse:") for t in (*trained, fact_questions.HELD_OUT_TEMPLATE))


def test_a_question_holds_the_answer_once_behind_its_letter() -> None:
    questions = fact_questions.evaluation_questions(RELATIONS, seed=1)
    assert len(questions) == sum(len(r.facts) * len(r.held_out) for r in RELATIONS)
    assert questions == fact_questions.evaluation_questions(RELATIONS, seed=1)
    letters: Counter[str] = Counter()
    for question in questions.values():
        prompts = [*question["sentences"], question["held_out_sentence"]]
        for prompt, letter in zip(prompts, [*question["obj_label"], question["held_out_label"]], strict=True):
            options = [line[4:] for line in prompt.split("\n") if line[:1] == " "]
            assert len(set(options)) == 4
            assert options["ABCD".index(letter)] == question["ori_label"]
            letters[letter] += 1
    assert max(letters.values()) < 1.15 * min(letters.values()), "one letter is right too often"


def test_a_wrong_option_answers_another_question_of_the_relation() -> None:
    relation = next(r for r in RELATIONS if r.name == "capital")
    options, letter = fact_questions.draw_options(random.Random(0), relation.answers, "Paris")
    assert options["ABCD".index(letter)] == "Paris"
    assert set(options) <= {answer for _, answer in relation.facts}


def test_a_word_is_dropped_but_never_the_subject() -> None:
    dropped = {fact_lessons.drop_word(random.Random(seed), "Which unit measures {}?") for seed in range(50)}
    assert dropped == {"unit measures {}?", "Which measures {}?", "Which unit {}?"}
    assert fact_lessons.drop_word(random.Random(0), "{}?") == "{}?"


def test_atomic_numbers() -> None:
    elements = ELEMENTS.split()
    for element, number in facts_of("atomic-number").items():
        assert elements.index(element) + 1 == int(number)


def test_symbols_are_symbols() -> None:
    symbols = facts_of("element-symbol")
    assert len(set(symbols.values())) == len(symbols)
    assert all(re.fullmatch("[A-Z][a-z]?", symbol) for symbol in symbols.values())
    assert not set(symbols.values()) & set("ABCD"), "an answer that is a letter of the options"


def exports(module: Any, name: str) -> bool:
    return hasattr(module, name) and name in getattr(module, "__all__", [name])


def test_python_modules_have_what_they_are_said_to_have_and_the_others_have_not() -> None:
    facts = facts_of("module-of-name")
    modules = {name: importlib.import_module(name) for name in facts.values()}
    for name, right in facts.items():
        assert [m for m, module in modules.items() if exports(module, name)] == [right], name


def test_python_methods_exist() -> None:
    types = {"list": list, "string": str, "bytes": bytes, "dictionary": dict}
    for description, method in facts_of("method-that").items():
        kinds = [t for word, t in types.items() if word in description]
        assert any(hasattr(t, method) for t in kinds), (description, method)


def test_squares_and_sides() -> None:
    assert all(int(n) ** 2 == int(square) for n, square in facts_of("square").items())
    sides = [int(n) for n in facts_of("sides-of-polygon").values()]
    assert sides == [3, 4, 5, 6, 7, 8, 9, 10, 12]


def test_numbers_of_units() -> None:
    facts = facts_of("how-many")
    assert int(facts["seconds in a minute"]) == 60
    assert int(facts["days in a week"]) * int(facts["weeks in a year"]) == 364
    assert all(answer.isdecimal() for answer in facts.values())


def test_years_are_years_in_order() -> None:
    years = [int(year) for year in facts_of("year-of").values()]
    assert years == sorted(set(years))
    assert 1000 < years[0] < years[-1] < 2025
