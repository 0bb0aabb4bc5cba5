"""What the lists of batches and of training runs share: jobs of one kind under two filters, a page at a time, newest first."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from forebay.contract.errors import ForebayError, InvalidInput, ModelNotFound
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.references import check_job_id
from forebay.dashboard.pages.base import Page
from forebay.dashboard.pages.jobs import PAGE_SIZE, find_page
from forebay.dashboard.reads.job_filter import Form
from forebay.dashboard.reads.ledger_view import Answer, ConsumerHealth

FIELDS = ("state", "model")


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of the list, and where the next page begins."""

    rows: list[Any] = field(default_factory=list)
    next: str | None = None


class KindPage(Page):
    """Its `tab` is also the name of its template; what stands beside each job, `rows` says."""

    kind: ClassVar[JobKind]

    @abstractmethod
    def rows(self, ears: ConsumerHealth, jobs: Sequence[JobInfo]) -> list[Any]:
        """What the template shows of these jobs, in their order."""

    async def get(self) -> None:
        """The page, or the table alone; a field that cannot be meant is answered with 400 and named beside the form."""
        given = {name: self.get_query_argument(name, "") for name in FIELDS}
        try:
            form = Form.parse(given | {"kind": self.kind})
            before = check_job_id(text) if (text := self.get_query_argument("before", "")) else None
            answer = await self.ledger.ask(
                (self.tab, form.query(), before), lambda ears: self._list(ears, form, before)
            )
        except (InvalidInput, ModelNotFound) as error:
            self._refuse(given, error)
            return
        self._show(form, before, answer)

    def _refuse(self, given: dict[str, str], error: ForebayError) -> None:
        self.set_status(400)
        self._show(Form(given, Form.parse({}).filter), None, Answer(Listed()), str(error))

    def _show(self, form: Form, before: str | None, answer: Answer[Listed], refused: str = "") -> None:
        # The kind is what this page is about, and no field of its form.
        query: Any = lambda **more: form.query(kind=None, **more)  # noqa: E731
        self.show(
            self.tab, answer, form=form, page=answer.value, query=query, before=before, refused=refused, states=JobState,
            now=self.now(), page_size=PAGE_SIZE,
        )  # fmt: skip

    def _list(self, ears: ConsumerHealth, form: Form, before: str | None) -> Listed:
        page = find_page(ears, form, before)
        return Listed(self.rows(ears, page.jobs), page.next)
