"""Hosts with addresses of their own on this machine: network namespaces behind a bridge. They share disks and processors."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_BRIDGE: Final = "actstore0"
_NETWORK: Final = "10.77.17"
HERE: Final = f"{_NETWORK}.1"
"""The address of this machine for the hosts."""


def can_have_hosts() -> bool:
    """Whether this process may make network namespaces."""
    return shutil.which("ip") is not None and os.geteuid() == 0 and _is_done("ip", "netns", "list")


@contextmanager
def hosts(n: int) -> Iterator[list[str]]:
    """The addresses of `n` hosts, which are gone afterwards with all that runs on them."""
    with ExitStack() as undo:
        _ip("link", "add", _BRIDGE, "type", "bridge")
        undo.callback(_ip, "link", "del", _BRIDGE)
        _ip("addr", "add", f"{HERE}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        addresses = []
        for number in range(n):
            name, address = _name(number), f"{_NETWORK}.{10 + number}"
            _ip("netns", "add", name)
            undo.callback(_remove, name)
            _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
            undo.callback(
                _ip, "link", "del", f"{name}a"
            )  # the namespace stays until the last of its processes has ended
            _ip("link", "set", f"{name}a", "master", _BRIDGE, "up")
            for words in (
                ("addr", "add", f"{address}/24", "dev", f"{name}b"),
                ("link", "set", f"{name}b", "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", name, *words)
            addresses.append(address)
        yield addresses


def on_host(number: int, *command: str, environment: dict[str, str] | None = None) -> None:
    """Run a command on a host until it ends; AssertionError with what it said where it fails."""
    done = subprocess.run(
        ["ip", "netns", "exec", _name(number), *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _name(number: int) -> str:
    return f"actstore{number + 1}"


def _remove(name: str) -> None:
    processes = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
    if processes:
        subprocess.run(["kill", "-9", *processes], check=False)
    _ip("netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _is_done(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
