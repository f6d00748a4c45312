"""Instructions that a candidate executes, as Linux's `perf stat` counts them where the processor has a counter for them.

A time changes with whatever else the machine does; the number of instructions hardly does, and so shows small changes of the
code. It is no time: instructions take more or less of it. None are counted where there is no `perf`, or no counter, as in most
virtual machines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT: Final = "instructions:u"
"""Of the program, without the kernel's."""


def count_instructions(run: Callable[[], object], event: str = EVENT) -> int | None:
    """How often `event` happens in all threads of this process while `run` runs, and in processes that it starts."""
    perf = shutil.which("perf")
    if perf is None:
        return None
    control_ours, control_theirs, answers_ours, answers_theirs = _pipes()
    with tempfile.NamedTemporaryFile("r") as counted:
        command = [
            perf, "stat", "--event", event, "--field-separator", ";", "--output", counted.name, "--delay", "-1",
            "--control", f"fd:{control_theirs},{answers_theirs}", "--pid", str(os.getpid()),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, pass_fds=(control_theirs, answers_theirs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(control_theirs)
        os.close(answers_theirs)
        try:
            if not _tell(control_ours, answers_ours, b"enable\n"):
                return None
            run()
            _tell(control_ours, answers_ours, b"disable\n")
        finally:
            process.send_signal(signal.SIGINT)  # how perf is told to write what it counted
            process.wait()
            os.close(control_ours)
            os.close(answers_ours)
        return _counted(counted.read())


@cache
def has_counter() -> bool:
    """Whether this machine counts instructions."""
    return count_instructions(lambda: None) is not None


def _pipes() -> tuple[int, int, int, int]:
    theirs_control, ours_control = os.pipe()
    ours_answers, theirs_answers = os.pipe()
    return ours_control, theirs_control, ours_answers, theirs_answers


def _tell(control: int, answers: int, what: bytes) -> bool:
    """Give perf an order; whether it obeyed, which it does not once it has ended."""
    with suppress(BrokenPipeError):
        os.write(control, what)
        return os.read(answers, 16).startswith(b"ack")
    return False


def _counted(written: str) -> int | None:
    """The number in the line that perf writes, `number;unit;event;…`; None where it says that nothing was counted."""
    for line in written.splitlines():
        number = line.split(";")[0]
        if ";" in line and number.isdigit():
            return int(number)
    return None
