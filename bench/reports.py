"""How long the ledger's reports take among a million jobs, and what 2,000 jobs cost to add, claim and finish there.

`python -m forebay.bench.reports DATABASE` fills an empty ledger with jobs of mixed kinds, states, models and queues over 30
days, if it holds none yet, asks every report of JobStore several times, and prints the medians. It knows storage only.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import text

from forebay.contract.job import JobKind, JobState, new_ids
from forebay.storage import tables
from forebay.storage.jobs import JobStore
from forebay.storage.ledger import Ledger
from forebay.storage.migrate import upgrade
from forebay.storage.records import Finished, NewJob

DAYS = 30
CHUNK = 20_000
LIMIT_MS = 300.0
MODELS = [f"model-{number:02}" for number in range(20)]
RARE = "rarely-used"
KINDS = {JobKind.PREDICT: 970, JobKind.SHARD: 28, JobKind.BATCH: 1.5, JobKind.TRAIN: 0.5}
STATES = {JobState.SUCCEEDED: 970, JobState.FAILED: 20, JobState.CANCELED: 5, JobState.EXPIRED: 5}
QUEUES = {"cpu": 70, "gpu": 25, "gpu-large": 5}
WAITING, RUNNING = 0.004, 0.0002  # of all jobs, the newest ones
TAGGED = 0.1  # of all jobs carry metadata
BATCH = 2_000

Row = dict[str, Any]


def rows(count: int, now: float, seed: int = 0) -> Iterator[Row]:
    """`count` jobs, oldest first, as rows of the table."""
    chance = random.Random(seed)
    kinds, states, queues = _drawn(chance, KINDS, count), _drawn(chance, STATES, count), _drawn(chance, QUEUES, count)
    waiting, running = int(count * WAITING), int(count * RUNNING)
    for i in range(count):
        created = now - DAYS * 86400 * (1 - i / count)
        left = count - i
        state = JobState.QUEUED if left <= waiting else next(states)
        state = JobState.RUNNING if waiting < left <= waiting + running else state
        yield _row(chance, i, created, next(kinds), state, next(queues), now)


def _drawn(chance: random.Random, table: Mapping[Any, float], count: int) -> Iterator[Any]:
    return iter(chance.choices(list(table), list(table.values()), k=count))


def _row(chance: random.Random, i: int, created: float, kind: JobKind, state: JobState, queue: str, now: float) -> Row:
    model = RARE if chance.random() < 0.00002 else MODELS[min(int(chance.expovariate(0.3)), len(MODELS) - 1)]
    started = (
        None if state in (JobState.QUEUED, JobState.CANCELED, JobState.EXPIRED) else created + chance.expovariate(0.5)
    )
    finished = (started or created) + chance.expovariate(2.0) if state.final else None
    failed = state is JobState.FAILED
    return {
        "id": f"{int(created * 1000):012x}7{i & 0xFFF:03x}8{chance.getrandbits(60):015x}",
        "kind": kind.value,
        "state": state.value,
        "model": model,
        "version": 1 + chance.getrandbits(2) % 3,
        "queue": queue,
        "priority": 5,
        "attempt": 0 if started is None else 1,
        "uncounted": 0,
        "max_attempts": 3,
        "worker": None if started is None else f"{queue}@host-{i % 8}",
        "lease_until": now + 30 if state is JobState.RUNNING else None,
        "created_at": created,
        "sent_at": created,
        "started_at": started,
        "finished_at": finished,
        "deadline_at": None,
        "progress_done": 1 if state is JobState.SUCCEEDED else 0,
        "progress_total": 1,
        "progress_message": "",
        "error_type": "ValueError" if failed else None,
        "error_message": "a negative input" if failed else None,
        "metadata": json.dumps({"user": f"u{chance.getrandbits(9)}"}) if chance.random() < TAGGED else "{}",
        "parent_id": f"{i // 1000:032x}" if kind is JobKind.SHARD else None,
        "client": None,
        "idempotency_key": None,
        "request_hash": None,
        "input_ref": None,
        "result_ref": None,
        "input": b"\0" * 300,
        "result": b"\0" * 100 if state is JobState.SUCCEEDED else None,
    }


def fill(ledger: Ledger, count: int) -> None:
    """Put `count` jobs into an empty ledger, as fast as each database takes them, and let it gather its statistics."""
    insert, chunk = tables.jobs.insert(), []
    for row in rows(count, ledger.now()):
        chunk.append(row)
        if len(chunk) == CHUNK:
            _put(ledger, insert, chunk)
            chunk = []
    if chunk:
        _put(ledger, insert, chunk)
    with ledger.read() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)" if ledger.sqlite else "VACUUM (ANALYZE) jobs"))


def _put(ledger: Ledger, insert: Any, chunk: list[Row]) -> None:
    with ledger.write(durable=False) as connection:
        if ledger.sqlite:
            connection.execute(insert, chunk)
            return
        cursor: Any = connection.connection.cursor()
        with cursor.copy(f"COPY jobs ({', '.join(chunk[0])}) FROM STDIN") as copy:
            for row in chunk:
                copy.write_row(tuple(row.values()))


def reports(store: JobStore) -> dict[str, Callable[[], object]]:
    """Every report there is, with each of its filters, by a name for the table."""
    page = store.find(limit=100)
    some = [job.id for job in page]
    middle = f"{int((store.ledger.now() - 86400 * DAYS / 2) * 1000):012x}" + "0" * 20
    found: dict[str, Callable[[], object]] = {
        "get": lambda: store.get(some[0]),
        "find": store.find,
        "find before (middle)": lambda: store.find(before=middle),
        "counts": store.counts,
        "counts of a model": lambda: store.counts(model=MODELS[3]),
        "counts of a rare model": lambda: store.counts(model=RARE),
        "depths": store.depths,
        "queues_waiting": lambda: store.queues_waiting(10.0),
        "outcomes of 100": lambda: store.outcomes(some),
        "states of 100": lambda: store.states(some),
    }
    for state in JobState:
        found[f"find state={state}"] = lambda state=state: store.find(state=[state])  # type: ignore[misc]
    for kind in JobKind:
        found[f"find kind={kind}"] = lambda kind=kind: store.find(kind=kind)  # type: ignore[misc]
    for name, model in {"common": MODELS[0], "rare": RARE, "unknown": "none"}.items():
        found[f"find model ({name})"] = lambda model=model: store.find(model=model)  # type: ignore[misc]
    return found | {
        "find model, version": lambda: store.find(model=MODELS[12], version=2),
        "find model, version (unknown)": lambda: store.find(model=MODELS[0], version=9),
        "find failed of a model": lambda: store.find(model=MODELS[9], state=[JobState.FAILED]),
        "find failed or expired": lambda: store.find(state=[JobState.FAILED, JobState.EXPIRED]),
        "find failed of a rare model": lambda: store.find(model=RARE, state=[JobState.FAILED]),
        "find parent": lambda: store.find(parent_id=f"{500:032x}", limit=1000),
        "find metadata": lambda: store.find(metadata={"user": "u7"}),
        "find metadata (unknown)": lambda: store.find(metadata={"user": "nobody"}),
    }


def median_ms(action: Callable[[], object], rounds: int) -> float:
    """The median of `rounds` calls, in milliseconds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def hot_path(store: JobStore, rounds: int) -> dict[str, float]:
    """What 2,000 jobs cost to add, to claim and to finish, in milliseconds; they are deleted again."""
    taken: dict[str, list[float]] = {"add": [], "claim": [], "finish": []}
    for _ in range(rounds):
        ids = new_ids(BATCH)
        jobs = [NewJob(id, JobKind.PREDICT, MODELS[0], 1, "cpu", input=b"\0" * 300) for id in ids]
        started = time.perf_counter()
        store.add(jobs)
        added = time.perf_counter()
        claimed = [job for start in range(0, BATCH, 256) for job in store.claim(ids[start : start + 256], "bench", 60)]
        took = time.perf_counter()
        store.finish([Finished(job.id, job.attempt, result=b"\0" * 100) for job in claimed])
        ended = time.perf_counter()
        for name, seconds in zip(taken, (added - started, took - added, ended - took), strict=True):
            taken[name].append(1000 * seconds)
        with store.ledger.write() as connection:
            connection.execute(text("DELETE FROM jobs WHERE worker = 'bench' AND id >= :first"), {"first": ids[0]})
    return {f"{name} {BATCH} jobs": statistics.median(values) for name, values in taken.items()}


def main(arguments: list[str] | None = None) -> int:
    """Fill, ask, print; 1 when a report took longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", help="sqlite:////path/ledger.db or postgresql+psycopg://user@host/name")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    ledger = Ledger(given.database, create=True)
    try:
        upgrade(ledger)
        store = JobStore(ledger)
        if not store.find(limit=1):
            fill(ledger, given.jobs)
        slow = 0
        for name, report in reports(store).items():
            took = median_ms(report, given.rounds)
            slow += took > LIMIT_MS
            sys.stdout.write(f"{name:<32}{took:>10.1f} ms{'  too slow' if took > LIMIT_MS else ''}\n")
            sys.stdout.flush()
        for name, took in hot_path(store, given.rounds).items():
            sys.stdout.write(f"{name:<32}{took:>10.1f} ms\n")
    finally:
        ledger.close()
    return int(slow > 0)


if __name__ == "__main__":
    raise SystemExit(main())
