"""The connection to the ledger: many writers, and a message with the next step for whatever is wrong with it."""

import os
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.storage.jobs.records import NewJob, Postponed
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger import boot_clock, connection, silence
from forebay.storage.ledger.connection import CLOCK_REFRESH_S, Ledger
from forebay.storage.ledger.migrate import current
from forebay.storage.ledger.statement import Statement
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.workers import WorkerRegistry
from support.commit_faults import faulty_database
from support.fault_proxy import Exchange
from support.ledgers import add_and_claim, in_processes, new_ledger, upgrade_once
from support.servers import PostgresServer, free_port
from support.waiting import FakeClock


def test_eight_processes_write_to_one_ledger_at_once(ledger: Ledger, database: str) -> None:
    ids = [id for process in in_processes(8, add_and_claim, database, 15, 20) for id in process]
    assert len(set(ids)) == 8 * 15 * 20
    assert len(JobStore(ledger).queries.states(ids)) == len(ids), "every row is there"


def test_sixteen_threads_write_to_one_ledger_at_once(ledger: Ledger) -> None:
    store = JobStore(ledger)

    def work(_: int) -> list[str]:
        return [store.add([NewJob(id, JobKind.PREDICT, "m", 1, "cpu")])[0] for id in new_ids(10)]

    with ThreadPoolExecutor(16) as pool:
        ids = [id for done in pool.map(work, range(16)) for id in done]
    assert len(store.queries.states(ids)) == 160


def test_readers_are_not_held_up_by_a_writer(ledger: Ledger) -> None:
    store = JobStore(ledger)
    (id,) = store.add([NewJob(new_ids(1)[0], JobKind.PREDICT, "m", 1, "cpu")])
    with ledger.write() as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(text("UPDATE jobs SET queue = 'gpu'"))
        assert pool.submit(store.queries.get, id).result(120).queue == "cpu"
    assert store.queries.get(id).queue == "gpu"


def test_a_transaction_that_fails_leaves_nothing_and_gives_the_ledger_free(ledger: Ledger) -> None:
    def half_done() -> None:
        with ledger.write() as connection:
            connection.execute(text("INSERT INTO models VALUES ('m', 0)"))
            raise KeyError

    with pytest.raises(KeyError):
        half_done()
    with ledger.write() as connection:
        assert connection.execute(text("SELECT count(*) FROM models")).scalar_one() == 0


def test_a_broken_constraint_is_the_callers_to_explain(ledger: Ledger) -> None:
    with pytest.raises(IntegrityError), ledger.write() as connection:
        connection.execute(text("INSERT INTO model_aliases VALUES ('nobody', 'champion', 1)"))


def test_an_upgrade_may_run_in_four_processes_at_once(empty_database: str) -> None:
    revisions = in_processes(4, upgrade_once, empty_database)
    ledger = Ledger(empty_database)
    try:
        assert revisions == [current(ledger)] * 4
        assert None not in revisions
        assert JobStore(ledger).queries.find() == []
    finally:
        ledger.close()


def test_a_missing_file_is_named_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable) as caught:
        Ledger(f"sqlite:///{tmp_path}/absent/ledger.db")
    assert f"there is no ledger at {tmp_path}/absent/ledger.db" in str(caught.value)
    assert "`forebay up`" in str(caught.value)
    assert "`forebay db upgrade`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("this is a letter to my grandmother " * 50)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    try:
        with pytest.raises(LedgerUnavailable, match=r"ledger\.db: file is not a database"):
            ledger.ping()
    finally:
        ledger.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerUnavailable, match=r"cannot make the folder of the ledger .*file"):
        Ledger(f"sqlite:///{tmp_path}/file/ledger.db", create=True)


USES: list[Callable[[Ledger], Any]] = [
    lambda ledger: JobStore(ledger).queries.get("0" * 32),
    lambda ledger: JobStore(ledger).add([NewJob("0" * 32, JobKind.PREDICT, "m", 1, "cpu")]),
    lambda ledger: ModelRegistry(ledger).get("digits"),
]


@pytest.mark.parametrize("use", USES)
def test_missing_tables_are_told_with_the_next_step(empty_database: str, use: Callable[[Ledger], Any]) -> None:
    ledger = Ledger(empty_database, create=True)
    try:
        with pytest.raises(LedgerUnavailable, match="run `forebay db upgrade`"):
            use(ledger)
    finally:
        ledger.close()


@pytest.mark.parametrize("use", USES[:2])
def test_tables_older_than_this_forebay_are_told_with_the_next_step(
    ledger: Ledger, use: Callable[[Ledger], Any]
) -> None:
    with ledger.write() as connection:
        connection.execute(
            text("ALTER TABLE jobs DROP COLUMN deadline_at") if not ledger.sqlite else text("DROP TABLE jobs")
        )
        if ledger.sqlite:
            connection.execute(text("CREATE TABLE jobs (id TEXT)"))
    with pytest.raises(LedgerUnavailable, match="run `forebay db upgrade`"):
        use(ledger)


def test_a_ledger_that_another_program_holds_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.storage.ledger.connection.BUSY_TIMEOUT_S", 0.1)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", create=True)
    ledger.ping()
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="another process has held it"), ledger.write():
            pass
        other.execute("ROLLBACK")
        with ledger.write() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
    finally:
        other.close()
        ledger.close()


def test_a_postgresql_that_is_down_is_told_without_the_password() -> None:
    ledger = Ledger(f"postgresql+psycopg://forebay:geheim@127.0.0.1:{free_port()}/forebay")
    try:
        for use in (ledger.ping, ledger.now, lambda: JobStore(ledger).queries.find()):
            with pytest.raises(
                LedgerUnavailable, match=r"the ledger postgresql\+psycopg://forebay:\*\*\*@127\.0\.0\.1"
            ) as caught:
                use()
            assert "geheim" not in str(caught.value)
    finally:
        ledger.close()


@pytest.mark.postgres
def test_a_postgresql_that_comes_back_is_used_again(own_postgres: PostgresServer) -> None:
    with closing(Ledger(own_postgres.url.replace("postgresql://", "postgresql+psycopg://") + "/postgres")) as ledger:
        ledger.ping()
        own_postgres.stop()
        with pytest.raises(LedgerUnavailable):
            ledger.ping()
        own_postgres.start()
        ledger.ping()
        with ledger.read() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_sqlite_ledgers_write_ahead_and_sync_and_check_foreign_keys(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", create=True)
    try:
        for use in (ledger.read, ledger.write):
            with use() as connection:
                modes = [
                    connection.execute(text(f"PRAGMA {name}")).scalar()
                    for name in ("journal_mode", "synchronous", "foreign_keys")
                ]
            assert modes == ["wal", 2, 1]
    finally:
        ledger.close()


def test_a_burst_leaves_no_long_write_ahead_log(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    def add(name: str) -> int:
        with sqlite_ledger.write() as connection:
            connection.execute(text("INSERT INTO models VALUES (:name, 0)"), {"name": name})
        return (tmp_path / "ledger.db-wal").stat().st_size

    assert add("x" * (24 << 20)) > 24 << 20
    sqlite_ledger.checkpoint()
    assert add("m") <= 16 << 20


def test_the_clock_of_a_sqlite_ledger_is_the_one_it_was_given(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", create=True, clock=FakeClock(1234.5))
    assert ledger.now() == 1234.5
    ledger.close()


@pytest.mark.postgres
def test_the_clock_of_a_postgresql_ledger_is_the_servers_whatever_ours_says(postgres_database: str) -> None:
    true, wrong = Ledger(postgres_database), FakeClock(1_000_000.0)
    ours = Ledger(postgres_database, clock=wrong)
    try:
        assert abs(ours.now() - true.now()) < 5
        before = ours.now()
        wrong.forward(7)
        assert ours.now() - before == pytest.approx(7, abs=1e-3), "between two looks at the server our clock counts"
        wrong.forward(CLOCK_REFRESH_S + 3600)
        assert abs(ours.now() - true.now()) < 5, "a clock that was set is noticed"
    finally:
        true.close()
        ours.close()


@pytest.mark.parametrize("step_s", [600, -600, 86_400, -86_400])
def test_a_machine_whose_clock_is_set_neither_ends_leases_nor_holds_jobs_back(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    with new_ledger(empty_database) as ledger:
        store, true = JobStore(ledger), time.time
        [held, later] = store.add([NewJob(id, JobKind.PREDICT, "m", 1, "cpu") for id in new_ids(2)])
        assert len(store.claim([held], "w", 30)) == 1
        monkeypatch.setattr(time, "time", lambda: true() + step_s)
        assert store.sweeps.free_lapsed() == ([], [])
        assert store.renew([held], "w", 30) == {held}
        [claimed] = store.claim([later], "w", 30)
        assert store.postpone([Postponed(later, claimed.attempt, 0.0, "busy")]) == ([later], [])
        assert [job.id for job in store.sweeps.take_due()] == [later]
        [one] = store.add([NewJob(*new_ids(1), JobKind.PREDICT, "m", 1, "cpu", deadline_at=ledger.now() + 60)])
        with closing(Ledger(empty_database)) as client:  # whose clock was set before it opened the ledger
            [other] = JobStore(client).add(
                [NewJob(*new_ids(1), JobKind.PREDICT, "m", 1, "cpu", deadline_at=client.now() + 60)]
            )
            assert abs(client.now() - ledger.now()) < 30
        assert store.sweeps.expire() == []
        assert len(store.claim([one, other], "w", 30)) == 2
        assert store.sweeps.purge(3600) == 0
        monkeypatch.undo()  # and set back
        assert store.sweeps.free_lapsed() == ([], [])
        assert {row.state for row in map(store.queries.get, [held, one, other])} == {JobState.RUNNING}


def test_after_a_restart_of_the_machine_a_sqlite_ledgers_clock_is_right_again_and_never_behind(
    sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted = tmp_path / "boot_id"
    monkeypatch.setattr(boot_clock, "BOOT_ID", booted)
    true, steady = time.time, [100.0]
    monkeypatch.setattr(connection, "steady_time", lambda: steady[0])
    monkeypatch.setattr(boot_clock, "steady_time", lambda: steady[0])

    def start(boot: str, set_wrong_by: float = 0.0) -> float:
        booted.write_text(f"{boot}\n")
        monkeypatch.setattr(time, "time", lambda: true() + set_wrong_by)
        with closing(Ledger(sqlite_ledger.url)) as ledger:
            return ledger.now() - true()

    assert abs(start("first")) < 30
    assert abs(start("first", set_wrong_by=86_400)) < 30
    with (tmp_path / "ledger.db-clock").open("a") as file:
        file.write("\ntorn by a power cut 17")
    steady[0] = 7.0
    assert abs(start("second")) < 30, "the kernel counts anew, and the file says so"
    with closing(Ledger(sqlite_ledger.url)) as ledger:
        WorkerRegistry(ledger).heartbeat("w", "host", "cpu", (), 0.0)
    assert -30 < start("third", set_wrong_by=-86_400) < 30, "not before what the workers have written"


@pytest.mark.parametrize("count", [0, 1, 300, 50_000])
def test_a_list_of_any_length_is_one_parameter(ledger: Ledger, count: int) -> None:
    ids = [f"{i:032x}" for i in range(count)]
    with ledger.write() as connection:
        connection.execute(
            text("INSERT INTO models VALUES (:name, 0)"), [{"name": "no"}, *({"name": id} for id in ids[:300])]
        )
        found = Statement("SELECT name FROM models WHERE name = ANY(:ids)").execute(connection, ids=ids)
        assert Counter(found.scalars()) == Counter(ids[:300])


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed within a second."""
    monkeypatch.setattr(silence, "SILENT_S", 0.3)
    monkeypatch.setattr(silence, "EVERY_S", 0.1)


@contextmanager
def silenced(ledger: Ledger) -> Iterator[int]:
    """The server process of the connection that was used last hears nothing and says nothing; new connections are served."""
    [*_, idle] = ledger._pool._idle[""]
    pid = idle.driver.info.backend_pid
    try:
        os.kill(pid, signal.SIGSTOP)
    except PermissionError:
        pytest.skip("the server is another user's")
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.postgres
@pytest.mark.usefixtures("watched")
def test_a_connection_that_goes_silent_is_replaced_whatever_it_was_asked(postgres_database: str) -> None:
    with new_ledger(postgres_database) as ledger:
        store = JobStore(ledger)
        [id] = store.add([NewJob(*new_ids(1), JobKind.PREDICT, "m", 1, "cpu")])
        with silenced(ledger):
            assert store.queries.get(id).state is JobState.QUEUED
        with silenced(ledger):
            ledger.ping()
        with silenced(ledger):
            assert len(store.claim([id], "w", 30)) == 1


@pytest.mark.postgres
@pytest.mark.usefixtures("watched")
def test_silence_is_noticed_also_after_a_look_that_went_silent_itself_or_failed(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "ASKED_S", 0.2, raising=False)
    look, failing, silent, over = silence._look, [1], [1], threading.Event()

    def fails_once(pool: Any, suspects: Any) -> Any:
        if failing:
            raise ValueError(f"a connection is closed at this moment, {failing.pop()}")
        return look(pool, suspects)

    def silent_once(exchange: Exchange) -> None:
        if "pg_stat_activity" in exchange.text and silent:
            silent.pop()
            over.wait(120)

    monkeypatch.setattr(silence, "_look", fails_once)
    with faulty_database(postgres_database) as faulty, new_ledger(faulty.url) as ledger:
        assert faulty.proxy is not None
        faulty.proxy.decide = silent_once
        JobStore(ledger).queries.counts()
        with silenced(ledger):
            assert set(JobStore(ledger).queries.counts().values()) == {0}
        over.set()
        assert (failing, silent) == ([], [])


@pytest.mark.postgres
@pytest.mark.parametrize("limit_s", [None, 5.0])
def test_the_kernel_notices_a_server_that_is_gone_for_every_ledger(
    postgres_database: str, limit_s: float | None
) -> None:
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    with closing(Ledger(postgres_database, statement_limit_s=limit_s)) as ledger:
        ledger.ping()
        [idle] = [idle for kept in ledger._pool._idle.values() for idle in kept]
        with closing(socket.socket(fileno=os.dup(idle.driver.fileno()))) as asked:
            found = [asked.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
            found += [asked.getsockopt(socket.IPPROTO_TCP, option) for option in options]
    assert found == [1, 5, 3, 3, 15_000]


@pytest.mark.postgres
@pytest.mark.usefixtures("watched")
def test_a_statement_that_takes_long_is_waited_for(postgres_database: str) -> None:
    with closing(Ledger(postgres_database)) as ledger, ledger.read() as connection:
        assert connection.execute(text("SELECT 7 FROM pg_sleep(1.5)")).scalar() == 7
        assert not connection.invalidated
