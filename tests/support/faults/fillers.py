"""Workers that fill one capture together, and are killed: what is there in the end is what one process writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from written_captures import written

from faults.campaigns import Result, Say, choose_call, numbered
from faults.scenarios import CAPTURE
from faults.shim import CHANGES, Fault

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from faults.oracle import Failures, Oracle

ONE_PROCESS: Final = f"{CAPTURE} --precision int8"
FILL: Final = "fill {store} --quiet --lease 1"
N_WORKERS: Final = 4
MOST_ROUNDS: Final = 20
"""From half of them on, one worker is spared: where the others die often enough, it has to do all."""


def killed_fillers(
    oracle: Oracle, n: int, seed: int, *, most_rounds: int = MOST_ROUNDS, only: int | None = None, say: Say = print
) -> Result:
    """Four workers on one capture, most of which are killed at a call that changes a file, again until every block is there."""
    result = Result("fillers", n, seed)
    workshop = oracle.workshop
    work = workshop.fresh("empty")
    assert workshop.cli(ONE_PROCESS, work).status == 0
    expected = written(work / "store")
    work = workshop.fresh("planned")
    undisturbed = workshop.cli(FILL, work, fault=Fault())
    assert undisturbed.status == 0, undisturbed.err
    for i, chance in numbered(n, seed, "fillers", only):
        work = workshop.fresh("planned")
        counts, failures = _fill(oracle, work, chance, undisturbed.counts, most_rounds)
        ended = workshop.cli("finish {store} --quiet", work)
        if ended.status != 0:
            failures.append(("not finished", ended.err))
        found = written(work / "store")
        failures += [
            ("other bytes than one process's", key)
            for key in sorted(found.keys() | expected.keys())
            if found.get(key) != expected.get(key)
        ]
        result.outcomes.update(counts)
        result.add(f"seed {seed}, case {i}", "finished", failures)
        for kind, detail in failures:
            say(f"fillers: case {i}: {kind}: {detail}")
    return result


def _fill(
    oracle: Oracle, work: Path, chance: random.Random, counts: dict[str, int], most_rounds: int
) -> tuple[dict[str, int], Failures]:
    """Fill a capture by rounds of workers; how many there were, and were killed, and what any of the others had to say."""
    server, workshop = oracle.server, oracle.workshop
    n_killed, failures = 0, []
    for turn in range(most_rounds):
        jobs = []
        for worker in range(N_WORKERS):
            call = choose_call(chance, counts, CHANGES)
            assert call is not None
            spared = turn >= most_rounds // 2 and worker == 0
            fault = Fault() if spared else Fault("kill", call[:1], 1 + call[1] // N_WORKERS)
            words = workshop.words(f"{FILL} --worker {worker}/{N_WORKERS}", work)
            jobs.append(server.start("faults.observing:command_line", words, folder=work, fault=fault))
        ended = [server.wait(job) for job in jobs]
        n_killed += sum(one.signal == 9 for one in ended)
        failures += [("a worker failed", one.err) for one in ended if one.signal != 9 and one.status != 0]
        if any(one.status == 0 for one in ended):
            return {"rounds": turn + 1, "killed": n_killed}, failures
    return {"rounds": most_rounds, "killed": n_killed}, [*failures, ("not filled", f"after {most_rounds} rounds")]
