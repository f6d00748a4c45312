"""Functions that executors run in other processes: found by the module's name."""

from __future__ import annotations

import os
import signal
import time


def square(number: int) -> int:
    """The square; of a number below 0 a ValueError."""
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return number * number


def process_of(number: int) -> int:
    """Which process it is."""
    return os.getpid()


def die_once(number: int) -> int:
    """The process that is first to come to item 1 is killed; the next gives the square."""
    begun = os.environ["WORKER_TEST_TOLD"] + " begun"
    if number == 1 and not os.path.exists(begun):
        open(begun, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die(number: int) -> int:
    """The process of item 1 is killed once that of item 0 has begun, which waits until it is told to end."""
    begun = os.environ["WORKER_TEST_TOLD"] + " begun"
    if number == 1:
        while not os.path.exists(begun):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        open(begun, "w").close()
        for _ in range(600):
            time.sleep(0.1)
    except KeyboardInterrupt:
        open(os.environ["WORKER_TEST_TOLD"], "w").close()
        raise
    return number


def end_oneself(number: int) -> int:
    """The process of item 1 is told to end as schedulers tell, twice."""
    if number == 1:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            raise
    return number


def variable(name: str) -> str | None:
    """A variable of the environment."""
    return os.environ.get(name)


class Counting:
    """How often this copy has been called."""

    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self, item: object) -> int:
        self.n_calls += 1
        return self.n_calls
