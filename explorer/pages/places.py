"""Where the tokens of a capture are: their slots, windows, and which of them count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import numpy as np

from actstore.store.layout import SPECIAL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.capture.reader import Capture
    from actstore.store.reader import Store

KEPT: Final = 20_000_000
"""Tokens of a capture whose places are kept for the next page, 17 bytes each."""


@dataclass(frozen=True, eq=False)
class TokenPlaces:
    """One row per committed token, in the order of `capture.tokens()`."""

    slots: NDArray[np.int64]
    is_counted: NDArray[np.bool_]
    """False for special tokens, which statistics leave out."""
    starts: NDArray[np.int64]
    """The row at which each window begins; a window's rows follow each other."""

    def lowest_of_windows(self, values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The row of the lowest of `values` [token] in each of the k windows where it is lowest; infinite ones are none."""
        if not len(values):
            return np.empty(0, np.int64)
        minima = np.minimum.reduceat(values, self.starts)
        windows = np.argsort(minima, kind="stable")[:k]
        windows = windows[np.isfinite(minima[windows])]
        ends = np.append(self.starts[1:], len(values))
        rows = [self.starts[w] + int(np.argmin(values[self.starts[w] : ends[w]])) for w in windows]
        return np.array(rows, np.int64)


_PLACES: Final[WeakKeyDictionary[Store, dict[str, TokenPlaces]]] = WeakKeyDictionary()


def token_places(store: Store, capture: Capture) -> TokenPlaces:
    """The places of a capture's tokens; of a finished one of ordinary size they are read once."""
    kept, name = _PLACES.setdefault(store, {}), capture.record.name
    if name in kept and capture.is_finished:
        return kept[name]
    tokens = capture.tokens().to_arrow()
    window = tokens["window"].to_numpy()
    starts = np.flatnonzero(np.diff(window, prepend=window[:1] - 1))
    places = TokenPlaces(tokens["token"].to_numpy().astype(np.int64), tokens["modality"].to_numpy() != SPECIAL, starts)
    if capture.is_finished and len(window) <= KEPT:
        kept[name] = places
    return places
