"""The accuracy of answers: known numbers, limits that hold the share, and answers that could not be read."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.store.explanations.accuracy import balanced_accuracy, wilson

ANSWERS = st.lists(st.tuples(st.booleans(), st.sampled_from([True, False, None])), max_size=60)


def test_wilson_is_the_published_one() -> None:
    """Newcombe (1998), table I: 81 of 263."""
    assert wilson(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0, 0.1611), abs=5e-5)


def test_both_kinds_count_as_much_however_many_there_are() -> None:
    found = balanced_accuracy([True] * 2 + [False] * 8, [True, False] + [False] * 8)
    assert (found.balanced, found.n, found.malformed) == (0.75, 10, 0)
    always = balanced_accuracy([True] * 2 + [False] * 8, [False] * 10)
    assert always.balanced == 0.5


def test_an_answer_that_cannot_be_read_is_wrong_and_counted() -> None:
    found = balanced_accuracy([True, True, False, False], [True, None, None, False])
    assert (found.balanced, found.malformed) == (0.5, 2)
    assert balanced_accuracy([True, False], [None, None])[0] == 0


def test_of_one_kind_alone_there_is_none() -> None:
    found = balanced_accuracy([True, True], [True, None])
    assert math.isnan(found.balanced)
    assert (found.n, found.malformed) == (2, 1)


@given(ANSWERS)
def test_limits_hold_the_accuracy_and_mirror_it(pairs: list[tuple[bool, bool | None]]) -> None:
    truth, answers = [known for known, _ in pairs], [answer for _, answer in pairs]
    found = balanced_accuracy(truth, answers)
    if len(set(truth)) < 2:
        assert math.isnan(found.low)
        return
    assert 0 <= found.low <= found.balanced <= found.high <= 1
    mirrored = balanced_accuracy(truth, [not known if answer is known else known for known, answer in pairs])
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))
