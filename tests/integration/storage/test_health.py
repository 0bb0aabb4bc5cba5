"""What is found wrong, from the ledger's rows and from a Redis that hangs, and the next step that goes with it."""

import socket
import time

from sqlalchemy import text

from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import ping_redis
from forebay.storage.health import Failures, failures_by_model, ledger_health
from forebay.storage.jobs.records import Finished
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.workers import WorkerRegistry
from support.jobs import JobError, add, claim
from support.servers import ValkeyServer


def silence(ledger: Ledger, name: str, seconds: float) -> None:
    WorkerRegistry(ledger).heartbeat(name, "atlas", "cpu", ("cpu",), ledger.now())
    with ledger.write() as connection:
        connection.execute(
            text("UPDATE workers SET heartbeat_at = :at WHERE name = :name"),
            {"at": ledger.now() - seconds, "name": name},
        )


def test_a_silent_worker_is_named_with_the_jobs_it_holds_and_how_to_wake_it(ledger: Ledger, store: JobStore) -> None:
    add(store, 2)
    claim(store, add(store, 3), worker="cpu@atlas")
    silence(ledger, "cpu@atlas", 600)
    worker, queue = ledger_health(ledger, Settings.load()).problems
    assert worker.what.startswith(
        "1 worker fell silent: cpu@atlas for 10 min; 3 jobs run there until another worker frees them"
    )
    assert "On atlas" in worker.next_step
    assert "kill -CONT" in worker.next_step
    assert queue.what.startswith("2 jobs wait in queue cpu, the oldest for ")
    assert queue.what.endswith(": only cpu@atlas, silent.")
    assert "`forebay worker --queues cpu`" in queue.next_step


def test_a_queue_that_a_living_worker_serves_is_no_problem(ledger: Ledger, store: JobStore) -> None:
    add(store, 2)
    silence(ledger, "cpu@atlas", 0)
    assert ledger_health(ledger, Settings.load()).problems == ()


def test_failures_of_the_last_hour_are_counted_by_type_with_the_first_line_of_the_latest(
    ledger: Ledger, store: JobStore
) -> None:
    bad = [("ValueError", "\nrow 3: no number\n  at x"), ("ValueError", "row 9: no number"), ("WorkerLost", "signal 9")]
    ids = []
    for type, message in bad:
        (job,) = claim(store, add(store, 1))
        store.finish([Finished(job.id, job.attempt, error=JobError(type, message))])
        ids.append(job.id)
    assert ledger_health(ledger, Settings.load()).failures == (
        Failures("ValueError", 2, "row 9: no number", ids[1]),
        Failures("WorkerLost", 1, "signal 9", ids[2]),
    )
    with ledger.write() as connection:
        connection.execute(text("UPDATE jobs SET finished_at = finished_at - 3601"))
    assert ledger_health(ledger, Settings.load()).failures == ()
    by_model = failures_by_model(ledger)
    assert [(each.type, each.count) for each in by_model["digits", 1]] == [("ValueError", 2), ("WorkerLost", 1)]


def test_a_redis_that_accepts_connections_and_says_nothing_is_found_in_time(broker: str) -> None:
    assert ping_redis(Settings.load(broker=broker)) is None
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        port = frozen.getsockname()[1]
        begun = time.monotonic()
        problem = ping_redis(Settings.load(broker=f"redis://127.0.0.1:{port}/0"), timeout_s=0.2)
        assert problem == "hangs: it has not answered within 0.2 s"
        assert time.monotonic() - begun < 30


def test_a_redis_that_is_away_or_refuses_the_login_is_told_from_one_that_hangs(valkey: ValkeyServer) -> None:
    valkey.start()
    wrong = ping_redis(Settings.load(broker=f"redis://:wrong@127.0.0.1:{valkey.port}/0"))
    assert wrong is not None
    assert wrong.startswith("refuses the login")
    away = ping_redis(Settings.load(broker="redis://127.0.0.1:1/0"))
    assert away is not None
    assert away.startswith("does not answer")
