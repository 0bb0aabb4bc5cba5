"""Writes whose PostgreSQL crashes before it answers their COMMIT: it gives their transactions' numbers to others."""

import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from forebay.contract.errors import LedgerUnavailable, OutcomeUnknown
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from support.jobs import new
from support.ledgers import new_ledger
from support.servers import PostgresServer

pytestmark = pytest.mark.postgres
NUMBER = "SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)"
commit = Connection.commit


class Crash:
    """Ends the server as a crash does, and starts it again."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self._server, self._url = server, url

    def __call__(self) -> None:
        self._server.stop(signal.SIGQUIT)
        self._server.start()

    def and_take(self, number: int) -> bool:
        """Crash; then others make transactions until one of them has this number, or a greater one."""
        self()
        with closing(Ledger(self._url)) as others:
            for _ in range(200):
                with others.write() as connection:
                    taken = connection.run(NUMBER, {}).scalar()
                if taken >= number:
                    return taken == number
        raise AssertionError(f"{taken} is far from {number}")


@pytest.fixture
def url(own_postgres: PostgresServer) -> str:
    return own_postgres.url.replace("postgresql://", "postgresql+psycopg://") + "/postgres"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with new_ledger(url, settle_s=5.0) as ledger:
        yield ledger


@pytest.fixture
def crash(own_postgres: PostgresServer, url: str) -> Crash:
    return Crash(own_postgres, url)


def test_what_a_crash_has_lost_is_not_taken_for_the_transaction_that_has_its_number_now(
    ledger: Ledger, crash: Crash
) -> None:
    with pytest.raises(OutcomeUnknown, match="the server has crashed meanwhile"), ledger.write() as connection:
        assert crash.and_take(connection.run(NUMBER, {}).scalar()), "nothing of it was on disk"


def test_what_a_crash_has_lost_and_nobody_has_followed_was_not_written(ledger: Ledger, crash: Crash) -> None:
    with pytest.raises(LedgerUnavailable) as caught, ledger.write():
        crash()
    assert not isinstance(caught.value, OutcomeUnknown)


def test_a_submit_that_a_crash_has_lost_is_refused(
    ledger: Ledger, crash: Crash, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_too_late(connection: Connection) -> None:
        monkeypatch.setattr(Connection, "commit", commit)
        crash.and_take(connection.run(NUMBER, {}).scalar())
        commit(connection)

    store, jobs = JobStore(ledger), [new() for _ in range(20)]
    monkeypatch.setattr(Connection, "commit", commit_too_late)
    with pytest.raises(LedgerUnavailable) as caught:
        store.add(jobs)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert not {job.id for job in jobs} & {info.id for info in store.queries.find()}


def test_a_submit_that_a_crash_has_not_lost_is_there(
    ledger: Ledger, crash: Crash, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_answer(connection: Connection) -> None:
        monkeypatch.setattr(Connection, "commit", commit)
        commit(connection)
        crash()
        connection.run("SELECT 1", {})

    store, jobs = JobStore(ledger), [new() for _ in range(20)]
    monkeypatch.setattr(Connection, "commit", lose_the_answer)
    assert store.add(jobs) == [job.id for job in jobs]
    assert {job.id for job in jobs} <= {info.id for info in store.queries.find()}
