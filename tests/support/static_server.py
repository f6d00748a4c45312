"""A static HTTP server with Range on a folder: what any host of files does, and no more."""

from __future__ import annotations

import re
import threading
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class StaticServer:
    """Serves the files below a folder at `url`; no folder is listed."""

    def __init__(self, folder: Path, *, with_range: bool = True) -> None:
        self.paths: list[str] = []
        """What was asked for."""
        server = self

        class Handler(SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = (
                -1
            )  # head and body in one packet: of two, the second waits 40 ms for the first to be acknowledged

            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(folder))  # type: ignore[misc, arg-type]

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                server.paths.append(self.path)
                path = Path(self.translate_path(self.path))
                if not path.is_file():
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                data = path.read_bytes()
                begin, end = 0, len(data)
                match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "") if with_range else None
                if match is not None:
                    begin = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
                    end = min(len(data), int(match[2]) + 1) if match[1] and match[2] else len(data)
                    if begin >= end:
                        self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                        return
                self.send_response(HTTPStatus.OK if match is None else HTTPStatus.PARTIAL_CONTENT)
                self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
                self.send_header("Content-Length", str(end - begin))
                if match is not None:
                    self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
                self.end_headers()
                if with_body:
                    self.wfile.write(data[begin:end])

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where the folder is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
