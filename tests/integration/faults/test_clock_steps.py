"""Wall clocks that are stepped while jobs run and wait: of the worker's machine, the client's, and both; no good job suffers."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support import stepped_clock
from support.stepped_clock.sitecustomize import VARIABLE, stepped
from support.waiting import wait_until
from support.worker_stack import WorkerStack

DAY = 86_400
WORKER, CLIENT = "worker-clock", "client-clock"
# Who is stepped to which offset, one after the other: each is a step by ten minutes or a day, or both.
QUICK = [((WORKER,), -600), ((WORKER, CLIENT), DAY), ((WORKER, CLIENT), 0)]
ALL = [
    (clocks, offset)
    for clocks in ((WORKER,), (CLIENT,), (WORKER, CLIENT))
    for offset in (600, 0, -600, 0, DAY, 0, -DAY, 0)
]
RENEWALS = 3


class Clocks:
    """The clocks of the workers' machine and of the client's, which is this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self.step((WORKER, CLIENT), 0)
        monkeypatch.setenv(VARIABLE, str(folder / WORKER))
        [package] = stepped_clock.__path__
        monkeypatch.syspath_prepend(package)  # workers inherit it
        now, now_ns = stepped(str(folder / CLIENT))
        monkeypatch.setattr(time, "time", now)
        monkeypatch.setattr(time, "time_ns", now_ns)

    def step(self, clocks: tuple[str, ...], offset: int) -> None:
        for clock in clocks:
            (self._folder / clock).write_text(f"{offset:<20}")


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(tmp_path, monkeypatch)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def stack(request: pytest.FixtureRequest, clocks: Clocks, tmp_path: Path, broker: str) -> Iterator[WorkerStack]:
    del clocks  # they are there first
    database = request.getfixturevalue("postgres_database") if request.param == "postgres" else None
    with closing(WorkerStack(tmp_path, broker, database, LEASE_S="10", HEARTBEAT_S="0.3", SWEEP_S="0.3")) as stack:
        yield stack


@pytest.fixture(params=[QUICK, pytest.param(ALL, marks=pytest.mark.slow)], ids=["quick", "all"])
def check(request: pytest.FixtureRequest, stack: WorkerStack, clocks: Clocks) -> Callable[[], None]:
    def run() -> None:
        worker = stack.worker(children=2)
        wait_until(lambda: worker.said().count("child_ready") == 2, "both children are ready")
        recorder, flaky = stack.model("Recorder"), stack.model("Flaky")
        for number, (stepped_clocks, offset) in enumerate(request.param):
            _step(stack, recorder, flaky, number, lambda at=(stepped_clocks, offset): clocks.step(*at))

    return run


def test_jobs_that_run_and_jobs_that_wait_do_not_notice_a_step(check: Callable[[], None]) -> None:
    check()


def _step(stack: WorkerStack, recorder: str, flaky: str, number: int, step: Callable[[], None]) -> None:
    """One job runs and one waits for its next attempt while the clock is stepped; one comes afterwards."""
    client, away = stack.client, stack.folder / "away"
    stack.hold()
    away.touch()
    runs = client.predict(recorder, {"n": number}, deadline=300)
    stack.wait_until_held()
    waits = client.predict(flaky, number)
    wait_until(lambda: waits.info().not_before, "it waits")
    step()
    away.unlink()
    leases: set[float] = set()

    def renewed() -> bool:
        with stack.ledger.read() as connection:
            found = connection.exec_driver_sql(f"SELECT lease_until FROM jobs WHERE id = '{runs.id}'").scalar_one()  # noqa: S608
        leases.add(found)
        return len(leases) > RENEWALS or runs.info().attempt > 1

    wait_until(renewed, "its lease is renewed")
    assert waits.result(120) == number
    stack.go_on()
    assert runs.result(120) == number
    assert client.predict(recorder, {"n": 1000 + number}, deadline=300).result(120) == 1000 + number
    assert runs.info().attempt == 1, runs.history()
    assert stack.runs().count(number) == 1
    assert stack.known("w1"), "the worker is not taken for dead"
