"""Passes of a text through a model, counted: which positions a pass reads, where the prompt ends, which of them are image.

With a cache, `generate` reads the prompt in one pass and then a token a pass; without one it reads everything anew. Either way
a position is counted from its text's first token. Knows nothing about what is done at positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMED = {
    "all": "every position",
    "prompt": "the prompt's positions",
    "last": "the prompt's last position, which predicts the answer's first token",
    "generated": "the answer's positions",
    "predicting": "the prompt's last position and the answer's: those that predict the answer",
    "image": "the prompt's image positions",
}


def check_positions(positions: str | Sequence[int]) -> None:
    """Raise `InvalidInputError` unless positions are a name of `NAMED` or a list of numbers."""
    if isinstance(positions, str):
        if positions not in NAMED:
            raise InvalidInputError(
                f"Positions are one of {', '.join(NAMED)}, or numbers such as 0,3,-1: found {positions!r}."
            )
    elif not positions or any(isinstance(p, bool) or not isinstance(p, int) for p in positions):
        raise InvalidInputError(f"Positions are a name or at least one number, found {list(positions)!r}.")


def parse_positions(text: str) -> str | tuple[int, ...]:
    """The positions in a text: a name of `NAMED`, or numbers such as 0,3,-1; `InvalidInputError` for anything else."""
    text = text.strip()
    parts = text.split(",")
    if all(part.strip().removeprefix("-").isdigit() for part in parts):
        return tuple(int(part) for part in parts)
    check_positions(text)
    return text


@dataclass
class Pass:
    """One pass over windows: the place of every row in its text."""

    position: Tensor
    """Counted from the text's first token, padding before it left out (and negative there); int64 [window, position]."""
    length: Tensor
    """Tokens of each window up to now; int64 [window]."""
    n_prompt: Tensor
    """Tokens of each prompt; int64 [window]."""
    is_image: Tensor | None
    """bool [window, position]; None where no ids were handed over."""


class Passes:
    """Follows a model's passes, and knows of the present one where it stands in its text."""

    def __init__(self, n_prompt: int | Sequence[int] | None = None, image_token: int | None = None) -> None:
        """With `n_prompt` (one, or one a window) the prompt ends there; without, the first pass over a text is its prompt."""
        self._given = n_prompt
        self._image_token = image_token
        self._n_prompt: Tensor | None = None
        self._ids: Tensor | None = None
        self.now: Pass | None = None

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of the pass that the model was called for with these arguments."""
        ids = next((v for v in args if isinstance(v, Tensor) and v.dim() == 2), kwargs.get("input_ids"))
        shown = ids if ids is not None else kwargs.get("inputs_embeds")
        if shown is None:
            shown = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() >= 2)
        n_windows, n_positions = shown.shape[:2]
        past = _past_length(kwargs.get("past_key_values"))
        mask = kwargs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == past + n_positions else None
        shape = (n_windows, past + n_positions)
        seen = torch.ones(shape, dtype=torch.int64) if mask is None else mask.to("cpu", torch.int64)
        before = (seen.cumsum(1) == 0).sum(1)  # padding on the left
        position = torch.arange(past, past + n_positions)[None] - before[:, None]
        length = seen.sum(1)
        if past == 0 and not self._goes_on(ids):
            self._n_prompt = length if self._given is None else torch.as_tensor(self._given).expand(n_windows)
        if past == 0:
            self._ids = None if ids is None else ids.detach()
        assert self._n_prompt is not None
        is_image = None if ids is None or self._image_token is None else (ids == self._image_token).cpu()
        self.now = Pass(position, length, self._n_prompt, is_image)

    def _goes_on(self, ids: Tensor | None) -> bool:
        """Whether a pass without a cache reads the text of the pass before, and one token more."""
        known = self._ids
        if ids is None or known is None or self._n_prompt is None or len(ids) != len(known):
            return False
        n = known.shape[1]
        return ids.shape[1] == n + 1 and ids.device == known.device and bool((ids[:, :n] == known).all())

    def chosen(self, positions: str | Sequence[int]) -> Tensor:
        """Which rows of the present pass are meant; bool [window, position], on the CPU.

        Negative numbers count from the prompt's end.
        """
        now = self.now
        if now is None:
            raise InvalidInputError("Positions are known while the whole model runs: call the model, not its parts.")
        at, end = now.position, now.n_prompt[:, None]
        inside = (at >= 0) & (at < now.length[:, None])
        if not isinstance(positions, str):
            wanted = torch.tensor(list(positions))
            places = torch.where(wanted[None] < 0, end + wanted[None], wanted[None])
            return inside & (at[:, :, None] == places[:, None, :]).any(2)
        if positions == "image":
            if now.is_image is None:
                raise InvalidInputError("Image positions are those of a model with images, called with token ids.")
            return inside & now.is_image
        return (
            inside
            & {
                "all": torch.ones_like(inside),
                "prompt": at < end,
                "last": at == end - 1,
                "generated": at >= end,
                "predicting": at >= end - 1,
            }[positions]
        )


def _past_length(past: Any) -> int:
    if past is None:
        return 0
    length = getattr(past, "get_seq_length", None)
    if length is None:
        raise InvalidInputError(
            f"Positions across passes need the library's cache, found {type(past).__name__}. Generate with use_cache=False."
        )
    return int(length())
