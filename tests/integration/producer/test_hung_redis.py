"""A Redis that accepts connections and answers nothing, as one that is stopped does: submits go on, and timeouts hold."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forebay import Client, JobState, ResultTimeout
from support.servers import ValkeyServer, running
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerStack]:
    folder = tmp_path_factory.mktemp("hung")
    with running(ValkeyServer(folder)) as server:
        stack = WorkerStack(folder, server.url)
        stack.model("Doubler")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            yield stack
        finally:
            os.kill(server.pid, signal.SIGCONT)
            stack.close()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def test_a_submit_waits_a_moment_for_it_and_later_ones_do_not(hung: WorkerStack) -> None:
    client = Client(hung.settings)
    with within(60):
        jobs = [client.predict("doubler", 1)]
    with within(30):
        jobs += [client.predict("doubler", n) for n in range(20)]
        jobs += client.predict_many("doubler", range(20))
    with within(60), pytest.raises(ResultTimeout):
        jobs[0].result(2)
    with within(30):
        client.close()
    assert {info.state for info in hung.client.jobs()} == {JobState.QUEUED}
    assert len(hung.client.jobs()) == 41


def test_the_shells_timeout_holds(hung: WorkerStack) -> None:
    with within(60):
        ran = subprocess.run(
            [sys.executable, "-m", "forebay", "predict", "doubler", "1", "--timeout", "3"], timeout=240,
            env=os.environ | hung.settings.as_environment(), cwd=Path(hung.folder), capture_output=True, text=True,
        )  # fmt: skip
    assert ran.returncode == 1
    assert "goes on" in ran.stderr
