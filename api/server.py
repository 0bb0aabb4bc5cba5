"""uvicorn with our application, run inside this process until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from forebay.api.access import check_address
from forebay.api.app import make_app
from forebay.api.context import Api
from forebay.api.openai.batch_loop import BatchLoop
from forebay.contract.errors import ForebayError
from forebay.contract.logs import configure_logs
from forebay.contract.settings import Settings
from forebay.producer.async_client import AsyncClient
from forebay.storage.api_keys import ApiKeys
from forebay.storage.ledger.connection import Ledger

log = structlog.get_logger()

KEEP_ALIVE_S = 75
GRACE_S = 15  # for what is under way when the server is told to stop; waits for jobs are answered at once
WATCH_S = 20.0  # how often a connection is looked at
MIN_BYTES = 20 * 1024  # a client sends or reads at least so much in that time, or is cut off
MAX_HEAD_BYTES = 64 * 1024
SPARE_FILES = 256  # descriptors that are not for connections


class WatchedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for ever for the rest of a request, and for its client to read an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._receiving, self._in_head = True, True  # a request, from the connection's first moment
        self._messages = self._checked_messages = 0
        self._received = self._head_bytes = 0
        self._stuck = False
        self._watch = self.loop.call_later(WATCH_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too large.")

    def on_message_begin(self) -> None:
        self._messages += 1
        self._receiving = self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._receiving, self._head_bytes = False, 0
        super().on_message_complete()

    def resume_writing(self) -> None:
        self._stuck = False
        super().resume_writing()

    def _check(self) -> None:
        same = self._messages == self._checked_messages
        slow = self._receiving and same and not self.flow.read_paused and self._received < MIN_BYTES
        if slow or (self.flow.write_paused and self._stuck):
            self.transport.abort()
            return
        self._checked_messages, self._received, self._stuck = self._messages, 0, self.flow.write_paused
        self._watch = self.loop.call_later(WATCH_S, self._check)


class ApiServer(uvicorn.Server):
    """Ends with status 0 when it is told to stop, and answers those who wait for jobs."""

    def __init__(self, config: uvicorn.Config, api: Api) -> None:
        super().__init__(config)
        self._api = api
        self._batches = BatchLoop(api.client.sync.session, api.new_batch)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes."""
        self._loop = asyncio.get_running_loop()
        self._batches.start()
        try:
            await super().serve(sockets)
        finally:
            await asyncio.to_thread(self._batches.stop)
            await self._api.client.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as uvicorn calls it
        """A signal has come; a second one ends what is under way too."""
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._api.stop_waiting)


def serve(settings: Settings, host: str, port: int, certfile: Path | None = None, keyfile: Path | None = None) -> int:
    """Serve HTTP until SIGTERM or Ctrl-C; the exit status. Port 0 is any free one.

    Raises ForebayError when there is no ledger, when it cannot listen there, and when other machines could get in without an
    API key.
    """
    configure_logs(settings)
    with closing(Ledger(settings.database)) as ledger:
        check_address(host, ApiKeys(ledger).list())
    with listen(host, port) as listening:
        api = Api(AsyncClient(settings))
        config = configure(make_app(api), host, port, certfile, keyfile)
        name = f"[{host}]" if ":" in host else host
        scheme = "https" if certfile else "http"
        gc.collect()
        gc.freeze()  # what is there to stay; a look at all of it would hold every request up
        log.info("api_ready", url=f"{scheme}://{name}:{listening.getsockname()[1]}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(ApiServer(config, api).serve([listening]))
    log.info("api_stopped")
    return 0


def configure(
    app: ASGIApp, host: str, port: int, certfile: Path | None = None, keyfile: Path | None = None
) -> uvicorn.Config:
    """How uvicorn serves the application; ForebayError when there is no such certificate or key."""
    if keyfile and not certfile:
        raise ForebayError(f"cannot serve TLS with the key {keyfile} alone: its certificate is missing")
    config = uvicorn.Config(
        app, host, port, http=WatchedProtocol, ws="none", lifespan="off", log_config=None, log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=_most_connections(), ssl_certfile=certfile, ssl_keyfile=keyfile,
    )  # fmt: skip
    try:
        config.load()
    except (OSError, ValueError) as error:
        raise ForebayError(f"cannot serve TLS with {certfile} and {keyfile}: {error}") from error
    return config


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:  # taken, or not permitted
        raise ForebayError(f"the API cannot listen on {host or '*'}:{port}: {error}") from error
    listening.setblocking(False)
    return listening


def _most_connections() -> int:
    """As many as there are file descriptors for, after asking for all that this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(soft - SPARE_FILES, SPARE_FILES) if soft != resource.RLIM_INFINITY else 2**20
