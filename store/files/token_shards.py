"""A block whose values lie token by token: a token is a row of its file, and a neuron a column of it.

Each token has a checksum of its own, as each neuron has in the other order; a chunk holds all neurons of a few tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.files.shards import Shard


class TokenShard:
    """Reads rows of neurons, as `Shard` gives them, and of tokens out of a shard that lies token by token."""

    def __init__(self, shard: Shard) -> None:
        """`shard`: the same file, its rows being the tokens."""
        self._shard = shard

    @property
    def nbytes_held(self) -> int:
        """Bytes of the shard that are in memory as long as this is."""
        return self._shard.nbytes_held

    def row(self, row: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The values of one neuron; shape [token]. All of the block is read for it."""
        values = self._shard.rows()[:, row]
        if out is None:
            return values.copy()
        out[:] = values
        return out

    def rows(self) -> NDArray[Any]:
        """All values; shape [neuron, token]."""
        from actstore.kernels.token_rows.api import scatter_rows  # only here: reading a token needs no compiler

        values = self._shard.rows()
        out = np.empty(values.shape[::-1], values.dtype)
        scatter_rows(values, np.arange(len(out)), out, 0)
        return out

    def token(self, slot: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The values of one token; shape [neuron]. They are put into `out`, if it is given, as by `Shard.row`."""
        return self._shard.row(slot, out)

    def tokens(self, n: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first slot, values [token, neuron]) of some `n` tokens at a time, in the same memory; other threads go on."""
        return self._shard.parts(n)
