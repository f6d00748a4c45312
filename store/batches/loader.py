"""The iterator: batches of one capture, in the order of `order`, resumable, the same however many workers take them."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from actstore.kernels.token_rows.api import decode_rows
from actstore.store.batches.batch import Batch
from actstore.store.batches.memory import ArrayPool
from actstore.store.batches.order import Order
from actstore.store.batches.settings import DTYPES
from actstore.store.batches.state import Resumable
from actstore.store.batches.window import COLUMNS, WindowReader, label_values
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from actstore.store.batches.order import Window
    from actstore.store.batches.selection import Selection
    from actstore.store.batches.settings import BatchSettings
    from actstore.store.batches.window import Loading, Rows
    from actstore.store.capture.reader import Capture

_OF_PROCESS = ("_reader", "_memory", "_window_memory")
"""What another process makes anew."""
_FREELY_CHANGED = ("rank", "dtype", "normalize", "threads", "labels", "epochs")
"""Settings that may differ when batches are resumed: tokens and their order stay what they were."""


class Batches(Resumable):
    """Batches of a capture's tokens as NumPy arrays. An iteration passes `epochs` epochs, each token once in each.

    A `DataLoader` takes them with `batch_size=None`: worker w of n gives batches w, w + n, …, so that the loader gives all
    of them in the one order.
    """

    def __init__(
        self, capture: Capture, settings: BatchSettings, selection: Selection, counts: Mapping[int, int]
    ) -> None:
        """`counts`: the number of selected tokens of each block that has some."""
        self.capture, self.settings = capture, settings
        self._selection, self._counts = selection, dict(counts)
        seed = settings.seed if settings.shuffle else None
        blocks, n_tokens = tuple(self._counts), tuple(self._counts.values())
        self.order = Order(blocks, n_tokens, settings.window, seed, settings.rank, settings.ranks)
        self._process = os.getpid()
        super().__init__()
        self._check_memory()

    def __repr__(self) -> str:
        what = ", ".join(f"layer {layer} at {site}" for site, layer in self.settings.places)
        return (
            f"Batches({self.capture.record.name!r}: {what}; {self.n_batches} batches of {self.settings.batch} tokens)"
        )

    def __len__(self) -> int:
        return self.n_batches * self.settings.epochs

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_process": os.getpid()})

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch of this rank."""
        return self.order.n_tokens

    @property
    def width(self) -> int:
        """Neurons of a token: of all layers and sites together."""
        return int(self._reader.starts[-1])

    @property
    def n_batches(self) -> int:
        """Batches of an epoch, of every rank as many."""
        n, size = self.order.n_tokens_of_each, self.settings.batch
        return n // size if self.settings.drop_last else -(-n // size)

    @property
    def label_values(self) -> dict[str, tuple[str, ...]]:
        """Label column → its values, in the order in which batches number them."""
        return {name: label_values(self.capture, name) for name in self.settings.labels}

    @cached_property
    def _reader(self) -> WindowReader:
        return WindowReader(self.capture, self.settings, self._selection, self.order)

    @cached_property
    def _memory(self) -> ArrayPool:
        """Of batches: that which a loop holds, and that which it gets next; the last of a rank may have a token more."""
        return ArrayPool((self.settings.batch + 1, self._reader.starts[-1]), DTYPES[self.settings.dtype], 3)

    @cached_property
    def _window_memory(self) -> ArrayPool:
        """Of windows: that which batches are taken from, that which is read ahead, one of which batches are held."""
        return ArrayPool(self._reader.shape, self._reader.dtype, 3)

    def _check_memory(self) -> None:
        n_windows = 2 if self.settings.threads else 1
        needed, free = n_windows * self._reader.largest_nbytes, psutil.virtual_memory().available
        if needed > free:
            raise InvalidInputError(
                f"Expected {n_windows} × {self.settings.window} blocks to fit into memory, found {needed / 1e9:.1f} GB of "
                f"activations and {free / 1e9:.1f} GB free. Pass a smaller `window`, fewer `layers`, or `threads=0`."
            )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What decides which tokens come in which order."""
        settings = {name: value for name, value in vars(self.settings).items() if name not in _FREELY_CHANGED}
        counts = hashlib.sha256(repr(sorted(self._counts.items())).encode()).hexdigest()
        plan = self.capture.record.plan.fingerprint
        values = settings | {"capture": self.capture.record.name, "plan": plan, "selected tokens": counts}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    # The iteration.

    def __iter__(self) -> Iterator[Batch]:
        worker, n_workers = worker_of_loader()
        first_epoch, first, n = self.epoch, self._first, len(self)
        self._first = 0
        for batch in self.numbered(
            range(first + worker, n, n_workers), first_epoch, first_epoch + self.settings.epochs
        ):
            self._state = batch.state
            yield batch
        self.epoch = first_epoch + self.settings.epochs
        self._state = self._state_at(0)

    def numbered(self, numbers: Iterable[int], first_epoch: int, stop_epoch: int) -> Iterator[Batch]:
        """Batches by number, ascending, counted on over epochs from `first_epoch` on; there are none from `stop_epoch` on."""
        here = self._reopened() if os.getpid() != self._process else self
        with _submitting(self.settings.threads) as submit:
            windows = _Windows(here._reader, here.order, here._window_memory, submit, stop_epoch)
            for number in numbers:
                yield here._finished(here._batch(windows, first_epoch, number))

    def _reopened(self) -> Batches:
        """The same in a process that was forked: locks and connections of the other one are of no use here."""
        if self.capture.folder.storage.concurrency > 1:
            raise InvalidInputError(
                f"Expected a worker that was spawned, found a forked one, which cannot use the connections to "
                f'{self.capture.folder}. Pass `multiprocessing_context="spawn"` to the loader.'
            )
        copy: Batches = pickle.loads(pickle.dumps(self))
        return copy

    def _batch(self, windows: _Windows, first_epoch: int, number: int) -> Batch:
        """The batch of a number."""
        epoch, within = divmod(number, self.n_batches)
        start = within * self.settings.batch
        is_last = within == self.n_batches - 1 and not self.settings.drop_last
        stop = self.n_tokens if is_last else start + self.settings.batch
        pieces = windows.rows(first_epoch + epoch, start, stop)
        state = {"first_epoch": first_epoch, "batch": number + 1, "of": self._identity}
        return self._assembled(pieces, stop - start, first_epoch + epoch, within, state)

    def _assembled(
        self, pieces: Iterator[tuple[Rows, slice]], n: int, epoch: int, number: int, state: dict[str, Any]
    ) -> Batch:
        starts, places = self._reader.starts, self.settings.places
        activations = None
        columns = {name: np.empty(n, dtype) for name, dtype in COLUMNS.items()}
        labels = {name: np.empty(n, np.int32) for name in self.settings.labels}
        at = 0
        for rows, part in pieces:
            to = slice(at, at + part.stop - part.start)
            # Not where the next batch needs another window: a loop still holds this one when its memory is needed for that.
            is_early = part.stop + self.settings.batch <= len(rows.raw)
            if to == slice(0, n) and is_early and self._is_as_stored(rows):
                activations = rows.raw[part]
            else:
                activations = self._empty(n) if activations is None else activations
                self._decode(rows, part, activations, to)
            picked = rows.order[part]
            for mine, others in ((columns, rows.columns), (labels, rows.labels)):
                for name, values in mine.items():
                    np.take(others[name], picked, out=values[to], mode="clip")  # in place, unlike the default mode
            at = to.stop
            del rows  # as above
        spans = {place: (starts[i], starts[i + 1]) for i, place in enumerate(places)}
        places_in: dict[str, Any] = dict(columns)
        return Batch(activations, **places_in, labels=labels, epoch=epoch, number=number, state=state, columns=spans)

    def _is_as_stored(self, rows: Rows) -> bool:
        """Whether the activations of batches are what a window has in memory, where they stand in the order of batches."""
        return rows.decoding.is_plain and rows.raw.dtype == DTYPES[self.settings.dtype]

    def _empty(self, n: int) -> Any:
        """Where the activations of a batch are put."""
        return self._memory.take()[:n]

    def _decode(self, rows: Rows, part: slice, out: Any, to: slice) -> None:
        """Put a part of a window's rows, decoded, into some rows of a batch's activations."""
        decode_rows(rows.raw[part], rows.blocks(part), rows.decoding, out[to])

    def _finished(self, batch: Batch) -> Batch:
        """The batch as it is given out."""
        return batch


class _Windows:
    """The windows that batches are taken from: one in memory, and with threads the next one on its way."""

    def __init__(
        self,
        reader: WindowReader,
        order: Order,
        memory: ArrayPool,
        submit: Callable[..., Future[None]] | None,
        stop_epoch: int,
    ) -> None:
        self._reader, self._order, self._stop_epoch = reader, order, stop_epoch
        self._submit, self._is_ahead = submit or _now, submit is not None
        self._loading: dict[tuple[int, int], Loading] = {}
        self._memory = memory

    def rows(self, epoch: int, start: int, stop: int) -> Iterator[tuple[Rows, slice]]:
        """(rows of a window, which of them) for the tokens `start` to `stop` of an epoch."""
        for window in self._order.windows(epoch):
            begin, end = max(start, window.first), min(stop, window.first + window.n_tokens)
            if begin < end:
                yield self._window(epoch, window), slice(begin - window.first, end - window.first)

    def _window(self, epoch: int, window: Window) -> Rows:
        key, following = (epoch, window.number), self._after(epoch, window)
        for other in [other for other in self._loading if other not in (key, following)]:
            del self._loading[
                other
            ]  # its memory is free when no batch holds a part of it, and nobody fills it any more
        if key not in self._loading:
            self._loading[key] = self._begin(epoch, window)
        rows = self._loading[key].rows()
        if self._is_ahead and following is not None and following not in self._loading:
            next_window = self._order.windows(following[0])[following[1]]
            self._loading[following] = self._begin(following[0], next_window)
        return rows

    def _begin(self, epoch: int, window: Window) -> Loading:
        return self._reader.begin(epoch, window, self._submit, self._memory.take())

    def _after(self, epoch: int, window: Window) -> tuple[int, int] | None:
        if window.number + 1 < len(self._order.windows(epoch)):
            return epoch, window.number + 1
        return (epoch + 1, 0) if epoch + 1 < self._stop_epoch else None


@contextmanager
def _submitting(threads: int) -> Iterator[Callable[..., Future[None]] | None]:
    """What runs functions in some threads, which end with the context; None without threads."""
    if not threads:
        yield None
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="actstore-batches")
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _now(function: Callable[..., None], *arguments: Any) -> Future[None]:
    """Run a function now; its error is raised here."""
    function(*arguments)
    done: Future[None] = Future()
    done.set_result(None)
    return done


def worker_of_loader() -> tuple[int, int]:
    """Which of how many workers of a loader of torch this process is; (0, 1) where it is none."""
    data = sys.modules.get("torch.utils.data")
    info = data and data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
