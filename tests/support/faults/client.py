"""The other side of `server`: jobs in, how they ended out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from faults import shim

if TYPE_CHECKING:
    from collections.abc import Sequence

SUPPORT = Path(__file__).parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "NO_COLOR": "1", "COLUMNS": "200",
}  # fmt: skip
"""No threads before the fork, no network, plain output."""


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int | None
    signal: int | None
    late: bool
    seconds: float
    cpu_s: float
    out: str
    err: str
    result: Any
    counts: dict[str, int]
    happened: bool
    """Whether the fault was reached; of a killed process not known, and False."""


class Server:
    """A warm process with the shim preloaded; leave the context to end it."""

    def __init__(self, folder: Path) -> None:
        """Build the shim in `folder`, and start; `folder` also takes what children print."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
        library = {"LD_PRELOAD": str(shim.build(folder)), "PYTHONPATH": path}
        self.errors = tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115 - closed with the server
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faults.server"], env=os.environ | ENVIRONMENT | library, cwd=folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, bufsize=1,
        )  # fmt: skip
        self.numbers = itertools.count()
        self.outputs: dict[int, Path] = {}
        self.ended: dict[int, Ended] = {}
        self._line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)
        self.errors.close()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"the fork server ended: {self.errors.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def warm(self, models: Sequence[Path]) -> None:
        """Let the server do at once what each child would do before a command on one of these models; none may run."""
        assert self.process.stdin is not None
        assert not self.outputs
        self.process.stdin.write(json.dumps({"warm": [str(model) for model in models]}) + "\n")
        self.process.stdin.flush()
        threads = self._line()["threads"]
        if len(threads) > 1:
            raise RuntimeError(f"the fork server has threads of which children have none but the first: {threads}")

    def start(
        self,
        call: str,
        *arguments: Any,
        folder: Path | None = None,
        fault: shim.Fault | None = None,
        journal: Path | None = None,
        timeout_s: float = 60,
        memory: int = 0,
    ) -> int:
        """A number to `wait` for; the function's arguments must survive JSON."""
        number = next(self.numbers)
        self.outputs[number] = self.folder / f"job-{number % 64}"
        for suffix in (".out", ".err", ".counts", ".result"):
            Path(f"{self.outputs[number]}{suffix}").unlink(missing_ok=True)
        job = {
            "id": number, "call": call, "arguments": arguments, "folder": folder and str(folder),
            "fault": fault and dataclasses.asdict(fault), "journal": journal and str(journal),
            "output": str(self.outputs[number]), "timeout_s": timeout_s, "memory": memory,
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return number

    def wait(self, number: int) -> Ended:
        """How a job ended."""
        while number not in self.ended:
            answer = self._line()
            other = answer.pop("id")
            self.ended[other] = self._collect(self.outputs.pop(other), answer)
        return self.ended.pop(number)

    def run(self, call: str, *arguments: Any, **how: Any) -> Ended:
        """Start and wait."""
        return self.wait(self.start(call, *arguments, **how))

    def cli(self, argv: Sequence[object], **how: Any) -> Ended:
        """Run a command line."""
        return self.run("faults.observing:command_line", [str(word) for word in argv], **how)

    def _collect(self, output: Path, answer: dict[str, Any]) -> Ended:
        def text(suffix: str) -> str:
            path = Path(f"{output}{suffix}")
            return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

        counts = json.loads(text(".counts") or "null")
        result = Path(f"{output}.result")
        data = pickle.loads(result.read_bytes()) if result.is_file() else None
        number_of, happened = counts or ({}, False)
        return Ended(**answer, out=text(".out"), err=text(".err"), result=data, counts=number_of, happened=happened)
