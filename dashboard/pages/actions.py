"""Cancel and retry: what operators may do to a job, from a page of ours only, and only once they have said yes.

The change itself is JobStore's; here it is asked for, logged with who asked, and answered with the job's page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import structlog
from tornado.web import HTTPError

from forebay.contract.errors import BrokerUnavailable, IllegalTransition, JobNotFound, LedgerUnavailable
from forebay.contract.job import JobState
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import RoutedJob
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.ledger_view import ConsumerHealth

log = structlog.get_logger()


class Action(Page, ABC):
    """A POST that changes one job. tornado has checked the token before; see Page.check_xsrf_cookie."""

    def initialize(self, page: str = "job") -> None:
        """Called by tornado; `page` names the route of the page that has the button, which is shown again."""
        self.page = page

    async def post(self, id: str) -> None:
        """Do it, and show the job again; 403 for viewers, 400 unconfirmed, 404 without such a job, 503 without a ledger."""
        if not self.user.operator:
            raise HTTPError(403, "only operators may do this; FOREBAY_OPERATORS names them")
        if self.get_body_argument("confirmed", "") != "yes":
            raise HTTPError(400, "this needs a confirmation: use the button on the page")
        try:
            done = await self.ledger.act(lambda ears: self.change(ears, id))
        except JobNotFound as error:
            raise HTTPError(404, "%s", str(error)) from error
        except LedgerUnavailable as error:
            raise HTTPError(503, "%s", str(error)) from error
        if done:
            log.info(done, job=id, user=self.user.name or "(no login)")
        self.redirect(f"{self.reverse_url(self.page, id)}?said={done or 'job_moved_on'}", status=303)

    @abstractmethod
    def change(self, ears: ConsumerHealth, id: str) -> str | None:
        """Make the change, in a thread; the event that came of it, None when there was nothing left to change."""


class CancelJob(Action):
    """`POST /jobs/ID/cancel`."""

    def change(self, ears: ConsumerHealth, id: str) -> str | None:
        """Cancel the job if it still waits, ask its worker to stop if it runs."""
        before = ears.store.get(id).state
        if ears.store.cancel([id]):
            return "job_canceled"
        asked = before is JobState.RUNNING and ears.store.get(id).cancel_requested_at is not None
        return "job_cancel_requested" if asked else None


class RetryJob(Action):
    """`POST /jobs/ID/retry`."""

    def change(self, ears: ConsumerHealth, id: str) -> str | None:
        """Queue the job afresh and send it; a sweeper sends it where Redis is away."""
        try:
            routed_job = ears.store.retry(id)
        except IllegalTransition:
            return None
        _send(self.application.dispatcher, routed_job, ears)
        return "job_retried"


def _send(dispatcher: Dispatcher, routed_job: RoutedJob, ears: ConsumerHealth) -> None:
    try:
        dispatcher.send_jobs([routed_job])
    except BrokerUnavailable as error:
        log.warning("send_failed", jobs=1, error=str(error))
        ears.store.mark_unsent([routed_job.id])
