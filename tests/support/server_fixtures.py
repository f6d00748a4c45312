"""Servers that stores lie on: S3 with a proxy that counts, and a static HTTP server."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from counting_proxy import CountingProxy
    from s3_server import S3Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The S3 server of this run of the tests."""
    from s3_server import S3Server

    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingProxy]:
    """A proxy that counts before the S3 server, which the environment names: `s3://bucket/…` is there."""
    from counting_proxy import CountingProxy
    from s3_server import environment

    proxy = CountingProxy(s3_server.port)
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.close()


@pytest.fixture
def s3_location(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place on the S3 server at which nothing is yet, with nothing between."""
    from s3_server import environment

    for name, value in environment(s3_server.endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{uuid.uuid4()}/store"
