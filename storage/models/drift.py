"""What versions are held against for drift, and what workers have served of them, by hour."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from forebay.contract.drift.comparison import Drift, compare
from forebay.contract.drift.sketch import WIDTH, Reference, Served
from forebay.contract.errors import InvalidInput, ModelNotFound
from forebay.contract.requests.request import decode, encode
from forebay.storage.jobs.fence import hold, succeed
from forebay.storage.jobs.records import ClaimedJob, Ended
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement

HOUR_S = 3600
KEPT_HOURS = 14 * 24
DAY = 24  # hours: what is looked at unless asked otherwise
MAX_WATCHED = 64  # versions whose drift the dashboard tells as a metric: those served last

# A reference in the place of another one begins anew: what was counted in the other's cells means nothing.
DROP_REFERENCE = Statement("DELETE FROM drift_counts WHERE name = :name AND version = :version")
SET_REFERENCE = Statement("""
INSERT INTO drift_references (name, version, revision, reference, at)
SELECT name, version, 1, :reference, :now FROM model_versions WHERE name = :name AND version = :version
ON CONFLICT (name, version) DO UPDATE SET revision = drift_references.revision + 1, reference = :reference, at = :now
RETURNING revision""")
REVISION = Statement("SELECT revision FROM drift_references WHERE name = :name AND version = :version")
REFERENCE = Statement("SELECT revision, reference FROM drift_references WHERE name = :name AND version = :version")

# Counts of another revision find no reference, and are not kept. Two who begin an hour at once: one begins it.
BEGIN_HOUR = Statement("""
INSERT INTO drift_counts (name, version, hour, rows, counts)
SELECT name, version, :hour, 0, '[]' FROM drift_references
WHERE name = :name AND version = :version AND revision = :revision
ON CONFLICT (name, version, hour) DO NOTHING""")
COUNTED = Statement("""
SELECT c.rows, c.counts FROM drift_counts c
JOIN drift_references r ON r.name = c.name AND r.version = c.version AND r.revision = :revision
WHERE c.name = :name AND c.version = :version AND c.hour = :hour FOR UPDATE""")
SET_COUNTED = Statement("""
UPDATE drift_counts SET rows = :rows, counts = :counts WHERE name = :name AND version = :version AND hour = :hour""")
HOURS = Statement("""
SELECT c.rows, c.counts FROM drift_counts c
JOIN drift_references r ON r.name = c.name AND r.version = c.version AND r.revision = :revision
WHERE c.name = :name AND c.version = :version AND c.hour > :after""")
FORGET = Statement("DELETE FROM drift_counts WHERE hour <= :before")
SERVED_LAST = Statement("""
SELECT name, version FROM drift_counts WHERE hour > :after GROUP BY name, version
ORDER BY max(hour) DESC, name, version LIMIT :limit""")


class DriftStore:
    """References and counts in the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def now_hour(self) -> int:
        return int(self._ledger.now() // HOUR_S)

    def set_reference(self, name: str, version: int, reference: Reference) -> None:
        """Hold the version against this from now on; ModelNotFound when it is gone."""
        with self._ledger.write() as connection:
            set_reference(connection, name, version, reference, self._ledger.now())

    def finish(self, job: ClaimedJob, reference: Reference, result: bytes) -> Ended:
        """Hold the job's version against this from now on, and end the job, which must still be this attempt's."""
        now = self._ledger.now()
        with self._ledger.write() as connection:
            hold(connection, job)
            set_reference(connection, job.model, job.version, reference, now)
            succeed(connection, job, result, now)
        return Ended(job.id, job.client)

    def revision(self, name: str, version: int) -> int | None:
        """The revision of a version's reference; None when it has none. One small read."""
        found: int | None = self._ledger.scalar(REVISION, name=name, version=version)
        return found

    def reference(self, name: str, version: int) -> tuple[int, Reference] | None:
        """A version's reference with its revision."""
        row = self._ledger.row(REFERENCE, name=name, version=version)
        return None if row is None else (row.revision, decode(row.reference, Reference))

    def add(self, served: Sequence[Served]) -> None:
        """Add what was served to what is known of its hours, all or nothing. OutcomeUnknown: it may have been added."""
        with self._ledger.write(durable=False) as connection:
            for one in sorted(
                served, key=lambda s: (s.name, s.version, s.hour)
            ):  # who waits for rows takes them in order
                key = {"name": one.name, "version": one.version, "hour": one.hour}
                BEGIN_HOUR.execute(connection, **key, revision=one.revision)
                row = COUNTED.execute(connection, **key, revision=one.revision).first()
                if row is not None:
                    known = json.loads(row.counts)
                    counts = one.counts + np.array(known, np.int64) if known else one.counts
                    SET_COUNTED.execute(connection, **key, rows=row.rows + one.rows, counts=json.dumps(counts.tolist()))

    def forget(self) -> int:
        """Delete what is older than KEPT_HOURS; how many hours of versions that was."""
        with self._ledger.write() as connection:
            return FORGET.execute(connection, before=self.now_hour() - KEPT_HOURS).rowcount

    def drift(self, model: tuple[str, int], hours: int = DAY) -> Drift | None:
        """How far what was served in the last `hours`, this one among them, is from the reference; None without one."""
        name, version = model
        found = self.reference(name, version)
        if found is None:
            return None
        revision, reference = found
        after = self.now_hour() - check_hours(hours)
        hourly = self._ledger.rows(HOURS, name=name, version=version, revision=revision, after=after)
        counts = np.zeros((len(reference.columns), WIDTH), np.int64)
        for row in hourly:
            counts += np.array(json.loads(row.counts), np.int64)
        return compare(f"{name}/{version}", hours, reference, sum(int(row.rows) for row in hourly), counts)

    def served_last(self) -> list[tuple[str, int]]:
        """The versions that were watched in the last day, those served last first."""
        found = self._ledger.rows(SERVED_LAST, after=self.now_hour() - DAY, limit=MAX_WATCHED)
        return [(row.name, row.version) for row in found]


def set_reference(connection: Connection, name: str, version: int, reference: Reference, now: float) -> None:
    """The same within a transaction of the caller's."""
    values = {"name": name, "version": version}
    if SET_REFERENCE.execute(connection, **values, reference=encode(reference).decode(), now=now).first() is None:
        raise ModelNotFound(f"{name}/{version} has been deleted")
    DROP_REFERENCE.execute(connection, **values)


def check_hours(hours: int) -> int:
    if type(hours) is not int or not 1 <= hours <= KEPT_HOURS:
        raise InvalidInput(
            f"hours {hours!r} is not a whole number from 1 to {KEPT_HOURS}, which is as long as counts are kept"
        )
    return hours
