"""The Batches page: batch jobs, newest first, each with how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.contract.job import JobInfo, JobKind
from forebay.dashboard.pages.kind import KindPage
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.storage.batches.views import BatchAbout


class BatchesPage(KindPage):
    """`/batches`."""

    tab = "batches"
    kind = JobKind.BATCH

    def rows(self, ears: ConsumerHealth, jobs: Sequence[JobInfo]) -> list[tuple[JobInfo, BatchAbout | None]]:
        """Each batch job, None beside those that no worker has begun."""
        about = ears.batches.about([job.id for job in jobs])
        return [(job, about.get(job.id)) for job in jobs]
