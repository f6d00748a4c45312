"""The next token of a text: the most probable one, or one drawn with random numbers that belong to that text alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the most probable each time where neither field is given."""

    temperature: float | None = None
    """Logits are divided by it; 1 by default."""
    top_p: float | None = None
    """The smallest set of the most probable tokens whose probabilities add up to this is drawn from; 1 by default."""
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature is None and self.top_p is None

    def draws(self, text: tuple[int, ...], n_tokens: int) -> NDArray[np.float64]:
        """The random numbers, from 0 to below 1, that choose the tokens of one text; `text` numbers it among all.

        They depend on the seed and on `text` alone: an answer is the same whatever else is generated beside it.
        """
        key = hashlib.sha256(repr((self.seed, text)).encode()).digest()[:16]
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(n_tokens)

    def token(self, logits: Tensor, draw: float) -> int:
        """The token chosen after `logits` [vocabulary]; of equal ones the smaller id first."""
        if self.is_greedy:
            return int(logits.argmax())
        p = (logits.double() / (self.temperature or 1.0)).softmax(-1)
        p, tokens = p.sort(descending=True, stable=True)
        cumulative = p.cumsum(-1)
        # A token is kept where those before it do not reach top_p yet: the first always is.
        n_kept = int((cumulative - p < (self.top_p or 1.0)).sum())
        chosen = int(torch.searchsorted(cumulative[:n_kept], draw * cumulative[n_kept - 1], right=True))
        return int(tokens[min(chosen, n_kept - 1)])
