"""What a change costs: this checkout beside another commit of it, in one run; writes benchmarks/results/against.json and docs.

python benchmarks/against.py COMMIT [--repeats N] [--quick]

The commit is checked out beside, and each version runs in a process of its own, which are asked in turn: A B A B …. Both have
the same model, texts, environment and disk, and sync as they do by default. `page` in place of a commit writes the table alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.marked import rewrite, table  # noqa: E402 - the checkout must be importable first

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = HERE / "results" / "against.json"
NOT_MEASURED = "Not measured yet: `python benchmarks/against.py COMMIT`."
MODEL = "demo/models/stdlib-llama"
NEURON = 335
CAPTURE_TOKENS, READ_TOKENS, N_CAPTURES = 80_000, 250_000, 100
QUICK_TOKENS, QUICK_CAPTURES = 4_000, 4
OPERATIONS = {
    "capture": "capture of {capture:,} tokens, float32, synced",
    "neuron": "one neuron over {read:,} tokens, int8",
    "layer": "a whole layer over {read:,} tokens, int8",
    "info": "the command `info` of a store of {captures} captures",
}


class Worker:
    """A version of actstore in a process of its own, which does one thing after the other."""

    def __init__(self, tree: Path, folder: Path, sizes: dict[str, int]) -> None:
        packages = folder / "packages"
        packages.mkdir(parents=True)
        (packages / "actstore").symlink_to(tree)
        self.environment = os.environ | {"PYTHONPATH": str(packages), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
        self.store = folder / "many"
        command = [sys.executable, str(HERE / "against.py"), "worker", str(folder), json.dumps(sizes)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment, cwd=HERE.parent
        )

    def ask(self, what: str) -> float:
        """Seconds that an operation took."""
        if what == "info":
            return self._info()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"The worker ended at {what!r}, with status {self.process.wait()}.")
        return float(answer)

    def _info(self) -> float:
        began = time.perf_counter()
        command = [sys.executable, "-m", "actstore.cli", "info", str(self.store), "--json"]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


@contextmanager
def worker(tree: Path, folder: Path, sizes: dict[str, int]) -> Iterator[Worker]:
    """A worker, ended afterwards."""
    one = Worker(tree, folder, sizes)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()


def work(folder: Path, sizes: dict[str, int]) -> None:
    """What a worker does, in either version: it uses what both have. `actstore` is the version that PYTHONPATH leads to."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import actstore
    from actstore.engine.capture.run import RunOptions

    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model, corpus = AutoModelForCausalLM.from_pretrained(MODEL), sysconfig.get_path("stdlib")
    options = RunOptions(tokenizer=tokenizer)
    numbers = iter(range(10**6))

    def capture(store: Path, n_tokens: int, **settings: Any) -> None:
        actstore.capture(
            model, corpus, store, max_tokens=n_tokens, pattern="*.py", errors="replace", options=options, **settings
        )

    capture(folder / "read", sizes["read"], precision="int8")
    for number in range(sizes["captures"]):
        actstore.capture(model, ["one text"], folder / "many", name=f"capture-{number}", options=options)
    opened = actstore.open(folder / "read")
    blocks = opened.capture().blocks

    def read_layer() -> None:
        for block in blocks:
            opened.capture().block_values(2, block)

    do = {
        "ready": lambda: None,
        "capture": lambda: capture(folder / f"captured-{next(numbers)}", sizes["capture"]),
        "neuron": lambda: opened.neuron(3, NEURON + next(numbers)).activations(),
        "layer": read_layer,
    }
    for line in sys.stdin:
        began = time.perf_counter()
        do[line.strip()]()
        print(time.perf_counter() - began, flush=True)


def measure(commit: str, *, repeats: int, quick: bool) -> dict[str, Any]:
    """Seconds of each operation in each version, in turn."""
    sizes = {"capture": CAPTURE_TOKENS, "read": READ_TOKENS, "captures": N_CAPTURES}
    if quick:
        sizes = {"capture": QUICK_TOKENS, "read": QUICK_TOKENS, "captures": QUICK_CAPTURES}
    seconds: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="actstore-bench-")))
        other = folder / "tree"
        _git("worktree", "add", "--detach", str(other), commit)
        stack.callback(_git, "worktree", "remove", "--force", str(other))
        workers = {
            "this": stack.enter_context(worker(HERE.parent, folder / "this", sizes)),
            "before": stack.enter_context(worker(other, folder / "before", sizes)),
        }
        for one in workers.values():
            one.ask("ready")
        for name in OPERATIONS:
            n = repeats if name in ("capture", "info") else 3 * repeats
            seconds[name] = {version: [] for version in workers}
            for repeat in range(n + 1):
                for version, one in workers.items():
                    took = one.ask(name)
                    if repeat:  # the first is a warm-up
                        seconds[name][version].append(took)
            print(f"{name}: {summary(seconds[name])}", flush=True)
    about = {"before": _git("rev-parse", "--short", commit), "this": _git("rev-parse", "--short", "HEAD")}
    return {"commits": about, "sizes": sizes, "processors": os.cpu_count(), "seconds": seconds}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=HERE.parent, check=True, capture_output=True, text=True).stdout.strip()


def summary(seconds: dict[str, list[float]]) -> list[str]:
    """Median seconds before and now, and the ratio of each pair: its median, and its quartiles."""
    ratios = [now / before for now, before in zip(seconds["this"], seconds["before"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    medians = [f"{statistics.median(seconds[version]):.4g} s" for version in ("before", "this")]
    return [*medians, f"{middle:.2f} × ({low:.2f} to {high:.2f})"]


def read_results() -> dict[str, Any] | None:
    """What the last whole run measured; None where there was none."""
    found: dict[str, Any] | None = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else None
    return found


def markdown(result: dict[str, Any] | None) -> str:
    """The table, and what it is of."""
    if result is None:
        return NOT_MEASURED
    rows = [[OPERATIONS[name].format(**result["sizes"]), *summary(found)] for name, found in result["seconds"].items()]
    commits = result["commits"]
    about = (
        f"Commit `{commits['this']}` beside `{commits['before']}`, the last without checksums of rows, in one run on "
        f"{result['processors']} processors; the median, and in brackets the quartiles, of the ratios of neighbouring runs."
    )
    return f"{table(['', 'before', 'now', 'ratio'], rows)}\n\n{about}"


def main() -> int:
    """The exit status."""
    if sys.argv[1:2] == ["worker"]:
        work(Path(sys.argv[2]), json.loads(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the other commit, or `page`")
    parser.add_argument(
        "--repeats", type=int, default=7, help="of captures and `info`; the others run three times as often"
    )
    parser.add_argument("--quick", action="store_true", help="small inputs; nothing is written")
    asked = parser.parse_args()
    if asked.commit != "page":
        result = measure(asked.commit, repeats=asked.repeats, quick=asked.quick)
        if asked.quick:
            return 0
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rewrite("against", markdown(read_results()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
