"""Which rows of a batch go to which token slots of a block, and what is known of them.

Built once for a batch and shared by every layer and site.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True)
class Columns:
    """The tokens of a batch that are kept, in the order of their slots. `token` counts the kept tokens of this batch.

    Raises ValueError where the arrays contradict each other.
    """

    rows: NDArray[np.int64]
    """[token] the row of the batch's activations that holds each token."""
    slots: NDArray[np.int64]
    """[token] its column in the block's buffer, ascending."""
    segments: NDArray[np.int64]
    """[segment + 1] tokens `segments[s]:segments[s + 1]` are one text window; a batch has whole windows."""
    labels: NDArray[np.int32]
    """[segment, column] label ids of the segment's document, each once, -1 for none; there may be no column."""
    counted: NDArray[np.bool_]
    """[token] False for a token that is stored but kept out of every statistic."""
    first_token: int
    """The token index of slot 0; an exemplar's token is `first_token + slot`."""

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype))
        n_tokens, n_segments = len(self.rows), len(self.segments) - 1
        _expect(self.rows.ndim == 1 and n_segments >= 0, "rows must be [token] and segments [segment + 1]")
        _expect(self.slots.shape == (n_tokens,), f"slots must hold one slot for each of {n_tokens} rows")
        _expect(self.counted.shape == (n_tokens,), f"counted must hold one flag for each of {n_tokens} rows")
        _expect(
            self.labels.ndim == 2 and len(self.labels) == n_segments, f"labels must be [{n_segments} segments, column]"
        )
        _expect(self.labels.min(initial=-1) >= -1, "labels must be label ids, or -1 for none")
        _expect(n_tokens == 0 or self.rows.min() >= 0, "rows must not be negative")
        _expect(n_tokens == 0 or self.slots[0] >= 0, "slots must not be negative")
        _expect(bool((np.diff(self.slots) > 0).all()), "slots must ascend, each used once")
        is_whole = self.segments[0] == 0 and self.segments[-1] == n_tokens and bool((np.diff(self.segments) >= 0).all())
        _expect(is_whole, f"segments must ascend from 0 to the number of tokens, {n_tokens}")

    @cached_property
    def n_labels(self) -> int:
        """One more than the largest label id used."""
        return int(self.labels.max(initial=-1)) + 1

    @cached_property
    def n_rows(self) -> int:
        """The least number of rows that a batch must have."""
        return int(self.rows.max(initial=-1)) + 1

    @cached_property
    def n_slots(self) -> int:
        """The least number of slots that a block's buffer must have."""
        return int(self.slots.max(initial=-1)) + 1


_DTYPES: dict[str, DTypeLike] = {
    "rows": np.int64,
    "slots": np.int64,
    "segments": np.int64,
    "labels": np.int32,
    "counted": np.bool_,
}


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
