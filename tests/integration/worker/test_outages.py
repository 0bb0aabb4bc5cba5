"""The queue, the ledger or the blob store goes away under a worker and a client: both wait, and nothing is lost."""

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from forebay import as_completed
from forebay.contract.job import JobState
from forebay.producer.handles.job import Job
from support.servers import PostgresServer, ValkeyServer, new_database
from support.silent_proxy import DeafProxy
from support.waiting import wait_until
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker for the outages of Redis and of SQLite."""
    stack = open_stack()
    stack.worker().ready()
    return stack


def ended(jobs: list[Job], timeout: float = 120) -> Counter[str]:
    return Counter(str(job.state) for job in as_completed(jobs, timeout))


def assert_each_ran_once(stack: WorkerStack, jobs: list[Job], first: int) -> None:
    """No job was attempted twice, and no row was run twice."""
    assert {job.info().attempt for job in jobs} == {1}
    numbers = range(first, first + len(jobs))
    assert Counter(n for n in stack.runs() if n in numbers) == dict.fromkeys(numbers, 1)


def pass_time(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, "the outage has lasted long enough", seconds + 30)


def pause_redis(stack: WorkerStack, server: ValkeyServer, seconds: float, first: int) -> None:
    model = stack.model("Moody", "paused", max_batch_size=4)
    jobs = stack.client.predict_many(model, [{"n": first + n, "sleep": 0.05} for n in range(60)])
    wait_until(lambda: first in stack.runs(), "a batch runs")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        meanwhile = [pool.submit(stack.client.predict, model, {"n": first + 60 + n}) for n in range(3)]
        pass_time(seconds)
        os.kill(server.pid, signal.SIGCONT)
        jobs += [future.result(120) for future in meanwhile]
    assert ended(jobs) == {"succeeded": 63}
    assert_each_ran_once(stack, jobs, first)
    assert stack.workers[0].alive


def test_redis_paused_holds_up_and_loses_nothing(stack: WorkerStack, server: ValkeyServer) -> None:
    pause_redis(stack, server, 3, 0)


@pytest.mark.slow
def test_redis_paused_for_30_s_holds_up_and_loses_nothing(stack: WorkerStack, server: ValkeyServer) -> None:
    pause_redis(stack, server, 30, 100)


def test_an_outage_of_redis_is_told_once_and_its_end_too(stack: WorkerStack, server: ValkeyServer) -> None:
    worker = stack.workers[0]
    before = worker.said().count("event=broker_unreachable"), worker.said().count("event=broker_connected")
    server.kill()
    started = time.monotonic()
    job = stack.client.predict(stack.model("Doubler"), 21)
    assert time.monotonic() - started < 20, "a refused connection holds up no submit"
    wait_until(lambda: worker.said().count("event=broker_unreachable") == before[0] + 1, "the outage is told")
    pass_time(3)  # several attempts to connect
    server.start()
    assert job.result(120) == 42
    wait_until(lambda: worker.said().count("event=broker_connected") == before[1] + 1, "its end is told")
    assert worker.said().count("event=broker_unreachable") == before[0] + 1
    assert stack.client.predict("doubler", 4).result(120) == 8


def wipe_redis(stack: WorkerStack, server: ValkeyServer, count: int, first: int) -> float:
    """How long it took from Redis' return until all had ended."""
    model = stack.model("Recorder", "wiped", max_batch_size=256)
    stack.hold()
    jobs = stack.client.predict_many(model, [{"n": first + n} for n in range(count)])
    wait_until(lambda: stack.states().get("running"), "a batch runs")
    server.kill()
    server.start()  # it keeps nothing
    stack.go_on()
    started = time.monotonic()
    assert ended(jobs, 120) == {"succeeded": count}
    took = time.monotonic() - started
    assert_each_ran_once(stack, jobs, first)
    return took


def test_all_jobs_end_when_redis_lost_everything(stack: WorkerStack, server: ValkeyServer) -> None:
    wipe_redis(stack, server, 1500, 1000)


@pytest.mark.slow
def test_10000_jobs_end_within_60_s_when_redis_lost_everything(stack: WorkerStack, server: ValkeyServer) -> None:
    assert wipe_redis(stack, server, 10_000, 100_000) < 60


def lock_sqlite(stack: WorkerStack, seconds: float, first: int) -> None:
    """Another process, to SQLite's own lock, holds the file while a batch ends, a lease lapses and a client submits."""
    model = stack.model("Moody", "locked")
    job = stack.client.predict(model, {"n": first, "sleep": 1})
    wait_until(lambda: first in stack.runs(), "it runs")
    with (
        closing(sqlite3.connect(stack.folder / "ledger.db", isolation_level=None)) as other,
        ThreadPoolExecutor() as pool,
    ):
        other.execute("BEGIN EXCLUSIVE")
        meanwhile = pool.submit(stack.client.predict, model, {"n": first + 1})
        pass_time(seconds)
        other.execute("COMMIT")
        jobs = [job, meanwhile.result(120)]
    assert ended(jobs) == {"succeeded": 2}
    assert_each_ran_once(stack, jobs, first)


def test_sqlite_locked_for_longer_than_a_lease_costs_no_attempt(stack: WorkerStack) -> None:
    lock_sqlite(stack, 4.5, 5000)


@pytest.mark.slow
def test_sqlite_locked_for_10_s_costs_no_attempt(stack: WorkerStack) -> None:
    lock_sqlite(stack, 10, 5100)


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGQUIT, marks=pytest.mark.slow)])
def test_postgresql_restarted_under_a_batch_loses_nothing(
    own_postgres: PostgresServer, how: signal.Signals, tmp_path: Path, broker: str
) -> None:
    with new_database(own_postgres.url) as name:
        url = f"{own_postgres.url.replace('postgresql://', 'postgresql+psycopg://', 1)}/{name}"
        with closing(WorkerStack(tmp_path, broker, url)) as stack:
            stack.worker().ready()
            restart_postgres(stack, own_postgres, how, 0)


def restart_postgres(stack: WorkerStack, postgres: PostgresServer, how: signal.Signals, first: int) -> None:
    model = stack.model("Moody", "postgres", max_batch_size=8)
    jobs = stack.client.predict_many(model, [{"n": first + n, "sleep": 0.02} for n in range(200)])
    wait_until(lambda: first in stack.runs(), "a batch runs")
    postgres.stop(how)
    postgres.start()
    assert ended(jobs) == {"succeeded": 200}  # this client waits across the outage
    assert stack.workers[0].alive
    assert_each_ran_once(stack, jobs, first)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder.mkdir(parents=True)
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("mounting a small file system takes root")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run([umount, "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no room."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(65536)):
            pass
    return filler


def test_a_result_that_finds_no_room_waits_until_there_is_some(tmp_path: Path, broker: str) -> None:
    with (
        small_disk(tmp_path / "disk") as disk,
        closing(WorkerStack(tmp_path / "stack", broker, BLOBS=str(disk))) as stack,
    ):
        worker = stack.worker(MAX_INLINE_BYTES="1000").ready()
        model = stack.model("Echo")
        assert stack.client.predict(model, "a" * 50_000).result(120) == "a" * 50_000
        filler = fill(disk)
        jobs = [stack.client.predict(model, str(n) * 50_000) for n in range(3)]  # inline for the client
        wait_until(lambda: "event=blobs_full" in worker.said(), "the worker notices")
        wait_until(lambda: {job.state for job in jobs} == {JobState.RUNNING}, "all of them wait")
        assert [job.result(120) for job in stack.client.predict_many(model, list(range(20)))] == list(range(20))
        pass_time(1.2 * stack.settings.lease_s)
        assert {job.state for job in jobs} == {JobState.RUNNING}
        left = stack.client.predict(model, "x" * 40_000)
        wait_until(lambda: left.state is JobState.RUNNING, "another one waits")
        filler.unlink()
        assert [job.result(120) for job in jobs] == [str(n) * 50_000 for n in range(3)]
        assert left.result(120) == "x" * 40_000
        assert {job.info().attempt for job in jobs} == {1}
        assert worker.alive


def test_a_worker_that_is_told_to_stop_gives_back_what_waits_for_room(tmp_path: Path, broker: str) -> None:
    with (
        small_disk(tmp_path / "disk") as disk,
        closing(WorkerStack(tmp_path / "stack", broker, BLOBS=str(disk))) as stack,
    ):
        worker = stack.worker(MAX_INLINE_BYTES="1000", SHUTDOWN_GRACE_S="60", LEASE_S="600").ready()
        fill(disk)
        job = stack.client.predict(stack.model("Echo"), "a" * 50_000)
        wait_until(lambda: "event=blobs_full" in worker.said(), "its result finds no room")
        assert worker.terminate() == 0
        assert "event=child_killed" not in worker.said()
        assert job.state is JobState.QUEUED, "its lease would have lasted for ten minutes"
        assert job.info().attempt == 0


@pytest.fixture
def proxy(valkey: ValkeyServer, broker: str) -> Iterator[DeafProxy]:
    proxy = DeafProxy(valkey.port)
    try:
        yield proxy
    finally:
        proxy.close()


def test_a_stalled_consumer_reconnects(tmp_path: Path, broker: str, proxy: DeafProxy) -> None:
    with closing(WorkerStack(tmp_path, broker)) as stack:
        own = urlsplit(broker)
        worker = stack.worker(BROKER=broker.replace(f":{own.port}/", f":{proxy.port}/")).ready()
        model = stack.model("Doubler")
        assert stack.client.predict(model, 1).result(120) == 2
        proxy.deafen()
        wait_until(lambda: proxy.swallowed, "it hears nothing")
        assert stack.client.predict(model, 2).result(120) == 4
        assert "event=stalled_consumer_reconnects" in worker.said()
        assert worker.alive


@pytest.mark.slow
def test_a_worker_that_stays_deaf_ends_itself(tmp_path: Path, broker: str, proxy: DeafProxy) -> None:
    with closing(WorkerStack(tmp_path, broker)) as stack:
        own = urlsplit(broker)
        worker = stack.worker(BROKER=broker.replace(f":{own.port}/", f":{proxy.port}/")).ready()
        model = stack.model("Doubler")
        assert stack.client.predict(model, 1).result(120) == 2
        proxy.deafen(later_ones=True)
        wait_until(lambda: proxy.swallowed, "it hears nothing")
        job = stack.client.predict(model, 3)
        assert worker.process.wait(120) == 75
        assert "event=stalled_consumer_exits" in worker.said()
        proxy.heal()
        stack.worker("again")
        assert job.result(120) == 6
