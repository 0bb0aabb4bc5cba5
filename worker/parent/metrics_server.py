"""A worker's own `/metrics`, `/healthz` and `/readyz`, on a port that the operator chose; without one, nothing listens.

A thread of the parent. It knows the metrics and the probes, and asks them anew for every request.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog

from forebay.contract.errors import ForebayError, MissingExtra
from forebay.contract.settings import Settings
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.parent.probes import Probes

try:
    from forebay.contract.metrics.exposition import CONTENT_TYPE, expose, worker_families
except ImportError as error:
    raise MissingExtra(
        "a worker's metrics need prometheus_client: pip install 'forebay[worker]', or unset FOREBAY_METRICS_PORT"
    ) from error

log = structlog.get_logger()

PATIENCE_S = 10  # for a client that opened a connection and says nothing


class MetricsServer:
    """Listens from `start` to `stop`."""

    def __init__(self, settings: Settings, metrics: WorkerMetrics, probes: Probes) -> None:
        """ForebayError when it cannot listen there."""
        host, port = settings.metrics_host, settings.metrics_port
        answers = Answers(settings.worker_name, metrics, probes)

        class Handler(_Handler):
            page = staticmethod(answers.page)

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ForebayError(f"the worker's metrics cannot listen on {host}:{port}: {error}") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()
        host, port = self._server.server_address[:2]
        log.info("metrics_ready", url=f"http://{host!s}:{port}/metrics")

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


class Answers:
    """What each path answers: a status, a content type and the text."""

    def __init__(self, worker: str, metrics: WorkerMetrics, probes: Probes) -> None:
        self._worker = worker
        self._metrics = metrics
        self._probes = probes

    def page(self, path: str) -> tuple[int, str, bytes]:
        """The answer to a GET."""
        if path == "/metrics":
            return 200, CONTENT_TYPE, expose(worker_families({self._worker: (self._metrics.snapshot(), True)}))
        if path == "/healthz":
            return _verdict(self._probes.health(), "ok")
        if path == "/readyz":
            return _verdict(self._probes.readiness(), "ready")
        return 404, "text/plain", b"there are /metrics, /healthz and /readyz\n"


def _verdict(wrong: list[str], well: str) -> tuple[int, str, bytes]:
    return (
        (503 if wrong else 200),
        "text/plain; charset=utf-8",
        "".join(f"{line}\n" for line in wrong or [well]).encode(),
    )


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_S

    @staticmethod
    def page(path: str) -> tuple[int, str, bytes]:
        """Replaced by each server's own."""
        return 404, "text/plain", path.encode()

    def do_GET(self) -> None:
        """Answer a request."""
        status, kind, body = self.page(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A probe every few seconds is no news."""
