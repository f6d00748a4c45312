"""Workers that fill one capture together, and are killed: what is there in the end is what one process writes."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

from written_captures import downloaded, written

from actstore.store.storage.folder import Folder
from faults.campaigns import Result, Say, choose_call, numbered
from faults.scenarios import CAPTURE
from faults.shim import CHANGES, Fault

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from faults.oracle import Failures, Oracle

    Killing = Callable[[random.Random], dict[str, Any]]
    """What kills a worker, as `Server.start` takes it, drawn anew for each."""

ONE_PROCESS: Final = f"{CAPTURE} --precision int8"
FILL: Final = "fill {store} --quiet --lease 1"
N_WORKERS: Final = 4
MOST_ROUNDS: Final = 20
"""From half of them on, one worker is spared: where the others die often enough, it has to do all."""


def killed_fillers(
    oracle: Oracle, n: int, seed: int, *, most_rounds: int = MOST_ROUNDS, only: int | None = None, say: Say = print
) -> Result:
    """Four workers on one capture, most of which are killed at a call that changes a file, again until every block is there."""
    workshop = oracle.workshop
    undisturbed = workshop.cli(FILL, workshop.fresh("planned"), fault=Fault())
    assert undisturbed.status == 0, undisturbed.err

    def at_a_call(chance: random.Random) -> dict[str, Any]:
        call = choose_call(chance, undisturbed.counts, CHANGES)
        assert call is not None
        return {"fault": Fault("kill", call[:1], 1 + call[1] // N_WORKERS)}

    result = Result("fillers", n, seed)
    for i, chance in numbered(n, seed, "fillers", only):
        work = workshop.fresh("planned")
        _run_case(oracle, result, i, chance, work, str(work / "store"), at_a_call, most_rounds, say)
    return result


def killed_fillers_on_s3(
    oracle: Oracle, n: int, seed: int, *, most_rounds: int = MOST_ROUNDS, only: int | None = None, say: Say = print
) -> Result:
    """The same on the S3 server that the environment of the oracle's processes names, killed at random moments."""
    workshop = oracle.workshop

    def on_s3() -> tuple[Path, str]:
        work, location = workshop.fresh("planned"), f"s3://bucket/{uuid.uuid4()}/store"
        there, here = Folder(location, read_only=False), Folder(work / "store")
        for key, _ in here.sizes():
            there.write(key, here.read(key))
        return work, location

    work, location = on_s3()
    undisturbed = workshop.cli(FILL, work, store=location)
    assert undisturbed.status == 0, undisturbed.err

    def at_a_moment(chance: random.Random) -> dict[str, Any]:
        return {"timeout_s": chance.uniform(0.02, 2 * undisturbed.seconds)}  # they share the processors

    result = Result("fillers on S3", n, seed)
    for i, chance in numbered(n, seed, "fillers on S3", only):
        work, location = on_s3()
        _run_case(oracle, result, i, chance, work, location, at_a_moment, most_rounds, say)
    return result


def _run_case(
    oracle: Oracle,
    result: Result,
    case: int,
    chance: random.Random,
    work: Path,
    location: str,
    killing: Killing,
    most_rounds: int,
    say: Say,
) -> None:
    """Fill the planned capture at `location`, finish it, and compare it with one process's."""
    workshop = oracle.workshop
    counts, failures = _fill(oracle, work, location, chance, killing, most_rounds)
    ended = workshop.cli("finish {store} --quiet", work, store=location)
    if ended.status != 0:
        failures.append(("not finished", ended.err))
    is_local = "://" not in location
    found, expected = written(work / "store" if is_local else downloaded(location, work / "copy")), _expected(oracle)
    failures += [
        ("other bytes than one process's", key)
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]
    result.outcomes.update(counts)
    result.add(f"seed {result.seed}, case {case}", "finished", failures)
    for kind, detail in failures:
        say(f"{result.name}: case {case}: {kind}: {detail}")


def _expected(oracle: Oracle) -> dict[str, object]:
    """What one process writes."""
    work = oracle.workshop.fresh("empty")
    assert oracle.workshop.cli(ONE_PROCESS, work).status == 0
    return written(work / "store")


def _fill(
    oracle: Oracle, work: Path, location: str, chance: random.Random, killing: Killing, most_rounds: int
) -> tuple[dict[str, int], Failures]:
    """Fill a capture by rounds of workers; how many there were, and were killed, and what any of the others had to say."""
    server, workshop = oracle.server, oracle.workshop
    n_killed, failures = 0, []
    for turn in range(most_rounds):
        jobs = []
        for worker in range(N_WORKERS):
            how = killing(chance)
            if turn >= most_rounds // 2 and worker == 0:
                how = {}
            words = workshop.words(f"{FILL} --worker {worker}/{N_WORKERS}", work, location)
            jobs.append(server.start("faults.observing:command_line", words, folder=work, **how))
        ended = [server.wait(job) for job in jobs]
        n_killed += sum(one.signal == 9 for one in ended)
        failures += [("a worker failed", one.err) for one in ended if one.signal != 9 and one.status != 0]
        if any(one.status == 0 for one in ended):
            return {"rounds": turn + 1, "killed": n_killed}, failures
    return {"rounds": most_rounds, "killed": n_killed}, [*failures, ("not filled", f"after {most_rounds} rounds")]
