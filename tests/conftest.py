"""Models and corpora made on the spot: tiny, random, real in every other respect; and the command line on them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import typer

if not torch.cuda.is_available():  # Triton decides when it is first imported, by transformers or by a kernel
    os.environ["TRITON_INTERPRET"] = "1"

from chromium import chromium
from explored import once_each
from hypothesis import HealthCheck, settings
from interpreter import patch_once_per_launch
from recorded_disk import RecordedDisk
from rich.measure import Measurement
from server_fixtures import s3, s3_location, s3_server
from stub_gpu import launches
from tiny_text import make_texts, save_llama, save_tokenizer

from actstore.engine.models import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rich.table import Table

__all__ = ["chromium", "launches", "s3", "s3_location", "s3_server"]

EXPLORE, FSYNC = load._explore, os.fsync

# How fast examples are made says more about what else the machine does than about the code.
settings.register_profile("actstore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("actstore")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for one another make these tiny products a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def threads_are_left(one_thread: None) -> Iterator[None]:
    """What one test sets must not decide the bits of what the next computes."""
    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """No power is cut in these tests, and a small capture would wait a second for its 350 syncs; `waits_for_the_disk` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", _look_only)
        yield


def _look_only(descriptor: int) -> None:
    os.fstat(descriptor)  # `OSError` where it is no open file, as of the sync


@pytest.fixture(scope="session", autouse=True)
def commands_built_once() -> Iterator[None]:
    """All commands with their options, which Typer builds for every command line: in a quarter of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def patched_once() -> Iterator[None]:
    """As `patch_once_per_launch`, for kernels without a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch_once_per_launch(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def explored_once() -> Iterator[None]:
    """The walk over a model without its weights, two in every capture, is made once per class and configuration.

    tests/engine/models, where walks are tested, makes each.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_explore", once_each(EXPLORE))
        yield


@pytest.fixture
def explores_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every walk is made."""
    monkeypatch.setattr(load, "_explore", EXPLORE)


@pytest.fixture
def waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own sync."""
    monkeypatch.setattr(os, "fsync", FSYNC)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: two layers, 24 neurons each, context 64, its own tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    save_llama(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 labelled documents as JSON lines, about 6,000 tokens."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [{"text": text, "language": ["en", "fr", "py"][i % 3]} for i, text in enumerate(make_texts(120))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Result(NamedTuple):
    """What a command line left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


@pytest.fixture
def recorded_disk(waits_for_the_disk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedDisk:
    """What this process asks of the disk from here on; looked at below `tmp_path`."""
    return RecordedDisk(tmp_path, monkeypatch)


@pytest.fixture
def table_widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every table that a command makes, the width that its longest line needs."""
    from actstore.display import terminal

    widths: list[int] = []
    make, console = terminal.table, terminal.Screen(width=1 << 16)

    def record(*arguments: Any) -> Table:
        made = make(*arguments)
        widths.append(Measurement.get(console, console.options, made).maximum)
        return made

    monkeypatch.setattr(terminal, "table", record)
    return widths


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table_widths: list[int]
) -> Callable[..., Result]:
    """Run one command line in this process. The tests of a command override it by its `partial` with the command's name.

    Every table fits into 120 columns but those of `sql`, whose columns are the user's.
    """
    from actstore import cli as command_line
    from actstore.display import progress_log

    # However busy the machine is, what a command says does not depend on how long it took.
    monkeypatch.setattr(progress_log, "INTERVAL_S", 1e6)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["actstore", *map(str, arguments)])
        capsys.readouterr()
        table_widths.clear()
        status = command_line._run(command_line.application())
        assert arguments[0] == "sql" or max(table_widths, default=0) <= 120, arguments
        out, err = capsys.readouterr()
        # In a process of its own, the program switches the library's bars off before importing it.
        return Result(status, out, re.sub(r"[^\n]*Loading weights[^\n]*\n?", "", err))

    return run


@pytest.fixture
def refused(cli: Callable[..., Result]) -> Callable[..., str]:
    """The one sentence with which a command line is refused."""

    def run(*arguments: object) -> str:
        done = cli(*arguments)
        assert (done.status, done.out) == (2, ""), done
        assert done.err.startswith("Error: ")
        assert done.err.count("\n") == 1
        return done.err.removeprefix("Error: ").rstrip("\n")

    return run


LAUNCH = """
import json, sys

modules, lines = json.loads(sys.argv[1])

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in modules:
            raise ImportError(f"{name} is not for readers")

sys.meta_path.insert(0, Blocked())
from actstore import cli

for line in lines:
    sys.argv = ["actstore", *line]
    status = cli._run(cli.application())
    if status:
        sys.exit(f"{line} ended with status {status}")
"""


@pytest.fixture
def run_without(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run command lines in one process, in `tmp_path`, that cannot import the modules named; the first that fails ends it."""

    def run(modules: Sequence[str], *lines: Sequence[object]) -> subprocess.CompletedProcess[str]:
        given = json.dumps([modules, [[str(word) for word in line] for line in lines]])
        # Not in the checkout, where the folder kernels/ would be a top-level module.
        return subprocess.run(
            [sys.executable, "-c", LAUNCH, given], capture_output=True, text=True, cwd=tmp_path, check=False
        )

    return run
