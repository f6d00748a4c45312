"""What decides how a builder stores arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from actstore.store.arguments import Typed
from actstore.store.capture.tokens.order import check_order
from actstore.store.errors import InvalidInputError
from actstore.store.files.compression import check_compression
from actstore.store.files.precision import PRECISIONS
from actstore.store.files.record_checks import DTYPES, MAX_BLOCK_SLOTS

COMMAND: Final = "import"
"""What the settings of a capture made of arrays call their command."""
NonFinite = Literal["refuse", "keep"]
"""What is done with NaN and infinite values."""


@dataclass(frozen=True)
class BuildSettings(Typed):
    """How the arrays of a builder are stored; as the settings of a capture of the same names."""

    precision: str = "exact"
    keep: float = 0.05
    exemplars: int = 20
    dtype: str | None = None
    """The format of the values before they are encoded: that of the first array."""
    non_finite: NonFinite = "refuse"
    label_columns: tuple[str, ...] = ()
    block_tokens: int | None = None
    bundle: bool | None = None
    compression: str | None = None
    order: str | None = None
    """Of a site that has none, that of a capture: token by token of the residual stream, else neuron by neuron."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in PRECISIONS:
            raise InvalidInputError(f"The precision is one of {', '.join(PRECISIONS)}: found {self.precision!r}.")
        if not 0 < self.keep <= 1:
            raise InvalidInputError(f"`keep` is a share above 0 and at most 1, found {self.keep}.")
        if not 0 <= self.exemplars <= 1000:
            raise InvalidInputError(f"`exemplars` lies between 0 and 1000, found {self.exemplars}.")
        if self.dtype not in (None, *DTYPES):
            raise InvalidInputError(f"`dtype` is one of {', '.join(DTYPES)}: found {self.dtype!r}.")
        if self.non_finite not in get_args(NonFinite):
            raise InvalidInputError(
                f"`non_finite` is one of {', '.join(get_args(NonFinite))}: found {self.non_finite!r}."
            )
        if self.block_tokens is not None and not 1 <= self.block_tokens <= MAX_BLOCK_SLOTS:
            raise InvalidInputError(
                f"`block_tokens` lies between 1 and {MAX_BLOCK_SLOTS:,}, found {self.block_tokens}."
            )
        if self.compression is not None:
            check_compression(self.compression)
        if self.order is not None:
            check_order(self.order)

    def to_json(self, tokens: str) -> dict[str, Any]:
        """As a capture's record keeps them; `tokens` says what is known of the tokens."""
        return {
            "command": COMMAND, "tokens": tokens, "precision": self.precision, "keep": self.keep,
            "exemplars": self.exemplars, "non_finite": self.non_finite, "label_columns": list(self.label_columns),
        }  # fmt: skip
