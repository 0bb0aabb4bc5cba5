"""A PostgreSQL server of chaos' own, from the programs of this machine, on loopback, with a password, in a temporary folder."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from forebay.contract.errors import ForebayError, InvalidInput, LedgerUnavailable
from forebay.stack.valkey import free_port
from forebay.storage.ledger.connection import Ledger

DEBIAN = Path("/usr/lib/postgresql")
USER = "postgres"  # initdb and postgres refuse to run as root
START_S = 60
OPTIONS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "fsync=off",  # processes are killed here, never the machine: what was written to a file stays written
)


def find_programs() -> Path:
    """The folder with the newest initdb and postgres of this machine; InvalidInput, saying how to get them, without any."""

    def number(folder: Path) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", folder.parent.name))

    folders = sorted(DEBIAN.glob("*/bin"), key=number, reverse=True)
    on_path = shutil.which("initdb")
    for folder in [*folders, *([Path(on_path).resolve().parent] if on_path else [])]:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise InvalidInput(
        f"no PostgreSQL on this machine: neither {DEBIAN}/*/bin nor PATH has initdb and postgres; "
        "install Debian's package postgresql, or name an empty database: --database postgresql://user@host/name"
    )


class Postgres:
    """One server. It keeps port and password over `crash` and `start`, so that everyone finds it again."""

    def __init__(self) -> None:
        self._programs = find_programs()
        self._user = _user()
        self._folder = Path(tempfile.mkdtemp(prefix="forebay-chaos-postgres-"))  # that user cannot look into our home
        self._password = secrets.token_urlsafe(24)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address, password included."""
        return f"postgresql+psycopg://{USER}:{self._password}@127.0.0.1:{self._port}/postgres"

    @property
    def runs(self) -> bool:
        """Whether the server is up."""
        return self._process is not None and self._process.poll() is None

    @property
    def folder(self) -> Path:
        """Where its data and its log lie."""
        return self._folder

    def start(self) -> None:
        """Make the cluster if there is none yet, start the server, and return once it answers."""
        data = self._folder / "data"
        if not data.exists():
            self._make(data)
        command = [str(self._programs / "postgres"), "-D", str(data), "-p", str(self._port)]
        for option in OPTIONS:
            command += ["-c", option]
        with (self._folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=self._folder, user=self._user, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self._await_answer(self._process)

    def crash(self) -> None:
        """Shut down immediately: everyone is cut off, and the next start recovers from the log."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """Shut down fast, in good order."""
        self._end(signal.SIGINT)

    def remove(self) -> None:
        """Delete its folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self, data: Path) -> None:
        secret = self._folder / "password"
        secret.write_text(self._password, encoding="ascii")
        if self._user:
            shutil.chown(self._folder, self._user)
            shutil.chown(secret, self._user)
        command = [
            str(self._programs / "initdb"), "-D", str(data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}",
            "--no-sync", "--encoding=UTF8", "--locale=C",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=self._folder, user=self._user, capture_output=True, text=True, check=False
        )  # fmt: skip
        if done.returncode:
            raise ForebayError(f"initdb failed: {done.stderr.strip()[-1000:]}")

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        ledger, deadline = Ledger(self.url), time.monotonic() + START_S
        try:
            while not _answers(ledger):
                if process.poll() is not None or time.monotonic() > deadline:
                    words = (self._folder / "log").read_text(encoding="utf-8", errors="replace")[-1000:]
                    raise ForebayError(f"PostgreSQL did not start: {words}")
                time.sleep(0.05)
        finally:
            ledger.close()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None or not self.runs:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answers(ledger: Ledger) -> bool:
    try:
        ledger.ping()
    except LedgerUnavailable:
        return False
    return True


def _user() -> str | None:
    """The user to run it as; None for the one we are."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(USER)
    except KeyError:
        raise InvalidInput(
            f"PostgreSQL refuses to run as root, and there is no user {USER!r}; run this as another user"
        ) from None
    return USER
