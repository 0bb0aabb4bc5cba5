"""Which jobs are next in the line of some queues and may join others of their version that run. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import merge
from itertools import islice, takewhile
from typing import Any

from forebay.contract.job import JobKind
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

LOOK_AT = 64  # jobs of each queue: a long line must not cost a long look

# Only the first by the index are looked at, also where many of these wait for their time.
IN_LINE = Statement("""
SELECT id, priority, kind, model, version, crashes, input_ref FROM (
    SELECT id, priority, kind, model, version, crashes, input_ref, not_before, deadline_at FROM jobs
    WHERE state = 'queued' AND queue = :queue ORDER BY priority, id LIMIT :look_at) AS line
WHERE not_before IS NULL AND (deadline_at IS NULL OR deadline_at > :now) ORDER BY priority, id""")


def next_of_version(ledger: Ledger, queues: Sequence[str], model: str, version: int, at_most: int) -> list[str]:
    """The ids of predict jobs of the version that stand before all other jobs in these queues, by priority and age.

    A job under which a process has died, or whose input has to be fetched from the blob store, has a turn of its own: it counts
    as another job.
    """  # fmt: skip

    def joins(row: Any) -> bool:
        own = (row.kind, row.model, row.version) == (JobKind.PREDICT, model, version)
        return own and not row.crashes and row.input_ref is None

    now = ledger.now()
    lines = [ledger.rows(IN_LINE, queue=queue, look_at=LOOK_AT, now=now) for queue in queues]
    first = takewhile(joins, merge(*lines, key=lambda row: (row.priority, row.id)))
    return [row.id for row in islice(first, at_most)]
