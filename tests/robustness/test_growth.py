"""Writing and reading block after block takes no more memory and no more open files than the first few did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a process holds is read from /proc")

PROGRAM = Path(__file__).parents[1] / "support" / "block_loop.py"
SETTLED = 24
"""Blocks after which buffers, pools and the shards that stay mapped are all there."""
SLACK_NBYTES = 6 << 20


def check_growth(path: Path, n_blocks: int) -> None:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(path / "store"), str(n_blocks)]
    # Not in the checkout, where the folder kernels/ would be a top-level module.
    done = subprocess.run(command, capture_output=True, text=True, cwd=path, check=False)
    assert done.returncode == 0, done.stderr
    marks = json.loads(done.stdout)
    for phase, settled in (("write", SETTLED), ("read", SETTLED), ("whole", 0)):
        found = [(nbytes, files) for name, block, nbytes, files in marks if name == phase and block >= settled]
        assert len(found) > 4
        memory, files = zip(*found, strict=True)
        assert max(memory) < memory[0] + SLACK_NBYTES, phase
        assert max(files) <= files[0] + 8, phase  # an encoder may be at work


def test_memory_and_open_files_over_eighty_blocks(tmp_path: Path) -> None:
    check_growth(tmp_path, 80)


@pytest.mark.slow
def test_memory_and_open_files_over_a_thousand_blocks(tmp_path: Path) -> None:
    check_growth(tmp_path, 1000)
