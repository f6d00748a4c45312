"""A store that cannot lie, under faults: short campaigns on every run, long ones under `slow`. Seeds are printed.

Kills, errors, power cuts, tampering, mutated metadata, threads and first writers: tests/support/faults says how. What it
counts stands in docs/reliability.md, which `python benchmarks/reliability.py` writes.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import pytest
from faults import campaigns, fillers, metadata, power, repairs, sharing, shim, tampering
from faults.client import Server
from faults.oracle import Oracle
from faults.power import Directory, Disk, File, Operation
from faults.scenarios import BY_NAME, Workshop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shim.compiler() is None,
    reason="the shim needs Linux and a C compiler, cc or gcc: there is none",
)
CHEAP = ("capture", "edit apply --in-place", "edit suppress")
SEED = 16


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """A warm server with inputs and references."""
    folder = tmp_path_factory.mktemp("faults")
    with Server(folder / "server") as server:
        yield Oracle(Workshop(server, folder))


@pytest.fixture(scope="module")
def whole_oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """The same with a model that reads pictures."""
    folder = tmp_path_factory.mktemp("all-faults")
    with Server(folder / "server") as server:
        yield Oracle(Workshop(server, folder, vision=True))


def check(result: campaigns.Result) -> None:
    """Nothing was other than promised."""
    print(result)
    assert not result.failures, str(result)


def test_the_shim_counts_what_a_command_does(oracle: Oracle) -> None:
    counts = oracle.reference(BY_NAME["capture"]).counts
    assert all(counts[name] for name in ("create", "write", "rename", "mkdir", "open", "read"))
    again = oracle._undisturbed(BY_NAME["capture"]).counts
    # Folders are made by several threads, each of which may find that another was faster.
    assert {name: counts[name] for name in ("write", "rename")} == {name: again[name] for name in ("write", "rename")}


@pytest.mark.parametrize(
    ("fault", "status", "signal"),
    [
        (shim.Fault("kill", ("rename",), 3), None, 9),
        (shim.Fault("tear", ("write",), 5), None, 9),
        (shim.Fault("fail", ("write",), 5, "ENOSPC", stays=True), (1, 2), None),
        (shim.Fault("fail", ("create",), 1, "EIO"), (1, 2), None),
        (shim.Fault(), (0,), None),
    ],
)
def test_a_fault_happens_where_it_was_asked_for(
    oracle: Oracle, fault: shim.Fault, status: tuple[int, ...] | None, signal: int | None
) -> None:
    scenario = BY_NAME["capture"]
    done = oracle.workshop.cli(scenario.command, oracle.start(scenario), fault=fault)
    assert done.signal == signal
    assert done.status is None if status is None else done.status in status, done


def test_a_torn_write_leaves_half(oracle: Oracle, tmp_path: Path) -> None:
    fault = shim.Fault("tear", ("write",), 1)
    done = oracle.server.run("faults.shim:write_bytes", str(tmp_path / "f"), 1000, folder=tmp_path, fault=fault)
    assert (done.signal, (tmp_path / "f").stat().st_size) == (9, 500)


def test_the_judge_sees_a_wrong_value_and_a_torn_file(oracle: Oracle) -> None:
    scenario = BY_NAME["capture"]
    work = oracle.start(scenario)
    done = oracle.workshop.cli(f"{scenario.command} --precision half", work)
    kinds = {kind for kind, _ in oracle.judge(scenario, work, done)}
    assert {"silent: a wrong value", "exit status 0 without the data"} <= kinds
    edit = BY_NAME["edit apply --in-place"]
    work = oracle.start(edit)
    (work / "model" / "config.json").write_bytes(b"{")
    assert "a torn file in model" in {kind for kind, _ in oracle._judge_files(oracle.reference(edit), work)}


def test_a_power_cut_keeps_what_was_synced_and_nothing_else_for_certain(tmp_path: Path) -> None:
    """The simulation itself, on a file of which every step is known."""
    root, state = tmp_path / "work", tmp_path / "state"
    state.mkdir()
    seen = set()
    for seed in range(60):
        disk = Disk(root, state)
        for kind, path, other, data in (
            ("c", "a.partial", "", b""), ("w", "a.partial", "", b"synced"), ("s", "a.partial", "", b""),
            ("r", "a.partial", "a", b""), ("d", "", "", b""), ("w", "a", "", b"later!"), ("c", "b", "", b""),
            ("w", "b", "", b"new"),
        ):  # fmt: skip
            full = str(root / path) if path else str(root)
            inode = 2 if path == "b" else 1
            disk.apply(Operation(kind, inode, 6 if data == b"later!" else 0, 0, full, str(root / other), data))
        target = tmp_path / f"cut-{seed}"
        disk.cut(target, random.Random(seed))
        assert (target / "a").read_bytes().startswith(b"synced")
        assert not (target / "a.partial").exists()
        seen.add(((target / "a").read_bytes(), (target / "b").read_bytes() if (target / "b").exists() else None))
    assert {b"synced", b"synced" + bytes(6), b"syncedlater!"} <= {first for first, _ in seen}
    assert {None, b"", b"new", bytes(3)} <= {second for _, second in seen}


def test_unsynced_names_of_a_folder_are_its_own(tmp_path: Path) -> None:
    folder = Directory()
    assert folder.durable is not Directory().durable
    file = File(b"abc", [(1, b"Z"), (2, None)])
    assert (file.content(1), file.content()) == (b"aZc", b"aZ")


def test_kills(oracle: Oracle) -> None:
    check(campaigns.kills(oracle, 3, SEED, names=CHEAP))


def test_errors(oracle: Oracle) -> None:
    check(campaigns.errors(oracle, 3, SEED, names=CHEAP))


def test_power_cuts(oracle: Oracle) -> None:
    check(power.power_cuts(oracle, 3, SEED, names=CHEAP))


def test_stopped_copies(oracle: Oracle) -> None:
    check(campaigns.kills(oracle, 1, SEED, names=("copy",)))
    check(campaigns.errors(oracle, 1, SEED, names=("copy",)))


def test_stopped_reorderings(oracle: Oracle) -> None:
    check(campaigns.kills(oracle, 1, SEED, names=("reorder",)))
    check(campaigns.errors(oracle, 1, SEED, names=("reorder",)))


def test_tampering(oracle: Oracle) -> None:
    check(tampering.tamper_with(oracle, 4, SEED, state="small"))


def test_repairs(oracle: Oracle) -> None:
    check(repairs.repairs(oracle, 2, SEED, state="small"))


def test_first_writers(oracle: Oracle) -> None:
    check(sharing.first_writers(oracle, 1, SEED))


def test_pairs(oracle: Oracle) -> None:
    check(sharing.pairs(oracle, 2, SEED, names=("capture", "edit suppress")))


def test_mutations_of_metadata(oracle: Oracle) -> None:
    check(metadata.mutations(oracle, 6, SEED, state="small"))


def test_threads(oracle: Oracle) -> None:
    check(sharing.threads(oracle, 2, SEED, state="small", workers=False))


def test_killed_fillers(oracle: Oracle) -> None:
    check(fillers.killed_fillers(oracle, 1, SEED, most_rounds=4))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(
    "campaign",
    [
        "kills",
        "errors",
        "power cuts",
        "tampering",
        "repairs",
        "mutations",
        "threads",
        "first writers",
        "pairs",
        "fillers",
    ],
)
def test_a_long_campaign(whole_oracle: Oracle, campaign: str) -> None:
    check(
        {
            "kills": lambda: campaigns.kills(whole_oracle, 300, SEED),
            "errors": lambda: campaigns.errors(whole_oracle, 300, SEED),
            "power cuts": lambda: power.power_cuts(whole_oracle, 100, SEED),
            "tampering": lambda: tampering.tamper_with(whole_oracle, 200, SEED),
            "repairs": lambda: repairs.repairs(whole_oracle, 150, SEED),
            "mutations": lambda: metadata.mutations(whole_oracle, 2000, SEED),
            "threads": lambda: sharing.threads(whole_oracle, 30, SEED),
            "first writers": lambda: sharing.first_writers(whole_oracle, 100, SEED),
            "pairs": lambda: sharing.pairs(whole_oracle, 100, SEED),
            "fillers": lambda: fillers.killed_fillers(whole_oracle, 100, SEED),
        }[campaign]()
    )
