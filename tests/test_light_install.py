"""What the light installation lacks: reading goes on without it, everything else names the package and how to install it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from actstore.api.light import READING, RUNNING, SERVING

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "tests" / "store" / "data" / "format-1-step-2" / "text"
ANNOUNCED = "This needs the package torch, which is not installed here. `pip install actstore` installs everything."


def run(program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A program in a process that cannot import what runs models; not in the checkout, whose kernels/ would be found."""
    block = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {(*RUNNING, 'PIL')!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    return subprocess.run([sys.executable, "-c", block + program], capture_output=True, text=True, cwd=cwd, check=False)


def run_commands(*lines: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Command lines one after another; the status of each is printed."""
    return run(
        "import shlex\nfrom actstore import cli\n"
        f"for line in {lines!r}:\n"
        "    sys.argv = ['actstore', *shlex.split(line)]\n"
        "    print('status', cli._run(cli.application()), flush=True)\n",
        cwd,
    )


def test_the_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.match(r"[A-Za-z0-9-]+", line)[0] for line in project["dependencies"]}  # type: ignore[index]
    # numba brings llvmlite, and pillow is for pictures of images.
    assert {*READING, *RUNNING, *SERVING, "llvmlite", "pillow"} == names


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_the_pages_name_the_packages(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"pip install {' '.join(READING)}\npip install --no-deps actstore" in text


def test_a_store_is_read(tmp_path: Path) -> None:
    neuron = "--neurons L1.N3 --capture corpus"
    done = run_commands(
        f"info {STORE}", f"stats {STORE}", f"top {STORE} L1.N3", f'sql {STORE} "select count(*) from neurons"',
        f"export {STORE} --output {tmp_path}/x.parquet {neuron}", f"naica {STORE}", f"knowledge {STORE}",
        f"selectivity {STORE} --by language --capture corpus", f"coverage {STORE} --capture corpus",
        f"graphs show {STORE} L1.N3", f"edit list {STORE}", f"edit show {STORE} boost",
        f"coactivation {STORE} L1.N3 --capture corpus", f"copy {STORE} {tmp_path}/copy", f"verify {tmp_path}/copy",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.count("status 0") == 15, done.stdout + done.stderr
    assert "needs the package" not in done.stderr


def test_batches_are_arrays(tmp_path: Path) -> None:
    done = run(
        "import actstore\n"
        f"batches = actstore.open({str(STORE)!r}).batches('mlp.post', 1, batch=64, capture='corpus')\n"
        "print(sum(len(batch) for batch in batches) == batches.n_tokens > 0, type(next(iter(batches)).activations).__name__)\n",
        tmp_path,
    )
    assert done.stdout == "True ndarray\n", done.stdout + done.stderr


def test_what_runs_a_model_says_what_to_install(tmp_path: Path) -> None:
    done = run_commands(
        "inspect gpt2", "capture gpt2 corpus.txt new.actstore", f"contributions {STORE} --target fox", cwd=tmp_path
    )
    assert done.stdout.split("\n")[:3] == ["status 2"] * 3
    assert done.stderr.splitlines() == [f"Error: {ANNOUNCED}"] * 3
    assert not (tmp_path / "new.actstore").exists()


def test_python_says_the_same(tmp_path: Path) -> None:
    done = run(
        "import actstore\n"
        f"store = actstore.open({str(STORE)!r})\n"
        "print(store.neurons('corpus').num_rows)\n"
        "for call in (lambda: actstore.capture, lambda: actstore.inspect('gpt2'), lambda: store.contributions('fox'),\n"
        "             lambda: store.edits.boost(['L0.N1'])):\n"
        "    try:\n"
        "        call()\n"
        "    except actstore.errors.MissingPackageError as error:\n"
        "        print(error)\n",
        tmp_path,
    )
    assert done.stdout.splitlines()[1:] == [ANNOUNCED] * 4, done.stdout + done.stderr
