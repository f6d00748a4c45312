"""Windows of blocks in memory: their selected tokens as rows, in the order in which batches take them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.kernels.token_rows.api import Decoding
from actstore.store.batches.normalise import normalised
from actstore.store.capture.tokens.rows import block_scales, decoding_of, raw_token_rows, stored_dtype

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from actstore.store.batches.order import Order, Part, Window
    from actstore.store.batches.selection import Selection
    from actstore.store.batches.settings import BatchSettings
    from actstore.store.capture.reader import Capture

COLUMNS: Final = {"token": "int64", "id": "int32", "position": "int32", "window": "int32", "document": "int32"}
"""What batches have of each token beside its activations and labels → dtype."""


@dataclass(frozen=True)
class Rows:
    """The tokens of a window: their activations in the order of batches, what is known of them in that of its parts.

    Activations are put into their rows as they are read; of what is small, the rows of a batch are picked when it is made.
    """

    raw: NDArray[Any]
    """Activations as they are stored [row, neuron], of all sites and layers side by side."""
    order: NDArray[np.int64]
    """[row] which token of the window, counted part by part, is in each row."""
    block: NDArray[np.int32]
    """[token] which row of `decoding.scales` is that of the token's block."""
    decoding: Decoding
    columns: dict[str, NDArray[Any]]
    """`COLUMNS` [token]."""
    labels: dict[str, NDArray[np.int32]]
    """Label column → [token] index among `label_values` of the column."""

    def blocks(self, part: slice) -> NDArray[np.int32]:
        """[row] which row of `decoding.scales` is that of each of some rows."""
        return self.block[self.order[part]]


class WindowReader:
    """Reads windows of a capture, part by part."""

    def __init__(self, capture: Capture, settings: BatchSettings, selection: Selection, order: Order) -> None:
        self._capture, self._settings, self._selection, self._order = capture, settings, selection, order
        widths = [capture.record.layers(site)[layer] for site, layer in settings.places]
        self.starts = [0, *np.cumsum(widths).tolist()]
        """The first column of each place, and the number of all."""
        self.dtype = stored_dtype(capture)
        """That of activations in memory, as they are stored."""
        self.shape = sum(sorted(order.counts)[-order.window :]), self.starts[-1]
        """[row, neuron] of the largest window that there can be."""

    @property
    def largest_nbytes(self) -> int:
        """Bytes of the activations of the largest window that there can be."""
        return int(self.shape[0] * self.shape[1] * self.dtype.itemsize)

    def begin(self, epoch: int, window: Window, submit: Callable[..., Future[None]], memory: NDArray[Any]) -> Loading:
        """Begin to read a window: `submit` runs a function of its parts, now or beside us, into `memory` of `shape`."""
        n, settings = window.n_tokens, self._settings
        permutation = self._order.permutation(epoch, window)
        target = np.empty(n, np.int64)
        target[permutation] = np.arange(n)
        columns = {name: np.empty(n, dtype) for name, dtype in COLUMNS.items()}
        labels = {name: np.empty(n, np.int32) for name in settings.labels}
        rows = Rows(memory[:n], permutation, np.empty(n, np.int32), self._decoding_of(window), columns, labels)
        jobs, first = [], 0
        for number, part in enumerate(window.parts):
            tokens = slice(first, first + part.n_tokens)
            targets = target[tokens]
            slots = self._selection.slots(self._capture.block_plan(part.block))[part.start : part.stop]
            jobs.append(submit(self._read_columns, number, part, slots, tokens, rows))
            jobs += [
                submit(self._read_values, place, number, part, slots, targets, rows)
                for place in range(len(settings.places))
            ]
            first += part.n_tokens
        return Loading(rows, jobs)

    @cached_property
    def _decoding(self) -> Decoding:
        """What is the same in every window: all but the blocks' scales."""
        decodings = [
            normalised(
                decoding_of(self._capture, layer, (), site, saturated=True), self._capture, layer, site,
                self._settings.normalize,
            )
            for site, layer in self._settings.places
        ]  # fmt: skip
        names = ("limit", "shift", "factor")
        joined = [np.concatenate([getattr(decoding, name) for decoding in decodings]) for name in names]
        return Decoding(decodings[0].scales, *joined)

    def _decoding_of(self, window: Window) -> Decoding:
        """That of a window; its scales are read with the values."""
        if self._decoding.scales is None:
            return self._decoding
        return replace(self._decoding, scales=np.empty((len(window.parts), self.starts[-1]), np.float32))

    def _read_values(
        self, place: int, number: int, part: Part, slots: NDArray[np.int64], targets: NDArray[np.int64], rows: Rows
    ) -> None:
        site, layer = self._settings.places[place]
        first, stop = self.starts[place : place + 2]
        if rows.decoding.scales is not None:
            rows.decoding.scales[number, first:stop] = block_scales(self._capture, layer, part.block, site)
        target = np.full(self._capture.record.plan.block_slots, -1, np.int64)
        target[slots] = targets
        raw_token_rows(self._capture, layer, part.block, target, rows.raw, site=site, column=first)

    def _read_columns(self, number: int, part: Part, slots: NDArray[np.int64], tokens: slice, rows: Rows) -> None:
        plan, size = self._capture.block_plan(part.block), self._capture.record.plan.block_slots
        rows.block[tokens] = number
        window = plan.window_of_slot()[slots]
        starts = np.cumsum([0, *plan.windows["n_inputs"]])[:-1]
        values = {
            "token": part.block * size + slots,
            "id": plan.inputs[starts[window] + plan.position[slots]],
            "position": plan.position[slots],
            "window": plan.windows["window"][window],
            "document": plan.windows["document"][window],
        }
        for name, column in values.items():
            rows.columns[name][tokens] = column
        plan_record = self._capture.record.plan
        for name, out in rows.labels.items():
            ids = plan.labels[window, plan_record.label_columns.index(name)]
            out[tokens] = label_indices(self._capture, name)[ids]


class Loading:
    """A window that is read, or is being read beside us."""

    def __init__(self, rows: Rows, jobs: list[Future[None]]) -> None:
        self._rows, self._jobs = rows, jobs

    def rows(self) -> Rows:
        """Its tokens, when all are read; raises what reading them raised."""
        for job in self._jobs:
            job.result()
        return self._rows


def label_values(capture: Capture, column: str) -> tuple[str, ...]:
    """The values of a label column, in the order in which batches number them."""
    return tuple(value for name, value in capture.record.plan.labels if name == column)


def label_indices(capture: Capture, column: str) -> NDArray[np.int32]:
    """[label id] → its index among the values of `column`; -1 for those of other columns."""
    of_column = np.array([name == column for name, _ in capture.record.plan.labels], np.bool_)
    return np.where(of_column, np.cumsum(of_column) - 1, -1).astype(np.int32)
