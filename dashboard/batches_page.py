"""The Batches page: batch jobs, newest first, each with how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.contract.job import JobInfo, JobKind
from forebay.dashboard.kind_page import KindPage
from forebay.dashboard.ledger_view import Ears
from forebay.storage.batch_views import BatchAbout


class BatchesPage(KindPage):
    """`/batches`."""

    tab = "batches"
    kind = JobKind.BATCH

    def rows(self, ears: Ears, jobs: Sequence[JobInfo]) -> list[tuple[JobInfo, BatchAbout | None]]:
        """Each batch job, None beside those that no worker has begun."""
        about = ears.batches.about([job.id for job in jobs])
        return [(job, about.get(job.id)) for job in jobs]
