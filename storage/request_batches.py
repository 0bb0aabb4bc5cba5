"""Batches of requests that came as a file over HTTP, as OpenAI has them: what each asks for, and how far it is.

Of several servers one holds a batch at a time, by a lease. Every change of a row counts up its step, and names the step that it
was made from: what another holder, or a cancel, has changed meanwhile is never overwritten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from forebay.contract.errors import IllegalTransition, InvalidInput
from forebay.contract.job import JobState
from forebay.storage.files import ADD as ADD_FILE
from forebay.storage.files import FileRecord
from forebay.storage.jobs.queries import JobQueries
from forebay.storage.jobs.records import Outcome
from forebay.storage.jobs.statements import LOCK_KEYS
from forebay.storage.jobs.views import CHILDREN
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement

SAME_S = 600.0  # so long a batch that is created again, without a key, is the same one


class BatchStatus(StrEnum):
    """Where a batch stands, in the words of OpenAI."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


_OPEN = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
ADD = Statement("""
INSERT INTO request_batches (id, owner, status, request_hash, idempotency_key, input_blob, created_at, holder, lease_until,
    step, about) VALUES (:id, :owner, :status, :hash, :key, :blob, :created_at, '', 0, 0, :about)""")
SAME = Statement("""
SELECT about FROM request_batches WHERE request_hash = :hash AND idempotency_key IS NULL AND created_at > :since
AND status NOT IN ('failed', 'expired', 'cancelled') ORDER BY id DESC LIMIT 1""")
BY_KEY = Statement("SELECT about, request_hash FROM request_batches WHERE idempotency_key = :key")
GET = Statement("SELECT about, step FROM request_batches WHERE id = :id AND owner = :owner")
LIST = Statement("""
SELECT about FROM request_batches WHERE owner = :owner AND (:after = '' OR id < :after) ORDER BY id DESC LIMIT :limit""")
ANY_OPEN = Statement(f"SELECT 1 FROM request_batches WHERE {_OPEN} LIMIT 1")
TAKE = Statement(f"""
UPDATE request_batches SET holder = :holder, lease_until = :until WHERE id IN (
    SELECT id FROM request_batches WHERE {_OPEN} AND (holder = :holder OR lease_until <= :now)
    ORDER BY CASE WHEN holder = :holder THEN 0 ELSE 1 END, id LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING about, step""")
RENEW = Statement("""
UPDATE request_batches SET lease_until = :until WHERE id = :id AND step = :step AND holder = :holder RETURNING id""")
GIVE_BACK = Statement("UPDATE request_batches SET holder = '', lease_until = 0 WHERE holder = :holder")
SAVE = Statement("""
UPDATE request_batches SET status = :status, about = :about, step = step + 1
WHERE id = :id AND step = :step AND (:holder = '' OR holder = :holder) RETURNING id""")
DROP_ENDED = Statement(f"DELETE FROM request_batches WHERE created_at < :before AND NOT ({_OPEN})")
OPEN_JOBS = Statement("""
SELECT id FROM jobs WHERE parent_id = :id AND state IN ('queued', 'running') AND id > :after ORDER BY id LIMIT :limit""")
JOBS_BY_KEY = Statement("SELECT idempotency_key, id, parent_id FROM jobs WHERE idempotency_key = ANY(:keys)")


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a batch, or with a line of its input, counted from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class RequestBatch(msgspec.Struct, frozen=True):
    """A batch. Times are seconds since the epoch. The lines up to `next_line` have jobs; `submitted` says that all that ever
    get one do. `tokens`, of which `output_tokens` were generated, is None where
    nothing was counted.
    """  # fmt: skip

    id: str
    owner: str
    submitted_by: str
    input_file_id: str
    input_blob: str
    endpoint: str
    created_at: float
    expires_at: float
    metadata: Mapping[str, str] | None = None
    output_expires_s: int | None = None
    status: BatchStatus = BatchStatus.VALIDATING
    model: str = ""
    total: int = 0
    next_line: int = 0
    submitted: bool = False
    completed: int = 0
    failed: int = 0
    tokens: int | None = None
    output_tokens: int = 0
    errors: tuple[LineError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        s = BatchStatus
        return self.status in (s.VALIDATING, s.IN_PROGRESS, s.FINALIZING, s.CANCELLING)


class StoredBatch(NamedTuple):
    batch: RequestBatch
    step: int


class BatchTaken(Exception):
    """Another server holds the batch now, or it was canceled: it has to be read again."""


class RequestBatches:
    """The batches' rows in the ledger, and their jobs. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._jobs = JobQueries(ledger)

    def add(self, batch: RequestBatch, idempotency_key: str | None = None) -> RequestBatch:
        """Store a new batch; or the one that the same request has made, by its key, or without one within SAME_S."""
        asked = [batch.owner, batch.input_file_id, batch.endpoint, batch.metadata, batch.output_expires_s]
        digest = hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()
        with self._ledger.write() as connection:
            if not self._ledger.sqlite:  # of two that come at once the second waits here
                LOCK_KEYS.execute(connection, keys=[idempotency_key or digest])
            if idempotency_key is not None:
                known = BY_KEY.execute(connection, key=idempotency_key).first()
                if known is not None and known.request_hash != digest:
                    raise InvalidInput("this Idempotency-Key belongs to a batch that asks for something else")
            else:
                known = SAME.execute(connection, hash=digest, since=self._ledger.now() - SAME_S).first()
            if known is not None:
                return _batch(known.about)
            ADD.execute(
                connection, id=batch.id, owner=batch.owner, status=batch.status.value, hash=digest, key=idempotency_key,
                blob=batch.input_blob, created_at=batch.created_at, about=_text(batch),
            )  # fmt: skip
        return batch

    def get(self, id: str, owner: str) -> RequestBatch | None:
        """A batch as it is now, None when there is none."""
        row = self._ledger.row(GET, id=id, owner=owner)
        return None if row is None else self._counted(_batch(row.about))

    def list(self, owner: str, after: str, limit: int) -> list[RequestBatch]:
        """Up to `limit` batches, the newest first; those behind the one that `after` names."""
        rows = self._ledger.rows(LIST, owner=owner, after=after, limit=limit)
        return [self._counted(_batch(row.about)) for row in rows]

    def cancel(self, id: str, owner: str) -> RequestBatch | None:
        """Have a batch canceled, as it is then; None when there is none, IllegalTransition when it is too late."""
        cancelling = BatchStatus.CANCELLING
        while True:
            row = self._ledger.row(GET, id=id, owner=owner)
            if row is None:
                return None
            batch = _batch(row.about)
            if batch.status is cancelling:
                return self._counted(batch)
            if batch.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
                raise IllegalTransition(
                    f"the batch is {batch.status}; one that is validating or in_progress can be canceled"
                )
            changed = msgspec.structs.replace(batch, status=cancelling, cancelling_at=self._ledger.now())
            try:
                self.save(changed, row.step)
            except BatchTaken:
                continue
            return self._counted(changed)

    def take(self, holder: str, lease_s: float, limit: int) -> Sequence[StoredBatch]:
        """Open batches that nobody else holds, `holder`'s own first, for so many seconds. One quick read when none is open."""
        if self._ledger.scalar(ANY_OPEN) is None:
            return []
        now = self._ledger.now()
        with self._ledger.write(durable=False) as connection:
            rows = TAKE.execute(connection, holder=holder, now=now, until=now + lease_s, limit=limit).all()
        return sorted((StoredBatch(_batch(row.about), row.step) for row in rows), key=lambda stored: stored.batch.id)

    def renew(self, stored: StoredBatch, holder: str, lease_s: float) -> None:
        """Hold the batch for so many seconds more; BatchTaken when it is another's, or was changed."""
        values = {"id": stored.batch.id, "step": stored.step, "holder": holder, "until": self._ledger.now() + lease_s}
        with self._ledger.write(durable=False) as connection:
            if RENEW.execute(connection, **values).first() is None:
                raise BatchTaken(stored.batch.id)

    def give_back(self, holder: str) -> None:
        """Hold nothing any more."""
        with self._ledger.write() as connection:
            GIVE_BACK.execute(connection, holder=holder)

    def save(self, batch: RequestBatch, step: int, holder: str = "", files: Sequence[FileRecord] = ()) -> None:
        """Write a batch that was at `step` and, unless `holder` is "", is its; BatchTaken otherwise. `files` come with it."""
        with self._ledger.write() as connection:
            self._save(connection, batch, step, holder)
            for file in files:
                ADD_FILE.execute(connection, **{name: getattr(file, name) for name in FileRecord.__slots__})

    def _save(self, connection: Connection, batch: RequestBatch, step: int, holder: str) -> None:
        values = {"id": batch.id, "status": batch.status.value, "about": _text(batch), "step": step, "holder": holder}
        if SAVE.execute(connection, **values).first() is None:
            raise BatchTaken(batch.id)

    def drop_ended(self, older_than_s: float) -> None:
        """Delete batches that ended and were created longer ago than so many seconds."""
        with self._ledger.write() as connection:
            DROP_ENDED.execute(connection, before=self._ledger.now() - older_than_s)

    def counts(self, id: str) -> dict[JobState, int]:
        """How many of the batch's jobs are in each state."""
        return {JobState(row.state): row.jobs for row in self._ledger.rows(CHILDREN, id=id)}

    def open_jobs(self, id: str, after: str, limit: int) -> Sequence[str]:
        """The ids of the batch's jobs that wait or run, in order, those behind `after`."""
        return [row.id for row in self._ledger.rows(OPEN_JOBS, id=id, after=after, limit=limit)]

    def outcomes(self, id: str, keys: Sequence[str]) -> dict[str, tuple[str, Outcome | None]]:
        """By idempotency key the batch's jobs that there are: the id, and how it ended, None when it has not."""
        rows = [row for row in self._ledger.rows(JOBS_BY_KEY, keys=keys) if row.parent_id == id]
        found = {outcome.id: outcome for outcome in self._jobs.outcomes([row.id for row in rows])}
        return {row.idempotency_key: (row.id, found.get(row.id)) for row in rows}

    def _counted(self, batch: RequestBatch) -> RequestBatch:
        """With how many of its requests have ended, which an open batch's jobs tell."""
        if not batch.open or not batch.total:
            return batch
        counts = self.counts(batch.id)
        bad = sum(counts.get(state, 0) for state in (JobState.FAILED, JobState.CANCELED, JobState.EXPIRED))
        return msgspec.structs.replace(batch, completed=counts.get(JobState.SUCCEEDED, 0), failed=bad)


def _text(batch: RequestBatch) -> str:
    return msgspec.json.encode(batch).decode()


def _batch(about: Any) -> RequestBatch:
    return msgspec.json.decode(about, type=RequestBatch)
