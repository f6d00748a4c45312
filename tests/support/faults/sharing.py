"""What threads and processes share: a store read by many, two first writers of one folder, one command twice at once."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import random
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

from reading_everything import of_array

from faults.campaigns import Result, Say, changing_scenarios, numbered
from faults.oracle import Failures, describe, judge_end
from faults.scenarios import CAPTURE, files_of
from faults.shim import CHANGES, Fault

if TYPE_CHECKING:
    from pathlib import Path

    from faults.client import Ended
    from faults.oracle import Oracle

N_THREADS = 16
WAIT_MS = (0, 1, 5, 20, 80)


def threads(
    oracle: Oracle, seconds: float, seed: int, *, say: Say = print, state: str = "rich", workers: bool = True
) -> Result:
    """Sixteen threads read everything from one opened store; then forked and spawned workers do, where asked."""
    result = Result("threads", round(seconds), seed)
    store = oracle.workshop.fresh(state) / "store"
    for call, what in (("read_in_threads", "threads"), ("read_in_workers", "workers"))[: 1 + workers]:
        done = oracle.server.run(f"faults.sharing:{call}", str(store), seconds, seed, timeout_s=120 + 3 * seconds)
        failures = judge_end(done)
        said = done.result or {"reads": 0, "failures": []}
        failures += [(f"{what}: {kind}", detail) for kind, detail in said["failures"]]
        result.add(f"seed {seed}: {what}", f"{what}: ended", failures)
        result.outcomes[f"reads in {what}"] += said["reads"]
        for kind, detail in failures:
            say(f"threads: seed {seed}: {kind}: {describe(detail)}")
    return result


def _questions(store: Any) -> dict[str, Any]:
    """Reader by name, all of one opened store."""
    capture = store.capture("corpus")
    found = {
        "tokens": lambda: store.capture("corpus").tokens().to_pylist(),
        "shared tokens": lambda: capture.tokens().to_pylist(),
        "windows": lambda: capture.windows().to_pylist(),
        "documents": lambda: capture.documents().to_pylist(),
        "neurons": lambda: repr(capture.neurons().to_pylist()),
        "activations": lambda: capture.activations(1, 3).tobytes(),
        "block": lambda: capture.block_values(0, 0).tobytes(),
        "signs": lambda: capture.gate_signs(1, 0).tobytes(),
        "statistics": lambda: repr(store.neuron(1, 3).statistics("corpus")),
        "exemplars": lambda: repr(store.neuron(1, 4).exemplars(3, "corpus").to_pylist()),
        "searched": lambda: repr(store.neuron(1, 4).exemplars(60, "corpus").to_pylist()),
        "contributions": lambda: _scores(store.contributions(5, k=3, capture="corpus", everywhere=True)),
        "sql": lambda: store.sql("select count(*) as n, sum(position) as p from tokens", "corpus").to_pylist(),
    }
    if "questions" in store.captures:
        questions = store.capture("questions")
        found["attributions"] = lambda: questions.activations(0, 3, "attribution.ig").tobytes()
        found["graph"] = lambda: [of_array(part) for part in store.graph(0, 3).nodes]
    return found


def _scores(answer: Any) -> list[Any]:
    """Rounded, for they are matrix products."""
    return [[round(v, 4) if isinstance(v, float) else v for v in row.values()] for row in answer.to_pylist()]


def read_in_threads(path: str, seconds: float, seed: int) -> dict[str, Any]:
    """How often the threads read, and what was wrong."""
    from actstore.store.reader import Store

    right = {name: reader() for name, reader in _questions(Store(path)).items()}
    readers, end = _questions(Store(path)), time.monotonic() + seconds
    failures: list[tuple[str, str]] = []
    reads = [0] * N_THREADS
    barrier = threading.Barrier(N_THREADS)

    def work(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        barrier.wait()
        while time.monotonic() < end and len(failures) < 20:
            name = chance.choice(sorted(readers))
            try:
                if readers[name]() != right[name]:
                    failures.append(("a wrong value", name))
            except BaseException as error:
                failures.append((f"{type(error).__name__}", f"{name}: {error}"))
            reads[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(N_THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"reads": sum(reads), "failures": failures}


def read_in_workers(path: str, seconds: float, seed: int) -> dict[str, Any]:
    """Forked workers that inherit an opened and used store, and spawned ones that are sent it."""
    from actstore.store.reader import Store

    store = Store(path)
    right = {name: reader() for name, reader in _questions(store).items()}
    failures: list[tuple[str, str]] = []
    reads = 0
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            for said in pool.map(read_all, [store] * 4):
                reads += len(said)
                failures += [(f"{method}: a wrong value", name) for name, value in said.items() if value != right[name]]
    return {"reads": reads, "failures": failures}


def read_all(store: Any) -> dict[str, Any]:
    """What every reader says of a store that another process opened."""
    return {name: reader() for name, reader in _questions(store).items()}


def first_writers(oracle: Oracle, n: int, seed: int, *, only: int | None = None, say: Say = print) -> Result:
    """Two models are captured into one new folder at once; in the end it is a store of one of them, and right."""
    result = Result("first writers", n, seed)
    workshop, server = oracle.workshop, oracle.server
    line = f"{CAPTURE} --max-tokens 200 --name"
    lines = {"a": f"{line} a", "b": f"{line} b".replace("{model}", "{other}")}
    right = {}
    for name, argv in lines.items():
        work = workshop.fresh("empty")
        alone = workshop.cli(argv, work, fault=Fault(), timeout_s=300)
        right[name] = oracle.observe(work / "store", {"captures": [name]})
    for i, chance in numbered(n, seed, "first writers", only):
        work = workshop.fresh("empty")
        fault = _pause(chance, alone.counts)
        names = list(lines) if chance.random() < 0.5 else list(reversed(lines))
        ended = dict(
            zip(names, _at_once(oracle, work, [lines[name] for name in names], fault, names.index("a")), strict=True)
        )
        case = f"seed {seed}, case {i}: {fault}, {fault.wait_ms} ms"
        failures: Failures = [failure for done in ended.values() for failure in judge_end(done)]
        won = [name for name, done in ended.items() if done.status == 0]
        found = oracle.observe(work / "store", {"captures": ["a", "b"]})
        failures += _judge_pair(won, found, right)
        verify = server.cli(["verify", work / "store", "--quiet"])
        if won and verify.status:
            failures.append(("verify finds damage", (verify.out + verify.err)[-400:]))
        result.add(case, f"{len(won)} of 2 complete", failures)
        for kind, detail in failures:
            say(f"first writers: {case}: {kind}: {describe(detail)}")
    shutil.rmtree(work)
    return result


def _pause(chance: random.Random, counts: dict[str, int]) -> Fault:
    """One process stops for a moment at a random change, so that the other comes in between."""
    n_changes = sum(counts[name] for name in CHANGES)
    return Fault("wait", CHANGES, chance.randint(1, n_changes), wait_ms=chance.choice(WAIT_MS))


def _at_once(oracle: Oracle, work: Path, lines: list[str], fault: Fault, paused: int) -> list[Ended]:
    """How command lines ended that were started in this order, one of them to be paused."""
    server, words = oracle.server, oracle.workshop.words
    started = [
        server.start(
            "faults.observing:command_line", words(line, work), folder=work, fault=fault if i == paused else Fault()
        )
        for i, line in enumerate(lines)
    ]
    return [server.wait(number) for number in started]


def pairs(
    oracle: Oracle,
    n: int,
    seed: int,
    *,
    names: tuple[str, ...] | None = None,
    only: int | None = None,
    say: Say = print,
) -> Result:
    """Every command that writes runs twice at once: one completes, the other does too or is refused, and all is as of one."""
    result = Result("pairs", n, seed)
    scenarios = changing_scenarios(oracle, names)
    for i, chance in numbered(n, seed, "pairs", only):
        scenario = scenarios[i % len(scenarios)]
        reference, work = oracle.reference(scenario), oracle.start(scenario)
        fault = _pause(chance, reference.counts)
        ended = _at_once(oracle, work, [scenario.run] * 2, fault, chance.randrange(2))
        case = f"seed {seed}, case {i}: {scenario.name}, {fault}, {fault.wait_ms} ms"
        failures: Failures = [failure for done in ended for failure in judge_end(done)]
        n_complete = sum(done.status == 0 for done in ended)
        if not n_complete:
            failures.append(("neither completed", "; ".join(done.err for done in ended)))
        found = oracle.observe(work / "store", reference.wanted)
        if n_complete and (missing := oracle.incomplete(reference, work, found)):
            failures.append(("not as one command leaves it", missing))
        verify = oracle.server.cli(["verify", work / "store", "--quiet"])
        if verify.status:
            failures.append(("verify finds damage", (verify.out + verify.err)[-400:]))
        extra = {key for key, _ in files_of(work / "store")} - reference.keys
        if extra:
            failures.append(("leftovers", f"{sorted(extra)[:5]}"))
        result.add(case, f"{n_complete} of 2 complete", failures)
        for kind, detail in failures:
            say(f"pairs: {case}: {kind}: {describe(detail)}")
    return result


def _judge_pair(won: list[str], found: dict[str, Any], right: dict[str, dict[str, Any]]) -> Failures:
    if len(won) == 2:
        return [("mixed: both models in one store", json.dumps(won))]
    failures: Failures = []
    if not won:
        failures.append(("neither completed", ""))
    for name in won:
        wrong = [key for key, said in right[name].items() if "value" in said and found.get(key) != said]
        if wrong:
            failures.append(("mixed: the winner's store is not its own", f"{wrong[:4]}"))
    for name in {"a", "b"} - set(won):
        if any("value" in said for key, said in found.items() if key.startswith(f"captures/{name}/values")):
            failures.append(("mixed: values of the loser are read", name))
    return failures
