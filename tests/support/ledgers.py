"""A ledger with its tables, and what tests run against one in processes of their own, where no test module can be imported."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg

from forebay.contract.job import JobKind, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.storage.jobs.records import NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.storage.ledger.tables import metadata
from forebay.storage.models.registry import ModelRegistry

# Tables and indexes with their columns.
SHAPE = """
SELECT c.relname, array_agg(a.attname ORDER BY a.attnum) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped GROUP BY c.relname ORDER BY c.relname"""
CUT_OFF = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"""


@contextmanager
def new_ledger(database: str, **options: Any) -> Iterator[Ledger]:
    """A ledger in this database, with its tables."""
    with closing(Ledger(database, create=True, **options)) as ledger:
        upgrade(ledger)
        yield ledger


class SharedTables:
    """A ledger in a PostgreSQL database, emptied for each test; made anew when a test has changed the tables themselves."""

    def __init__(self, server: str) -> None:
        self._server, self.url = server, server.replace("postgresql://", "postgresql+psycopg://", 1)
        with new_ledger(self.url):
            self._shape = self._run(SHAPE)

    def emptied(self) -> str:
        """Its address, after it has been emptied and whoever is still connected was cut off."""
        self._run(CUT_OFF)
        if self._run(SHAPE) == self._shape:
            self._run(f"TRUNCATE {', '.join(table.name for table in metadata.sorted_tables)}")
        else:
            self._run("DROP SCHEMA public CASCADE")
            self._run("CREATE SCHEMA public")
            with new_ledger(self.url):
                pass
        return self.url

    def _run(self, statement: str) -> list[Any]:
        with psycopg.connect(self._server, autocommit=True) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []


def in_processes(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` gave in each of `count` fresh processes, which run side by side."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        return [future.result(120) for future in [pool.submit(work, *args) for _ in range(count)]]


def add_and_claim(database: str, rounds: int, at_once: int) -> list[str]:
    """Add jobs and claim them, one transaction after the other without a pause; the ids."""
    ledger = Ledger(database)
    store = JobStore(ledger)
    ids = []
    for _ in range(rounds):
        added = store.add([NewJob(id, JobKind.PREDICT, "m", 1, "cpu", input=b"x" * 100) for id in new_ids(at_once)])
        claimed = store.claim(added, "w", 30)
        ids += [job.id for job in claimed]
    ledger.close()
    return ids


def register(database: str, name: str, times: int) -> list[int]:
    """Register versions of one model; their numbers."""
    ledger = Ledger(database)
    registry = ModelRegistry(ledger)
    model = ModelVersion(name, 0, "python", "", "none", 0, Signature())
    versions = [registry.register(model).version for _ in range(times)]
    ledger.close()
    return versions


def upgrade_once(database: str) -> str:
    """Upgrade the ledger; its revision."""
    with closing(Ledger(database, create=True)) as ledger:
        return upgrade(ledger)
