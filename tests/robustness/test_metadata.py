"""Metadata that say anything at all, sealed and unsealed: readers, `info`, `verify`, `stats` and `sql` answer or refuse.

No traceback, no hang, no more memory than a small store takes, and no other value in silence. Mutations run in processes of
their own, whose memory is limited: what a damaged size makes a library ask for is then an error, and not the end of the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

FAULTS = Path(__file__).parent / "metadata_faults.py"
SEED = 20260101


@pytest.fixture(scope="module")
def prepared(whole_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the store of every kind, which the processes damage."""
    import shutil

    path = tmp_path_factory.mktemp("metadata") / "store"
    shutil.copytree(whole_store, path)
    return path


def run_faults(store: Path, *arguments: object) -> list[dict[str, object]]:
    """What went wrong with each mutation; the process says what it met last where it ended on the way."""
    done = subprocess.run(
        [sys.executable, str(FAULTS), str(store), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=store.parent
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    answer: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return answer
