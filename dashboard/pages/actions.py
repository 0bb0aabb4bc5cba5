"""Cancel and retry: what operators may do to a job, from our pages only, and only once they have confirmed it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import structlog
from tornado.web import HTTPError

from forebay.contract.errors import BrokerUnavailable, IllegalTransition, JobNotFound, LedgerUnavailable
from forebay.contract.job import JobState
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.ledger import LedgerQueries

log = structlog.get_logger()


class Action(Page, ABC):
    """A POST that changes one job; its XSRF token has been checked before, see Page.check_xsrf_cookie."""

    def initialize(self, page: str) -> None:
        """`page` names the route of the page with the button, which is shown again."""
        self.page = page

    async def post(self, id: str) -> None:
        """Make the change and show the page again; 403 for viewers, 400 unconfirmed, 404 no such job, 503 no ledger."""
        if not self.user.operator:
            raise HTTPError(403, "only operators may do this; FOREBAY_OPERATORS names them")
        if self.get_body_argument("confirmed", "") != "yes":
            raise HTTPError(400, "this needs a confirmation: use the button on the page")
        try:
            event = await self.ledger.write(lambda queries: self.change(queries, id))
        except JobNotFound as error:
            raise HTTPError(404, "%s", str(error)) from error
        except LedgerUnavailable as error:
            raise HTTPError(503, "%s", str(error)) from error
        if event:
            log.info(event, job=id, user=self.user.name or "(no login)")
        self.redirect(f"{self.reverse_url(self.page, id)}?notice={event or 'job_unchanged'}", status=303)

    @abstractmethod
    def change(self, queries: LedgerQueries, id: str) -> str | None:
        """Make the change, in a thread; its log event, None when there was nothing left to change."""


class CancelJob(Action):
    """Cancels a waiting job, and asks the worker of a running one to stop."""

    def change(self, queries: LedgerQueries, id: str) -> str | None:
        before = queries.store.queries.get(id).state
        if queries.store.cancel([id]):
            return "job_canceled"
        requested = before is JobState.RUNNING and queries.store.queries.get(id).cancel_requested_at is not None
        return "job_cancel_requested" if requested else None


class RetryJob(Action):
    """Queues the job again and sends it; while Redis is away, that is left to the sweeper."""

    def change(self, queries: LedgerQueries, id: str) -> str | None:
        try:
            routed_job = queries.store.retry(id)
        except IllegalTransition:
            return None
        try:
            self.application.dispatcher.send_jobs([routed_job])
        except BrokerUnavailable as error:
            log.warning("send_failed", jobs=1, error=str(error))
            queries.store.mark_unsent([id])
        return "job_retried"
