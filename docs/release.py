"""What is released, tried as its users will: the sdist, the wheel built from it, and the first tutorial in its installation.

    python docs/release.py                  # builds, then tries Python 3.11, 3.12 and 3.13
    python docs/release.py 3.12 --keep      # one of them; its environment and folder stay in build/release

Each Python gets an empty environment with the wheel and what it depends on, as requirements.lock names them, and an empty
folder, in which every block of docs/tutorials/first-store.md is pasted after `actstore demo`. Needs uv, which `make lock`
installs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "release"
TUTORIAL = ROOT / "docs" / "tutorials" / "first-store.md"
PYTHONS = ("3.11", "3.12", "3.13")
BLOCK = re.compile(r"^```(console|sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PACKAGED = ("api/", "commands/", "display/", "engine/", "explorer/", "kernels/", "store/", "demo/models/")
"""Folders whose files an installation has, all of them."""
TOP = ("__init__.py", "cli.py", "py.typed")
SOURCES_ONLY = "explorer/frontend/"
"""What the bundle is built from."""


def main() -> int:
    """The exit status: 1 if anything is missing or a block of the tutorial ends otherwise than it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", default=PYTHONS, metavar="VERSION")
    parser.add_argument("--keep", action="store_true", help="leave environments and folders where they are")
    asked = parser.parse_args()
    sdist, wheel = build()
    if missing := [*not_in(names_in_wheel(wheel), "actstore/"), *not_in(names_in_sdist(sdist), "")]:
        print(f"{len(missing)} files are in the checkout and not in what is released: {', '.join(missing[:10])}")
        return 1
    print(f"{sdist.name}, {sdist.stat().st_size / 1e6:.1f} MB; {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
    failed = [python for python in asked.pythons if not try_in(python, wheel, keep=asked.keep)]
    return 1 if failed else 0


def build() -> tuple[Path, Path]:
    """The sdist of the checkout, and the wheel that is built from the sdist."""
    folder = BUILT / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([ROOT / ".venv-lock" / "bin" / "uv", "build", "--quiet", "--out-dir", folder], cwd=ROOT, check=True)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def names_in_wheel(wheel: Path) -> set[str]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def names_in_sdist(sdist: Path) -> set[str]:
    """The files of an sdist, without the folder that holds them all."""
    with tarfile.open(sdist) as archive:
        return {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}


def not_in(names: set[str], prefix: str) -> list[str]:
    """The files of the checkout that an installation needs and `names`, which begin with `prefix`, lack."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    needed = [
        name for name in tracked if name in TOP or (name.startswith(PACKAGED) and not name.startswith(SOURCES_ONLY))
    ]
    return [name for name in needed if f"{prefix}{name}" not in names]


def try_in(python: str, wheel: Path, *, keep: bool) -> bool:
    """Whether the tutorial runs in an installation of `wheel` for this Python; what happened is printed."""
    environment, folder = BUILT / f"env-{python}", BUILT / f"tutorial-{python}"
    began = time.monotonic()
    try:
        for place in (environment, folder):
            shutil.rmtree(place, ignore_errors=True)
        folder.mkdir(parents=True)
        subprocess.run([f"python{python}", "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--quiet"]
        subprocess.run([*pip, "--constraint", ROOT / "requirements.lock", "torch", wheel], check=True)
        installed = time.monotonic()
        count = paste(environment, folder)
    except subprocess.CalledProcessError as error:
        print(f"Python {python}: failed, with status {error.returncode}: {error.cmd[-1]}")
        return False
    finally:
        if not keep:
            shutil.rmtree(environment, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
    ended = time.monotonic()
    print(
        f"Python {python}: installed in {installed - began:.0f} s, {count} blocks pasted in {ended - installed:.0f} s"
    )
    return True


def paste(environment: Path, folder: Path) -> int:
    """Run `actstore demo` and every block of the tutorial in `folder`, with the environment's programs; how many blocks."""
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"PATH": path}
    blocks = [
        ("console", "$ actstore --version\n$ actstore demo\n"),
        *BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")),
    ]
    for kind, text in blocks:
        typed = re.sub(r"^(?!\$ ).*\n", "", text, flags=re.MULTILINE).replace("$ ", "") if kind == "console" else text
        command = ["python", "-c", typed] if kind == "python" else ["bash", "-euo", "pipefail", "-c", typed]
        # What a block printed is shown where it failed.
        done = subprocess.run(command, cwd=folder, env=variables, check=False, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n")
            raise subprocess.CalledProcessError(done.returncode, command)
    return len(blocks)


if __name__ == "__main__":
    sys.exit(main())
