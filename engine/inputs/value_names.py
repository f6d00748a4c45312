"""Values and columns in words, for messages about records."""

import json
from collections.abc import Iterable

_MAX_COLUMNS_NAMED = 12
_KINDS = {
    bool: "a truth value",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def describe_value(value: object) -> str:
    """A value for a message: its kind in JSON's words, with the value where that is short."""
    if value is None:
        return "null"
    kind = _KINDS.get(type(value), type(value).__name__)
    shown = json.dumps(value, default=str) if isinstance(value, bool | int | float | str) else ""
    return f"{kind} ({shown})" if 0 < len(shown) <= 24 else kind


def name_columns(columns: Iterable[str]) -> str:
    """The columns' names for a message: the first twelve, and how many more."""
    columns = tuple(columns)
    names = ", ".join(repr(column) for column in columns[:_MAX_COLUMNS_NAMED])
    more = len(columns) - _MAX_COLUMNS_NAMED
    return (f"{names} and {more} more" if more > 0 else names) or "none"
