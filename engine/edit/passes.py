"""Forward passes of a text: which positions a pass reads, where the prompt ends, which of them are image; positions by name.

With a cache, `generate` reads the prompt in one pass and then one token per pass; without one it reads the whole text again.
Either way a position is counted from its text's first token. A pass whose arguments do not say where it begins has no
positions: asking for them is a `ModelError`, never a guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actstore.engine.edit.positions import POSITIONS, Pass
from actstore.engine.models.cache import past_length
from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Passes:
    """Follows a model's passes: which positions of its text the present one reads."""

    def __init__(self, n_prompt: int | Sequence[int] | None = None, image_token: int | None = None) -> None:
        """The prompt has `n_prompt` tokens (one number, or one per window); None: what the first pass over a text reads."""
        self._given = n_prompt
        self._image_token = image_token
        self._n_prompt: Tensor | None = None
        self._ids: Tensor | None = None
        self.now: Pass | None = None
        self._reason = "positions are known while the whole model runs: call the model, not its parts"

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the pass that begins with a call of the model with these arguments."""
        try:
            self.now = self._read(args, kwargs)
        except ModelError as error:  # an operation at every position needs no positions
            self.now, self._reason = None, str(error)

    def present(self) -> Pass:
        """The present pass; `ModelError` where its positions are unknown."""
        if self.now is None:
            raise ModelError(f"The positions that the model reads are unknown: {self._reason}.")
        return self.now

    def _read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass:
        ids = next((v for v in args if isinstance(v, Tensor) and v.dim() == 2), kwargs.get("input_ids"))
        masked = "attention_mask"
        if isinstance(answer := kwargs.get("decoder_input_ids"), Tensor):  # of two stacks, the one that writes
            ids, masked = answer, "decoder_attention_mask"
        inputs = ids if ids is not None else kwargs.get("inputs_embeds")
        if inputs is None:
            inputs = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() >= 2), None)
        if inputs is None:
            raise ModelError("the model is called with neither token ids nor embeddings")
        n_windows, n_positions = inputs.shape[:2]
        past = past_length(args, kwargs)
        shape = (n_windows, past + n_positions)
        is_read = _is_read(kwargs.get(masked), shape, past)
        before = (is_read.cumsum(1) == 0).sum(1)  # padding on the left
        position = torch.arange(past, past + n_positions)[None] - before[:, None]
        length = is_read.sum(1)
        if past == 0:
            continues = self._continues(ids)
            _check_begins(kwargs, (n_windows, n_positions))
            self._ids = None if ids is None else ids.detach()
            if not continues:
                self._n_prompt = length if self._given is None else torch.as_tensor(self._given).expand(n_windows)
        if self._n_prompt is None or len(self._n_prompt) != n_windows:
            raise ModelError(f"the pass continues after {past} tokens of a text that no pass was seen to read")
        is_image = None if ids is None or self._image_token is None else (ids == self._image_token).cpu()
        return Pass(position, length, self._n_prompt, is_image)

    def _continues(self, ids: Tensor | None) -> bool:
        """Whether a pass without a cache reads the text of the pass before, and one token more."""
        before = self._ids
        if ids is None or before is None or self._n_prompt is None or len(ids) != len(before):
            return False
        n = before.shape[1]
        return ids.shape[1] == n + 1 and ids.device == before.device and bool((ids[:, :n] == before).all())

    def selected(self, positions: str | Sequence[int], shape: tuple[int, int]) -> Tensor:
        """Which of a layer's rows, `shape` [window, position], are at some positions in the present pass; bool, on the CPU.

        Negative numbers count from the prompt's end. `ModelError` where the rows are not the pass's positions, or these are
        unknown, unless all positions are meant.
        """
        now = self.now
        if positions == "all" and (now is None or now.position.shape != shape):
            return torch.ones(shape, dtype=torch.bool)
        now = self.present()
        if now.position.shape != shape:
            raise ModelError(
                f"Positions {positions!r} cannot be found: the layer has {shape[1]} rows per text, and the pass reads "
                f"{now.position.shape[1]} positions. Intervene at all positions."
            )
        inside = (now.position >= 0) & (now.position < now.length[:, None])
        if isinstance(positions, str):
            return inside & POSITIONS[positions].select(now)
        numbers, end = torch.tensor(list(positions))[None], now.n_prompt[:, None]
        counted = torch.where(numbers < 0, end + numbers, numbers)
        return inside & (now.position[:, :, None] == counted[:, None, :]).any(2)


def _is_read(mask: object, shape: tuple[int, int], past: int) -> Tensor:
    """Which tokens of the text up to now are read, as 1 and 0: int64 [window, position], on the CPU."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return torch.ones(shape, dtype=torch.int64)
    if tuple(mask.shape) != shape:
        raise ModelError(
            f"the attention mask covers {mask.shape[1]} tokens, and the pass reads {shape[1] - past} after {past} cached ones"
        )
    return mask.to("cpu", torch.int64)


def _check_begins(kwargs: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Raise `ModelError` where a pass seems to begin a text and its arguments say that it begins further on."""
    position_ids = kwargs.get("position_ids")
    first = position_ids[:, 0] if isinstance(position_ids, Tensor) and tuple(position_ids.shape) == shape else None
    cache_position = kwargs.get("cache_position")
    if first is None and isinstance(cache_position, Tensor) and cache_position.dim() == 1:
        first = cache_position[:1]
    if first is not None and int(first.min()) > 0:
        raise ModelError(f"the pass begins at position {int(first.min())}, and no cache of earlier tokens is known")
