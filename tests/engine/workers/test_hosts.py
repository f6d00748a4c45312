"""A capture by a Ray cluster of three hosts into a bucket has the bytes of one process's."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from counting_proxy import CountingProxy
from hosts import HERE, can_have_hosts, hosts, on_host
from s3_server import environment
from written_captures import downloaded, written

import actstore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3_server import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_have_hosts(), reason="needs to make network namespaces")]
SETTINGS: dict[str, Any] = {"context": 16, "max_tokens": 3000, "precision": "int8", "block_tokens": 128}


@contextmanager
def disconnected() -> Iterator[None]:
    """While open Ray may be connected to; afterwards it is not."""
    yield
    import_module("ray").shutdown()


def test_three_hosts_capture_into_a_bucket(
    tiny_model: Path, corpus: Path, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = Path(sys.executable).with_name("ray")
    actstore.capture(str(tiny_model), corpus, tmp_path / "whole", **SETTINGS)
    # A short path, for sockets lie in it; and not /tmp/ray, where a cluster that is gone would be looked for later.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as files,
        hosts(3) as addresses,
        closing(CountingProxy(s3_server.port, HERE)) as bucket,
        disconnected(),
    ):
        named = environment(bucket.endpoint)
        path = os.pathsep.join(filter(None, sys.path))
        for number, address in enumerate(addresses):
            role = (
                ["--head", "--ray-client-server-port=10001", "--include-dashboard=false"]
                if number == 0
                else [f"--address={addresses[0]}:6379"]
            )
            on_host(
                number, str(ray), "start", *role, f"--node-ip-address={address}", "--num-cpus=1",
                "--object-store-memory=100000000", "--disable-usage-stats",
                environment=os.environ | named | {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": files},
            )  # fmt: skip
        for name, value in named.items():
            monkeypatch.setenv(name, value)
        options = actstore.RunOptions(on=f"ray://{addresses[0]}:10001", workers=3)
        location = f"s3://bucket/{uuid.uuid4()}/store"
        assert actstore.capture(str(tiny_model), corpus, location, options=options, **SETTINGS).is_complete
        callers = {request.client for request in bucket.requests if request.method == "PUT"}
        assert callers >= set(addresses)
        assert written(downloaded(location, tmp_path / "copy")) == written(tmp_path / "whole")
