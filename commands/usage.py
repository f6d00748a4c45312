"""What is wrong with a command line itself, in one sentence: values, arguments, options and commands that there are not.

Typer raises an error of Click's for each and would print it in a box with the usage. `as_sentences` turns all of them into
`InvalidInputError`, which the command line prints as it prints every other mistake of the user.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, get_args

import typer

from actstore.display import terminal
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Typer brings Click along under a private name; this is the public way to its classes.
_UsageError: Final[Any] = typer.BadParameter.__base__
_ClickError: Final[Any] = _UsageError.__base__


@contextmanager
def as_sentences() -> Iterator[None]:
    """Raise `InvalidInputError` in place of an error of Click; the help that a command without arguments prints passes."""
    try:
        yield
    except _ClickError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        raise InvalidInputError(terminal.visible(_sentence(error))) from None


def called(parameter: Any) -> str:
    """What a user calls a parameter: the long name of an option, an argument as the usage has it."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return str(next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0]))


def number_kind(parameter: Any) -> str | None:
    """Which numbers a parameter takes, such as "a whole number of 1 or more"; None where it takes none."""
    annotation = parameter.type_descriptor.annotation
    kind = next((one for one in (annotation, *get_args(annotation)) if one in (int, float)), None)
    if kind is None:
        return None
    noun = "a whole number" if kind is int else "a number"
    least, most = parameter.type_descriptor.parameter_info.min, parameter.type_descriptor.parameter_info.max
    if least is None:
        return noun if most is None else f"{noun} of {most} or less"
    return f"{noun} of {least} or more" if most is None else f"{noun} from {least} to {most}"


def suggestion(name: str, known: Sequence[str]) -> str:
    """The question " Did you mean …?" for a name that is nearly a known one, whatever its case; else nothing."""
    by_lower = {one.lower(): one for one in known}
    similar = get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[similar[0]]}?" if similar else ""


def _sentence(error: Any) -> str:
    context = getattr(error, "ctx", None)
    kind, parameter = type(error).__name__, getattr(error, "param", None)
    if kind == "NoSuchOption":
        return _no_option(error, context)
    if kind == "BadOptionUsage":
        return (
            f"{error.option_name} takes no value."
            if "not take" in error.message
            else f"{error.option_name} needs a value."
        )
    if kind == "MissingParameter" and parameter is not None:
        return _missing(parameter, context)
    if parameter is not None:
        return _no_value(error, parameter)
    return _other(error, context)


def _no_option(error: Any, context: Any) -> str:
    known = [name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    similar = suggestion(error.option_name, [name for name in known if name.startswith("--")])
    return f"`{context.command_path}` has no option {error.option_name}." + (
        similar or f" `{context.command_path} --help` lists those that there are."
    )


def _missing(parameter: Any, context: Any) -> str:
    required = [
        called(one) if one.param_type_name == "argument" else f"{called(one)} {one.metavar or one.name.upper()}"
        for one in context.command.params
        if one.required
    ]
    about = parameter.help or ""
    about = about[:1].lower() + about[1:] if about[1:2] in " abcdefghijklmnopqrstuvwxyz" else about
    return f"{called(parameter)} is missing: {about.rstrip('.')}. Write `{context.command_path} {' '.join(required)}`."


def _no_value(error: Any, parameter: Any) -> str:
    """A value that a parameter does not take; the error of the type's check, where there is one, knows which."""
    details = _details(error.__cause__)
    numbers, choices = number_kind(parameter), parameter.type_descriptor.choices
    if details is None or (numbers is None and choices is None):
        return f"{called(parameter)}: {error.message}"
    value = details["input"]
    if choices is not None:
        names = [str(choice.value) for choice in choices]
        similar = suggestion(str(value), names)
        return f"{called(parameter)} takes one of {', '.join(names)}, and {value!r} is none of them.{similar}"
    if details["type"] in ("greater_than_equal", "less_than_equal"):
        return f"{called(parameter)} takes {numbers}, found {value}."
    return f"{called(parameter)} takes {numbers}, and {value!r} is none."


def _details(cause: Any) -> dict[str, Any] | None:
    """Input and kind of the first fault that Pydantic found; of a list, those of its element."""
    if not hasattr(cause, "errors"):
        return None
    details: dict[str, Any] = cause.errors()[0]
    return _details(details.get("ctx", {}).get("error")) or details


def _other(error: Any, context: Any) -> str:
    message = str(error.message)
    if context is None:
        return message
    if extra := re.fullmatch(r"Got unexpected extra argument\(s\) \((.*)\)", message, re.DOTALL):
        names = [called(one) for one in context.command.params if one.param_type_name == "argument"]
        return f"`{context.command_path}` takes {' and '.join(names) or 'options'} only, and {extra[1]!r} is too much."
    if message.startswith("No such command") and "Did you mean" not in message:
        return f"{message} `{context.command_path} --help` lists the commands."
    return message
