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
from actstore.store.batches.order import Order
from actstore.store.batches.settings import DTYPES
from actstore.store.batches.window import COLUMNS, WindowReader, label_values
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from actstore.store.batches.order import Window
    from actstore.store.batches.selection import Selection
    from actstore.store.batches.settings import BatchSettings
    from actstore.store.batches.window import Loading, Rows
    from actstore.store.capture.reader import Capture

_FREELY_CHANGED = ("rank", "dtype", "normalize", "threads", "labels", "epochs")
"""Settings that may differ when batches are resumed: tokens and their order stay what they were."""


class Batches:
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
        self.epoch = 0
        """The epoch that the next iteration begins with."""
        self._first, self._process = 0, os.getpid()
        self._state = self._state_at(0)
        self._check_memory()

    def __repr__(self) -> str:
        what = ", ".join(f"layer {layer} at {site}" for site, layer in self.settings.places)
        return (
            f"Batches({self.capture.record.name!r}: {what}; {self.n_batches} batches of {self.settings.batch} tokens)"
        )

    def __len__(self) -> int:
        return self.n_batches * self.settings.epochs

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_process": os.getpid()})

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch of this rank."""
        return self.order.n_tokens

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

    def _check_memory(self) -> None:
        n_windows = 2 if self.settings.threads else 1
        needed, free = n_windows * self._reader.largest_nbytes, psutil.virtual_memory().available
        if needed > free:
            raise InvalidInputError(
                f"Expected {n_windows} × {self.settings.window} blocks to fit into memory, found {needed / 1e9:.1f} GB of "
                f"activations and {free / 1e9:.1f} GB free. Pass a smaller `window`, fewer `layers`, or `threads=0`."
            )

    # Where an iteration is.

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with `epoch`: for loaders whose workers do not stay, and so do not count epochs."""
        if not 0 <= epoch < 1 << 31:
            raise InvalidInputError(f"Expected `epoch` to be between 0 and 2³¹ - 1, found {epoch}.")
        self.epoch, self._first = epoch, 0
        self._state = self._state_at(0)

    def state_dict(self) -> dict[str, Any]:
        """Where the latest iteration of this process is. Beside the workers of a loader, a batch's own `state` says it."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next iteration where `state` says; `InvalidInputError` where it is one of other tokens or another order."""
        mine = self._state_at(0)
        for name, value in mine["of"].items():
            found = state.get("of", {}).get(name)
            if found != value:
                raise InvalidInputError(
                    f"Expected a state of these batches, found one of other batches: its {name} is {found!r}, here {value!r}. "
                    "Make the batches with the settings that the state was made with."
                )
        self.epoch, self._first = int(state["first_epoch"]), int(state["batch"])
        self._state = self._state_at(self._first)

    def _state_at(self, n_taken: int) -> dict[str, Any]:
        return {"first_epoch": self.epoch, "batch": n_taken, "of": self._identity}

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
        worker, n_workers = _worker()
        here = self._reopened() if os.getpid() != self._process else self
        first_epoch, first, n = self.epoch, self._first, len(self)
        self._first = 0
        for number in here._numbered(first_epoch, range(first + worker, n, n_workers)):
            batch = here._finished(number)
            self._state = batch.state
            yield batch
        self.epoch = first_epoch + self.settings.epochs
        self._state = self._state_at(0)

    def _reopened(self) -> Batches:
        """The same in a process that was forked: locks and connections of the other one are of no use here."""
        if self.capture.folder.storage.concurrency > 1:
            raise InvalidInputError(
                f"Expected a worker that was spawned, found a forked one, which cannot use the connections to "
                f'{self.capture.folder}. Pass `multiprocessing_context="spawn"` to the loader.'
            )
        copy: Batches = pickle.loads(pickle.dumps(self))
        return copy

    def _numbered(self, first_epoch: int, numbers: range) -> Iterator[Batch]:
        """Batches by number, counted on over epochs."""
        settings = self.settings
        with _submitting(settings.threads) as submit:
            windows = _Windows(self._reader, self.order, submit, first_epoch + settings.epochs)
            for number in numbers:
                epoch, within = divmod(number, self.n_batches)
                start = within * settings.batch
                is_last = within == self.n_batches - 1 and not settings.drop_last
                stop = self.n_tokens if is_last else start + settings.batch
                pieces = windows.rows(first_epoch + epoch, start, stop)
                state = {"first_epoch": first_epoch, "batch": number + 1, "of": self._identity}
                yield self._assembled(pieces, stop - start, first_epoch + epoch, within, state)

    def _assembled(
        self, pieces: Iterator[tuple[Rows, slice]], n: int, epoch: int, number: int, state: dict[str, Any]
    ) -> Batch:
        starts, places = self._reader.starts, self.settings.places
        activations = self._empty((n, starts[-1]))
        columns = {name: np.empty(n, dtype) for name, dtype in COLUMNS.items()}
        labels = {name: np.empty(n, np.int32) for name in self.settings.labels}
        at = 0
        for rows, part in pieces:
            to = slice(at, at + part.stop - part.start)
            self._decode(rows, part, activations, to)
            for mine, others in ((columns, rows.columns), (labels, rows.labels)):
                for name, values in mine.items():
                    values[to] = others[name][part]
            at = to.stop
        spans = {place: (starts[i], starts[i + 1]) for i, place in enumerate(places)}
        return Batch(activations, **columns, labels=labels, epoch=epoch, number=number, state=state, columns=spans)

    def _empty(self, shape: tuple[int, int]) -> Any:
        """Where the activations of a batch are put."""
        return np.empty(shape, DTYPES[self.settings.dtype])

    def _decode(self, rows: Rows, part: slice, out: Any, to: slice) -> None:
        """Put a part of a window's rows, decoded, into some rows of a batch's activations."""
        decode_rows(rows.raw[part], rows.block[part], rows.decoding, out[to])

    def _finished(self, batch: Batch) -> Batch:
        """The batch as it is given out."""
        return batch


class _Windows:
    """The windows that batches are taken from: one in memory, and with threads the next one on its way."""

    def __init__(
        self, reader: WindowReader, order: Order, submit: Callable[..., Future[None]] | None, stop_epoch: int
    ) -> None:
        self._reader, self._order, self._stop_epoch = reader, order, stop_epoch
        self._submit, self._is_ahead = submit or _now, submit is not None
        self._loading: dict[tuple[int, int], Loading] = {}
        self._free: list[NDArray[Any]] = []
        """Memory of windows that are done with: the system takes as long to give new memory as a block takes to be read."""

    def rows(self, epoch: int, start: int, stop: int) -> Iterator[tuple[Rows, slice]]:
        """(rows of a window, which of them) for the tokens `start` to `stop` of an epoch."""
        for window in self._order.windows(epoch):
            begin, end = max(start, window.first), min(stop, window.first + window.n_tokens)
            if begin < end:
                rows = self._window(epoch, window)
                yield rows, slice(begin - window.first, end - window.first)

    def _window(self, epoch: int, window: Window) -> Rows:
        key, following = (epoch, window.number), self._after(epoch, window)
        for other in [other for other in self._loading if other not in (key, following)]:
            loading = self._loading.pop(other)
            if loading.is_read:  # by batches, which are copies; what is still being filled is left alone
                self._free.append(loading.memory)
        if key not in self._loading:
            self._loading[key] = self._begin(epoch, window)
        rows = self._loading[key].rows()
        if self._is_ahead and following is not None and following not in self._loading:
            next_window = self._order.windows(following[0])[following[1]]
            self._loading[following] = self._begin(following[0], next_window)
        return rows

    def _begin(self, epoch: int, window: Window) -> Loading:
        return self._reader.begin(epoch, window, self._submit, self._free.pop() if self._free else None)

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


def _worker() -> tuple[int, int]:
    """Which of how many workers of a loader of torch this process is; (0, 1) where it is none."""
    data = sys.modules.get("torch.utils.data")
    info = data and data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
