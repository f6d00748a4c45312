"""What a part of the benchmark on a GPU measures with: its share of the time, a clock that waits for the device, its rows."""

from __future__ import annotations

import statistics
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_S = 2.0
"""A row is not begun with less of the part's time than this."""


@dataclass
class Part:
    """One part while it runs. Every row is handed to `tell` as soon as it is there."""

    name: str
    tell: Callable[[dict[str, Any]], None]
    budget_s: float
    small: bool = False
    """Tiny inputs, once, on a CPU where there is no GPU: to see whether everything runs."""
    began: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The GPU; the CPU where a small run finds none, and Triton interprets."""
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    @property
    def left_s(self) -> float:
        """Seconds of the part's time that are left."""
        return self.budget_s - (time.monotonic() - self.began)

    def pick(self, usual: int, small: int) -> int:
        """A size: `small` in a small run."""
        return small if self.small else usual

    def row(self, name: str, **figures: Any) -> None:
        """Tell of a row."""
        self.tell({"part": self.name, "name": name, **figures})

    def measure(
        self,
        name: str,
        call: Callable[[], object],
        *,
        nbytes: int = 0,
        flops: int = 0,
        check: Callable[[], bool] | None = None,
        repeats: int = 7,
        **figures: Any,
    ) -> float | None:
        """The median of the seconds that `call` takes on the device, told as a row; None where it fails, or time is up.

        nbytes: what it must read and write; flops: what it must multiply and add. check: whether its result is right.
        """
        if self.left_s < LEAST_S:
            self.row(name, skipped="no time was left")
            return None
        try:
            is_right = None if check is None else bool(check())
            seconds = self.seconds(call, 1 if self.small else repeats)
        except Exception as error:
            self.fail(name, error)
            return None
        median = statistics.median(seconds)
        figures |= {"nbytes": nbytes} if nbytes else {}
        figures |= {"flops": flops} if flops else {}
        figures |= {"right": is_right} if is_right is not None else {}
        self.row(name, median_s=median, min_s=min(seconds), max_s=max(seconds), repeats=len(seconds), **figures)
        return median

    def fail(self, name: str, error: BaseException) -> None:
        """Tell that a row could not be measured."""
        self.row(name, error=f"{type(error).__name__}: {error}"[:600], trace=traceback.format_exc()[-1500:])
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, call: Callable[[], object], repeats: int) -> list[float]:
        """What each repeat takes, after two that are not timed: the first compiles. On a CPU nothing is to be compiled."""
        if self.device.type != "cuda":
            return [_elapsed(call) for _ in range(repeats)]
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        events: Any = torch.cuda.Event
        marks = []
        for _ in range(repeats):
            marks.append((events(enable_timing=True), events(enable_timing=True)))
            marks[-1][0].record()
            call()
            marks[-1][1].record()
        torch.cuda.synchronize()
        return [first.elapsed_time(last) / 1e3 for first, last in marks]

    def wall_seconds(self, call: Callable[[], object], repeats: int) -> list[float]:
        """As `seconds`, until the host and the device are both done; after one that is not timed, but in a small run."""

        def whole() -> None:
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        if not self.small:
            whole()
        return [_elapsed(whole) for _ in range(repeats)]


def _elapsed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
