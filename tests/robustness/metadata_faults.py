"""Damages the metadata of a store in ways that its checksums do not show, and asks every reader: a program of its own.

    python metadata_faults.py STORE SEED FIRST N [--thorough]

Each of N mutations follows from the seed and its number. The last line of output is JSON: what went wrong with which.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import io
import json
import random
import resource
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metadata_mutations import Mutation, mutation
from typer.main import get_command

from actstore import cli
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

HEADROOM = 3 << 30
"""Bytes of address space beyond what the process has once every reader has run."""
RESIDENT = 1 << 30
"""Bytes that it may really take beyond that."""
HANG_S = 10
"""Processor time of all readers together, per mutation."""
STUCK_S = 300
"""Wall time after which the process ends itself: nothing else ends a library that never comes back."""

FREE = {"statistics"}
"""Fields of records that say what is there, so that with less in them less is read."""

RECORDS = {"zarr.json #0", "captures/corpus/zarr.json #0", "captures/corpus/blocks/1.json #0"}
RECORDS |= {"edits/double/edit.json #0", "edits/double/delta.safetensors #0"}
"""Readers that give a record as it is."""

COMMANDS = (
    ("info",), ("verify",), ("stats", "--capture", "CAPTURE"), ("top", "L1.N3", "--capture", "CAPTURE"),
    ("sql", "select sum(id), count(*) from tokens", "--capture", "CAPTURE"),
    ("sql", "select sum(mean), count(*) from neurons", "--capture", "CAPTURE"),
    ("sql", "select * from documents", "--capture", "CAPTURE"), ("edit", "list"), ("graphs", "show", "L0.N1"),
)  # fmt: skip
"""With the capture that a mutation is in."""

CAPTURES = ("corpus", "unfinished", "questions", "images")


def capture_of(key: str) -> str:
    """The capture that a file is in, or else one that all readers know."""
    parts = key.split("/")
    return parts[1] if parts[0] == "captures" and parts[1] in CAPTURES else CAPTURES[0]


COMMAND_LINE = get_command(cli.application())
"""Made once: that takes longer than most commands."""


def run_command(store: Path, command: tuple[str, ...], capture: str) -> str | None:
    """What is wrong with what a command says of a capture; None where nothing is."""
    command = tuple(capture if word == "CAPTURE" else word for word in command)
    out, err = io.StringIO(), io.StringIO()
    at = 2 if command[0] in ("edit", "graphs") else 1
    sys.argv = ["actstore", *command[:at], str(store), *command[at:]]
    with redirect_stdout(out), redirect_stderr(err):
        status = cli._run(COMMAND_LINE)
    said = err.getvalue()
    if status not in (0, 2) and not (status == 1 and command[0] == "verify"):
        return f"status {status}: {said[-300:]}"
    if "Traceback" in said or "enough memory" in said:
        return said[-300:]
    # That a capture is unfinished is said before anything of it is read.
    sentences = [line for line in said.splitlines() if not line.startswith("Warning: ")]
    if status == 2 and not (len(sentences) == 1 and sentences[0].startswith("Error: ") and not out.getvalue()):
        return f"not one sentence: {out.getvalue()[-200:]} {said[-300:]}"
    return None


def damage_tests() -> ModuleType:
    """The module with the readers of damaged files."""
    spec = importlib.util.spec_from_file_location("damaged_files", Path(__file__).with_name("test_damaged_files.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["damaged_files"] = module
    spec.loader.exec_module(module)
    return module


def values_of(name: str, path: Path) -> Any:
    """Every value of a capture's committed blocks."""
    capture = Store(path).capture(name)
    return [capture.block_values(layer, block) for block in capture.blocks for layer in (0, 1)], capture.tokens()


def windows_of(name: str, path: Path) -> Any:
    """Every window of a capture, as it is read and as blocks have it."""
    capture = Store(path).capture(name)
    blocks = [
        (plan.windows, plan.inputs, plan.position, plan.labels) for plan in map(capture.block_plan, capture.blocks)
    ]
    return capture.windows(), blocks


OF_CAPTURES: dict[str, Callable[[str, Path], Any]] = {
    "values": values_of,
    "windows": windows_of,
    "statistics": lambda name, path: [vars(s) for s in Store(path).capture(name).statistics().sites.values()],
    "neurons": lambda name, path: Store(path).neurons(name),
    "exemplars": lambda name, path: Store(path).neuron(1, 3).exemplars(2, name),
    "documents": lambda name, path: Store(path).capture(name).documents(),
}
"""What a capture is read by, whichever it is."""


class Campaign:
    """A store, its readers, and what they say while it is whole."""

    def __init__(self, store: Path, *, thorough: bool) -> None:
        self.store, self.thorough, self.tests = store, thorough, damage_tests()
        self.files = {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}
        self.files = {key: data for key, data in self.files.items() if not key.endswith(".lock")}
        self.readers: list[tuple[str, Callable[[Path], Any]]] = [
            (f"{key} #{i}", reader) for key, readers in self.tests.READERS.items() for i, reader in enumerate(readers)
        ]
        for name in CAPTURES:
            self.readers += [
                (f"captures/{name}/ {what}", partial(reader, name)) for what, reader in OF_CAPTURES.items()
            ]
        self.right = {name: self.tests.plain(reader(store)) for name, reader in self.readers}
        faults = [f for command in COMMANDS for name in CAPTURES if (f := run_command(store, command, name))]
        assert not faults, faults
        assert self.tests.whatever_verify_finds(store) == []

    def chosen(self, rng: random.Random, key: str) -> list[tuple[str, Callable[[Path], Any]]]:
        """All readers, or those of the file, some of those of its capture, and some others."""
        if self.thorough:
            return self.readers
        parts = [f"{key} #", f"captures/{capture_of(key)}/", ""]
        alike = [[one for one in self.readers if one[0].startswith(part)] for part in parts]
        numbers = [len(alike[0]), 5, 2]
        return [
            one for readers, n in zip(alike, numbers, strict=True) for one in rng.sample(readers, min(n, len(readers)))
        ]

    def faults(self, change: Mutation, rng: random.Random) -> list[tuple[str, str]]:
        """(reader, what is wrong) of the store with a mutation in it."""
        found: list[tuple[str, str]] = []
        began, differing = time.process_time(), []
        for key, data in change.files.items():
            (self.store / key).write_bytes(data)
        try:
            for name, reader in self.chosen(rng, change.key):
                try:
                    if self.tests.plain(reader(self.store)) != self.right[name]:
                        differing.append(name)
                except self.tests.REFUSALS as error:
                    if not str(error).strip() or "\n" in str(error):
                        found.append((name, f"not one sentence: {error}"))
                except BaseException as error:
                    found.append((name, f"{type(error).__name__}: {error}"[:300]))
            for command in COMMANDS if self.thorough else rng.sample(COMMANDS, 2):
                try:
                    fault = run_command(self.store, command, capture_of(change.key))
                except BaseException as error:
                    fault = f"{type(error).__name__}: {error}"[:300]
                if fault:
                    found.append((" ".join(command), fault))
            found += self.silent(change, differing)
        finally:
            for key in change.files:
                (self.store / key).write_bytes(self.files[key])
        if (spent := time.process_time() - began) > HANG_S:
            found.append(("all", f"{spent:.0f} s"))
        return found

    def silent(self, change: Mutation, differing: list[str]) -> list[tuple[str, str]]:
        """Readers that said something else, which `verify` does not know of."""
        try:
            verified = self.tests.whatever_verify_finds(self.store)
        except BaseException as error:
            return [("verify", f"{type(error).__name__}: {error}"[:300])]
        if verified or FREE & set(change.field.split("/")):
            return []
        # A shard that decodes to other values, with a commit record that says so, was committed with them.
        if "/c/0/" in change.key and len(change.files) > 1:
            return []
        # A record with another name, and the checksum of that, is another record.
        records = {name for name in differing if name in RECORDS and name.rpartition(" #")[0] in change.files}
        if "edits/double/edit.json" in change.files:
            records |= RECORDS
        wrong = [name for name in differing if name not in records]
        return [(name, "another answer, which verify does not know") for name in wrong]


def main() -> None:
    store, (seed, first, n) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    faulthandler.enable()
    campaign = Campaign(store, thorough="--thorough" in sys.argv)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + HEADROOM, resource.RLIM_INFINITY))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"seed {seed}, mutations {first} to {first + n - 1}", flush=True)
    answers = []
    for number in range(first, first + n):
        faulthandler.dump_traceback_later(STUCK_S, exit=True)
        change = mutation(seed, number, campaign.files)
        print(f"{number}: {change.key}: {change.field}: {change.what}".encode("ascii", "replace").decode(), flush=True)
        found = campaign.faults(change, random.Random(number))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * 1024
        if grown > RESIDENT:
            found.append(("all", f"took {grown:,} bytes more"))
            resident += grown // 1024
        for reader, what in found:
            answers.append(
                {
                    "mutation": number,
                    "key": change.key,
                    "change": f"{change.field}: {change.what}",
                    "reader": reader,
                    "what": what,
                }
            )
            print(f"   {reader}: {what}".encode("ascii", "replace").decode(), flush=True)
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
