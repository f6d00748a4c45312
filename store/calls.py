"""Calls of the public API with other parameters than there are: one error, which names the call and the near parameter.

Python's own `TypeError` names a class that users never wrote, and no parameter that there is.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from actstore.store.arguments import did_you_mean
from actstore.store.errors import ActstoreError, CallError
from actstore.store.sites import has_sites, of_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Class = TypeVar("Class", bound=type)

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def checked(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, in which a call with other parameters than it has is a `CallError`; else as it was, signature included.

    Where it takes a `site` or `sites`, hook names of TransformerLens are taken for them (`store.sites`).
    """
    names = list(inspect.signature(function).parameters)
    # Looked up once: to bind the arguments before each call would cost more than many of the calls.
    translate = of_sites(names) if has_sites(names) else None

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if translate is not None:
            args, kwargs = translate(args, kwargs)  # type: ignore[assignment]
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            explanation = None if isinstance(error, ActstoreError) else call_error(function, args, kwargs)
            if explanation is None:
                raise
            raise explanation from None

    return call


def checks(kind: Class) -> Class:
    """The class, whose own public methods and constructor are `checked`, not those that it inherits."""
    for name, member in list(vars(kind).items()):
        if is_public(name) and inspect.isfunction(member):
            wrapped: Any = checked(member)
            setattr(kind, name, wrapped)
    return kind


def is_public(name: str) -> bool:
    """Whether users call a member of a class of this name."""
    return not name.startswith("_") or name in ("__init__", "__call__")


def call_error(
    function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]
) -> CallError | None:
    """What is wrong with the parameters of a call; None where the function can be called with them."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        pass
    else:
        return None
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].name == "self":
        title, parameters, args = _title(function, args[0] if args else None), parameters[1:], args[1:]
    else:
        title = f"actstore.{function.__name__}"
    return CallError(_sentence(title, parameters, args, kwargs))


def _title(method: Callable[..., object], owner: object) -> str:
    """How users call a method: `store.naica`, `neuron.exemplars`; a constructor is `actstore.RunOptions`."""
    kind = type(owner)
    if method.__name__ == "__init__":
        return f"actstore.{kind.__name__}"
    reached_as = getattr(kind, "_reached_as", kind.__name__.lower())
    return str(reached_as) if method.__name__ == "__call__" else f"{reached_as}.{method.__name__}"


def _sentence(
    title: str, parameters: Sequence[inspect.Parameter], args: Sequence[object], kwargs: Mapping[str, object]
) -> str:
    names = [parameter.name for parameter in parameters]
    positional = [parameter.name for parameter in parameters if parameter.kind in _BY_POSITION]
    known = f"Its parameters: {', '.join(names)}." if names else "It has none."
    for name in kwargs:
        if name not in names:
            return f"{title} has no parameter {name!r}.{did_you_mean(name, names) or f' {known}'}"
    if len(args) > len(positional):
        takes = " and ".join(map(repr, positional)) if positional else "no value"
        others = [name for name in names if name not in positional]
        advice = f" Give the others by name, such as {others[0]}=…." if others else ""
        count = "1 value" if len(args) == 1 else f"{len(args)} values"
        return f"{title} takes {takes} by position, found {count}.{advice} {known}"
    for name in positional[: len(args)]:
        if name in kwargs:
            return f"{title} is given {name!r} twice, by position and by name. Leave one out."
    given = {*positional[: len(args)], *kwargs}
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in given]
    return f"{title} needs {' and '.join(map(repr, missing))}. {known}"
