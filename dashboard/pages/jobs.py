"""The Jobs page: the list under filters, a page at a time, newest first."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from forebay.contract.errors import ForebayError, InvalidInput, ModelNotFound
from forebay.contract.job import JobKind, JobState
from forebay.contract.references import check_job_id
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.job_filter import FIELDS, Form
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.storage.jobs.views import JobPage

PAGE_SIZE = 50
COUNT_LIMIT = 10_000
COUNTED = (JobState.QUEUED, JobState.RUNNING, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED)


class JobsPage(Page):
    """`/jobs`: what its form's fields leave of the jobs."""

    tab = "jobs"

    async def get(self) -> None:
        """The page, or the table alone; a field that cannot be meant is answered with 400 and named beside the form."""
        try:
            form = Form.parse({name: self.get_query_argument(name, "") for name in FIELDS})
            before = check_job_id(text) if (text := self.get_query_argument("before", "")) else None
            page, counts = await asyncio.gather(
                self.ledger.ask(("jobs", form.query(), before), lambda ears: find_page(ears, form, before)),
                self.ledger.ask("counts", _counts, fresh_s=5),
            )
        except (InvalidInput, ModelNotFound) as error:
            await self._refuse(error)
            return
        self.show(
            "jobs", page, counts, form=form, page=page.value, counts=counts.value or {}, count_limit=COUNT_LIMIT,
            before=before, refused="", states=JobState, kinds=JobKind, queues=self.forebay.queues, now=self.now(),
        )  # fmt: skip

    async def _refuse(self, error: ForebayError) -> None:
        """The form as it was filled in, with what is wrong with it."""
        self.set_status(400)
        given = {name: text for name in FIELDS if (text := self.get_query_argument(name, ""))}
        self.show(
            "jobs", form=Form(given, Form.parse({}).filter), page=JobPage([], None), counts={}, count_limit=COUNT_LIMIT,
            before=None, refused=str(error), states=JobState, kinds=JobKind, queues=self.forebay.queues, now=self.now(),
        )  # fmt: skip


def find_page(ears: ConsumerHealth, form: Form, before: str | None) -> JobPage:
    """The jobs that the form leaves, older than `before`; ModelNotFound when it names an alias that is not there."""
    alias = form.model is not None and form.model.alias is not None
    wanted = form.at_version(ears.models.resolve(form.model).version) if alias and form.model else form.filter
    return ears.views.page(wanted, limit=PAGE_SIZE, before=before)


def _counts(ears: ConsumerHealth) -> Mapping[JobState, int]:
    return {state: ears.views.some(state, COUNT_LIMIT) for state in COUNTED}
