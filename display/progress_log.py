"""Progress as plain lines, for where no terminal shows a bar, such as a log file or a batch system.

One line every half minute, the first only after that, so that short work prints nothing.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

INTERVAL_S = 30.0
"""Seconds from one line to the next."""


class ProgressLog:
    """Prints a line every `INTERVAL_S`; as a context manager, from a thread of its own until the end of the context."""

    def __init__(
        self, say: Callable[[str], None], *, enabled: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`say` takes a line; `clock` gives seconds."""
        self._say, self._clock, self._enabled = say, clock, enabled
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.begin("working")

    def begin(self, what: str, unit: str = "", done: float = 0, total: float | None = None) -> None:
        """A stage begins: `what` is done to things called `unit`, of which `done` were finished before."""
        self._what, self._unit, self._began_s = what, unit, self._clock()
        self._first = self._done = done
        self._total = total

    def update(self, done: float, total: float | None = None, what: str | None = None) -> None:
        """Set the number done, and the total where it is known. Fewer than before: the stage begins anew."""
        if done < self._done:
            self.begin(self._what, self._unit, done)
        self._done, self._total, self._what = done, total, what or self._what

    def advance(self, n: float) -> None:
        """Add to the number done."""
        self._done += n

    def line(self) -> str:
        """The line as of now."""
        elapsed_s = max(self._clock() - self._began_s, 0.0)
        done, total = self._done, self._total
        if not self._unit or (total is None and done == self._first):
            return f"{self._what or self._unit}: {duration(elapsed_s)} so far."
        counted = f"{done:,.0f}" if total is None else f"{done:,.0f} of {total:,.0f}"
        parts = [f"{counted} {self._unit}" + (f" ({100 * done / total:.0f} %)" if total else "")]
        rate = (done - self._first) / elapsed_s if elapsed_s > 0 else 0.0
        if rate > 0:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
            parts += [f"about {duration((total - done) / rate)} left"] if total is not None else []
        return f"{self._what}: {', '.join(parts)}.".removeprefix(": ")

    def tick(self) -> None:
        """Print the line."""
        self._say(self.line())

    def __enter__(self) -> ProgressLog:
        if self._enabled:
            self._thread = threading.Thread(target=self._run, name="actstore-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            self.tick()


def duration(seconds: float) -> str:
    """A time as one number: "45 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
