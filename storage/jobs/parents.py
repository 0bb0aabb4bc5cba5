"""ParentJobs: batches and tunes, whose work other jobs do. Such a job is claimed only to start it or to take it up again; then it
is `running` without a lease until the last of its children has ended.
"""  # fmt: skip

from __future__ import annotations

from forebay.contract.job import JobError, Transition
from forebay.contract.references import plain_text
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs import statements as sql
from forebay.storage.jobs.fence import hold
from forebay.storage.jobs.records import ClaimedJob, Ended, ended, routed_jobs
from forebay.storage.jobs.statements import END_LEASE, HELD, IS_PARENT, NO_LEASE, RESET, ROUTED_JOB, guard, new_state
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement

# One that is retried does what is missing: children that failed before it ended, or were canceled, wait again. Not those that
# have failed since: a batch that was only queued again would never end. A trial that was pruned has told what it is worth.
_UNDONE = f"""parent_id = :id AND {guard(Transition.RETRY)} AND (state = 'canceled' OR finished_at <= (
    SELECT max(ended_at) FROM job_attempts WHERE job_id = :id AND ended IN ('failed', 'canceled', 'expired')))
    AND NOT EXISTS (SELECT 1 FROM trials WHERE trials.id = jobs.id AND pruned IS NOT NULL)"""
KEEP_UNDONE = sql.keep_outcome(_UNDONE)
RETRY_UNDONE = Statement(f"UPDATE jobs SET {RESET} WHERE {_UNDONE} RETURNING {ROUTED_JOB}")

# What was still stopping when its batch was retried has been canceled since, and nobody means that any more.
_CANCELED = "parent_id = :id AND state = 'canceled'"
KEEP_CANCELED = sql.keep_outcome(_CANCELED)
RETRY_CANCELED = Statement(f"UPDATE jobs SET {RESET} WHERE {_CANCELED} RETURNING {ROUTED_JOB}")

HAND_OFF = Statement(f"UPDATE jobs SET {NO_LEASE} {HELD}")
# One that has ended gets no children; the row is held, so that it does not end before the new ones are there.
TOUCH = Statement(f"UPDATE jobs SET sent_at = :now WHERE id = :id AND {guard(Transition.SUCCEED)}")

_NO_OPEN_CHILD = "NOT EXISTS (SELECT 1 FROM jobs s WHERE s.parent_id = jobs.id AND s.state IN ('queued', 'running'))"
COMPLETE = Statement(f"""
UPDATE jobs SET {new_state(Transition.SUCCEED)}, {END_LEASE}, result = :result, result_ref = :ref,
    progress_done = :done, progress_total = :total, progress_message = ''
{HELD} AND {_NO_OPEN_CHILD} RETURNING id, client""")
FAIL = Statement(f"""
UPDATE jobs SET {new_state(Transition.FAIL)}, {END_LEASE}, error_type = :type, error_message = :message,
    progress_done = :done, progress_total = :total
{HELD} RETURNING id, client""")
SET_PROGRESS = Statement("""
UPDATE jobs SET progress_done = :done, progress_total = :total, progress_message = :message
WHERE id = :id AND state = 'running'""")

# One whose last worker died between a child's end and what comes after it: nothing is open, so nobody would look again. It has
# begun before its deadline, which is that of its children by now.
REQUEUE_STALLED = Statement(f"""
UPDATE jobs SET {new_state(Transition.RELEASE)}, uncounted = uncounted + 1, sent_at = :now, deadline_at = NULL WHERE id IN (
    SELECT id FROM jobs WHERE {IS_PARENT} AND {guard(Transition.RELEASE)} AND lease_until IS NULL AND sent_at < :before
    AND {_NO_OPEN_CHILD} FOR UPDATE SKIP LOCKED) RETURNING {ROUTED_JOB}""")

MAX_PROGRESS = 2**31 - 1  # what the columns of progress hold


class ParentJobs:
    """Starts, ends and revives jobs that have children. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def revive(self, connection: Connection, job: ClaimedJob) -> list[RoutedJob]:
        """Hold the claimed job, and queue what waits again because it starts again, to be sent; LeaseLost if it is not ours."""
        now = self._ledger.now()
        hold(connection, job)
        KEEP_UNDONE.execute(connection, id=job.id, now=now)
        return routed_jobs(RETRY_UNDONE.execute(connection, id=job.id, now=now))

    def hand_off(self, job: ClaimedJob) -> None:
        """From now on it runs without a lease: its children have theirs."""
        with self._ledger.write() as connection:
            HAND_OFF.execute(connection, id=job.id, attempt=job.attempt)

    def fail(self, id: str, attempt: int, error: JobError, done: int, total: int) -> list[Ended]:
        """This attempt of it has failed; children that wait are canceled, those that run are asked to stop."""
        end = {"now": self._ledger.now(), "type": error.type, "message": plain_text(error.message)}
        with self._ledger.write() as connection:
            over = ended(FAIL.execute(connection, id=id, attempt=attempt, **end, **progress(done, total)))
            if over:
                sql.CANCEL_CHILDREN.execute(connection, ids=[id], now=end["now"])
        return over

    def cancel_children(self, id: str) -> None:
        """Of one that has ended: cancel the children that wait, ask those that run to stop. Nothing of another one."""
        with self._ledger.write() as connection:
            sql.CANCEL_LEFT_CHILDREN.execute(connection, ids=[id], now=self._ledger.now())

    def retry_canceled(self, id: str) -> list[RoutedJob]:
        """Queue the canceled shards of a batch that runs: they were stopped before it was retried, and have ended since."""
        now = self._ledger.now()
        with self._ledger.write() as connection:
            if TOUCH.execute(connection, id=id, now=now).rowcount == 0:
                return []
            KEEP_CANCELED.execute(connection, id=id, now=now)
            return routed_jobs(RETRY_CANCELED.execute(connection, id=id, now=now))

    def set_progress(self, id: str, done: int, total: int, message: str) -> None:
        """What `forebay jobs` shows of it while it runs."""
        with self._ledger.write(durable=False) as connection:
            SET_PROGRESS.execute(connection, id=id, message=message, **progress(done, total))

    def requeue_stalled(self, older_than_s: float) -> list[RoutedJob]:
        """Those that nobody has looked after for so long though nothing of them is open: queued again, to be sent."""
        now = self._ledger.now()
        with self._ledger.write() as connection:
            return routed_jobs(REQUEUE_STALLED.execute(connection, now=now, before=now - older_than_s))


def progress(done: int, total: int) -> dict[str, int]:
    return {"done": min(done, MAX_PROGRESS), "total": min(total, MAX_PROGRESS)}
