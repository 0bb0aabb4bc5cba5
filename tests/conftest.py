"""What the tests share: a ledger on SQLite and on PostgreSQL, fresh for every test, and a real Valkey.

TEST_POSTGRES may name a server (postgresql://user@host:port) whose user may create databases; else one is
started from Debian's programs. Without either, tests that need one are skipped at home and fail where CI is set.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import settings as hypothesis_settings

from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from support.ledgers import SharedTables, new_ledger
from support.servers import PostgresServer, ValkeyServer, do_without, find_postgres, new_database, running
from support.waiting import FakeClock

KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]

# A loaded machine is no reason to fail; a test that hangs meets pytest-timeout.
hypothesis_settings.register_profile("forebay", deadline=None)
hypothesis_settings.load_profile("forebay")


@pytest.fixture(scope="session")
def pg_url() -> Iterator[str]:
    """A PostgreSQL server, as postgresql://user@host:port without a database."""
    if given := os.environ.get("TEST_POSTGRES"):
        yield urlsplit(given)._replace(path="", query="", fragment="").geturl()
        return
    programs = find_postgres()
    if programs is None:
        do_without("no PostgreSQL: install Debian's package postgresql, or set TEST_POSTGRES")
    with running(PostgresServer(programs)) as server:
        yield server.url


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that the test may stop and start."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("a server that can be stopped needs PostgreSQL's programs: install Debian's package postgresql")
    with running(PostgresServer(programs)) as server:
        yield server


@pytest.fixture
def postgres_database(pg_url: str) -> Iterator[str]:
    """A PostgreSQL database of the test's own, as Forebay's setting names it."""
    with new_database(pg_url) as name:
        yield f"{pg_url.replace('postgresql://', 'postgresql+psycopg://', 1)}/{name}"


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    """Where a SQLite ledger of the test's own is to lie."""
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(params=KINDS)
def empty_database(request: pytest.FixtureRequest) -> str:
    """The address of a database without tables, once of each kind."""
    return str(request.getfixturevalue(f"{request.param}_database"))


@pytest.fixture(scope="session")
def shared_tables(pg_url: str) -> Iterator[SharedTables]:
    """A ledger on PostgreSQL that tests use one after the other: to make one for each costs most of their time."""
    with new_database(pg_url) as name:
        yield SharedTables(f"{pg_url}/{name}")


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite ledger without a row, to be copied: migrations take longer than most tests."""
    path = tmp_path_factory.mktemp("migrated") / "ledger.db"
    with new_ledger(f"sqlite:///{path}"):
        return path


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, sqlite_database: str) -> str:
    """The address of a ledger whose tables are there and empty, once on each kind of database."""
    if request.param == "postgres":
        shared: SharedTables = request.getfixturevalue("shared_tables")
        return shared.emptied()
    shutil.copy(request.getfixturevalue("migrated_file"), sqlite_database.removeprefix("sqlite:///"))
    return sqlite_database


@pytest.fixture
def ledger(database: str) -> Iterator[Ledger]:
    """A ledger with empty tables, once on each kind of database."""
    with closing(Ledger(database)) as ledger:
        yield ledger


@pytest.fixture
def sqlite_ledger(sqlite_database: str, migrated_file: Path) -> Iterator[Ledger]:
    """A ledger on SQLite only."""
    shutil.copy(migrated_file, sqlite_database.removeprefix("sqlite:///"))
    with closing(Ledger(sqlite_database)) as ledger:
        yield ledger


@pytest.fixture
def store(ledger: Ledger) -> JobStore:
    """The jobs of that ledger."""
    return JobStore(ledger)


@pytest.fixture
def registry(ledger: Ledger) -> ModelRegistry:
    """The models of that ledger."""
    return ModelRegistry(ledger)


@pytest.fixture
def clock(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The ledger's clock, which now moves only when the test says so."""
    clock = FakeClock()
    monkeypatch.setattr(ledger, "now", clock)
    return clock


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A real Valkey with a password and no memory; a test may kill and start it."""
    with running(ValkeyServer(tmp_path_factory.mktemp("valkey"))) as server:
        yield server


@pytest.fixture
def broker(valkey: ValkeyServer) -> str:
    """The address of that Valkey, up and empty."""
    valkey.start()
    valkey.flush()
    return valkey.url
