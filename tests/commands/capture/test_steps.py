"""`actstore plan`, `fill` and `finish`, and the recipes with which many processes fill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from told_to_end import run_told_to_end
from written_captures import written

import actstore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SETTINGS = ("--context", "16", "--max-tokens", "600", "--memory", "32KB", "--label", "language", "--quiet")


@pytest.fixture
def planned(cli: Callable[..., Any], tiny_model: Path, corpus: Path, tmp_path: Path) -> Path:
    """A store with a planned capture."""
    done = cli("plan", tiny_model, corpus, tmp_path / "store", *SETTINGS, "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json == {
        "capture": "corpus", "n_documents": done.json["n_documents"], "n_windows": done.json["n_windows"],
        "n_tokens": done.json["n_tokens"], "n_blocks": 10, "block_slots": 64,
    }  # fmt: skip
    return tmp_path / "store"


def test_three_commands_make_a_capture(
    cli: Callable[..., Any], refused: Callable[..., str], planned: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    unfilled = cli("finish", planned)
    assert unfilled.status == 1
    assert "10 of 10 blocks of capture 'corpus'" in unfilled.err
    for worker in ("1", "a/b", "3/", "-1/2"):
        assert "such as 3/8, found" in refused("fill", planned, f"--worker={worker}")
    assert "found worker 2 of 2. Check --worker" in refused("fill", planned, "--worker", "2/2")
    assert "with `actstore plan`." in refused("fill", planned, "--capture", "other")
    filled = cli("fill", planned, "--worker", "0/1", "--json").json
    assert filled == {"capture": "corpus", "n_blocks": 10, "n_committed": 10, "filled": list(range(10))}
    again = cli("fill", planned)
    assert again.out == "capture 'corpus': 0 blocks filled by this worker, 10 of 10 there; `actstore finish` ends it\n"
    finished = cli("finish", planned, "--json").json
    assert finished["captures"]["corpus"]["blocks"] == {"planned": 10, "committed": 10}
    assert "10 of 10 there; finished" in cli("fill", planned).out
    assert cli("finish", planned).status == 0
    whole = cli("capture", tiny_model, corpus, tmp_path / "whole", *SETTINGS)
    assert whole.status == 0
    assert written(planned) == written(tmp_path / "whole")


def run_shell(script: str, *arguments: object) -> None:
    """Run lines of bash, in which `actstore` is this one."""
    function = f'actstore() {{ "{sys.executable}" -m actstore.cli "$@"; }}; export -f actstore\n'
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-ec", function + script, "bash", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_loop_of_the_shell_fills_a_capture(planned: Path) -> None:
    run_shell('for i in 0 1 2; do actstore fill "$1" --worker $i/3 --quiet & done; wait', planned)
    assert actstore.finish(planned).is_complete


@pytest.mark.slow
def test_torchrun_fills_a_capture(planned: Path) -> None:
    run_shell(
        f'"{sys.executable}" -m torch.distributed.run --standalone --nproc-per-node 2 --no-python '
        'bash -c \'actstore fill "$0" --worker $RANK/$WORLD_SIZE --quiet\' "$1"',
        planned,
    )
    assert actstore.finish(planned).is_complete


@pytest.mark.slow
def test_a_worker_whose_time_is_up_lets_go_of_its_blocks(
    cli: Callable[..., Any], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    planned = cli("plan", tiny_model, corpus, store, "--context", "16", "--memory", "32KB", "--quiet", "--json").json
    worker = run_told_to_end(signal.SIGTERM, "fill", store, "--worker", "0/1")
    assert worker.returncode == 1, worker.stderr
    told = re.compile(r"Error: Interrupted: (\d+) of \d+ blocks of capture 'corpus' are in .*`actstore fill`.*\.\n")
    assert (found := told.search(worker.stderr)), worker.stderr
    committed = list((store / "captures/corpus/blocks").glob("*.json"))
    assert int(found[1]) == len(committed) < planned["n_blocks"]
    assert not list((store / "captures/corpus/claims").iterdir())


@pytest.mark.slow
def test_a_worker_of_another_instruction_set_is_refused(planned: Path) -> None:
    run_shell('actstore fill "$1" --quiet', planned)
    (planned / "captures/corpus/blocks/3.json").unlink()
    with pytest.raises(AssertionError, match=r"begun on other numerics .* \(device is cpu with DEFAULT, not cpu with"):
        run_shell('ATEN_CPU_CAPABILITY=default actstore fill "$1" --quiet', planned)
