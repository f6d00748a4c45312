"""Passes of a text through a model, counted: which positions a pass reads, where the prompt ends, which of them are image.

With a cache, `generate` reads the prompt in one pass and then one token per pass; without one it reads everything anew. Either
way a position is counted from its text's first token. A pass whose arguments do not say where it stands has no positions:
asking for them is a `ModelError`, never a guess. Knows nothing about what is done at positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actstore.engine.edit.positions import NAMED
from actstore.engine.models.cache import past_length
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
        self._unknown = "positions are known while the whole model runs: call the model, not its parts"

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of the pass that the model was called for with these arguments."""
        try:
            self.now = self._read(args, kwargs)
        except ModelError as error:  # an operation at every position needs no positions
            self.now, self._unknown = None, str(error)

    def present(self) -> Pass:
        """The present pass; `ModelError` where its place in the text cannot be told."""
        if self.now is None:
            raise ModelError(f"Where in its text the model stands cannot be told: {self._unknown}.")
        return self.now

    def _read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass:
        ids = next((v for v in args if isinstance(v, Tensor) and v.dim() == 2), kwargs.get("input_ids"))
        masked = "attention_mask"
        if isinstance(answer := kwargs.get("decoder_input_ids"), Tensor):  # of two stacks, the one that writes
            ids, masked = answer, "decoder_attention_mask"
        shown = ids if ids is not None else kwargs.get("inputs_embeds")
        if shown is None:
            shown = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() >= 2), None)
        if shown is None:
            raise ModelError("the model is called with neither token ids nor embeddings")
        n_windows, n_positions = shown.shape[:2]
        past = past_length(args, kwargs)
        shape = (n_windows, past + n_positions)
        seen = _seen(kwargs.get(masked), shape, past)
        before = (seen.cumsum(1) == 0).sum(1)  # padding on the left
        position = torch.arange(past, past + n_positions)[None] - before[:, None]
        length = seen.sum(1)
        if past == 0:
            goes_on = self._goes_on(ids)
            _check_begins(kwargs, (n_windows, n_positions))
            self._ids = None if ids is None else ids.detach()
            if not goes_on:
                self._n_prompt = length if self._given is None else torch.as_tensor(self._given).expand(n_windows)
        if self._n_prompt is None or len(self._n_prompt) != n_windows:
            raise ModelError(f"the pass goes on from {past} tokens of a text of which no pass was seen")
        is_image = None if ids is None or self._image_token is None else (ids == self._image_token).cpu()
        return Pass(position, length, self._n_prompt, is_image)

    def _goes_on(self, ids: Tensor | None) -> bool:
        """Whether a pass without a cache reads the text of the pass before, and one token more."""
        known = self._ids
        if ids is None or known is None or self._n_prompt is None or len(ids) != len(known):
            return False
        n = known.shape[1]
        return ids.shape[1] == n + 1 and ids.device == known.device and bool((ids[:, :n] == known).all())

    def chosen(self, positions: str | Sequence[int], shape: tuple[int, int]) -> Tensor:
        """Which of a layer's rows, `shape` [window, position], are meant in the present pass; bool, on the CPU.

        Negative numbers count from the prompt's end. `ModelError` where the rows are not the pass's positions, or the pass
        does not say where it stands, unless all positions are meant.
        """
        now = self.now
        if positions == "all" and (now is None or now.position.shape != shape):
            return torch.ones(shape, dtype=torch.bool)
        now = self.present()
        if now.position.shape != shape:
            raise ModelError(
                f"Positions {positions!r} cannot be told: the layer holds {shape[1]} rows for each text, and the pass reads "
                f"{now.position.shape[1]} positions. Intervene at all positions."
            )
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


def _seen(mask: Any, shape: tuple[int, int], past: int) -> Tensor:
    """Which tokens of the text up to now are read, as 1 and 0: int64 [window, position], on the CPU."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return torch.ones(shape, dtype=torch.int64)
    if tuple(mask.shape) != shape:
        raise ModelError(
            f"the attention mask covers {mask.shape[1]} tokens, and the pass reads {shape[1] - past} after {past} known ones"
        )
    return mask.to("cpu", torch.int64)


def _check_begins(kwargs: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Raise `ModelError` where a pass that seems to begin a text says itself that it stands further on."""
    places = kwargs.get("position_ids")
    first = places[:, 0] if isinstance(places, Tensor) and tuple(places.shape) == shape else None
    counted = kwargs.get("cache_position")
    if first is None and isinstance(counted, Tensor) and counted.dim() == 1:
        first = counted[:1]
    if first is not None and int(first.min()) > 0:
        raise ModelError(f"the pass begins at position {int(first.min())}, and no cache of earlier tokens is known")
