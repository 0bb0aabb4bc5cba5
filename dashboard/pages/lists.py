"""The lists of jobs, of batches and of training runs: under filters, a page at a time, newest first."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar

from forebay.contract.errors import InvalidInput, ModelNotFound
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.references import check_job_id
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.curves import BestValue, best
from forebay.dashboard.reads.job_filter import FIELDS, JobFilterForm
from forebay.dashboard.reads.ledger import LedgerQueries, Snapshot
from forebay.storage.batches.views import BatchSummary
from forebay.storage.jobs.views import JobFilter
from forebay.storage.training.records import Run

PAGE_SIZE = 50
COUNT_LIMIT = 10_000
COUNTED = (JobState.QUEUED, JobState.RUNNING, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED)
LATEST_TUNES = 5
FEW_POINTS = 100  # of a running run, for its best value so far


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a list, where the next one begins, and how far back was searched if the time was up before it was full."""

    rows: list[Any] = field(default_factory=list)
    next: str | None = None
    searched_to: datetime | None = None
    planning: frozenset[str] = frozenset()  # the batches whose totals are not known yet
    tunes: list[JobInfo] = field(default_factory=list)  # the latest, above the first page of training runs


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One training job; `run` and `best` are None until it has started, and has measured something."""

    job: JobInfo
    run: Run | None
    best: BestValue | None


class ListPage(Page):
    """Jobs of one kind, or of all kinds, that match the form's fields; an invalid field is a 400 and named beside the form."""

    kind: ClassVar[JobKind | None] = None
    fields: ClassVar[tuple[str, ...]] = ("state", "model")
    noun: ClassVar[str]

    @abstractmethod
    def rows(self, queries: LedgerQueries, jobs: Sequence[JobInfo]) -> list[Any]:
        """What the template shows of these jobs, in their order."""

    async def counts(self) -> Snapshot[Mapping[JobState, int]]:
        """Jobs by state, for the page that shows them."""
        return Snapshot({})

    async def get(self) -> None:
        given = {name: text for name in self.fields if (text := self.get_query_argument(name, ""))}
        try:
            form = JobFilterForm.parse(given)
            before = check_job_id(text) if (text := self.get_query_argument("before", "")) else None
            key = (self.tab, form.query(), before)
            page, counts = await asyncio.gather(
                self.ledger.read(key, lambda queries: self._list(queries, form, before)), self.counts()
            )
        except (InvalidInput, ModelNotFound) as error:
            self.set_status(400)
            self._show(JobFilterForm(given, JobFilter()), Snapshot(Listed()), Snapshot({}), refused=str(error))
            return
        self._show(form, page, counts, before)

    def _show(
        self,
        form: JobFilterForm,
        page: Snapshot[Listed],
        counts: Snapshot[Mapping[JobState, int]],
        before: str | None = None,
        refused: str = "",
    ) -> None:
        self.show(
            page, counts, form=form, page=page.value, counts=counts.value or {}, count_limit=COUNT_LIMIT, before=before,
            refused=refused, states=JobState, kinds=JobKind, queues=self.forebay.queues, now=self.now(),
        )  # fmt: skip

    def _list(self, queries: LedgerQueries, form: JobFilterForm, before: str | None) -> Listed:
        wanted = form.filter
        if form.model is not None and form.model.alias is not None:
            wanted = replace(wanted, version=queries.models.resolve(form.model).version)
        if self.kind is not None:
            wanted = replace(wanted, kind=self.kind)
        page = queries.jobs.page(wanted, limit=PAGE_SIZE, before=before)
        return Listed(self.rows(queries, page.jobs), page.next, page.searched_to, queries.batches.planning(page.jobs))


class JobsPage(ListPage):
    """`/jobs`."""

    tab = template = noun = "jobs"
    heading = "Jobs"
    about = "Newest first, from the ledger. Times are UTC."
    poll_s = 2
    fields = FIELDS

    def rows(self, _: LedgerQueries, jobs: Sequence[JobInfo]) -> list[JobInfo]:
        return list(jobs)

    async def counts(self) -> Snapshot[Mapping[JobState, int]]:
        return await self.ledger.read(
            "counts",
            lambda queries: {state: queries.jobs.count_up_to(state, COUNT_LIMIT) for state in COUNTED},
            max_age_s=5,
        )


class BatchesPage(ListPage):
    """`/batches`."""

    tab = template = noun = "batches"
    heading = "Batches"
    about = "Data sets in, data sets out. Newest first."
    kind = JobKind.BATCH

    def rows(self, queries: LedgerQueries, jobs: Sequence[JobInfo]) -> list[tuple[JobInfo, BatchSummary | None]]:
        """Each batch job, with None for those that no worker has started."""
        about = queries.batches.summaries([job.id for job in jobs])
        return [(job, about.get(job.id)) for job in jobs]


class TrainingPage(ListPage):
    """`/training`."""

    tab = template = "training"
    noun = "training runs"
    heading = "Training"
    about = "Training runs, newest first. Select two to six of them to compare."
    kind = JobKind.TRAIN

    def _list(self, queries: LedgerQueries, form: JobFilterForm, before: str | None) -> Listed:
        listed = super()._list(queries, form, before)
        if before is not None or form.fields:
            return listed
        return replace(listed, tunes=queries.store.queries.find(kind=JobKind.TUNE, limit=LATEST_TUNES))

    def rows(self, queries: LedgerQueries, jobs: Sequence[JobInfo]) -> list[TrainingRow]:
        runs = queries.training.runs_by_id([job.id for job in jobs])
        return [_training_row(queries, job, runs.get(job.id)) for job in jobs]


def _training_row(queries: LedgerQueries, job: JobInfo, run: Run | None) -> TrainingRow:
    if run is None:
        return TrainingRow(job, None, None)
    curve = [] if run.metrics else queries.training.sampled_curve(run.id, FEW_POINTS)
    return TrainingRow(job, run, best(run, curve))
