"""The positions of an intervention that have a name, as one table; importing it does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


@dataclass
class Pass:
    """One pass over windows: the position of every row in its text."""

    position: Tensor
    """Counted from the text's first token; negative for padding before it; int64 [window, position]."""
    length: Tensor
    """Number of tokens of each window up to now; int64 [window]."""
    n_prompt: Tensor
    """Number of tokens of each prompt; int64 [window]."""
    is_image: Tensor | None
    """bool [window, position]; None where the model was called without token ids, or reads no images."""


@dataclass(frozen=True)
class PositionSet:
    """Positions that have a name."""

    help: str
    select: Callable[[Pass], Tensor]
    """Which rows of a pass are meant: bool [window, position]; padding is left out afterwards."""


def _is_image(now: Pass) -> Tensor:
    if now.is_image is None:
        raise InvalidInputError("Image positions are those of a model with images, called with token ids.")
    return now.is_image


POSITIONS: Final = {
    "all": PositionSet("every position", lambda now: now.position == now.position),
    "prompt": PositionSet("the prompt's positions", lambda now: now.position < now.n_prompt[:, None]),
    "last": PositionSet(
        "the prompt's last position, which predicts the answer's first token",
        lambda now: now.position == now.n_prompt[:, None] - 1,
    ),
    "generated": PositionSet("the answer's positions", lambda now: now.position >= now.n_prompt[:, None]),
    "predicting": PositionSet(
        "the prompt's last position and the answer's: those that predict the answer",
        lambda now: now.position >= now.n_prompt[:, None] - 1,
    ),
    "image": PositionSet("the prompt's image positions", _is_image),
}


def check_positions(positions: str | Sequence[int]) -> None:
    """Raise `InvalidInputError` unless positions are a key of `POSITIONS` or a list of numbers."""
    if isinstance(positions, str):
        if positions not in POSITIONS:
            raise InvalidInputError(
                f"Positions are one of {', '.join(POSITIONS)}, or numbers such as 0,3,-1: found {positions!r}."
            )
    elif not positions or any(isinstance(p, bool) or not isinstance(p, int) for p in positions):
        raise InvalidInputError(f"Positions are a name or at least one number, found {list(positions)!r}.")


def parse_positions(text: str) -> str | tuple[int, ...]:
    """The positions in a text: a key of `POSITIONS`, or numbers such as 0,3,-1; `InvalidInputError` for anything else."""
    text = text.strip()
    parts = text.split(",")
    if all(part.strip().removeprefix("-").isdigit() for part in parts):
        return tuple(int(part) for part in parts)
    check_positions(text)
    return text
