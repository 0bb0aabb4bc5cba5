"""A user at a shell: the installed CLI as subprocesses, the stack it starts, and what is left of it afterwards.

Everything a test starts here is ended by its process id, whatever becomes of the test.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from forebay import Client, Settings
from support.waiting import wait_until

# A suite that was started in the background ignores Ctrl-C, and would hand that on to every command it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FOREBAY = (sys.executable, "-m", "forebay")
Call = Sequence[str | bytes]
TESTS = Path(__file__).parents[1]
TIMEOUT_S = 400  # a busy machine is no reason to fail
# Short, so that what a sweep or a lapsed lease brings back is back within a test's patience.
QUICK = {
    "FOREBAY_LEASE_S": "3", "FOREBAY_HEARTBEAT_S": "0.5", "FOREBAY_SWEEP_S": "0.5", "FOREBAY_RESEND_S": "1",
    "FOREBAY_TORCH_THREADS": "1", "FOREBAY_DASHBOARD_PORT": "0", "FOREBAY_API_PORT": "0",
    "FOREBAY_ALLOWED_PYTHON_MODELS": "support.models",
}  # fmt: skip


@dataclass(frozen=True)
class User:
    """Somebody who works in `folder`, with the stack's home in `folder/home` and these variables set."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    program: Sequence[str] = FOREBAY

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        """The caller's environment without any setting of Forebay's, then ours; workers find the tests' models."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")}
        given = [part for part in inherited.get("PYTHONPATH", "").split(os.pathsep) if part]
        path = os.pathsep.join(str(Path(part).absolute()) for part in (TESTS, *given))
        plain = {"PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
        return inherited | plain | QUICK | {"FOREBAY_HOME": str(self.home)} | dict(self.variables)

    def run(self, *arguments: str | bytes, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """`forebay ARGUMENTS`, to its end. Whatever it says, it must not be a traceback."""
        done = subprocess.run(
            [*self.program, *arguments],
            cwd=self.folder, env=self.environment, input=given, stdin=None if given else subprocess.DEVNULL,
            capture_output=True, encoding="utf-8", errors="strict", timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        return done

    def ok(self, *arguments: str, given: str | None = None) -> str:
        """What a command that must end with exit status 0 prints."""
        done = self.run(*arguments, given=given)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json, read as JSON."""
        return json.loads(self.ok(*arguments, "--json"))

    def together(self, *calls: Call) -> list[subprocess.CompletedProcess[str]]:
        """What `run` gives for each of several commands that do not depend on one another, side by side."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda call: self.run(*call), calls))

    def refused(self, *arguments: str | bytes) -> str:
        """The one line on stderr of a command that must end with exit status 2, without `error: `."""
        return refusal(self.run(*arguments))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`forebay ARGUMENTS` in the background, its words in `<first argument>.out`. The caller ends it."""
        with (self.folder / f"{arguments[0]}.out").open("ab") as output:
            return subprocess.Popen(
                [*self.program, *arguments], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def said(self, command: str) -> str:
        """What `start` has written so far."""
        return (self.folder / f"{command}.out").read_text(errors="replace")

    def client(self) -> Client:
        return Client(Settings.load(self.environment))

    def stack(self) -> dict[str, Any]:
        """What stack.json says now."""
        content: dict[str, Any] = json.loads((self.home / "stack.json").read_text())
        return content

    def marked(self) -> list[psutil.Process]:
        """Every process of this machine that was started for the stack in this home, whoever its parent is now."""
        return [p for p in psutil.process_iter() if _variable(p, "STARTED_BY_FOREBAY") == str(self.home)]

    @contextmanager
    def up(self, *arguments: str) -> Iterator[dict[str, Any]]:
        """A detached stack, stopped in the end, and killed where that did not help."""
        try:
            self.ok("up", "--detach", *arguments)
            yield self.stack()
        finally:
            self.run("down")
            end(self.marked())


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a command that ended as wrong usage does: exit status 2, one line on stderr, nothing on stdout."""
    assert (done.returncode, done.stdout) == (2, ""), f"{done.args}: {done.stdout}{done.stderr}"
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").strip()


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; what only waits to be reaped does not."""

    def runs(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    return [p for p in processes if runs(p)]


def end(processes: Sequence[psutil.Process], how: signal.Signals = signal.SIGKILL) -> None:
    """Signal each of them, and come back when none runs."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    wait_until(lambda: not alive(processes), f"{[p.pid for p in processes]} have ended")


@contextmanager
def running(user: User, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`forebay ARGUMENTS` in the background; it and all it started are gone in the end."""
    process = user.start(*arguments)
    try:
        yield process
    finally:
        end(family(process.pid))
        process.wait(120)


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except psutil.Error:
        return None
