"""A dashboard process as `python -m forebay.dashboard` runs it, for tests that ask it over HTTP or with a browser."""

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from support.waiting import wait_until


def basic_login(text: str) -> str:
    """The header that gives `user:password`."""
    return "Basic " + base64.b64encode(text.encode()).decode()


class Dashboard:
    """One dashboard process of a test, with its own folder and any free port unless told otherwise."""

    def __init__(self, folder: Path, broker: str, **environment: str) -> None:
        self._log = folder / "dashboard.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWER_", "FOREBAY_"))}
        ours = {"FOREBAY_HOME": str(folder), "FOREBAY_BROKER": broker, "FOREBAY_DASHBOARD_PORT": "0"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "forebay.dashboard"],
                cwd=folder, env=inherited | ours | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """What it has written so far."""
        return self._log.read_text(encoding="utf-8")

    @property
    def url(self) -> str:
        """Where it says it listens, once it does."""
        self.await_event("dashboard_ready")
        (line,) = (line for line in self.said.splitlines() if "event=dashboard_ready" in line)
        return line.partition("url=")[2]

    def count(self, event: str) -> int:
        """How many lines it has written about this event."""
        return self.said.count(f"event={event} ")

    def await_event(self, event: str, times: int = 1) -> None:
        """Until it has written so many lines about this event; it must still run."""

        def seen() -> bool:
            assert self.process.poll() is None, self.said
            return self.count(event) >= times

        wait_until(seen, f"the dashboard says {event} {times} times")

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """The status and the body of a page."""
        request = urllib.request.Request(self.url + path, headers=dict(headers or {}))  # noqa: S310 - always http
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def tasks(self) -> list[dict[str, Any]]:
        """The rows of the Tasks page, as its table fetches them."""
        asked = {"draw": 1, "start": 0, "length": 100, "order[0][column]": 0, "columns[0][data]": "name"}
        status, body = self.get("/tasks/datatable?" + urlencode(asked))
        assert status == 200, body
        rows: list[dict[str, Any]] = json.loads(body)["data"]
        return rows

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; its exit status."""
        self.process.send_signal(how)
        return self.process.wait(20)


class Dashboards:
    """Starts dashboards and ends those that a test has not."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def start(self, broker: str, **environment: str) -> Dashboard:
        """A dashboard that has only just been started."""
        dashboard = Dashboard(self._folder, broker, **environment)
        self._stack.callback(_make_sure_of_the_end, dashboard.process)
        return dashboard


def _make_sure_of_the_end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(20)
