"""An HTTP proxy before a server: it counts requests and bytes, and makes faults that are asked for."""

from __future__ import annotations

import http.client
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Request:
    """One request that went through."""

    method: str
    path: str
    range: str
    status: int = 0
    nbytes: int = 0
    """Of the body of the answer."""
    nbytes_sent: int = 0
    """Of the body of the request."""
    client: str = ""
    """The address it came from."""


@dataclass
class Fault:
    """What happens to a request instead of, or after, its being answered."""

    status: int = 0
    """Answer with this status, and pass nothing on."""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Pass it on, send the head and this number of bytes of the answer, and cut the connection; -1: not even the head."""


class CountingProxy:
    """Answers at `endpoint` with what a server on a port of this machine answers."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.requests: list[Request] = []
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = (
                -1
            )  # head and body in one packet: of two, the second waits 40 ms for the first to be acknowledged

            def handle_any(self) -> None:
                proxy._answer(self, port)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self._connections = threading.local()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        """Its address."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        """Count from nothing, and make no faults."""
        self.requests, self.fault = [], lambda request: None

    @property
    def nbytes(self) -> int:
        """Bytes of the bodies of all answers."""
        return sum(request.nbytes for request in self.requests)

    def of(self, *methods: str) -> list[Request]:
        """The requests of these methods."""
        return [request for request in self.requests if request.method in methods]

    def _answer(self, handler: BaseHTTPRequestHandler, port: int) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        ranges, client = handler.headers.get("Range") or "", handler.client_address[0]
        request = Request(handler.command, handler.path, ranges, nbytes_sent=len(body), client=client)
        fault = self.fault(request)
        self.requests.append(request)
        if fault is not None and fault.status:
            request.status = fault.status
            handler.send_response(fault.status)
            for name, value in {"Content-Length": str(len(fault.body)), **fault.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(b"" if handler.command == "HEAD" else fault.body)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            upstream.request(handler.command, handler.path, body, dict(handler.headers))
            response = upstream.getresponse()
            data = response.read()
        finally:
            upstream.close()
        request.status, request.nbytes = response.status, len(data)
        cut = None if fault is None else fault.cut_after
        if cut != -1:
            handler.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    handler.send_header(name, value)
            size = response.getheader("Content-Length") if handler.command == "HEAD" else str(len(data))
            handler.send_header("Content-Length", size or "0")
            handler.end_headers()
            handler.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
