"""What the statements about jobs have in common: a transition's states as SQL, what ends a lease, what makes a routed_job.

ModelOutputs from contract.job's table of transitions. The statements themselves stand in storage.jobs, storage.job_requests and
storage.job_reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from forebay.contract.job import TRANSITIONS, Transition
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.records import Ended


def may(transition: Transition) -> str:
    """SQL for 'the job is in a state from which it may make this transition'."""
    sources = ", ".join(f"'{state}'" for state in sorted(TRANSITIONS[transition][0]))
    return f"state IN ({sources})"


def becomes(transition: Transition) -> str:
    """SQL for 'it is then in this state'."""
    return f"state = '{TRANSITIONS[transition][1]}'"


SEVERAL = "kind <> 'predict'"  # each is as long as many jobs, and travels alone
# `attempt` only ever grows, so a zombie's number never comes up again; `uncounted` of them do not count against the limit.
COUNTED = "attempt - uncounted"
ROUTED_JOB = f"id, model, version, queue, priority, crashes, CASE WHEN {SEVERAL} THEN 1 ELSE 0 END"
NO_LEASE = "worker = NULL, lease_until = NULL"
END_LEASE = "lease_until = NULL, finished_at = :now"


def routed_jobs(rows: Iterable[Any]) -> list[RoutedJob]:
    """Rows of ROUTED_JOB, in the order of their ids."""
    return [RoutedJob(*row) for row in sorted(rows)]


def ended(rows: Iterable[Any]) -> list[Ended]:
    """Rows of id and client."""
    return [Ended(*row) for row in rows]
