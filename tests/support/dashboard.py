"""A dashboard process as `python -m forebay.dashboard` runs it, for tests that ask it over HTTP or with a browser."""

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from support.waiting import wait_until


def basic_login(text: str) -> str:
    """The header that gives `user:password`."""
    return "Basic " + base64.b64encode(text.encode()).decode()


OPERATOR, VIEWER = {"Authorization": basic_login("ada:p")}, {"Authorization": basic_login("bob:q")}


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
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(encoding="utf-8")

    @property
    def address(self) -> str:
        """What it says to open, once it listens."""
        self.await_event("dashboard_ready")
        (line,) = (line for line in self.output.splitlines() if "event=dashboard_ready" in line)
        return line.partition(" url=")[2].strip('"')

    @property
    def url(self) -> str:
        """The same without the token."""
        return self.address.partition("/?token=")[0]

    @property
    def bearer(self) -> dict[str, str]:
        """The header by which a program brings the token; none where there is a login."""
        token = self.address.partition("/?token=")[2]
        return {"Authorization": f"Bearer {token}"} if token else {}

    def count(self, event: str) -> int:
        """How many lines it has written about this event."""
        return self.output.count(f"event={event} ")

    def await_event(self, event: str, times: int = 1) -> None:
        """Until it has written so many lines about this event; it must still run."""

        def seen() -> bool:
            assert self.process.poll() is None, self.output
            return self.count(event) >= times

        wait_until(seen, f"the dashboard says {event} {times} times")

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """The status and the body of a page."""
        given = self.bearer if headers is None else dict(headers)
        request = urllib.request.Request(self.url + path, headers=given)  # noqa: S310 - always http
        try:
            with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
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
        return self.process.wait(120)


class Dashboards:
    """Starts dashboards and ends those that a test has not."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def start(self, broker: str, **environment: str) -> Dashboard:
        """A dashboard that has only just been started."""
        dashboard = Dashboard(self._folder, broker, **environment)
        self._stack.callback(_kill, dashboard.process)
        return dashboard


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(120)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    text: str


class Site:
    """A dashboard and how to talk to it, headers and all."""

    def __init__(self, dashboard: Dashboard) -> None:
        self.dashboard = dashboard
        self.port = urlsplit(dashboard.url).port

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            own = {"Host": f"127.0.0.1:{self.port}"} | self.dashboard.bearer
            connection.request(method, path, body, own | given)
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    def text(self, path: str, **headers: str) -> str:
        reply = self.ask(path, **headers)
        assert reply.status == 200, reply.text
        return reply.text

    def act(
        self, id: str, action: str, *, confirmed: str = "yes", token: bool = True, folder: str = "jobs", **headers: str
    ) -> Reply:
        """What the button on the page of a job, a batch or a training run sends."""
        login = {"Authorization": headers["Authorization"]} if "Authorization" in headers else {}
        page = self.ask(f"/{folder}/{id}", **login)
        cookie = page.headers["Set-Cookie"].partition(";")[0]
        form = urlencode({"confirmed": confirmed} | ({"_xsrf": cookie.partition("=")[2].strip('"')} if token else {}))
        given = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"} | headers
        return self.ask(f"/{folder}/{id}/{action}", "POST", form, **given)


def page_text(page: str) -> str:
    """A page without its tags, in one line."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


def job_ids(page: str) -> list[str]:
    """The jobs of a list, in order."""
    return re.findall(r'id="job-([0-9a-f]{32})"', page)
