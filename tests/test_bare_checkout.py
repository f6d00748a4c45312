"""A checkout that nobody has installed, on a machine without DuckDB, captures; only a query asks for what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import importlib.metadata, sys
real = importlib.metadata.version
def version(name):
    if name == "actstore":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
sys.modules["duckdb"] = None
import actstore
model, corpus, store = sys.argv[1:]
done = actstore.capture(model, corpus, store, context=16, max_tokens=100)
print(actstore.__version__, done.record.written_by, len(done.blocks))
try:
    actstore.open(store).sql("select * from neurons")
except actstore.errors.InvalidInputError as error:
    print(error)
"""


def test_a_bare_checkout_captures(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "actstore").symlink_to(ROOT)
    command = [sys.executable, "-c", SCRIPT, str(tiny_model), str(corpus), str(tmp_path / "store")]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    environment |= {name: value for name, value in os.environ.items() if name == "NUMBA_CACHE_DIR"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    versions, reason = done.stdout.splitlines()
    version = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    assert versions == f"{version.split()[-1][1:-1]} actstore {version.split()[-1][1:-1]} 1"
    assert reason == "A query is run by DuckDB, which is not installed: `pip install duckdb`."
