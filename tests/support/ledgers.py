"""A ledger with its tables, and what tests run against one in processes of their own, where no test module can be imported."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

from forebay.contract.job import JobKind, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.storage.jobs.records import NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.storage.models.registry import ModelRegistry


@contextmanager
def new_ledger(database: str, **options: Any) -> Iterator[Ledger]:
    """A ledger in this database, with its tables."""
    with closing(Ledger(database, create=True, **options)) as ledger:
        upgrade(ledger)
        yield ledger


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
