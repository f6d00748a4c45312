"""Calls with other parameters than there are."""

from __future__ import annotations

import inspect

import pytest

from actstore.store.calls import call_error, checked, checks
from actstore.store.errors import CallError, InvalidInputError


@checks
class Part:
    """A part of an API."""

    _reached_as = "store.part"

    def __init__(self, size: int = 0) -> None:
        self.size = size

    def __call__(self, by: str, *, share: float = 0.1, quantile: float = 0.5) -> str:
        """What is asked."""
        return f"{by} {share} {quantile}"

    def nothing(self) -> int:
        """A constant."""
        return 1

    def two(self, first: int, second: int) -> int:
        """A sum that fails where one is a text."""
        return first + second

    @staticmethod
    def apart(size: int) -> int:
        """The same number."""
        return size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p("a", shar=1), "store.part has no parameter 'shar'. Did you mean 'share'?"),
        (lambda p: p("a", zzz=1), "store.part has no parameter 'zzz'. Its parameters: by, share, quantile."),
        (lambda p: p("a", 0.2), "store.part takes 'by' by position, found 2 values. Give the others by name, such as "
         "share=…. Its parameters: by, share, quantile."),
        (lambda p: p(), "store.part needs 'by'. Its parameters: by, share, quantile."),
        (lambda p: p("a", by="b"), "store.part is given 'by' twice, by position and by name. Leave one out."),
        (lambda p: p.nothing(3), "store.part.nothing takes no value by position, found 1 value. It has none."),
        (lambda p: p.two(), "store.part.two needs 'first' and 'second'. Its parameters: first, second."),
        (lambda p: p.two(1, 2, 3), "store.part.two takes 'first' and 'second' by position, found 3 values. "
         "Its parameters: first, second."),
        (lambda p: Part(sise=1), "actstore.Part has no parameter 'sise'. Did you mean 'size'?"),
    ],
)  # fmt: skip
def test_the_error_names_the_call_and_what_is_wrong(call: object, message: str) -> None:
    with pytest.raises(CallError) as refused:
        call(Part())  # type: ignore[operator]
    assert str(refused.value) == message
    assert refused.value.__suppress_context__  # a traceback has this sentence only
    assert isinstance(refused.value, InvalidInputError)
    assert isinstance(refused.value, TypeError)


def test_what_a_function_raises_itself_stays_as_it_is() -> None:
    with pytest.raises(TypeError, match="unsupported operand") as raised:
        Part().two(1, "a")  # type: ignore[arg-type]
    assert not isinstance(raised.value, InvalidInputError)


def test_a_call_inside_that_is_wrong_is_not_blamed_on_the_caller() -> None:
    def inner(size: int) -> int:
        return size

    @checked
    def outer() -> int:
        return inner(sise=1)  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="unexpected keyword argument 'sise'") as raised:
        outer()
    assert not isinstance(raised.value, CallError)


def test_a_right_call_is_no_error() -> None:
    assert Part()("a", share=0.3) == "a 0.3 0.5"
    assert Part.apart(3) == 3
    assert call_error(Part.two, (Part(), 1), {"second": 2}) is None


def test_signature_and_documentation_stay() -> None:
    assert str(inspect.signature(Part.two)) == "(self, first: 'int', second: 'int') -> 'int'"
    assert Part.two.__doc__ == "A sum that fails where one is a text."
    assert str(inspect.signature(Part)) == "(size: 'int' = 0) -> 'None'"
