"""The Batches page: batch jobs under two filters, a page at a time, newest first, each with how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from forebay.contract.errors import ForebayError, InvalidInput, ModelNotFound
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.references import check_job_id
from forebay.dashboard.job_filter import Form
from forebay.dashboard.jobs_page import PAGE_SIZE, find_page
from forebay.dashboard.ledger_view import Answer, Ears
from forebay.dashboard.pages import Page
from forebay.storage.batch_views import BatchAbout

FIELDS = ("state", "model")


@dataclass(frozen=True, slots=True)
class BatchList:
    """One page of the list: batch jobs, None beside those that no worker has begun, and where the next page begins."""

    rows: list[tuple[JobInfo, BatchAbout | None]] = field(default_factory=list)
    next: str | None = None


class BatchesPage(Page):
    """`/batches`."""

    tab = "batches"

    async def get(self) -> None:
        """The page, or the table alone; a field that cannot be meant is answered with 400 and named beside the form."""
        given = {name: self.get_query_argument(name, "") for name in FIELDS}
        try:
            form = Form.parse(given | {"kind": JobKind.BATCH})
            before = check_job_id(text) if (text := self.get_query_argument("before", "")) else None
            answer = await self.ledger.ask(("batches", form.query(), before), lambda ears: _list(ears, form, before))
        except (InvalidInput, ModelNotFound) as error:
            self._refuse(given, error)
            return
        self._show(form, before, answer)

    def _refuse(self, given: dict[str, str], error: ForebayError) -> None:
        self.set_status(400)
        self._show(Form(given, Form.parse({}).filter), None, Answer(BatchList()), str(error))

    def _show(self, form: Form, before: str | None, answer: Answer[BatchList], refused: str = "") -> None:
        # The kind is what this page is about, and no field of its form.
        query: Any = lambda **more: form.query(kind=None, **more)  # noqa: E731
        self.show(
            "batches", answer, form=form, page=answer.value, query=query, before=before, refused=refused, states=JobState,
            now=self.now(), page_size=PAGE_SIZE,
        )  # fmt: skip


def _list(ears: Ears, form: Form, before: str | None) -> BatchList:
    page = find_page(ears, form, before)
    about = ears.batches.about([job.id for job in page.jobs])
    return BatchList([(job, about.get(job.id)) for job in page.jobs], page.next)
