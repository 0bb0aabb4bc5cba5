"""`/metrics`, `/healthz` and `/readyz`, for machines.

`/healthz` is public and says that this process answers. `/readyz` and `/metrics` need the same login as the pages, and
wait for the ledger in a thread, so that a slow one delays nobody else.
"""

from __future__ import annotations

import asyncio

import prometheus_client
from flower.views import BaseHandler
from tornado.web import authenticated

from forebay.contract.errors import ForebayError
from forebay.contract.metrics.exposition import CONTENT_TYPE


class Health(BaseHandler):  # type: ignore[misc] # Flower ships no types
    """`GET /healthz`: 200 while the event loop runs."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/plain")
        self.finish("ok\n")


class Ready(BaseHandler):  # type: ignore[misc]
    """`GET /readyz`: 200 when Redis and the ledger answer, else 503 with what does not."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        missing = [] if self.application.events.connected else ["queue: no connection to Redis"]
        try:
            await asyncio.to_thread(self.application.metrics.ping)
        except ForebayError as error:
            missing.append(f"ledger: {error}")
        self.set_status(503 if missing else 200)
        self.set_header("Content-Type", "text/plain")
        self.finish("".join(f"{line}\n" for line in missing or ["ready"]))


class Metrics(BaseHandler):  # type: ignore[misc]
    """`GET /metrics`: Flower's own and Forebay's, in Prometheus' text format."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        self.application.purge_offline_worker_metrics()
        flowers = prometheus_client.generate_latest()
        ours = await asyncio.to_thread(self.application.metrics.text)
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(flowers + ours)
