"""Processes that are kept running: one that dies comes back after a pause, and nothing is left when all are stopped."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.worker.parent import processes
from forebay.worker.parent.processes import ManagedProcess, Mark, ProcessSupervisor, has_ended
from support.waiting import wait_until

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).wait()"


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Mark]:
    mark = Mark("FOREBAY_TEST_MARK", str(tmp_path))
    yield mark
    for process in mark.orphans():
        process.kill()


@pytest.fixture
def supervise(tmp_path: Path, mark: Mark) -> Iterator[type]:
    made: list[ProcessSupervisor] = []

    def make(code: str, **how: object) -> tuple[ProcessSupervisor, ManagedProcess]:
        env = os.environ | {mark.variable: mark.value}
        process = ManagedProcess("p", [sys.executable, "-c", code], env, output=tmp_path / "logs" / "p.log")
        made.append(ProcessSupervisor([process], mark, **how))
        made[-1].check()
        wait_until(lambda: "up" in process.output.read_text(), "it has started")
        return made[-1], process

    yield make
    for supervisor in made:
        supervisor.stop(0)


def kill(process: ManagedProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: process.pid is None, "it is dead")


def test_a_process_that_dies_is_started_again_once_its_pause_is_over(supervise) -> None:
    supervisor, process = supervise(SLEEP, backoff_s=[0.5])
    first = process.pid
    kill(process)
    assert not supervisor.check(), "its pause has begun"
    wait_until(supervisor.check, "it is started again")
    assert process.pid not in (None, first)
    assert not supervisor.check(), "it runs"


def test_the_pause_grows_while_a_process_keeps_dying_and_a_steady_one_has_none(supervise, monkeypatch) -> None:
    supervisor, process = supervise(SLEEP, backoff_s=[0.0, 1000.0])
    kill(process)
    assert supervisor.check(), "the first time at once"
    kill(process)
    assert not supervisor.check()
    assert process.failures == 2
    process.start()
    monkeypatch.setattr(processes, "STEADY_S", -1.0)
    kill(process)
    assert supervisor.check()
    assert process.failures == 0


def test_what_a_killed_process_left_behind_is_ended_before_it_starts_again(supervise, mark) -> None:
    supervisor, process = supervise(PARENT, backoff_s=[0.0])
    kill(process)
    [orphan] = wait_until(mark.orphans, "its child is an orphan")
    wait_until(supervisor.check, "it is started again")
    assert has_ended(orphan)


def test_a_process_that_does_not_stop_is_killed_with_what_it_has_started(supervise, mark) -> None:
    supervisor, process = supervise(STUBBORN)
    assert not supervisor.stop(0.2)
    assert process.pid is None
    supervisor, process = supervise(PARENT)
    assert supervisor.stop(10)
    assert (process.pid, mark.orphans()) == (None, [])
