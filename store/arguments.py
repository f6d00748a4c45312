"""Types at the border of the Python API: an argument has the type of its annotation, or an error names the parameter.

Unambiguous other types are converted: NumPy integers, an integer for a float, a list, range or array for a tuple, one integer
for a tuple of integers, a path for a text. Refused are a text for a sequence of texts, True for a number, a float for an
integer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

import numpy as np

from actstore.store.errors import InvalidInputError

T = TypeVar("T")

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class Typed:
    """Base of a dataclass of settings whose fields have the types of their annotations, however it is made.

    An annotation `Annotated[kind, convert]` has `convert` applied to a value before it is checked.
    """

    def __post_init__(self) -> None:
        settings: Any = type(self)
        for name, kind in field_types(settings).items():
            value = getattr(self, name)
            converted = argument(name, value, kind)
            if converted is not value:
                object.__setattr__(self, name, converted)  # most of them are frozen


@lru_cache(maxsize=256)
def field_types(settings: type) -> dict[str, Any]:
    """Name → annotated type of the fields of a dataclass."""
    hints = get_type_hints(settings, include_extras=True)
    return {name: kind for name, kind in hints.items() if get_origin(kind) is not ClassVar and kind is not ClassVar}


@overload
def argument(name: str, value: object, kind: type[T]) -> T: ...
@overload
def argument(name: str, value: object, kind: object) -> Any: ...  # of other annotations, such as unions
def argument(name: str, value: object, kind: object) -> Any:
    """`value` as a `kind`; `InvalidInputError` that names the parameter where it cannot be one."""
    if type(value) is kind:
        return value
    try:
        return _convert(value, kind)
    except (_MismatchError, OverflowError):
        raise InvalidInputError(f"{name} is {_expected(kind, value)}, found {_found(value)}.") from None


def given_fields(settings: type, given: Mapping[str, object], what: str) -> dict[str, Any]:
    """The keywords `given` for a dataclass of settings, converted to the types of its fields; those that are None are left out.

    `InvalidInputError` for a keyword that is not a field; `what` names the owner of the settings in it: "A capture".
    """
    known = field_types(settings)
    for name in given:
        if name not in known:
            raise InvalidInputError(
                f"{what} has no setting {name!r}.{did_you_mean(name, known)} Its settings: {', '.join(known)}."
            )
    return {name: argument(name, value, known[name]) for name, value in given.items() if value is not None}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The sentence that offers the known name which is most like `name`, after a space; empty where none is like it."""
    meant = get_close_matches(name, list(known), n=1)
    return f" Did you mean {meant[0]!r}?" if meant else ""


class _MismatchError(Exception):
    pass


def _convert(value: object, kind: Any) -> Any:  # `kind` is any annotation
    origin, parameters = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _convert(kind.__metadata__[0](value), parameters[0])
    if origin in (Union, UnionType):
        return _convert_to_one(value, parameters)
    if origin is Literal:
        # A text that is not among them has the right type: its consumer says which are allowed.
        return _convert_to_one(value, tuple({type(known) for known in parameters}))
    if origin in (tuple, Sequence, Iterable):
        return _convert_items(value, parameters if origin is tuple else (*parameters, ...))
    convert = _PLAIN.get(kind)
    if convert is not None:
        return convert(value)
    if kind is Any or isinstance(value, origin or kind):
        return value
    raise _MismatchError


def _convert_to_one(value: object, kinds: tuple[Any, ...]) -> Any:
    """`value` itself where it is of one of the kinds, else converted to the first kind possible."""
    if any(type(value) is kind for kind in kinds):
        return value
    for kind in kinds:
        try:
            return _convert(value, kind)
        except _MismatchError:
            continue
    raise _MismatchError


def _convert_items(value: object, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, int | np.integer) and kinds == (int, ...):
        value = (value,)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, list | tuple | range):
        raise _MismatchError
    if kinds[-1] is not ... and len(kinds) != len(value):
        raise _MismatchError
    each = kinds[:1] * len(value) if kinds[-1] is ... else kinds
    items = tuple(_convert(item, kind) for item, kind in zip(value, each, strict=True))
    same = isinstance(value, tuple) and all(a is b for a, b in zip(items, value, strict=True))
    return value if same else items  # type: ignore[return-value]


def _boolean(value: object) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise _MismatchError


def _integer(value: object) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise _MismatchError


def _number(value: object) -> float:
    if isinstance(value, float | int | np.floating | np.integer) and not isinstance(value, bool):
        return float(value)
    raise _MismatchError


def _text(value: object) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, os.PathLike) and isinstance(path := os.fspath(value), str):
        return path
    raise _MismatchError


def _path(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_text(value))


def _none(value: object) -> None:
    if value is not None:
        raise _MismatchError


_PLAIN: dict[Any, Callable[[object], object]] = {
    bool: _boolean, int: _integer, float: _number, str: _text, Path: _path, NoneType: _none,
}  # fmt: skip

_ONE = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a path",
    NoneType: "None",
}
_MANY = {int: ("integers", "(0, 1)"), float: ("numbers", "(0.5, 1.0)"), str: ("texts", "('first', 'second')")}


def _expected(kind: Any, value: object) -> str:
    """A type in words; the example of a sequence contains `value` where that is a possible item."""
    origin, parameters = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _expected(parameters[0], value)
    if origin in (Union, UnionType):
        words = [_expected(one, value) for one in parameters]
        return ", or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 2 else " or ".join(words)
    if origin is Literal:
        return f"one of {', '.join(map(repr, parameters))}"
    if origin is tuple and parameters[-1] is not ...:
        return f"a tuple of {' and '.join(_expected(one, value) for one in parameters)}"
    if origin in (tuple, Sequence, Iterable):
        many, example = _MANY.get(parameters[0], (f"items, each {_expected(parameters[0], None)}", ""))
        if isinstance(value, str) and parameters[0] is str:
            example = f"({_SHORT.repr(value)},)"
        return f"a sequence of {many}" + (f" such as {example}" if example else "")
    if origin in (Callable, Mapping):
        return "a function" if origin is Callable else "a dictionary"
    return _ONE.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def _found(value: object) -> str:
    shown = _SHORT.repr(value)
    if value is None or isinstance(value, bool):
        return shown
    for kinds, word in (
        (str, "the text"), (bytes, "the bytes"), (int, "the integer"), (float, "the number"), (list, "the list"),
        (tuple, "the tuple"), (dict, "the dictionary"), (os.PathLike, "the path"),
    ):  # fmt: skip
        if isinstance(value, kinds):
            return f"{word} {shown}"
    return f"{shown} of type {type(value).__name__}"
