"""A ledger of a million made-up jobs for bench.reports: mixed kinds, states, models and queues over 30 days.

One batch among them has most of the shards, a fifth of which hold bad rows; each training job is a run, the newest ones with
curves and one with a very long one. Knows storage only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import Table, text

from forebay.contract.job import JobKind, JobState
from forebay.contract.requests.request import encode
from forebay.contract.requests.shards import ShardOutcome
from forebay.contract.requests.training import TrainRequest
from forebay.contract.row_errors import ErrorKind, ErrorSample
from forebay.storage.ledger import job_tables, tables
from forebay.storage.ledger.connection import Ledger

DAYS = 30
CHUNK = 20_000
MODELS = [f"model-{number:02}" for number in range(20)]
RARE = "rarely-used"
KINDS = {JobKind.PREDICT: 970, JobKind.SHARD: 28, JobKind.BATCH: 1.5, JobKind.TRAIN: 0.5}
STATES = {JobState.SUCCEEDED: 970, JobState.FAILED: 20, JobState.CANCELED: 5, JobState.EXPIRED: 5}
QUEUES = {"cpu": 70, "gpu": 25, "gpu-large": 5}
WAITING, RUNNING = 0.004, 0.0002  # of all jobs, the newest ones
TAGGED = 0.1  # of all jobs carry metadata

LARGE = "0" * 12 + "70008" + "0" * 15  # the id of the batch with very many shards
OF_LARGE = 0.72  # of all shards
BAD = 5  # every so-manieth shard holds bad rows
CURVES, POINTS, LONG_POINTS = 50, 500, 50_000  # runs with a curve, points of each, and of the longest

Row = dict[str, Any]

THE_LARGE: Row = {"id": LARGE, "kind": "batch", "state": "running", "worker": None, "finished_at": None, "result": None}


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
        row = _row(chance, i, created, next(kinds), state, next(queues), now)
        if i == 0:
            row |= THE_LARGE
        elif row["kind"] == JobKind.SHARD:
            row["parent_id"] = LARGE if i < OF_LARGE * count else f"{i // 1000:032x}"
        yield row


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
        "parent_id": None,
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
    _put(ledger, job_tables.jobs, rows(count, ledger.now()))
    shards = _ids(ledger, "SELECT id FROM jobs WHERE parent_id = :large ORDER BY id", large=LARGE)
    runs = _ids(ledger, "SELECT id FROM jobs WHERE kind = 'train' ORDER BY id DESC")
    _put(ledger, job_tables.batches, _batches())
    _put(ledger, job_tables.shards, (_shard(i, id) for i, id in enumerate(shards)))
    _put(ledger, tables.training_runs, map(_run, runs))
    _put(ledger, tables.job_metrics, _points(runs, LONG_POINTS if count > CHUNK else POINTS))
    with ledger.read() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)" if ledger.sqlite else "VACUUM (ANALYZE)"))


def _batches() -> Iterator[Row]:
    yield {
        "id": LARGE, "output": "s3://bucket/out", "files": 1, "bytes": 10**12, "next_file": 1, "next_first": 0, "steps": 9,
        "planned": True,
        "part_schema": b"",
    }  # fmt: skip


def _shard(i: int, id: str) -> Row:
    sample = ErrorSample(f"row {i * 1000}", "expected float32 of shape [4], got list of shape [3]")
    kinds = (ErrorKind("InvalidInput", 5, (sample,) * 3), ErrorKind(f"Error{i % 7}", 2, (sample,) * 2))
    failed = sum(kind.count for kind in kinds) if i % BAD == 0 else 0
    outcome = ShardOutcome(1000 - failed, failed, 5.0, kinds=kinds if failed else ())
    return {
        "id": id, "batch_id": LARGE, "pieces": "[[0, 0, 1000]]", "part": f"part-000000-{i * 1000:015d}", "rows": 1000,
        "bytes": 10**6, "rows_done": outcome.rows, "rows_failed": failed, "seconds": 5.0, "outcome": encode(outcome).decode(),
    }  # fmt: skip


def _run(id: str) -> Row:
    request = msgspec.to_builtins(TrainRequest("classifier", (), "parquet", target="y", params={"lr": 0.1}))
    return {
        "id": id, "model": MODELS[0], "recipe": "classifier", "request": json.dumps(request), "resumed": 0,
        "steps": LONG_POINTS, "data": None, "version": None, "metrics": None, "confusion": None, "promoted": None,
        "verdict": None,
    }  # fmt: skip


def _points(runs: Sequence[str], longest: int) -> Iterator[Row]:
    """The newest run has the longest curve."""
    for number, id in enumerate(runs[:CURVES]):
        for step in range(longest if number == 0 else POINTS):
            yield {
                "job_id": id, "split": "train" if step % 10 else "validation", "step": step, "epoch": step // 100,
                "at": float(step), "measured": json.dumps({"loss": 1 / (step + 1), "accuracy": 0.5}), "rows_per_s": 1000.0,
            }  # fmt: skip


def _ids(ledger: Ledger, statement: str, **values: str) -> list[str]:
    with ledger.read() as connection:
        return list(connection.execute(text(statement), values).scalars())


def _put(ledger: Ledger, table: Table, rows: Iterable[Row]) -> None:
    left = iter(rows)
    while chunk := list(islice(left, CHUNK)):
        with ledger.write(durable=False) as connection:
            if ledger.sqlite:
                connection.execute(table.insert(), chunk)
                continue
            cursor = connection.driver.cursor()
            names = ", ".join(f'"{name}"' for name in chunk[0])
            with cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
                for row in chunk:
                    copy.write_row(tuple(row.values()))
