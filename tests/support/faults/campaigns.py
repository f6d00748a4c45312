"""The experiments: each a function of (n, seed) that gives counts and everything that was not as promised.

Case i of a campaign depends on nothing but the seed and i, so that one case can be run alone.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from faults.oracle import Failures, Oracle, describe
from faults.scenarios import SCENARIOS, Scenario
from faults.shim import CHANGES, CLASSES, Fault


@dataclass
class Result:
    """Counts of a campaign, and its failures."""

    name: str
    n: int
    seed: int
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[dict[str, str]] = field(default_factory=list)

    def add(self, case: str, outcome: str, failures: Failures) -> None:
        """Count a case; its failures by kind."""
        self.outcomes[outcome] += 1
        for kind, detail in failures:
            self.failures.append({"kind": kind, "case": case, "detail": describe(detail)})

    @property
    def kinds(self) -> collections.Counter[str]:
        """Failures by kind."""
        return collections.Counter(failure["kind"] for failure in self.failures)

    def to_json(self) -> dict[str, Any]:
        """For results.json: the first failure of every kind, with its case."""
        first: dict[str, dict[str, str]] = {}
        for failure in self.failures:
            first.setdefault(failure["kind"], failure)
        kinds = {kind: {"count": count, **first[kind]} for kind, count in self.kinds.items()}
        return {"n": self.n, "seed": self.seed, "outcomes": dict(sorted(self.outcomes.items())), "failures": kinds}

    def __str__(self) -> str:
        lines = [f"{self.name}: n {self.n}, seed {self.seed}, {dict(self.outcomes)}"]
        return "\n".join([*lines, *(f"  {f['kind']} [{f['case']}]: {f['detail']}" for f in self.failures)])


Say = Callable[[str], None]


def numbered(n: int, seed: int, name: str, only: int | None = None) -> Iterator[tuple[int, random.Random]]:
    """The cases of a campaign with a generator each; only one where asked."""
    for i in range(n) if only is None else (only,):
        yield i, random.Random(f"{name}/{seed}/{i}")


def chosen_scenarios(names: tuple[str, ...] | None) -> list[Scenario]:
    """The scenarios of these names; all where None."""
    return [scenario for scenario in SCENARIOS if names is None or scenario.name in names]


def changing_scenarios(oracle: Oracle, names: tuple[str, ...] | None) -> list[Scenario]:
    """Those of `chosen_scenarios` whose undisturbed run changes files."""
    return [s for s in chosen_scenarios(names) if any(oracle.reference(s).counts[name] for name in CHANGES)]


def choose_call(chance: random.Random, counts: dict[str, int], classes: tuple[str, ...]) -> tuple[str, int] | None:
    """A class of calls that a run makes, each as often, and the number of one; None where it makes none."""
    made = [name for name in classes if counts[name]]
    if not made:
        return None
    name = chance.choice(made)
    return name, chance.randint(1, counts[name])


def kills(
    oracle: Oracle,
    n: int,
    seed: int,
    *,
    names: tuple[str, ...] | None = None,
    only: int | None = None,
    say: Say = print,
) -> Result:
    """Kills, and torn writes, at sampled calls that change files, of all commands in turn."""
    result = Result("kills", n, seed)
    scenarios = changing_scenarios(oracle, names)
    for i, chance in numbered(n, seed, "kills", only):
        scenario = scenarios[i % len(scenarios)]
        call = choose_call(chance, oracle.reference(scenario).counts, CHANGES)
        assert call is not None
        action = chance.choice(("kill", "tear")) if call[0] == "write" else "kill"
        _run(oracle, scenario, Fault(action, call[:1], call[1]), result, i, say)
    return result


def errors(
    oracle: Oracle,
    n: int,
    seed: int,
    *,
    names: tuple[str, ...] | None = None,
    only: int | None = None,
    say: Say = print,
) -> Result:
    """EIO once, or ENOSPC from then on, at sampled calls: writing, reading, renaming, removing."""
    result = Result("errors", n, seed)
    scenarios = chosen_scenarios(names)
    for i, chance in numbered(n, seed, "errors", only):
        scenario = scenarios[i % len(scenarios)]
        is_full = chance.random() < 0.5
        writes = ("create", "write", "mkdir", "truncate")
        call = choose_call(chance, oracle.reference(scenario).counts, writes if is_full else CLASSES)
        call = call or choose_call(chance, oracle.reference(scenario).counts, CLASSES)
        assert call is not None
        name, nth = call
        classes = writes if is_full and name in writes else (name,)
        fault = Fault("fail", classes, nth, "ENOSPC" if classes == writes else "EIO", stays=classes == writes)
        _run(oracle, scenario, fault, result, i, say)
    return result


def _run(oracle: Oracle, scenario: Scenario, fault: Fault, result: Result, i: int, say: Say) -> None:
    case = f"seed {result.seed}, case {i}: {scenario.name}, {fault}"
    work = oracle.start(scenario)
    ended = oracle.workshop.cli(scenario.run, work, fault=fault, timeout_s=120)
    outcome = "killed" if ended.signal == 9 else f"exit status {ended.status}"
    failures = oracle.judge(scenario, work, ended)
    result.add(case, outcome, failures)
    for kind, detail in failures:
        say(f"{result.name}: {case}: {kind}: {describe(detail)}")


def merge(results: list[Result]) -> Result:
    """Several results of one campaign as one."""
    whole = dataclasses.replace(results[0], n=sum(r.n for r in results), outcomes=collections.Counter(), failures=[])
    for result in results:
        whole.outcomes.update(result.outcomes)
        whole.failures += result.failures
    return whole
