"""Jobs in a store, brought to a state the way jobs get there."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace
from sqlalchemy import text

from forebay.contract.job import JobError, JobKind, JobState, new_ids
from forebay.storage.jobs.records import Finished, NewJob
from forebay.storage.jobs.store import JobStore

LEASE = 30.0


def new(**fields: Any) -> NewJob:
    given = {
        "id": new_ids(1)[0],
        "kind": JobKind.PREDICT,
        "model": "digits",
        "version": 1,
        "queue": "cpu",
        "input": b"in",
    }
    return NewJob(**(given | fields))


def add(store: JobStore, count: int = 1, **fields: Any) -> list[str]:
    return store.add([new(id=id, **fields) for id in new_ids(count)])


def claim(store: JobStore, ids: Sequence[str], worker: str = "w1") -> list[Finished]:
    """Claim, and give a success for each job that was got."""
    return [Finished(job.id, job.attempt, b"out") for job in store.claim(ids, worker, LEASE)]


def failure(outcome: Finished, type: str = "ValueError", message: str = "bad row") -> Finished:
    return replace(outcome, result=None, error=JobError(type, message))


def in_state(store: JobStore, state: JobState) -> str:
    """A new job that has got into this state the way jobs do."""
    (id,) = add(store, deadline_at=store.ledger.now() + 60 if state is JobState.EXPIRED else None)
    match state:
        case JobState.RUNNING:
            claim(store, [id])
        case JobState.SUCCEEDED:
            store.finish(claim(store, [id]))
        case JobState.FAILED:
            store.finish([failure(o) for o in claim(store, [id])])
        case JobState.CANCELED:
            store.cancel([id])
        case JobState.EXPIRED:
            with store.ledger.write() as connection:
                connection.execute(text("UPDATE jobs SET deadline_at = 1 WHERE id = :id"), {"id": id})
            store.sweeps.expire()
    assert store.queries.get(id).state is state
    return id
