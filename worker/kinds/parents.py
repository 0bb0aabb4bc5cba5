"""Starting jobs whose work their children do: batches and tunes."""

from __future__ import annotations

from collections.abc import Callable

from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.backoff import may_pass


def start_parent(job: ClaimedJob, attempts: Attempts, start: Callable[[ClaimedJob], bool]) -> bool:
    """Start a claimed one, or take it up again; whether it goes on. What may pass is tried again, and never fails it."""
    try:
        return start(job)
    except Exception as error:
        if not may_pass(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        attempts.postpone(job, reason, counted=job.tries < job.max_attempts)
        return False
