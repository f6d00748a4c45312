"""The long campaigns of faults; writes benchmarks/results/reliability.json and the table of docs/reliability.md.

python benchmarks/reliability.py [--only CAMPAIGN] [--n CASES] [--seed SEED] [--case CASE]

Without options everything runs, which takes hours on two cores. With --only, one campaign runs and its row is replaced. With
--n, or with --case for one case of a failure again, nothing is written. `page` in place of options writes the table alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests" / "support")]

from benchmarks.marked import rewrite, table  # noqa: E402 - the checkout must be importable first

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faults.campaigns import Result
    from faults.oracle import Oracle

RESULTS = HERE / "results" / "reliability.json"
SEED = 16

CAMPAIGNS: dict[str, tuple[int, str]] = {
    "kills": (300, "SIGKILL, or a write torn in half, at a random call that changes a file, of every command in turn"),
    "errors": (300, "EIO once, or a full disk from then on, at a random call"),
    "power cuts": (100, "at a random moment, or after the end: what was not synced is lost, zeros, or there in part"),
    "tampering": (
        300,
        "every class of file: bits, pages, cut, extended, removed, swapped, of another store, of an older version",
    ),
    "repairs": (150, "the same damage, then `repair`, half of the times killed on its way and run again"),
    "mutations": (2000, "one odd value in a record, with its checksum or with a new one; bytes of headers"),
    "threads": (30, "16 threads read one store, for these seconds; then forked and spawned workers do"),
    "first writers": (100, "two models are captured into one new folder at once"),
    "pairs": (100, "a command that writes runs twice at once"),
    "fillers": (
        100,
        "four workers fill one capture, killed at random calls that change files, until it is whole; the bytes of one process",
    ),
    "fillers on S3": (100, "the same on an S3 server, killed at random moments"),
}
"""Campaign → how many cases, what is done."""


def run_campaign(oracle: Oracle, name: str, n: int, seed: int, case: int | None, say: Callable[[str], None]) -> Result:
    """Run one campaign, or one case of it."""
    from faults import campaigns, fillers, metadata, power, repairs, sharing, tampering

    if name == "threads":
        return sharing.threads(oracle, n, seed, say=say)
    run = {
        "kills": campaigns.kills,
        "errors": campaigns.errors,
        "power cuts": power.power_cuts,
        "tampering": tampering.tamper_with,
        "repairs": repairs.repairs,
        "mutations": metadata.mutations,
        "first writers": sharing.first_writers,
        "pairs": sharing.pairs,
        "fillers": fillers.killed_fillers,
        "fillers on S3": fillers.killed_fillers_on_s3,
    }[name]
    return run(oracle, n, seed, only=case, say=say)


def markdown(results: dict[str, Any]) -> str:
    """The page's table and its note, from the recorded results."""
    rows = []
    for name, (_, about) in CAMPAIGNS.items():
        if name not in results:
            continue
        result = results[name]
        outcomes = ", ".join(f"{outcome}: {count:,}" for outcome, count in result["outcomes"].items())
        failures = "; ".join(f"{kind}: {found['count']:,}" for kind, found in result["failures"].items()) or "none"
        cases = f"{result['n']} s" if name == "threads" else f"{result['n']:,}"
        rows.append([name, about, outcomes, failures, f"{result['seed']}, `{result['commit']}`", cases])
    header = ["campaign", "what is done", "what came of it", "not as promised", "seed, commit", "cases"]
    missing = [name for name in CAMPAIGNS if name not in results]
    lines = [table(header, rows, left=5)]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join(lines)


def read_results() -> dict[str, Any]:
    """Campaign → what came of its last whole run."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    return results


def record(name: str, result: Result, seconds: float) -> None:
    """Put a whole run in place of the one before."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    about = {
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{os.uname().sysname} {os.uname().machine}, {os.cpu_count()} processors",
        "seconds": round(seconds),
    }
    results = read_results() | {name: result.to_json() | about}
    ordered = {key: results[key] for key in CAMPAIGNS if key in results}
    RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    rewrite("reliability", markdown(ordered))


@contextmanager
def s3_in_environment() -> Iterator[None]:
    """A real S3 server, which the environment names while the context lasts."""
    from s3_server import S3Server, environment

    with closing(S3Server()) as server:
        os.environ.update(environment(server.endpoint))
        yield


def main() -> int:
    """The exit status: 1 where something was not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("run", "page"), default="run")
    parser.add_argument("--only", choices=CAMPAIGNS, help="run this campaign alone")
    parser.add_argument("--n", type=int, help="another number of cases; nothing is written")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--case", type=int, help="this case alone, as a failure names it; nothing is written")
    asked = parser.parse_args()
    if asked.action == "page":
        rewrite("reliability", markdown(read_results()))
        return 0
    from faults.client import Server
    from faults.oracle import Oracle
    from faults.scenarios import Workshop

    names, status = [asked.only] if asked.only else list(CAMPAIGNS), 0
    # In memory: what a power cut leaves is simulated, and thousands of stores are written.
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        s3_in_environment() if "fillers on S3" in names else nullcontext(),
        tempfile.TemporaryDirectory(dir=where) as folder,
        Server(Path(folder) / "server") as server,
    ):
        oracle = Oracle(Workshop(server, Path(folder), vision=True))
        for name in names:
            began, n = time.monotonic(), asked.n or CAMPAIGNS[name][0]
            result = run_campaign(oracle, name, n, asked.seed, asked.case, lambda line: print(line, flush=True))
            print(f"{name}: {dict(result.outcomes)}; not as promised: {dict(result.kinds)}", flush=True)
            status |= bool(result.failures)
            if asked.n is None and asked.case is None:
                record(name, result, time.monotonic() - began)
    return status


if __name__ == "__main__":
    sys.exit(main())
