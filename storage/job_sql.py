"""What the statements about jobs have in common: a transition's states as SQL, what ends a lease, what makes a ticket.

Made from contract.job's table of transitions. The statements themselves stand in storage.jobs, storage.job_requests and
storage.job_reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from forebay.contract.job import TRANSITIONS, Transition
from forebay.contract.messages import Ticket
from forebay.storage.records import Ended


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
TICKET = f"id, model, version, queue, priority, crashes, CASE WHEN {SEVERAL} THEN 1 ELSE 0 END"
NO_LEASE = "worker = NULL, lease_until = NULL"
END_LEASE = "lease_until = NULL, finished_at = :now"


def tickets(rows: Iterable[Any]) -> list[Ticket]:
    """Rows of TICKET, in the order of their ids."""
    return [Ticket(*row) for row in sorted(rows)]


def ended(rows: Iterable[Any]) -> list[Ended]:
    """Rows of id and client."""
    return [Ended(*row) for row in rows]
