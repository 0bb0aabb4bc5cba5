"""A small HTTP server of files, with ranges as object stores have them; on demand it answers 503, or not at all."""

import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FileServer:
    """Serves a folder on loopback. `busy` of the next requests for data get a 503; `redirects` leads paths elsewhere;
    while `stuck` is set nobody gets any.
    """  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.busy = 0
        self.redirects: dict[str, str] = {}
        self.stuck, self.closing = threading.Event(), threading.Event()
        self.asked = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Let go of whoever waits, and end."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(120)


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            if self._redirect():
                return
            path = server.folder / self.path.lstrip("/")
            self.send_response(200 if path.is_file() else 404)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
            self.end_headers()

        def do_GET(self) -> None:
            server.asked += 1
            while server.stuck.is_set() and not server.closing.is_set():
                server.closing.wait(0.05)
            path = server.folder / self.path.lstrip("/")
            if self._redirect():
                return
            if server.busy > 0:
                server.busy -= 1
                self._answer(503, b"slow down")
            elif not path.is_file():
                self._answer(404, b"")
            else:
                self._send(path.read_bytes())

        def _redirect(self) -> bool:
            target = server.redirects.get(self.path)
            if target is not None:
                self.send_response(302)
                self.send_header("Location", target)
                self.send_header("Content-Length", "0")
                self.end_headers()
            return target is not None

        def _send(self, data: bytes) -> None:
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span is None:
                self._answer(200, data)
                return
            first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
            self._answer(206, data[first : last + 1], f"bytes {first}-{last}/{len(data)}")

        def _answer(self, status: int, data: bytes, span: str | None = None) -> None:
            self.send_response(status)
            if span is not None:
                self.send_header("Content-Range", span)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked was killed meanwhile
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    return Handler
