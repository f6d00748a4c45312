"""What a norm does, read off the module: its gain, bias and epsilon, whether it centres, and the scale of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

_EPSILONS = ("eps", "variance_epsilon", "epsilon", "norm_eps")  # attributes of norms: what is added to the mean square
_TOLERANCE = 2e-2
"""Of the largest value, between a norm and what it is taken for: bfloat16 rounds a gain and a product by 2⁻⁸ each."""


@dataclass(frozen=True)
class Norm:
    """`gain ⊙ (x - mean(x) if it centres) · scale(x) + bias`, with the scale 1 / root mean square."""

    gain: Tensor | None
    """[d_model], 1 + w where the module keeps w (Gemma)."""
    bias: Tensor | None
    epsilon: float
    """What is added to the mean square."""
    centres: bool
    """Whether the mean is subtracted first, as in LayerNorm."""

    @classmethod
    def of(cls, module: nn.Module, width: int, like: Tensor) -> Norm:
        """What a module does to rows of `width` values; `like` has the dtype and device of its inputs."""
        weight, bias = (_parameter(module, name) for name in ("weight", "bias"))
        # ±1 has mean 0 and root mean square 1, so that a norm returns its gain, up to its epsilon.
        probe = torch.ones(width, dtype=like.dtype, device=like.device) if weight is None else torch.ones_like(weight)
        probe[1::2] = -1
        gain = weight
        with torch.inference_mode():
            shift = 0 if bias is None else bias
            if weight is not None:
                measured = (module(probe) - shift) * probe
                is_offset = (measured - (1 + weight)).abs().sum() < (measured - weight).abs().sum()
                gain = 1 + weight if bool(is_offset) else weight
            scale = torch.ones_like(probe) if gain is None else gain
            # A LayerNorm maps a constant to its bias, an RMSNorm to its gain.
            centres = float((module(torch.ones_like(probe)) - shift).abs().max()) < 0.1 * float(scale.abs().max())
        epsilon = next(
            (getattr(module, name) for name in _EPSILONS if isinstance(getattr(module, name, None), float)), 0.0
        )
        return cls(gain, bias, epsilon, centres)

    def scales(self, values: Tensor) -> Tensor:
        """What each row of values [row, d_model] is multiplied with, in float32; [row, 1]."""
        exact = self._centred(values)
        return (exact.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()

    def describes(self, module: nn.Module, width: int, like: Tensor) -> bool:
        """Whether the module does this to some rows, small ones among them, in which the epsilon shows."""
        rows = torch.randn((4, width), generator=torch.Generator().manual_seed(0)) + 0.3
        rows *= torch.tensor([1.0, 3.0, 0.1, 0.003])[:, None]
        rows = rows.to(like.device, like.dtype)
        with torch.inference_mode():
            expected = self._centred(rows) * self.scales(rows)
            if self.gain is not None:
                expected = expected * self.gain.float()
            if self.bias is not None:
                expected = expected + self.bias.float()
            difference = (module(rows).float() - expected).abs().max()
        return bool(difference <= _TOLERANCE * expected.abs().max())

    def _centred(self, values: Tensor) -> Tensor:
        exact = values.float()
        return exact - exact.mean(-1, keepdim=True) if self.centres else exact


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    value = getattr(module, name, None)
    return value.detach() if isinstance(value, Tensor) else None
