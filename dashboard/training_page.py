"""The Training page: training runs under two filters, newest first, each with how far it is and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from forebay.contract.errors import ForebayError, InvalidInput, ModelNotFound
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.references import check_job_id
from forebay.dashboard.curves import Best, best
from forebay.dashboard.job_filter import Form
from forebay.dashboard.jobs_page import find_page
from forebay.dashboard.ledger_view import Answer, Ears
from forebay.dashboard.pages import Page
from forebay.storage.training_records import Run

FIELDS = ("state", "model")
FEW_POINTS = 100  # of a run that goes on, for the best so far


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One training job; `run` and `best` are None until it has begun, and has measured something."""

    job: JobInfo
    run: Run | None
    best: Best | None


@dataclass(frozen=True, slots=True)
class TrainingList:
    """One page of the list, and where the next page begins."""

    rows: list[TrainingRow] = field(default_factory=list)
    next: str | None = None


class TrainingPage(Page):
    """`/training`."""

    tab = "training"

    async def get(self) -> None:
        """The page, or the table alone; a field that cannot be meant is answered with 400 and named beside the form."""
        given = {name: self.get_query_argument(name, "") for name in FIELDS}
        try:
            form = Form.parse(given | {"kind": JobKind.TRAIN})
            before = check_job_id(text) if (text := self.get_query_argument("before", "")) else None
            answer = await self.ledger.ask(("training", form.query(), before), lambda ears: _list(ears, form, before))
        except (InvalidInput, ModelNotFound) as error:
            self._refuse(given, error)
            return
        self._show(form, before, answer)

    def _refuse(self, given: dict[str, str], error: ForebayError) -> None:
        self.set_status(400)
        self._show(Form(given, Form.parse({}).filter), None, Answer(TrainingList()), str(error))

    def _show(self, form: Form, before: str | None, answer: Answer[TrainingList], refused: str = "") -> None:
        # The kind is what this page is about, and no field of its form.
        query: Any = lambda **more: form.query(kind=None, **more)  # noqa: E731
        self.show(
            "training", answer, form=form, page=answer.value, query=query, before=before, refused=refused,
            states=JobState, now=self.now(),
        )  # fmt: skip


def _list(ears: Ears, form: Form, before: str | None) -> TrainingList:
    page = find_page(ears, form, before)
    runs = ears.training.about([job.id for job in page.jobs])
    return TrainingList([_row(ears, job, runs.get(job.id)) for job in page.jobs], page.next)


def _row(ears: Ears, job: JobInfo, run: Run | None) -> TrainingRow:
    if run is None:
        return TrainingRow(job, None, None)
    curve = [] if run.metrics else ears.training.thinned(run.id, FEW_POINTS)
    return TrainingRow(job, run, best(run, curve))
