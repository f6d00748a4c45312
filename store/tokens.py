"""Tokens of which nothing is known but that they are there: in captures made of arrays without ids or texts."""

from __future__ import annotations

from typing import Any, Final

from actstore.store.errors import InvalidInputError

UNKNOWN: Final = (1 << 31) - 1
"""The id of a token that is not known; its text is shown as `UNKNOWN_TEXT`. Padding has −1."""
UNKNOWN_TEXT: Final = b"<?>"

MADE_OF_ARRAYS: Final = "arrays"
"""The type of the model of a store that was made of arrays alone."""

_IDS, _NONE = "ids", "none"


def known_as(n_unknown: int) -> str:
    """What the settings of a capture say of its tokens, `n_unknown` of which have no id."""
    return _NONE if n_unknown else _IDS


def check_tokens_known(record: Any, what: str) -> None:  # a CaptureRecord, whose module stands above
    """`InvalidInputError` where the tokens of a capture have no ids, which `what` needs."""
    if record.settings.get("tokens") == _NONE:
        raise InvalidInputError(
            f"{what} need the tokens, and capture {record.name!r} was made of arrays without `ids` or `texts`. Make it "
            "again with them, or name a capture of the same text with `tokens_of`."
        )


def is_made_by_model(record: Any) -> bool:  # a CaptureRecord
    """Whether a model computed the values of a capture here, and not whoever made it of arrays."""
    return bool(record.settings.get("command") != "import")


def check_made_by_model(record: Any, what: str) -> None:  # a CaptureRecord
    """`InvalidInputError` where a capture was made of arrays, and no model computes its values again, as `what` would."""
    if not is_made_by_model(record):
        raise InvalidInputError(
            f"{what} runs the model again, and capture {record.name!r} was made of arrays, which no model computes. Name "
            "another `capture`."
        )
