"""Types at the border: what is converted, what is refused, and what is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from actstore.store.arguments import Typed, argument, field_types, given_fields
from actstore.store.errors import InvalidInputError


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, int, 3),
        (np.int32(3), int, 3),
        (3, float, 3.0),
        (np.float32(0.5), float, 0.5),
        (np.bool_(True), bool, True),
        (Path("a/b"), str, "a/b"),
        ("a/b", Path, Path("a/b")),
        ([0, 1], tuple[int, ...], (0, 1)),
        (range(2), tuple[int, ...], (0, 1)),
        (np.array([0, 1]), tuple[int, ...], (0, 1)),
        (3, tuple[int, ...], (3,)),
        (3, tuple[int, ...] | None, (3,)),
        (None, tuple[int, ...] | None, None),
        (["a"], tuple[str, ...], ("a",)),
        ([1, 2.5], tuple[float, float], (1.0, 2.5)),
        ([[0, 1], (2, 3)], tuple[tuple[int, int], ...], ((0, 1), (2, 3))),
        (3, str | int, 3),
        ("x", int | str, "x"),
        ([" a", 5], str | int | Sequence[str | int], (" a", 5)),
        ("all", Literal["all", "last"], "all"),
        (len, Callable[[Any], int], len),
    ],
)
def test_what_can_mean_nothing_else_is_converted(value: Any, kind: Any, expected: Any) -> None:
    found = argument("x", value, kind)
    assert (found, type(found)) == (expected, type(expected))
    if isinstance(found, tuple):
        assert [type(item) for item in found] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("topic", tuple[str, ...], "x is a sequence of texts such as ('topic',), found the text 'topic'."),
        ("3", int, "x is an integer, found the text '3'."),
        (2.0, int, "x is an integer, found the number 2.0."),
        (True, int, "x is an integer, found True."),
        (np.float64(2), int, "x is an integer, found the number np.float64(2.0)."),
        (False, float, "x is a number, found False."),
        (10**400, float, None),
        ("0.1", float, "x is a number, found the text '0.1'."),
        ("no", bool | None, "x is True or False or None, found the text 'no'."),
        (1, bool, "x is True or False, found the integer 1."),
        (None, str, "x is a text, found None."),
        (b"x", str, "x is a text, found the bytes b'x'."),
        (["*.py"], str, "x is a text, found the list ['*.py']."),
        ("0", tuple[int, ...], "x is a sequence of integers such as (0, 1), found the text '0'."),
        (["0"], tuple[int, ...], "x is a sequence of integers such as (0, 1), found the list ['0']."),
        ({0, 1}, tuple[int, ...], "x is a sequence of integers such as (0, 1), found {0, 1} of type set."),
        (True, tuple[int, ...], "x is a sequence of integers such as (0, 1), found True."),
        ([1], tuple[float, float], "x is a tuple of a number and a number, found the list [1]."),
        (3, Literal["all", "last"], "x is one of 'all', 'last', found the integer 3."),
        ("f", Callable[[], None], "x is a function, found the text 'f'."),
        (3, str | Path, "x is a text or a path, found the integer 3."),
    ],
)
def test_everything_else_is_refused_by_name(value: Any, kind: Any, message: str | None) -> None:
    with pytest.raises(InvalidInputError) as refused:
        argument("x", value, kind)
    if message is not None:
        assert str(refused.value) == message


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(InvalidInputError) as refused:
        argument("x", "a" * 10_000, int)
    assert len(str(refused.value)) < 120


def test_settings_convert_and_check_their_fields() -> None:
    @dataclass(frozen=True)
    class Settings(Typed):
        names: tuple[str, ...] = ()
        share: float = 0.5
        where: Annotated[str, lambda value: str(value) if value == 3 else value] = "all"

    # Local annotations are looked up among the module's names.
    assert Settings(["a"], 1, 3) == Settings(("a",), 1.0, "3")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="names is a sequence of texts"):
        Settings("a")  # type: ignore[arg-type]
    assert list(field_types(Settings)) == ["names", "share", "where"]
    assert given_fields(Settings, {"names": ["a"], "share": None}, "A thing") == {"names": ("a",)}
    with pytest.raises(InvalidInputError, match=r"^A thing has no setting 'shar'\. Did you mean 'share'\?"):
        given_fields(Settings, {"shar": 1}, "A thing")
