"""A block whose values lie token by token: a token is a row of its file, and a neuron a column of it.

Each token has a checksum of its own, as each neuron has in the other order; a chunk holds all neurons of a few tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.files.shards import Shard

BAND_NBYTES: Final = 1 << 19
"""Of the neurons around one that was read, which are kept: each would take all of the block to be read again. At most 256
shards are open, so that they take 128 MiB together."""


class TokenShard:
    """Reads rows of neurons, as `Shard` gives them, and of tokens out of a shard that lies token by token."""

    def __init__(self, shard: Shard) -> None:
        """`shard`: the same file, its rows being the tokens."""
        self._shard = shard
        self._band: tuple[int, NDArray[Any]] = 0, np.empty((0, 0))
        """A neuron, and the values [neuron, token] from it on; replaced as one, as several threads may read."""

    @property
    def nbytes_held(self) -> int:
        """Bytes of the shard that are in memory as long as this is."""
        return self._shard.nbytes_held + self._band[1].nbytes

    def row(self, row: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The values of one neuron; shape [token]. All of the block is read for it; its neighbours are kept for the next."""
        first, band = self._band
        if not first <= row < first + len(band):
            values = self._shard.rows()
            n = max(1, BAND_NBYTES // (len(values) * values.itemsize))
            first = row - row % n
            band = np.ascontiguousarray(values[:, first : first + n].T)
            self._band = first, band
        if out is None:
            out = np.empty(band.shape[1], band.dtype)
        out[:] = band[row - first]
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

    def scatter(self, target: NDArray[np.int64], out: NDArray[Any], column: int) -> None:
        """Put token t into row `target[t]` of `out` [row, neuron], nowhere where that is -1, as `Shard.scatter` does."""
        self._shard.scatter(target, out, column)

    def tokens(self, n: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first slot, values [token, neuron]) of some `n` tokens at a time, in the same memory; other threads go on."""
        return self._shard.parts(n)
