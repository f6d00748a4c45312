"""Files put in another's place, taken from another store or an older version, damaged in part: every reader, and `verify`.

A reader gives what was written, or refuses; `verify` says so. A block without its commit record is not committed: readers
then give the others, and `verify` misses it.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from faults.campaigns import Result, Say, numbered
from faults.oracle import MEMORY, Failures, Observation, describe, judge_end, prune
from faults.scenarios import files_of

if TYPE_CHECKING:
    from faults.oracle import Oracle

CLASSES: dict[str, str] = {
    "values": r"captures/.*/values/.*/c/0/\d+",
    "gate signs": r"captures/.*/gate_sign/.*/c/0/\d+",
    "scales": r"captures/.*/scale/.*/c/0/\d+",
    "thresholds": r"captures/.*/(threshold|dropped)/.*/c/0/\d+",
    "plan chunks": r"captures/.*/(inputs|tokens)/.*/c/\d+",
    "statistics chunks": r"captures/.*/statistics/.*/c/.*",
    "array metadata": r"captures/.*/(values|gate_sign|scale|tokens|inputs|statistics)/.*/zarr.json",
    "commit records": r"captures/.*/blocks/\d+.json",
    "block statistics": r"captures/.*/blocks/.*.statistics.safetensors.zst",
    "bundles": r"captures/.*/bundles/\d+",
    "block answers": r"captures/.*/blocks/.*.answers.parquet",
    "capture records": r"captures/[^/]*/zarr.json",
    "tables": r"captures/[^/]*/[^/]*.parquet",
    "root record": r"zarr.json",
    "root tables": r"neurons.parquet",
    "tokenizer": r"tokenizer/.*",
    "weights": r"weights/.*",
    "graphs": r"graphs/.*",
    "index files": r"(captures|graphs|edits).json|captures/[^/]*/committed.json",
    "numerics": r"captures/[^/]*/numerics.json",
    "edits": r"edits/.*",
}
"""Classes of files → what their keys look like."""

FOLDERS = {
    "capture": r"captures/[^/]*",
    "plan": r"captures/[^/]*/(inputs|tokens)",
    "layer": r"captures/[^/]*/(values|gate_sign|scale)/.*?\d+",
    "blocks": r"captures/[^/]*/blocks",
    "statistics": r"captures/[^/]*/statistics/[^/]*",
    "graphs": r"graphs/[^/]*",
    "edit": r"edits/[^/]*",
    "weights": r"weights",
    "tokenizer": r"tokenizer",
}
"""Folders that are put in another's place whole."""

PAGE = 4096


@dataclass(frozen=True)
class Sources:
    """Stores: the one that is damaged, one of another model, and one of the same model with other texts, as the same names."""

    store: Path
    foreign: Path
    older: Path


Tamper = Callable[[random.Random, Path, str, Sources], str | None]
"""(chance, work, key, sources) → what was done to the file, None where it cannot be done to this one."""


def _edit_bytes(change: Callable[[random.Random, bytes], bytes | None]) -> Tamper:
    def tamper(chance: random.Random, store: Path, key: str, sources: Sources) -> str | None:
        before = (store / key).read_bytes()
        after = change(chance, before)
        if after is None or after == before:
            return None
        (store / key).write_bytes(after)
        return key

    return tamper


def _flip(chance: random.Random, data: bytes) -> bytes | None:
    if not data:
        return None
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def _zero_page(chance: random.Random, data: bytes) -> bytes:
    at = PAGE * chance.randrange(-(-len(data) // PAGE) or 1)
    return data[:at] + bytes(len(data[at : at + PAGE])) + data[at + PAGE :]


def _replace_from(place: str) -> Tamper:
    """The same key of another store."""

    def tamper(chance: random.Random, store: Path, key: str, sources: Sources) -> str | None:
        other = getattr(sources, place) / key
        if not other.is_file() or other.read_bytes() == (store / key).read_bytes():
            return None
        shutil.copyfile(other, store / key)
        return f"{key} of the {place} store"

    return tamper


def _siblings(store: Path, key: str) -> list[str]:
    """Other files of the same class and end, such as the same table of another capture, or another block."""
    pattern = next(pattern for pattern in CLASSES.values() if re.fullmatch(pattern, key))
    data = (store / key).read_bytes()
    keys = [other for other, _ in files_of(store) if re.fullmatch(pattern, other) and other != key]
    return [other for other in keys if (store / other).read_bytes() != data and Path(other).suffix == Path(key).suffix]


def _duplicate(chance: random.Random, store: Path, key: str, sources: Sources) -> str | None:
    others = _siblings(store, key)
    if not others:
        return None
    other = chance.choice(others)
    shutil.copyfile(store / other, store / key)
    return f"{other} copied to {key}"


def _swap(chance: random.Random, store: Path, key: str, sources: Sources) -> str | None:
    others = _siblings(store, key)
    if not others:
        return None
    other = chance.choice(others)
    one, two = (store / key).read_bytes(), (store / other).read_bytes()
    (store / key).write_bytes(two)
    (store / other).write_bytes(one)
    return f"{key} and {other} swapped"


def _remove(chance: random.Random, store: Path, key: str, sources: Sources) -> str | None:
    (store / key).unlink()
    return f"{key} removed"


KINDS: dict[str, Tamper] = {
    "a flipped bit": _edit_bytes(_flip),
    "a zeroed page": _edit_bytes(_zero_page),
    "cut": _edit_bytes(lambda chance, data: data[: chance.randrange(len(data))] if data else None),
    "extended": _edit_bytes(lambda chance, data: data + chance.randbytes(chance.choice((1, 8, 500)))),
    "emptied": _edit_bytes(lambda chance, data: b""),
    "removed": _remove,
    "copied over": _duplicate,
    "swapped": _swap,
    "of another model's store": _replace_from("foreign"),
    "of an older version": _replace_from("older"),
}


def _replace_folder(place: str, kind: str) -> Callable[[random.Random, Path, Sources], str | None]:
    """A folder of another store, or of this one, in a folder's place."""

    def tamper(chance: random.Random, store: Path, sources: Sources) -> str | None:
        keys = sorted({match[0] for key, _ in files_of(store) if (match := re.match(f"{FOLDERS[kind]}(?=/)", key))})
        target = chance.choice(keys)
        origin: Path = store if place == "store" else getattr(sources, place)
        others = sorted({match[0] for key, _ in files_of(origin) if (match := re.match(f"{FOLDERS[kind]}(?=/)", key))})
        others = [key for key in others if (key != target if place == "store" else key == target)]
        if not others:
            return None
        source = chance.choice(others)
        shutil.rmtree(store / target)
        shutil.copytree(origin / source, store / target)
        return f"{source} of the {place} store at {target}"

    return tamper


FOLDER_KINDS = {
    f"{kind} folder of {place}": _replace_folder(place, kind)
    for kind in FOLDERS
    for place in ("store", "foreign", "older")
    if not (place == "store" and kind in ("weights", "tokenizer"))
}
ALL_KINDS = [(f"{name}, {kind}", kind, name) for kind in KINDS for name in CLASSES]


def tamper_with(
    oracle: Oracle, n: int, seed: int, *, only: int | None = None, say: Say = print, state: str = "rich"
) -> Result:
    """Every kind of tampering with every class of file in turn, then whole folders; all readers are asked each time."""
    result = Result("tampering", n, seed)
    for tampered in damaged_stores(oracle, result, state, only):
        kind = tampered.kind
        is_damage = kind[-1] != "commit records" or "removed" not in kind
        outcome, failures = tampered.expected.judge(tampered.work / "store", is_damage=is_damage)
        result.add(tampered.case, outcome, failures)
        for of, detail in failures:
            say(f"tampering: {tampered.case}: {of}: {describe(detail)}")
    return result


@dataclass(frozen=True)
class Tampered:
    """A case of a campaign: a store of which something was damaged."""

    chance: random.Random
    kind: tuple[str, ...]
    case: str
    work: Path
    """The folder that has the store."""
    expected: Expected


def damaged_stores(oracle: Oracle, result: Result, state: str, only: int | None) -> Iterator[Tampered]:
    """The cases of a campaign, a kind of damage after the other; `result` counts those that do not exist in this store."""
    workshop, seed = oracle.workshop, result.seed
    sources = Sources(*(workshop.state(name) / "store" for name in (state, f"{state}, foreign", f"{state}, older")))
    expected = Expected(oracle, sources.store, state)
    every: list[tuple[str, ...]] = [*ALL_KINDS, *((name, name) for name in FOLDER_KINDS)]
    random.Random(seed).shuffle(every)
    for i, chance in numbered(result.n, seed, result.name, only):
        kind = every[i % len(every)]
        work = workshop.fresh(state)
        done = tamper(chance, work / "store", sources, kind)
        if done is None:
            result.outcomes["does not exist"] += 1
        else:
            yield Tampered(chance, kind, f"seed {seed}, case {i}: {kind[0]}: {done}", work, expected)


def tamper(chance: random.Random, store: Path, sources: Sources, kind: tuple[str, ...]) -> str | None:
    """Do to a store what an entry of `ALL_KINDS`, or twice a name of `FOLDER_KINDS`, says: what was done, None for nothing."""
    if len(kind) == 2:
        return FOLDER_KINDS[kind[1]](chance, store, sources)
    pattern = CLASSES[kind[2]]
    keys = [key for key, _ in files_of(store) if re.fullmatch(pattern, key) and not key.endswith(".lock")]
    chance.shuffle(keys)
    for key in keys:
        if (done := KINDS[kind[1]](chance, store, key, sources)) is not None:
            return done
    return None


class Expected:
    """What the readers say of a whole store, and judgements of damaged copies by it."""

    def __init__(self, oracle: Oracle, store: Path, state: str) -> None:
        self.oracle, self.store = oracle, store
        done = oracle.server.run("faults.observing:list_contents", str(store))
        self.wanted: dict[str, list[str]] = done.result
        # Read where the copies will be, for a store may be named in what is read.
        self.right = oracle.observe(oracle.workshop.fresh(state) / "store", self.wanted)
        self.blocks = oracle.server.run("faults.observing:blocks_of", str(store), self.wanted["captures"]).result

    def judge(self, store: Path, *, is_damage: bool = True, only: list[str] | None = None) -> tuple[str, Failures]:
        """What came of it, and what should not have."""
        found = self.oracle.observe(store, self.wanted, only)
        failures: Failures = []
        fewer = self._of_fewer_blocks(store, found)
        wrong = 0
        for key, said in found.items():
            if "error" in said or "memory" in said:
                kind = "traceback of a reader" if "error" in said else "a reader asks for all memory"
                failures.append((kind, f"{key}: {next(iter(said.values()))[-600:]}"))
            elif "value" in said and said not in (self.right.get(key), fewer.get(key)):
                failures.append(("silent: a wrong value", f"{key}"))
                wrong += 1
        refused = [k for k, said in found.items() if "refused" in said and "value" in self.right.get(k, {})]
        verify = self.oracle.server.cli(["verify", store, "--quiet"], timeout_s=60, memory=MEMORY)
        failures += [(f"verify: {kind}", detail) for kind, detail in judge_end(verify)]
        if verify.status == 0 and wrong:
            failures.append(("silent, and verify says well", ""))
        elif verify.status == 0 and refused:
            failures.append(("verify says well, a reader refuses", f"{refused[0]}: {found[refused[0]]}"))
        elif verify.status == 0 and fewer:
            failures.append(("verify says well, a block is gone", ""))
        outcome = "wrong" if wrong else "refused by a reader" if refused else "right, verify finds it"
        return ("harmless" if verify.status == 0 and not (wrong or refused) else outcome), failures

    def _of_fewer_blocks(self, store: Path, found: Observation) -> Observation:
        """What is right of the captures that have lost commit records; empty where none has."""
        blocks = self.oracle.server.run("faults.observing:blocks_of", str(store), self.wanted["captures"]).result
        expected: Observation = {}
        for name, here in (blocks or {}).items():
            if here is None or here == self.blocks[name] or not set(here) < set(self.blocks[name] or ()):
                continue
            copy = self.oracle.workshop.folder / "pruned"
            for remove_tables in (False, True):
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(self.store, copy)
                if remove_tables:
                    prune(copy / "captures" / name, set(here))
                else:
                    for block in set(self.blocks[name] or ()) - set(here):
                        (copy / "captures" / name / "blocks" / f"{block}.json").unlink()
                said = self.oracle.observe(copy, {"captures": [name]}, [f"captures/{name}/"])
                expected |= {key: value for key, value in said.items() if found.get(key) == value}
        return expected
