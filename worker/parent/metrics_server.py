"""A worker's own `/metrics`, `/healthz` and `/readyz`, on a port that the operator chose; without one, nothing listens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog

from forebay.contract.errors import ForebayError, MissingExtra
from forebay.contract.settings import Settings
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.parent.probes import Probes

try:
    from forebay.contract.metrics.exposition import metrics_app, worker_families
except ImportError as error:
    raise MissingExtra(
        "FOREBAY_METRICS_PORT is set, and a worker's metrics need prometheus_client", "worker"
    ) from error

log = structlog.get_logger()


class MetricsServer:
    """Listens from `start` to `stop`, in threads of the parent. Metrics and probes are asked anew for every request."""

    def __init__(self, settings: Settings, metrics: WorkerMetrics, probes: Probes) -> None:
        """ForebayError when it cannot listen there."""
        host, port = settings.metrics_host, settings.metrics_port
        app = make_app(settings.worker_name, metrics, probes)
        try:
            self._server = make_server(host, port, app, _Server, _Handler)
        except OSError as error:
            raise ForebayError(f"the worker's metrics cannot listen on {host}:{port}: {error}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()
        host, port = self._server.server_address[:2]
        log.info("metrics_ready", url=f"http://{host!s}:{port}/metrics")

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def make_app(worker: str, metrics: WorkerMetrics, probes: Probes) -> Callable[..., Any]:
    prometheus = metrics_app(lambda: worker_families({worker: (metrics.snapshot(), True)}))

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        match environ["PATH_INFO"]:
            case "/metrics":
                return prometheus(environ, start_response)
            case "/healthz":
                problems, otherwise = probes.health(), "ok"
            case "/readyz":
                problems, otherwise = probes.readiness(), "ready"
            case _:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"there are /metrics, /healthz and /readyz\n"]
        status = "503 Service Unavailable" if problems else "200 OK"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return ["".join(f"{line}\n" for line in problems or [otherwise]).encode()]

    return app


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client went away, or said nothing: not worth a traceback on stderr."""
        log.debug("metrics_request_failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = 10  # for a client that opened a connection and says nothing

    def log_message(self, *_: object) -> None:
        """Probes come every few seconds: not worth a line."""
