"""Gathers what the audit needs: the ledger's rows and results, every write of a final state, the log of executions.

A trigger on `jobs` fills a table of chaos' own: the ledger holds one outcome of a job, so only a trigger sees a second one
written over it. Both live in the chaos run's database and nowhere else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaos.audit import Accepted, Entry, Evidence
from chaos.load import output_of
from chaos.outputs import read_output
from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.job import FINAL, JobKind, JobState
from forebay.contract.setting_kinds import mask_password
from forebay.contract.settings import Settings
from forebay.contract.wire import codec
from forebay.producer.requests.audit import audit as audit_batch
from forebay.producer.session import Session
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.jobs.records import Outcome
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry

READ_AT_ONCE = 500
FINAL_STATES = ", ".join(f"'{state}'" for state in sorted(FINAL))
FINAL_WRITE = f"OLD.state IN ({FINAL_STATES}) OR NEW.state IN ({FINAL_STATES})"

# A final state is written once, and no final row is ever touched again: whatever else is done to one is seen here.
TABLE = (
    "CREATE TABLE chaos_final_writes (id VARCHAR(32) NOT NULL, was VARCHAR(16) NOT NULL, became VARCHAR(16) NOT NULL)"
)
SQLITE = f"""
CREATE TRIGGER chaos_final_writes AFTER UPDATE ON jobs WHEN {FINAL_WRITE}
BEGIN INSERT INTO chaos_final_writes VALUES (NEW.id, OLD.state, NEW.state); END"""
POSTGRES = (
    """
CREATE FUNCTION chaos_final_writes() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO chaos_final_writes VALUES (NEW.id, OLD.state, NEW.state); RETURN NULL; END $$""",
    f"""
CREATE TRIGGER chaos_final_writes AFTER UPDATE ON jobs FOR EACH ROW WHEN ({FINAL_WRITE}) EXECUTE FUNCTION chaos_final_writes()""",
)
REMOVE_SQLITE = ("DROP TRIGGER chaos_final_writes", "DROP TABLE chaos_final_writes")
REMOVE_POSTGRES = (
    "DROP TRIGGER chaos_final_writes ON jobs",
    "DROP FUNCTION chaos_final_writes",
    "DROP TABLE chaos_final_writes",
)

WRITES = "SELECT id, count(*) FROM chaos_final_writes GROUP BY id"
ROWS = """
SELECT id, state, attempt, uncounted, max_attempts, error_type FROM jobs
WHERE kind IN ('predict', 'batch', 'train', 'evaluate')"""
RETRIED = f"SELECT job_id, ended, reason FROM job_attempts WHERE ended IN ({FINAL_STATES})"
EVALUATIONS = "SELECT id, count(*) FROM evaluations GROUP BY id"


def install_write_trigger(ledger: Ledger) -> None:
    """Have every write of a final state noted; InvalidInput when the ledger is in use, for this is no place to break things."""
    counts = JobStore(ledger).queries.counts()
    if any(counts.values()):
        raise InvalidInput(
            f"the ledger {mask_password(ledger.url)} holds {sum(counts.values())} jobs; give chaos an empty database"
        )
    _run(ledger, (TABLE, SQLITE) if ledger.sqlite else (TABLE, *POSTGRES))


def remove_write_trigger(ledger: Ledger) -> None:
    """Leave nothing of chaos' own in a database that was given."""
    _run(ledger, REMOVE_SQLITE if ledger.sqlite else REMOVE_POSTGRES)


def gather(ledger: Ledger, payloads: Payloads, log: Path) -> Evidence:
    """What ledger and log say once nothing runs any more. What batches have written is `read_outputs`'."""
    with ledger.read() as connection:
        writes = {id: int(count) for id, count in connection.exec_driver_sql(WRITES)}
        rows = list(connection.exec_driver_sql(ROWS))
        evaluations = {id: int(count) for id, count in connection.exec_driver_sql(EVALUATIONS)}
        retried: defaultdict[str, list[tuple[JobState, str]]] = defaultdict(list)
        for id, ended, reason in connection.exec_driver_sql(RETRIED):
            retried[id].append((JobState(ended), reason.partition(":")[0]))
    results = _results(JobStore(ledger), payloads, [row[0] for row in rows])
    entries = {
        id: Entry(JobState(state), attempt, uncounted, most, error, results.get(id), tuple(retried[id]))
        for id, state, attempt, uncounted, most, error in rows
    }
    versions: defaultdict[str, list[int]] = defaultdict(list)
    for model in ModelRegistry(ledger).versions():
        if "lineage" in model.metadata:
            versions[model.metadata["lineage"]["job"]].append(model.version)
    return Evidence(entries, writes, read_log(log), versions=versions, evaluations=evaluations)


def read_outputs(evidence: Evidence, accepted: Sequence[Accepted], settings: Settings, folder: Path) -> Evidence:
    """The same with what batches have written, row by row, and with what `forebay jobs audit` finds."""
    batches = [job for job in accepted if job.spec.kind is JobKind.BATCH and job.id in evidence.ledger]
    ended_well = [job for job in batches if evidence.ledger[job.id].state is JobState.SUCCEEDED]
    outputs = {job.id: read_output(output_of(folder, job.number), job.number, job.spec) for job in ended_well}
    with closing(Session(settings)) as session:
        audits = {job.id: audit_batch(session, job.id)["faults"] for job in ended_well}
    return replace(evidence, outputs=outputs, audits=audits)


def read_log(path: Path) -> Counter[tuple[int, int]]:
    """How often each row was run; none when no worker has run anything."""
    if not path.exists():
        return Counter()
    lines = path.read_text(encoding="ascii").splitlines()
    return Counter((int(job), int(row)) for job, row in (line.split() for line in lines))


def _results(store: JobStore, payloads: Payloads, ids: list[str]) -> dict[str, Any]:
    return {
        outcome.id: _result(outcome, payloads)
        for start in range(0, len(ids), READ_AT_ONCE)
        for outcome in store.queries.outcomes(ids[start : start + READ_AT_ONCE])
        if outcome.state is JobState.SUCCEEDED
    }


def _result(outcome: Outcome, payloads: Payloads) -> Any:
    """The result; None, which is nobody's, for one that cannot be read."""
    try:
        return codec.decode(payloads.load(outcome.result, outcome.result_ref))
    except ForebayError:
        return None


def _run(ledger: Ledger, statements: tuple[str, ...]) -> None:
    with ledger.write() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
