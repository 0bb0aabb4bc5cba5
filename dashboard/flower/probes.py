"""`/metrics`, `/healthz` and `/readyz`, for machines.

`/healthz` is public and says that this process answers. `/readyz` and `/metrics` need the same login as the pages. A ledger
that is unavailable shows as `forebay_ledger_up 0`, not as an error.
"""

from __future__ import annotations

import asyncio

import prometheus_client
from flower.views import BaseHandler
from tornado.web import authenticated

from forebay.contract.metrics.exposition import CONTENT_TYPE
from forebay.dashboard.flower.metrics import WITHOUT_LEDGER, read_metrics

METRICS_AGE_S = 5.0  # so that several scrapers cost the ledger no more than one
METRICS_WAIT_S = 10.0  # Prometheus' own limit for a scrape


class Health(BaseHandler):  # type: ignore[misc] # Flower ships no types
    """`GET /healthz`: 200 while the event loop runs."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/plain")
        self.finish("ok\n")


class Ready(BaseHandler):  # type: ignore[misc]
    """`GET /readyz`: 200 when Redis and the ledger answer, else 503 with what does not, at the latest after 3 s."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        redis, answer = await asyncio.gather(
            self.application.redis.problem(max_age_s=0),
            self.application.ledger.read("ping", lambda queries: queries.ledger.ping(), max_age_s=0),
        )
        missing = [f"queue: Redis {redis}"] if redis else []
        missing += [f"ledger: {answer.problem}"] if answer.problem else []
        self.set_status(503 if missing else 200)
        self.set_header("Content-Type", "text/plain")
        self.finish("".join(f"{line}\n" for line in missing or ["ready"]))


class Metrics(BaseHandler):  # type: ignore[misc]
    """`GET /metrics`: Flower's own and Forebay's, in Prometheus' text format."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        self.application.purge_offline_worker_metrics()
        flowers, settings = prometheus_client.generate_latest(), self.application.forebay
        ours = await self.application.ledger.read(
            "metrics", lambda queries: read_metrics(queries, settings), METRICS_AGE_S, METRICS_WAIT_S
        )
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(flowers + (WITHOUT_LEDGER if ours.problem else ours.value))
