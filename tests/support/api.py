"""The HTTP server of the tests: the real one, in a thread of this process, on a port of its own, and a client of http.client."""

import asyncio
import http.client
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from forebay.api.app import make_app
from forebay.api.context import Api
from forebay.api.server import ApiServer, configure, listen
from forebay.contract.settings import Settings
from forebay.producer.async_client import AsyncClient
from support.waiting import wait_until


@dataclass(frozen=True)
class Answer:
    """A response; header names are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RunningApi:
    """A server that runs. `api` is what its handlers share."""

    def __init__(self, api: Api, server: ApiServer, port: int) -> None:
        self.api, self.port, self._server = api, port, server

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 60
    ) -> Answer:
        """One request on a connection of its own; a body that is neither bytes nor an open file is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        plain = body is None or isinstance(body, bytes | io.BufferedIOBase)
        data = body if plain else json.dumps(body).encode()
        try:
            connection.request(method, path, data, dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def stop(self) -> None:
        """As SIGTERM does."""
        self._server.handle_exit(15, None)


@contextmanager
def running_api(settings: Settings) -> Iterator[RunningApi]:
    """The server, with a client of its own; it is stopped in the end."""
    api = Api(AsyncClient(settings))
    with listen("127.0.0.1", 0) as listening:
        server = ApiServer(configure(make_app(api), "127.0.0.1", 0), api)
        thread = threading.Thread(target=_run, args=(server, listening), name="api-of-tests")
        thread.start()
        try:
            wait_until(lambda: server.started, "the server answers")
            yield RunningApi(api, server, listening.getsockname()[1])
        finally:
            server.handle_exit(15, None)
            thread.join(60)
    assert not thread.is_alive()


@dataclass(frozen=True)
class ServeCommand:
    """A process of `forebay serve`."""

    process: subprocess.Popen[bytes]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def serve_command(settings: Settings, log: Path, *options: str) -> Iterator[ServeCommand]:
    """`forebay serve` on a free port; it is killed in the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "forebay", "serve", "--port", "0", *options],
            env=settings.child_environment(), stdout=output, stderr=output,
        )  # fmt: skip
    try:
        found = wait_until(lambda: re.search(r"api_ready.*(https?://[\w.]+:\d+)", log.read_text()), "it is ready")
        yield ServeCommand(process, found[1])
    finally:
        process.kill()
        process.wait(60)


def _run(server: ApiServer, listening: Any) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve([listening]))
