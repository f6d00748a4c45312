"""The lock: it names every package, within the ranges of pyproject.toml, and `make env` installed just that."""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RANGES = [
    Requirement(text)
    for text in (*PROJECT["dependencies"], *(t for texts in PROJECT["optional-dependencies"].values() for t in texts))
]
MADE_BY_MAKE = Path(sys.prefix) == ROOT / ".venv"


def locked() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]


def release_of(requirement: Requirement) -> str:
    (only,) = requirement.specifier
    assert only.operator == "==", requirement
    return only.version


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_range_is_locked_for_every_python_and_admits_what_is_locked(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    releases: dict[str, str] = {}
    for requirement in locked():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in releases, f"{requirement.name} is locked twice for Python {python}"
            releases[requirement.name] = release_of(requirement)
    for wanted in RANGES:
        assert wanted.specifier.contains(releases[canonicalize_name(wanted.name)]), wanted


def test_every_range_has_a_lower_and_an_upper_bound() -> None:
    for wanted in RANGES:
        assert {"<", ">="} <= {specifier.operator for specifier in wanted.specifier}, wanted


def test_transformers_that_drop_the_old_name_of_the_cache_wait_until_they_are_tested() -> None:
    (transformers,) = [wanted for wanted in RANGES if wanted.name == "transformers"]
    assert not transformers.specifier.contains("5.40.0")
    assert transformers.specifier.contains("5.24.0")


@pytest.mark.skipif(not MADE_BY_MAKE, reason="this environment was not made by `make env`")
def test_make_installed_what_the_lock_names_and_nothing_else() -> None:
    releases = {
        canonicalize_name(requirement.name): release_of(requirement)
        for requirement in locked()
        if requirement.marker is None or requirement.marker.evaluate()
    }
    other = {
        distribution.name: distribution.version
        # Not all of sys.path: a library may put copies of others there that it brings along, as Ray does.
        for distribution in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
        if canonicalize_name(distribution.name) != PROJECT["name"]
        # A build of a release is named behind a plus: torch 2.13.0+cpu.
        and releases.get(canonicalize_name(distribution.name)) != distribution.version.partition("+")[0]
    }
    assert other == {}
