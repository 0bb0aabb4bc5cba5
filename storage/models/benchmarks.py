"""What benchmarks found about versions, by kind of device."""

from __future__ import annotations

from msgspec.structs import replace

from forebay.contract.job import at
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.versions.benchmark import Benchmark
from forebay.storage.jobs.fence import hold, succeed
from forebay.storage.jobs.records import ClaimedJob, Ended
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

ADD = Statement("""
INSERT INTO benchmarks (id, model, version, found, at) VALUES (:id, :model, :version, :found, :now)
ON CONFLICT (id) DO UPDATE SET found = :found, at = :now""")
APPLY = Statement("UPDATE model_versions SET max_batch_size = :rows WHERE name = :model AND version = :version")
OF_VERSION = Statement("""
SELECT found, at FROM benchmarks WHERE model = :model AND version = :version ORDER BY id DESC LIMIT :limit""")


class BenchmarkStore:
    """Keeps benchmarks with their versions. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def finish(self, job: ClaimedJob, found: Benchmark, result: bytes) -> Ended:
        """Keep what was found, give the version its batch size if that is `applied`, and end the job; LeaseLost, and nothing is
        done, when it is no longer this attempt's.
        """  # fmt: skip
        now, version = self._ledger.now(), {"model": found.model, "version": found.version}
        with self._ledger.write() as connection:
            hold(connection, job)
            ADD.execute(connection, id=job.id, found=encode(found).decode(), now=now, **version)
            if found.applied:
                APPLY.execute(connection, rows=found.best, **version)
            succeed(connection, job, result, now)
        return Ended(job.id, job.client)

    def of_version(self, model: str, version: int, limit: int = 20) -> list[Benchmark]:
        """The newest first."""
        rows = self._ledger.rows(OF_VERSION, model=model, version=version, limit=limit)
        return [replace(decode(row.found, Benchmark), at=at(row.at)) for row in rows]
