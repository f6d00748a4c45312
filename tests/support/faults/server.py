"""A warm process, with everything imported, that runs functions in forked children: an import of torch costs more than a run.

Run as a program, with the shim preloaded. Each line of standard input is a job; each line of standard output says how one
ended. {"warm": [...]} is done here, see `warming`. Any other: {"id", "call": "module:function", "arguments": [...], "folder",
"fault": {...} or null, "journal", "output", "timeout_s", "memory"}. Standard output and error of a child are in OUTPUT.out and
OUTPUT.err, what the function gave, pickled, in OUTPUT.result, the calls counted in OUTPUT.counts.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pickle
import resource
import selectors
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from faults import shim
from faults.warming import warm

IMPORTS = (
    "numba", "torch", "transformers", "safetensors.torch", "duckdb", "pyarrow.parquet", "zarr", "tokenizers", "actstore.cli",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "actstore.engine.capture.api", "actstore.engine.capture.corpus_run", "actstore.engine.attribution.attribute",
    "actstore.engine.filling.api",
    "actstore.engine.graphs.build", "actstore.engine.graphs.probes.run", "actstore.engine.edit", "actstore.engine.models.load",
    "actstore.engine.contributions.next_tokens", "actstore.store.verify", "actstore.store.exports.export", "faults.observing",
)  # fmt: skip


class Child:
    """A forked process: its job, when it must have ended, a descriptor that is readable once it has."""

    def __init__(self, job: dict[str, Any], pid: int) -> None:
        self.job, self.pid = job, pid
        self.began = time.monotonic()
        self.descriptor = os.pidfd_open(pid)
        self.late = False

    def report(self) -> dict[str, Any]:
        """How it ended."""
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.descriptor)
        return {
            "id": self.job["id"],
            "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "late": self.late,
            "seconds": time.monotonic() - self.began,
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }


def run_job(job: dict[str, Any]) -> int:
    """The exit status of a job, run in this process."""
    output = Path(job["output"])
    for number, suffix in ((1, ".out"), (2, ".err")):
        descriptor = os.open(f"{output}{suffix}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
    module, _, name = job["call"].partition(":")
    function = getattr(importlib.import_module(module), name)
    if job.get("memory"):
        limit = sum(int(part) for part in Path("/proc/self/statm").read_text().split()[:1]) * 4096 + job["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if job.get("fault") is not None:
        fault = job["fault"] | {"classes": tuple(job["fault"]["classes"])}
        shim.arm(Path(job["folder"]), shim.Fault(**fault), job.get("journal") and Path(job["journal"]))
    status, result = 0, None
    try:
        result = function(*job["arguments"])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 70
    counts = shim.disarm() if job.get("fault") is not None else None
    sys.stdout.flush()
    sys.stderr.flush()
    Path(f"{output}.counts").write_text(json.dumps(counts))
    Path(f"{output}.result").write_bytes(pickle.dumps(result))
    return status


def start(job: dict[str, Any]) -> Child:
    """Fork a child that runs the job and ends."""
    pid = os.fork()
    if pid:
        return Child(job, pid)
    status = 71
    try:
        os.setsid()
        status = run_job(job)
    finally:
        os._exit(status)


def main() -> None:
    """Serve until standard input ends."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child that collects would copy every page of the libraries' objects
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print(json.dumps({"ready": os.getpid()}), file=answers)
    waiting = selectors.DefaultSelector()
    waiting.register(0, selectors.EVENT_READ)
    children: dict[int, Child] = {}
    buffer = b""
    while True:
        for key, _ in waiting.select(0.2 if children else None):
            if key.fd in children:
                waiting.unregister(key.fd)
                print(json.dumps(children.pop(key.fd).report()), file=answers)
                continue
            data = os.read(0, 1 << 20)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                job = json.loads(line)
                if "warm" in job:
                    warm(job["warm"])
                    gc.freeze()
                    print(json.dumps({"threads": [thread.name for thread in threading.enumerate()]}), file=answers)
                    continue
                child = start(job)
                children[child.descriptor] = child
                waiting.register(child.descriptor, selectors.EVENT_READ)
        for child in children.values():
            if not child.late and time.monotonic() - child.began > child.job["timeout_s"]:
                child.late = True
                os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
