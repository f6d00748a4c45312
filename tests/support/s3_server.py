"""A real S3 server on this machine: SeaweedFS, one for all processes of a run of the tests.

Whoever uses it holds a shared lock on a file. A keeper, a process of its own, has started it, and ends it when nobody holds the
lock any more: tests that are killed leave no server behind.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import obstore
from obstore.store import S3Store

ACCESS_KEY: Final = "actstore"
SECRET_KEY: Final = "actstore-secret"
BUCKET: Final = "bucket"
START_S: Final = 60.0
_PORTS: Final = ("s3", "master", "volume", "filer")


class S3Server:
    """The server of this run, started by the first process that asks."""

    def __init__(self) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid()}"
        self._folder = Path(tempfile.gettempdir()) / f"actstore-s3-{run}"
        self._folder.mkdir(exist_ok=True)
        self._lock: IO[str] = (self._folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        with (self._folder / "starting").open("w") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            if not (self._folder / "state.json").exists():
                self._start()
        self.port: int = json.loads((self._folder / "state.json").read_text())["port"]

    def _start(self) -> None:
        # Its own session, and none of our files: it outlasts this process while others use the server.
        nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        os.posix_spawn(
            sys.executable, [sys.executable, __file__, str(self._folder)], os.environ, file_actions=nowhere, setsid=True
        )
        deadline = time.monotonic() + START_S
        while not (self._folder / "state.json").exists():
            if time.monotonic() > deadline:
                log = (self._folder / "log").read_text(errors="replace")[-2000:]
                raise TimeoutError(f"the S3 server has not started in {START_S:.0f} s: {log}")
            time.sleep(0.05)

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Use it no longer."""
        self._lock.close()


def options(endpoint: str) -> dict[str, str]:
    """What connects to the server, or to a proxy of it, at an address."""
    return {
        "endpoint": endpoint,
        "region": "us-east-1",
        "access_key_id": ACCESS_KEY,
        "secret_access_key": SECRET_KEY,
    }


def environment(endpoint: str) -> dict[str, str]:
    """The same as variables of the environment."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ALLOW_HTTP": "true",
    }


def make_bucket(endpoint: str) -> None:
    """Create the bucket; `OSError` where the server does not answer."""
    store = S3Store(BUCKET, **options(endpoint), client_options={"allow_http": True})  # type: ignore[misc, arg-type]
    url = obstore.sign(store, "PUT", "", datetime.timedelta(minutes=1))
    with urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5):
        pass


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _die_with_parent() -> None:
    with suppress(OSError, AttributeError):  # Linux alone can
        import ctypes

        ctypes.CDLL(None).prctl(1, 9)


def _keep(folder: Path) -> None:
    """Run the server until nobody holds the lock."""
    ports = _free_ports(2 * len(_PORTS))
    pairs = dict(zip([name + end for name in _PORTS for end in (".port", ".port.grpc")], ports, strict=True))
    (folder / "data").mkdir()
    command = [
        "weed", "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
        *(f"-{name}={port}" for name, port in pairs.items()), "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.telemetry=false", "-volume.max=20", "-master.volumeSizeLimitMB=512",
    ]  # fmt: skip
    command[0] = str(Path(sys.executable).with_name("weed"))
    server = None
    try:
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, **environment("")},
                preexec_fn=_die_with_parent,
            )
        endpoint = f"http://127.0.0.1:{pairs['s3.port']}"
        while server.poll() is None:
            with suppress(OSError):
                make_bucket(endpoint)
                break
            time.sleep(0.1)
        (folder / "state.part").write_text(json.dumps({"port": pairs["s3.port"]}))
        (folder / "state.part").rename(folder / "state.json")
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the last one lets go
    finally:
        if server is not None:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
