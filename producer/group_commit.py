"""Submits of several threads at once share a transaction: a commit waits for the disk, and one can carry the jobs of all."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from forebay.contract.errors import OutcomeUnknown
from forebay.storage.jobs.records import NewJob
from forebay.storage.jobs.store import JobStore


@dataclass(slots=True)
class PendingSubmit:
    """One caller's jobs on their way into the ledger, and what became of them."""

    jobs: Sequence[NewJob]
    max_queue_size: int | None
    done: bool = False  # read and written by whoever holds the commit lock
    ids: list[str] = field(default_factory=list)
    error: Exception | None = None

    @property
    def may_be_refused(self) -> bool:
        """Whether its jobs, by a key or a full queue, may fail without a fault of the ledger."""
        return self.max_queue_size is not None or any(job.idempotency_key is not None for job in self.jobs)

    def doubt(self, error: OutcomeUnknown) -> OutcomeUnknown:
        """What is to be told when nobody knows whether its jobs were stored: which ones, and what to do."""
        ids = tuple(job.id for job in self.jobs)
        which = f"job {ids[0]} was" if len(ids) == 1 else f"the {len(ids)} jobs {ids[0]} to {ids[-1]} were"
        advice = f"what was stored runs: before you submit again, look with `forebay jobs show {ids[0]}`"
        return OutcomeUnknown(f"it is not known whether {which} stored; {advice}. {error}", job_ids=ids)


class GroupCommit:
    """Adds jobs to the ledger: whoever gets in commits for all who wait behind, who then find theirs done."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._waiting: list[PendingSubmit] = []
        self._lock = threading.Lock()
        self._committing = threading.Lock()

    def add_all(self, submits: Sequence[PendingSubmit]) -> None:
        """Make the jobs durable. Each submit then has its ids, those of existing jobs for idempotency keys met before, or its
        error: QueueFull, LedgerUnavailable or InvalidInput when nothing of it was stored, OutcomeUnknown when nobody knows.
        """  # fmt: skip
        with self._lock:
            self._waiting += submits
        with self._committing:
            if not all(submit.done for submit in submits):
                self._commit_waiting()
        for submit in submits:
            if isinstance(submit.error, OutcomeUnknown):
                doubt = submit.doubt(submit.error)
                doubt.__cause__, submit.error = submit.error, doubt

    def _commit_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        try:
            sure = [submit for submit in waiting if not submit.may_be_refused]
            # One that may be refused has a transaction of its own, so that the others are not refused with it.
            for group in [sure, *([submit] for submit in waiting if submit.may_be_refused)]:
                self._commit(group)
        finally:
            for submit in waiting:
                submit.done = True

    def _commit(self, group: Sequence[PendingSubmit]) -> None:
        if not group:
            return
        try:
            ids = self._store.add(
                [job for submit in group for job in submit.jobs], max_queue_size=group[0].max_queue_size
            )
        except Exception as error:  # noqa: BLE001 - handed to each caller
            for submit in group:
                submit.error = error
            return
        for submit in group:
            submit.ids, ids = ids[: len(submit.jobs)], ids[len(submit.jobs) :]
