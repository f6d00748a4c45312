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


def die(number: int) -> int:
    """A process that is killed by its second item, number 1; others wait until they are told to end."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        open(os.environ["WORKER_TEST_TOLD"], "w").close()
        raise
    return number
