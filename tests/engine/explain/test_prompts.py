"""What is sent, and what is read from answers: nothing that a text contains can pass for something else."""

from __future__ import annotations

import pytest

from actstore.engine.explain.prompts import MAX_EXPLANATION, parse_answers, parse_explanation


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Explanation: tokens of Paris", "tokens of Paris"),
        ("I think.\n\n**Explanation:** the word *bank*\n", "the word *bank*"),
        ("**Explanation: all of it in bold**", "all of it in bold"),
        ("explanation : first\nExplanation:\n  second,\tin  one line\n", "second, in one line"),
        ("> EXPLANATION: quoted", "quoted"),
        ("The explanation: is not at the beginning of a line", None),
        ("Explanation:", None),
        ("no idea", None),
        ("", None),
        (f"Explanation: {'x' * (MAX_EXPLANATION + 1)}", None),
    ],
)
def test_the_last_line_that_is_an_explanation_is_read(answer: str, expected: str | None) -> None:
    assert parse_explanation(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[1, 0, 1]", [True, False, True]),
        ("Excerpt [1] is like [2].\n```json\n[0, 0, true]\n```", [False, False, True]),
        ("[1, 0, 1]\n[0, 0, 0]", [False, False, False]),
        ("[1, 0]", None),
        ("[1, 0, 1, 1]", None),
        ("[1, 0, 2]", None),
        ("[1, 0, 0.5]", None),
        ("[1, 0, 1.0]", None),
        ('["1", 0, 1]', None),
        ("[1, 0, 1] and then [7]", None),
        ("[1, 0, null]", None),
        ("1, 0, 1", None),
        ("[yes, no, yes]", None),
        ("[[1, 0, 1]]", [True, False, True]),
        ("", None),
    ],
)
def test_a_list_is_read_where_it_is_one_and_nothing_is_guessed(answer: str, expected: list[bool] | None) -> None:
    assert parse_answers(answer, 3) == expected


def test_reading_takes_time_by_the_length_alone() -> None:
    assert parse_answers("[" * 10**6, 3) is None
    assert parse_explanation("\n" * 10**6) is None
