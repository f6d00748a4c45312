"""The judge: what a command leaves behind after a fault must be right, refused, or made right by running the command again.

An undisturbed run is the reference. A value is right where the reference, the state before the command, or the reference
without the blocks that are not committed says the same.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from faults.scenarios import Scenario, Workshop, files_of
from faults.shim import CHANGES, Fault

if TYPE_CHECKING:
    from pathlib import Path

    from faults.client import Ended

Observation = dict[str, dict[str, str]]
Failures = list[tuple[str, str]]
"""(kind, detail) of everything that is not as promised."""

LONG_S = 10.0
"""CPU seconds, beside one for each reader, from which on readers hang."""
MEMORY = 6 << 30
"""Bytes that all readers together may take beyond what their process has at its start."""
COUNTED_BY_FOLD = ("neurons.parquet", "prompts.parquet", "queries.parquet")
NOTES = ("verified.json",)
"""Names of files that readers and `verify` leave, in which nothing of a run is."""
TEMPORARY = (".partial", ".tmp")


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run makes of a state."""

    before: Observation
    after: Observation
    wanted: dict[str, list[str]]
    """Names of the captures, graphs and edits of both."""
    blocks: dict[str, list[int] | None]
    files: dict[str, dict[str, str]]
    """Hashes of the files of `model` and `output`, before and after."""
    keys: frozenset[str]
    """The keys of the store afterwards."""
    counts: dict[str, int]
    folder: Path


class Oracle:
    """References of scenarios, made once, and judgements by them."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop, self.server = workshop, workshop.server
        self.references: dict[str, Reference] = {}
        self.pruned: dict[tuple[str, str, tuple[int, ...]], Observation] = {}

    def start(self, scenario: Scenario) -> Path:
        """A folder in the state that the scenario starts from."""
        counts = self.reference(scenario).counts  # made first, for it is made in the same folder
        work = self.workshop.fresh(scenario.start)
        if scenario.half:
            fault = Fault("kill", CHANGES, sum(counts[name] for name in CHANGES) // 2)
            self.workshop.cli(scenario.command, work, fault=fault)
        return work

    def reference(self, scenario: Scenario) -> Reference:
        """What the scenario makes where nothing happens; what differs between two runs is left out."""
        if scenario.name not in self.references:
            first, second = self._undisturbed(scenario), self._undisturbed(scenario)
            unstable = {key for key in first.after if first.after[key] != second.after.get(key)}
            if unstable:
                raise RuntimeError(f"{scenario.name}: differs between two runs: {sorted(unstable)}")
            for name in ("model", "output"):
                if first.files[f"{name} after"] != second.files[f"{name} after"]:
                    raise RuntimeError(f"{scenario.name}: files of {name} differ between two runs")
            self.references[scenario.name] = second
        return self.references[scenario.name]

    def _undisturbed(self, scenario: Scenario) -> Reference:
        work = self.workshop.fresh(scenario.start)
        store, files = work / "store", {}
        wanted = self._list(store)
        before = self.observe(store, wanted)
        files |= {f"{name} before": digests(work / name) for name in ("model", "output")}
        done = self.workshop.cli(scenario.command, work, fault=Fault(), timeout_s=600)
        if done.status:
            raise RuntimeError(f"{scenario.name}: {done.err}")
        files |= {f"{name} after": digests(work / name) for name in ("model", "output")}
        listed = self._list(store)
        wanted = {kind: sorted({*wanted.get(kind, []), *names}) for kind, names in listed.items()}
        folder = self.workshop.folder / "references" / scenario.name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work, folder)
        after = self.observe(store, wanted)
        keys = frozenset(key for key, _ in files_of(store))
        return Reference(before, after, wanted, self._blocks(store, wanted), files, keys, done.counts, folder)

    def _list(self, store: Path) -> dict[str, list[str]]:
        found: dict[str, list[str]] = self.server.run("faults.observing:list_contents", str(store)).result
        return found

    def _blocks(self, store: Path, wanted: dict[str, list[str]]) -> dict[str, list[int] | None]:
        done = self.server.run("faults.observing:blocks_of", str(store), wanted["captures"])
        found: dict[str, list[int] | None] = done.result
        return found

    def observe(self, store: Path, wanted: dict[str, list[str]], only: list[str] | None = None) -> Observation:
        """What every reader says of a store, in a process of its own."""
        if not store.is_dir():
            return {}
        done = self.server.run("faults.observing:observe", str(store), wanted, only, timeout_s=120, memory=MEMORY)
        if done.result is None:
            said = "hang" if done.late else f"signal {done.signal}" if done.signal else done.err[-800:]
            return {"every reader": {"error": said}}
        found: Observation = done.result
        if done.cpu_s > LONG_S + len(found):
            found["every reader"] = {"error": f"hang: {done.cpu_s:.0f} s"}
        return found

    def judge(self, scenario: Scenario, work: Path, ended: Ended, *, durable: bool = True) -> Failures:
        """Everything that is wrong about what a fault left, then about running the command again.

        `durable` False: the state is that after a power cut, in which `verify` may find damage.
        """
        failures = judge_end(ended)
        reference, store = self.reference(scenario), work / "store"
        found = self.observe(store, reference.wanted)
        failures += self._judge_values(scenario, store, found)
        failures += self._judge_files(reference, work)
        if ended.status == 0 and (missing := self.incomplete(reference, work, found)):
            failures.append(("exit status 0 without the data", missing))
        elif durable:
            failures += self._judge_verify(store, found, reference)
        return failures + self._judge_again(scenario, work)

    def _judge_values(self, scenario: Scenario, store: Path, found: Observation) -> Failures:
        reference, failures = self.reference(scenario), []
        expected = self._of_blocks(scenario, store, reference) if store.is_dir() else {}
        for key, said in found.items():
            if "error" in said or "memory" in said:
                failures.append(("traceback of a reader", f"{key}: {next(iter(said.values()))[-600:]}"))
                continue
            right = [of[key] for of in (reference.after, reference.before, expected) if key in of]
            if "value" in said and said not in right:
                failures.append(("silent: a wrong value", f"{key}: {said['value']}, expected {right}"))
            kept = reference.before.get(key) == reference.after.get(key) and "value" in reference.before.get(key, {})
            if "refused" in said and kept:
                failures.append(("lost: what stood there before is refused", f"{key}: {said['refused']}"))
        return failures

    def _of_blocks(self, scenario: Scenario, store: Path, reference: Reference) -> Observation:
        """What the reference says without the blocks that a store has not."""
        expected: Observation = {}
        for name, blocks in self._blocks(store, reference.wanted).items():
            if blocks is None or blocks == reference.blocks.get(name):
                continue
            cached = (scenario.name, name, tuple(blocks))
            if cached not in self.pruned:
                copy = self.workshop.folder / "pruned"
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(reference.folder / "store", copy)
                prune(copy / "captures" / name, set(blocks))
                self.pruned[cached] = self.observe(copy, {"captures": [name]}, [f"captures/{name}/"])
            expected |= self.pruned[cached]
        return expected

    def _judge_files(self, reference: Reference, work: Path) -> Failures:
        """Files outside the store: each as before or as after, and a folder that is new whole."""
        failures: Failures = []
        for name in ("model", "output"):
            before, after = reference.files[f"{name} before"], reference.files[f"{name} after"]
            found = {key: value for key, value in digests(work / name).items() if not is_temporary(key)}
            wrong = [key for key, value in found.items() if value not in (before.get(key), after.get(key))]
            if wrong:
                failures.append((f"a torn file in {name}", f"{wrong}"))
            if name == "output" and found and not wrong and set(found) != set(after):
                failures.append(("half an output folder", f"has {sorted(found)}, expected {sorted(after)}"))
        return failures

    def _judge_verify(self, store: Path, found: Observation, reference: Reference) -> Failures:
        if not store.is_dir():
            return []
        done = self.server.cli(["verify", store, "--quiet"], timeout_s=120)
        failures = [(f"verify: {kind}", detail) for kind, detail in judge_end(done)]
        damaged = [f"{k}: {v['refused']}" for k, v in found.items() if v.get("refused", "").startswith("FormatError")]
        if done.status == 0 and damaged:
            failures.append(("verify says well, a reader refuses", damaged[0]))
        if done.status == 1:
            failures.append(("verify finds damage where no file was damaged", (done.out + done.err)[-600:]))
        return failures

    def _judge_again(self, scenario: Scenario, work: Path) -> Failures:
        """The command again: it must complete, and leave what the undisturbed run leaves."""
        reference, done = self.reference(scenario), None
        for more in scenario.again:
            done = self.workshop.cli(f"{scenario.command} {more}", work, timeout_s=120)
            if done.status == 0:
                break
        assert done is not None
        failures = [(f"again: {kind}", detail) for kind, detail in judge_end(done)]
        found = self.observe(work / "store", reference.wanted)
        missing = self.incomplete(reference, work, found)
        if missing and done.status == 0:
            failures.append(("wrong after it was run again", missing))
        elif missing:
            failures.append(("stuck", f"{done.err.strip()[-400:]} ({missing})"))
        extra = {key for key, path in files_of(work / "store") if path.name not in NOTES} - reference.keys
        extra |= {key for name in ("model", "output") for key in digests(work / name)} - {
            key for side in ("model after", "output after") for key in reference.files[side]
        }
        if extra and not missing:
            failures.append(("leftovers", f"{sorted(extra)[:5]}"))
        return failures

    @staticmethod
    def incomplete(reference: Reference, work: Path, found: Observation) -> str:
        """What is not as after the undisturbed run; empty where all is."""
        differing = [key for key, said in reference.after.items() if found.get(key) != said and "value" in said]
        for name in ("model", "output"):
            files, expected = digests(work / name), reference.files[f"{name} after"]
            differing += [f"{name}/{key}" for key in expected if files.get(key) != expected[key]]
        return "; ".join(f"{key}: {found.get(key, 'missing')}" for key in differing[:3])


def judge_end(ended: Ended) -> Failures:
    """A process ends with status 0, by the kill, or with another status and one sentence."""
    failures: Failures = []
    if ended.late:
        failures.append(("hang", f"{ended.seconds:.0f} s; {ended.err[-300:]}"))
    elif ended.signal not in (None, 9):
        failures.append((f"crash: signal {ended.signal}", ended.err[-600:]))
    if any(words in ended.err for words in ("Traceback (most recent", "Exception ignored", "Fatal Python")):
        failures.append(("traceback", ended.err[-1500:]))
    elif ended.status not in (0, None):
        lines = [line for line in ended.err.splitlines() if line.strip()]
        reported = ended.status == 1 and (not lines or "damage" in ended.out)  # of verify
        if sum(line.startswith("Error: ") for line in lines) != 1 and not reported:
            failures.append(("not one sentence", ended.err[-600:]))
    return failures


def prune(capture: Path, blocks: set[int]) -> None:
    """Leave a copy of a capture with these blocks, as if it had been stopped after them."""
    for path in (capture / "blocks").glob("*.json"):
        if path.stem.isdigit() and int(path.stem) not in blocks:
            path.unlink()
    for name in COUNTED_BY_FOLD:
        (capture / name).unlink(missing_ok=True)
    shutil.rmtree(capture / "statistics", ignore_errors=True)
    for path in [*(capture / "blocks").glob("folded.*"), *(capture / name for name in NOTES)]:
        path.unlink(missing_ok=True)


def digests(folder: Path) -> dict[str, str]:
    """Hashes of the files below a folder."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files_of(folder)}


def is_temporary(name: str) -> bool:
    """Whether a file's name says that it is not finished."""
    return any(part.startswith(".") or part.endswith(TEMPORARY) for part in name.split("/"))


def describe(value: Any) -> str:
    """A value in one line, for lists of failures."""
    return " ".join(str(value).split())[:700]
